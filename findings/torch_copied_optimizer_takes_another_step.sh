#!/bin/sh
# torch 2.14.1: copy.deepcopy(optimizer) keeps the state, the groups and the defaults, and drops every other attribute and all hooks,
# without a word. An optimizer whose attribute has a default in its class then steps with that default, and one whose step hook
# clips gradients steps without clipping. LBFGS, whose parameters are such an attribute, has a copy that cannot step. Tools
# that take the next step on a copy, to measure the loss or the curvature along it, measure along another step.
#
# Expected: the copy takes the step that the original takes, or copying raises. Optimizer.__getstate__ names three attributes.
# Output seen:
#   an attribute with a default in its class: the copy moves by 1.0, the optimizer by 5.0
#   a hook that clips: the copy moves by 1.0, the optimizer by 0.1
#   LBFGS: the copy raises AttributeError
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
import copy

import torch

assert torch.__version__.partition("+")[0] == "2.14.1", torch.__version__


class Scaled(torch.optim.Optimizer):
    """Gradient descent whose step is multiplied by an attribute."""

    scale = 1.0

    def __init__(self, params):
        super().__init__(params, {"lr": 1.0})

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            parameter -= self.scale * parameter.grad


def moved(optimizer):
    """How far a step moves the parameter, from a gradient of 1."""
    (parameter,) = optimizer.param_groups[0]["params"]
    before = parameter.item()
    parameter.grad = torch.ones(1)
    optimizer.step()
    return round(before - parameter.item(), 6)


def both(optimizer):
    return moved(copy.deepcopy(optimizer)), moved(optimizer)


def weight():
    return [torch.nn.Parameter(torch.zeros(1))]


scaled = Scaled(weight())
scaled.scale = 5.0
clipped = torch.optim.SGD(weight(), lr=1.0)


def clip(optimizer, arguments, options):
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 0.1)


clipped.register_step_pre_hook(clip)
by_attribute, by_hook = both(scaled), both(clipped)
print("an attribute with a default in its class: the copy moves by %s, the optimizer by %s" % by_attribute)
print("a hook that clips: the copy moves by %s, the optimizer by %s" % by_hook)
try:
    copy.deepcopy(torch.optim.LBFGS(weight())).step(lambda: torch.zeros(()))
    raised = "nothing"
except AttributeError:
    raised = "AttributeError"
print(f"LBFGS: the copy raises {raised}")
assert by_attribute == (1.0, 5.0) and by_hook == (1.0, 0.1) and raised == "AttributeError", "the behaviour has changed"
P
