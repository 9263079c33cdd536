"""The choice of a scan's implementation by device.

Imports only torch and landscape.errors; looks for packages without loading them.

"reference" is the recurrence as a Python loop, for any device; "log_depth" is plain PyTorch in
ceil(log2 length) rounds, for any device; "cpu" is Numba; "gpu" is Triton. "auto" takes the kernel
of the tensors' device where it is installed, and "log_depth" elsewhere.
"""

import functools
import importlib.util
import os
from typing import Literal

import torch

from landscape.errors import MissingDependencyError

Backend = Literal["auto", "reference", "log_depth", "cpu", "gpu"]
_NEEDS = {"cpu": "numba", "gpu": "triton"}


@functools.cache
def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def resolve_backend(backend: Backend, device: torch.device) -> str:
    """Choose the back end that runs on `device`.

    Raises:
        ValueError: If the back end is unknown, or is for another device.
        MissingDependencyError: If the back end was asked for by name and its package is not
            installed.
    """
    if backend == "auto":
        kernel = {"cpu": "cpu", "cuda": "gpu"}.get(device.type, "log_depth")
        return kernel if kernel == "log_depth" or _is_installed(_NEEDS[kernel]) else "log_depth"
    if backend not in ("reference", "log_depth", "cpu", "gpu"):
        raise ValueError(
            f"backend must be one of auto, reference, log_depth, cpu, gpu; got {backend!r}."
        )
    if backend in _NEEDS and not _is_installed(_NEEDS[backend]):
        raise MissingDependencyError(
            f"backend={backend!r} needs the package {_NEEDS[backend]}, which is not installed: "
            f"`pip install {_NEEDS[backend]}`, or use backend='auto'."
        )
    # Triton's interpreter runs on the CPU; the tests use it where there is no GPU.
    interpreted = backend == "gpu" and os.environ.get("TRITON_INTERPRET") == "1"
    runs_on = {"cpu": "cpu", "gpu": "cuda"}.get(backend, device.type)
    if device.type != runs_on and not interpreted:
        raise ValueError(
            f"backend={backend!r} runs on {runs_on} tensors, got {device.type} ones: use "
            "backend='auto'."
        )
    return backend
