#!/bin/sh
# threadpoolctl 3.8.0 with NumPy 2.4.6 (OpenBLAS with pthreads): two `with threadpool_limits(1)` blocks in two Python threads that
# overlap leave BLAS at 1 thread for the rest of the process, although both have ended.
#
# Expected: 3.8.0 gives the limit to one Python thread at a time ("other threads silently do nothing"), so that the number of
# before comes back when its owner leaves. Seen: the second block reads the owner's 1 as the number to put back; it ends after
# the owner, is then free to set, and sets 1. What a library does: one block at a time, under a lock of its own.
# Output seen: before [2], both inside [1], after the first has left [2], after both have left [1]
# Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 threadpoolctl==3.8.0
OPENBLAS_NUM_THREADS=2 "$folder/venv/bin/python" - <<'P'
import threading

import numpy  # noqa: F401
from threadpoolctl import threadpool_info, threadpool_limits

def blas():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

entered, leave, left = threading.Event(), threading.Event(), threading.Event()

def first():
    with threadpool_limits(limits=1, user_api="blas"):
        entered.set()
        leave.wait()
    left.set()

seen = [blas()]
owner = threading.Thread(target=first)
owner.start()
entered.wait()
with threadpool_limits(limits=1, user_api="blas"):
    seen.append(blas())
    leave.set()
    left.wait()
    owner.join()
    seen.append(blas())
seen.append(blas())
print("before {}, both inside {}, after the first has left {}, after both have left {}".format(*seen))
raise SystemExit(seen != [[2], [1], [2], [1]])
P
