#!/bin/sh
# torch 2.14.1: the gradient of mse_loss of DTensors that N processes hold in parts is N times too
# large, although the value is right. Where N does not divide the rows, the value is wrong too.
#
# Expected: the loss and gradient of the whole tensors, as from ((x - y) ** 2).mean() of the same
# DTensors, and from cross_entropy. The backward pass divides by the number of elements that one
# process holds; the value is an average of the processes' averages, whatever their rows.
# smooth_l1_loss, huber_loss, binary_cross_entropy and soft_margin_loss do the same. No warning.
# Output seen: over those of the whole tensors, on 3 processes
#   12 rows: mse_loss 1.00, its gradient 3.00; smooth_l1_loss 1.00, 3.00; by hand 1.00, 1.00
#   7 rows: mse_loss 1.12, its gradient 3.87; smooth_l1_loss 1.09, 3.41; by hand 1.00, 1.00
# PYTHON=... uses a Python that has torch 2.14.1 instead of installing it.
# Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "$PYTHON" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
        torch==2.14.1 numpy
    PYTHON="$folder/venv/bin/python"
fi
cat >"$folder/run.py" <<'P'
import sys

import torch
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
from torch.nn.functional import mse_loss, smooth_l1_loss

PROCESSES = 3
LOSSES = (mse_loss, smooth_l1_loss, lambda x, y: ((x - y) ** 2).mean())

def ratios(loss, mesh, rows):
    generator = torch.Generator().manual_seed(rows)
    x, y = torch.randn(2, rows, 4, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    part = distribute_tensor(x.detach(), mesh, [Shard(0)]).requires_grad_()
    whole, parts = loss(x, y), loss(part, distribute_tensor(y, mesh, [Shard(0)]))
    (truth,), (gradient,) = torch.autograd.grad(whole, x), torch.autograd.grad(parts, part)
    value = float(parts.full_tensor().detach() / whole.detach())
    return round(value, 2), round(float(gradient.full_tensor().norm() / truth.norm()), 2)

def main(rank, folder):
    init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=PROCESSES)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    even, uneven = ([ratios(loss, mesh, rows) for loss in LOSSES] for rows in (12, 7))
    destroy_process_group()
    if rank:
        return
    print(f"over those of the whole tensors, on {PROCESSES} processes")
    for rows, (mse, smooth, by_hand) in ((12, even), (7, uneven)):
        print(
            f"  {rows} rows: mse_loss {mse[0]:.2f}, its gradient {mse[1]:.2f}; smooth_l1_loss "
            f"{smooth[0]:.2f}, {smooth[1]:.2f}; by hand {by_hand[0]:.2f}, {by_hand[1]:.2f}"
        )
    wrong = even[:2] == [(1, PROCESSES)] * 2 and all(value != 1 for value, _ in uneven[:2])
    if not (wrong and even[2] == uneven[2] == (1, 1)):
        raise SystemExit(1)

if __name__ == "__main__":
    torch.multiprocessing.spawn(main, (sys.argv[1],), PROCESSES)
P
OMP_NUM_THREADS=1 "$PYTHON" -W ignore "$folder/run.py" "$folder"
