#!/bin/sh
# open_clip_torch 3.3.0 with torch 2.14.1: in the loss of open_clip_train with its defaults, on N
# processes, the gradients of both towers are 1/N of the loss's gradient, and that of logit_scale is
# whole. So the direction of the whole gradient depends on the number of processes.
#
# Expected: the gradient of the printed loss, which is the same for any N. Without --gather-with-grad a
# process sees the others' features as constants, so each has its part of the sum, and
# DistributedDataParallel takes the mean of the parts. Adam hides it, as it divides by the size; clipping
# (--grad-clip-norm), weight decay by SGD and a second-moment estimate in a checkpoint do not.
# Output seen: gradient over that of the loss on one process, of the towers and of logit_scale
#   2 processes: default 0.500 0.500 1.000, gather_with_grad 1.000 1.000 1.000
#   4 processes: default 0.250 0.250 1.000, gather_with_grad 1.000 1.000 1.000
# PYTHON=... uses a Python that has torch 2.14.1 and open_clip_torch's requirements instead of installing them.
# Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "$PYTHON" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
        torch==2.14.1 numpy
    "$folder/venv/bin/pip" install --quiet torchvision timm==1.0.31 ftfy regex tqdm safetensors huggingface_hub
    PYTHON="$folder/venv/bin/python"
fi
"$PYTHON" -m pip install --quiet --no-deps --target "$folder/site" open_clip_torch==3.3.0
cat > "$folder/open_clip_gradients_by_processes.py" <<'P'
import os
import socket
import sys

import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss

ROWS = 8

class Towers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = (torch.nn.Linear(k, 4, bias=False).double() for k in (6, 5))
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, images, texts):
        features = [F.normalize(f, dim=-1) for f in (self.image(images), self.text(texts))]
        return *features, self.logit_scale.exp()

def gradients(model, rows, **options):
    generator = torch.Generator().manual_seed(1)
    inputs = (torch.randn(ROWS, k, generator=generator).double()[rows] for k in (6, 5))
    ClipLoss(**options)(*model(*inputs)).backward()
    return [p.grad.norm().item() for p in sorted(model.parameters(), key=lambda p: -p.numel())]

def work(rank, count, port, ratios):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=count)
    whole = gradients(Towers(), slice(None))
    rows = slice(rank * ROWS // count, (rank + 1) * ROWS // count)
    for at, gather in enumerate((False, True)):
        model = torch.nn.parallel.DistributedDataParallel(Towers())
        options = {"rank": rank, "world_size": count, "gather_with_grad": gather}
        part = gradients(model, rows, **options)
        if rank == 0:
            ratios[at] = torch.tensor(part) / torch.tensor(whole)
    torch.distributed.destroy_process_group()

def main():
    changed = False
    print("gradient over that of the loss on one process, of the towers and of logit_scale")
    for count in (2, 4):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ratios = torch.zeros(2, 3).share_memory_()
        torch.multiprocessing.spawn(work, (count, port, ratios), nprocs=count)
        text = [" ".join(f"{value:.3f}" for value in row) for row in ratios.tolist()]
        print(f"  {count} processes: default {text[0]}, gather_with_grad {text[1]}")
        expected = torch.tensor([[1 / count, 1 / count, 1], [1, 1, 1]])
        changed |= not torch.allclose(ratios, expected, atol=1e-6)
    return int(changed)

if __name__ == "__main__":
    sys.exit(main())
P
cd "$folder"
GLOO_SOCKET_IFNAME=lo PYTHONPATH="$folder/site" "$PYTHON" -W ignore open_clip_gradients_by_processes.py
