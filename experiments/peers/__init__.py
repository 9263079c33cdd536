"""What `benchmark_peers.py` is made of: the problem, its truth, the contenders, the processes they
run in, the tables.
"""
