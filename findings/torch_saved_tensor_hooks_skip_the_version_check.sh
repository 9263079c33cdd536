#!/bin/sh
# torch 2.14.1: a tensor that an operation saved and that is changed in place before the backward pass is refused by its version
# counter. Under saved-tensor hooks autograd does not look at the counter, and the gradient is silently wrong; so it is under
# torch.autograd.graph.save_on_cpu() where tensors are on the CPU already, since nothing is copied there. Code that is tried on a
# laptop under hooks (offloading, quantised activations, weights that are gathered again) has lost the refusal that it relies on.
#
# Expected: the same refusal; detached tensors share the counter, so it could be compared.
# Output seen, for the derivative 2 x of sum(x * x) at 1, 2, 3, where x is doubled afterwards:
#   without hooks: refused
#   hooks that return what they are given: 4, 8, 12
#   save_on_cpu: 4, 8, 12
# PYTHON=... uses a Python that has torch 2.14.1 instead of installing it. Exits 1 if the behaviour changes.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -z "$PYTHON" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.14.1 numpy
    PYTHON="$folder/venv/bin/python"
fi
"$PYTHON" - <<'P'
from contextlib import nullcontext

import torch
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

assert torch.__version__.partition("+")[0] == "2.14.1", torch.__version__


def derivative(hooks):
    leaf = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    with hooks:
        x = leaf.clone()
        total = (x * x).sum()
    with torch.no_grad():
        x.mul_(2.0)
    try:
        (gradient,) = torch.autograd.grad(total, leaf)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error), error
        return "refused"
    return ", ".join(f"{value:g}" for value in gradient.tolist())


seen = {
    "without hooks": derivative(nullcontext()),
    "hooks that return what they are given": derivative(
        saved_tensors_hooks(lambda tensor: tensor.detach(), lambda kept: kept)
    ),
    "save_on_cpu": derivative(save_on_cpu()),
}
for name, value in seen.items():
    print(f"{name}: {value}")
expected = {
    "without hooks": "refused",
    "hooks that return what they are given": "4, 8, 12",
    "save_on_cpu": "4, 8, 12",
}
raise SystemExit(seen != expected)
P
