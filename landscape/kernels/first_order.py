"""mamba-ssm's CUDA scan, for training only: its gradients have no derivatives.

The gradients are right, but cannot be differentiated again. `selective_scan` uses it inside
`first_order_kernels`, which the trainer enters on request, and never inside `second_order`, in
which everything of `landscape.curvature` is evaluated.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import cast

import torch
from torch import Tensor

from landscape.errors import LandscapeError, MissingDependencyError

_MODULE = "mamba_ssm.ops.selective_scan_interface"
_DEVICE = "cuda"
# Number of open blocks of either kind. They are counted per process, not per thread: checkpointed
# layers run again in autograd's threads.
_open = {"first": 0, "second": 0}


@contextmanager
def _counted(kind: str) -> Iterator[None]:
    _open[kind] += 1
    try:
        yield
    finally:
        _open[kind] -= 1


@contextmanager
def first_order_kernels(device: torch.device) -> Iterator[None]:
    """Let scans on `device` run on mamba-ssm's kernel, for first derivatives only.

    Raises:
        LandscapeError: If `device` is no CUDA device.
        MissingDependencyError: If mamba-ssm or its CUDA extension is not installed.
    """
    if device.type != _DEVICE:
        raise LandscapeError(
            f"mamba-ssm's scan runs on {_DEVICE} devices, not on {device}: train with "
            "scan='landscape'."
        )
    _kernel()
    with _counted("first"):
        yield


def second_order() -> AbstractContextManager[None]:
    """Exclude first-order kernels, whatever blocks are open around this one."""
    return _counted("second")


def training_scan(x: Tensor) -> Callable[..., Tensor] | None:
    """Return mamba-ssm's `selective_scan_fn` if it may compute the scan of `x`."""
    if (
        not _open["first"]
        or _open["second"]
        or x.device.type != _DEVICE
        or x.dtype != torch.float32
    ):
        return None
    return _kernel()


def _kernel() -> Callable[..., Tensor]:
    try:
        return cast(Callable[..., Tensor], importlib.import_module(_MODULE).selective_scan_fn)
    except ImportError as error:
        raise MissingDependencyError(
            f"mamba-ssm's scan cannot be imported ({error}). It needs CUDA and is compiled where "
            "it is installed: `pip install --no-build-isolation mamba-ssm`, or train with "
            "scan='landscape'."
        ) from error
