#!/bin/sh
# torch 2.14.1: get_optimizer_state_dict of torch.distributed.checkpoint takes a step with an
# optimizer that has taken none, so a checkpoint saved before training changes the training.
#
# Expected: the state, and an optimizer as before; optimizer.state_dict() leaves it alone. The step
# has gradients of zero and a learning rate of zero, so the parameters stay, but Adam's counter of
# steps is 1 and its next corrections are those of a second step. One process, nothing cut, no
# warning; the documentation does not say it.
# Output seen: first step over that without reading: Adam 0.74, Rprop 0.00, SGD with momentum and
#   dampening 0.50; counter in the checkpoint of step 0: 1
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
"$PYTHON" -W ignore - <<'P'
from functools import partial

import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.optim import SGD, Adam, Rprop

def first_step(make, read):
    """Return the length of the first step, and the counter of steps that was read before it."""
    torch.manual_seed(0)
    network = torch.nn.Linear(4, 3).double()
    before = network.weight.detach().clone()
    optimizer = make(network.parameters(), lr=0.1)
    state = read(network, optimizer)["state"]
    counter = int(state["weight"].get("step", 0)) if state else 0
    network(torch.randn(8, 4, dtype=torch.float64)).square().mean().backward()
    optimizer.step()
    return float((network.weight.detach() - before).norm()), counter

def ratio(make):
    usual, _ = first_step(make, lambda network, optimizer: optimizer.state_dict())
    after, counter = first_step(make, get_optimizer_state_dict)
    return round(after / usual, 2), counter

(adam, counter), (rprop, _) = ratio(Adam), ratio(Rprop)
sgd, _ = ratio(partial(SGD, momentum=0.9, dampening=0.5))
print(
    f"first step over that without reading: Adam {adam:.2f}, Rprop {rprop:.2f}, SGD with momentum "
    f"and\n  dampening {sgd:.2f}; counter in the checkpoint of step 0: {counter}"
)
raise SystemExit((adam, rprop, sgd, counter) != (0.74, 0, 0.5, 1))
P
