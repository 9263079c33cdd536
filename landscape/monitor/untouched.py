"""Evaluation of a model that leaves its training as it was.

The forward hooks of the model run, as in any evaluation. What they change outside of the model is
not restored.
"""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def untouched(model: nn.Module, *, eval_mode: bool) -> Iterator[None]:
    """Restore modes and random states after a section that evaluates a model.

    The modes are those of all modules; the states are those of random generators.

    Autocast is off in the section. Weights, gradients and buffers are not restored: what evaluates
    must not change them. The operators of landscape copy them.

    Args:
        eval_mode: Whether every module is in eval mode meanwhile. The attribute `training` is set
            directly: some models do more in `eval()`, such as merging adapters into their weights.
    """
    modes = [(module, module.training) for module in model.modules()]
    with ExitStack() as stack:
        stack.callback(_restore_modes, modes)
        stack.enter_context(_random_states())
        for kind in {parameter.device.type for parameter in model.parameters()} | {"cpu"}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if eval_mode:
            for module, training in modes:
                if training:
                    module.training = False
        yield


def _restore_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        if module.training != training:
            module.training = training


@contextmanager
def _random_states() -> Iterator[None]:
    """Restore the global random generators of Python, NumPy and torch.

    Those of all devices in use are restored too.
    """
    of_python, of_numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    of_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    of_mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)
        if of_cuda is not None:
            torch.cuda.set_rng_state_all(of_cuda)
        if of_mps is not None:
            torch.mps.set_rng_state(of_mps)


def synchronize(model: nn.Module) -> None:
    """Wait for the GPUs to finish.

    Otherwise time of training would count as time of measuring, or the reverse.
    """
    if torch.cuda.is_initialized() and any(parameter.is_cuda for parameter in model.parameters()):
        torch.cuda.synchronize()


def unwrapped(model: nn.Module) -> nn.Module:
    """Remove the wrappers of torch.compile and DistributedDataParallel from a model.

    The weights are the same.
    """
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model
