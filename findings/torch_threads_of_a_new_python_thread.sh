#!/bin/sh
# torch 2.14.1 on a CPU: a block that sets torch.set_num_threads(1) and puts the old number back changes other Python threads
# for good. One that first computes during the block has 1 thread for the rest of its life; one that computed before is not
# touched by the block at all.
#
# Expected: a number of the process, so that putting it back puts it back for all. Seen: OpenMP keeps a number for each Python
# thread, and each copies torch's at its first operation. What a library does for a section on one thread: set OpenMP's own
# number (threadpoolctl, user_api="openmp"), which belongs to the calling Python thread.
# Output seen: afterwards: main 4, begun before 4 (inside the block 4), begun inside 1
# Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.14.1
"$folder/venv/bin/python" - <<'P'
import threading

import torch

torch.set_num_threads(4)
inside, after = threading.Event(), threading.Event()
seen = {"before": [], "inside": []}
ready, answered = ({name: threading.Event() for name in seen} for _ in range(2))

def user(name):
    torch.ones(100_000).sum()
    ready[name].set()
    inside.wait()
    seen[name].append(torch.get_num_threads())
    answered[name].set()
    after.wait()
    torch.ones(100_000).sum()
    seen[name].append(torch.get_num_threads())

users = [threading.Thread(target=user, args=(name,)) for name in seen]
users[0].start()
ready["before"].wait()
torch.set_num_threads(1)
users[1].start()
ready["inside"].wait()
inside.set()
for told in answered.values():
    told.wait()
torch.set_num_threads(4)
after.set()
for thread in users:
    thread.join()
print(f"afterwards: main {torch.get_num_threads()}, begun before {seen['before'][1]} "
      f"(inside the block {seen['before'][0]}), begun inside {seen['inside'][1]}")
raise SystemExit((torch.get_num_threads(), seen) != (4, {"before": [4, 4], "inside": [1, 1]}))
P
