#!/bin/sh
# torch 2.14.1: torch.func.functional_call evaluates a module with other tensors and puts its own back. In a module that is
# registered under two names (self.b = self.a) it puts the other tensors back: afterwards the module holds them in place of its
# parameters, they are no nn.Parameter, and an optimizer trains tensors that the model no longer has. So every later forward
# pass is that of the other values. Networks that share a layer, or a loss that holds the model as well, are built so.
#
# Expected: the module is as before, as functional_call promises, and as it is with tie_weights=False. With the default,
# tie_weights=True, each tensor is swapped once for every name; the second swap takes the new tensor for the original.
# Output seen:
#   one layer under two names: kept False, nn.Parameter False, forward pass as before False
#   with tie_weights=False: kept True, nn.Parameter True, forward pass as before True
#   one weight of two layers: kept True, nn.Parameter True, forward pass as before True
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
import torch
from torch import nn

assert torch.__version__.partition("+")[0] == "2.14.1", torch.__version__
x = torch.ones(1, 2)


class Module(nn.Module):
    """Two layers that are one, or two layers with one weight."""

    def __init__(self, same_layer):
        super().__init__()
        self.a = nn.Linear(2, 2)
        self.b = self.a if same_layer else nn.Linear(2, 2)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))


def after(model, **options):
    """Is the weight still there, is it a parameter, and does the model compute what it did?"""
    weight, output = model.a.weight, model(x).detach()
    others = {name: tensor.detach() + 1 for name, tensor in model.named_parameters()}
    torch.func.functional_call(model, others, (x,), **options)
    return model.a.weight is weight, isinstance(model.a.weight, nn.Parameter), torch.equal(model(x), output)


cases = {
    "one layer under two names": after(Module(True)),
    "with tie_weights=False": after(Module(True), tie_weights=False),
    "one weight of two layers": after(Module(False)),
}
for title, (kept, is_parameter, same) in cases.items():
    print(f"{title}: kept {kept}, nn.Parameter {is_parameter}, forward pass as before {same}")
assert list(cases.values()) == [(False,) * 3, (True,) * 3, (True,) * 3], "the behaviour has changed"
P
