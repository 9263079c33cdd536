#!/bin/sh
# torch-optimizer 0.3.0 with torch 2.14.1: for a parameter of three dimensions, such as a table of
# positions or the kernel of a Conv1d, Adahessian takes the curvature of the parameter before it.
#
# Expected: the parameter's own. get_trace has cases for up to two and for four dimensions; in all
# others the last value stays and is broadcast, as here a bias over the positions. Where the shapes
# do not fit or it is the first parameter, the step raises; where they fit, nothing is said.
# Output seen: entries with the curvature of the bias before: 40 of 40; over their own: 0.1 to 23.9
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
"$PYTHON" -m pip install --quiet --no-deps --target "$folder/site" torch-optimizer==0.3.0 \
    pytorch-ranger==0.1.1
PYTHONPATH="$folder/site" "$PYTHON" -W ignore - <<'P'
import torch
from torch_optimizer import Adahessian

class Positions(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.zeros(1, 5, 8))

    def forward(self, x):
        return x + self.table

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
network = torch.nn.Sequential(
    torch.nn.Linear(6, 8), Positions(), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(40, 3)
)
bias, table = network[0].bias, network[1].table
params = list(network.parameters())
optimizer = Adahessian(params)
loss = torch.nn.functional.cross_entropy(network(torch.randn(16, 5, 6)), torch.arange(16) % 3)
loss.backward(create_graph=True)

# The optimizer's random vector, from the same seed.
torch.manual_seed(1)
vector = [2 * torch.randint_like(p, high=2) - 1 for p in params]
products = torch.autograd.grad([p.grad for p in params], params, vector, retain_graph=True)
own = next(product.abs() for p, product in zip(params, products) if p is table)

torch.manual_seed(1)
optimizer.step()
used = {p: (optimizer.state[p]["exp_hessian_diag_sq"] / (1 - 0.999)).sqrt() for p in params}
same = int(torch.isclose(used[table], used[bias].expand(1, 5, 8)).sum())
ratio = used[table] / own
print(
    f"entries with the curvature of the bias before: {same} of {table.numel()}; over their own: "
    f"{ratio.min():.1f} to {ratio.max():.1f}"
)
raise SystemExit(not (same == table.numel() and ratio.max() > 2))
P
