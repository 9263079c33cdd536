"""The command line as `python -m landscape`, for torchrun.

torchrun can then start it: `torchrun -m landscape train ...`.
"""

from landscape.cli import main

if __name__ == "__main__":
    main(prog_name="landscape")
