#!/bin/sh
# loss-landscapes 3.0.6 with torch 2.14.1: the larger `distance` is in random_line and random_plane, the
# shorter is the way: the line goes as far as the norm of the weights divided by `distance`.
#
# Expected: "maximum distance in parameter space from the start point", as documented. With the default
# of random_line, 0.1, the line leaves the model by ten times its norm. Its first point is one step away
# from the model, whose loss is not on the line; a plane has the model at one of `steps` / 2.
# Output seen: distance of the points from the model, over the norm of its weights
#   distance=0.1: first 1.00, last 10.00
#   distance=1: first 0.10, last 1.00
#   distance=10: first 0.01, last 0.10
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
"$PYTHON" -m pip install --quiet --no-deps --target "$folder/site" loss-landscapes==3.0.6
PYTHONPATH="$folder/site" "$PYTHON" -W ignore - <<'P'
import loss_landscapes
import torch
from loss_landscapes.metrics import Metric

def flat(parameters):
    return torch.cat([parameter.detach().flatten() for parameter in parameters])

class Way(Metric):
    def __call__(self, wrapper):
        return float((flat(wrapper.get_module_parameters().parameters) - start).norm())

torch.manual_seed(0)
model = torch.nn.Linear(20, 10).double()
start = flat(model.parameters()).clone()
print("distance of the points from the model, over the norm of its weights")
seen = []
for distance in (0.1, 1, 10):
    way = loss_landscapes.random_line(model, Way(), distance=distance, steps=10, deepcopy_model=True)
    first, last = (float(way[at] / start.norm()) for at in (0, -1))
    print(f"  distance={distance}: first {first:.2f}, last {last:.2f}")
    seen.append(abs(first * distance - 0.1) < 1e-6 and abs(last * distance - 1) < 1e-6)
raise SystemExit(not all(seen))
P
