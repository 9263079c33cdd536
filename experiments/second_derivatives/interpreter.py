"""Run a package's unchanged Triton kernels on CPU tensors, in Triton's interpreter. Needs
TRITON_INTERPRET=1.

What asks for a GPU beside the kernels is replaced: triton's driver, the timing of autotune settings
(the setting with the smallest blocks is taken), torch.cuda.device, and the properties of the
device. No kernel and no autograd.Function is touched.
"""

import builtins
import contextlib
import math
import os
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch

_PROPERTIES = types.SimpleNamespace(
    multi_processor_count=2, name="interpreter", gcnArchName="", major=8, minor=0
)


class _Driver:
    """The questions that packages ask of triton's driver, answered for a CPU."""

    def get_current_target(self) -> Any:
        return types.SimpleNamespace(backend="cuda", arch=80, warp_size=32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cuda

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0


class _Index(int):
    """A loop index as compiled Triton has it, with `.to`; the interpreter's is a plain int."""

    def to(self, dtype: Any) -> "_Index":
        return self


def _range(*bounds: Any) -> Iterator[_Index]:
    yield from map(_Index, builtins.range(*map(int, bounds)))


def _smallest_blocks(tuner: Any, _: Any) -> list[Any]:
    sizes = [
        math.prod(x for x in config.kwargs.values() if type(x) is int) for config in tuner.configs
    ]
    return [tuner.configs[sizes.index(min(sizes))]]


def use_interpreter() -> None:
    """Prepare for importing packages with Triton kernels."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("TRITON_INTERPRET must be 1 before triton is imported.")
    import triton
    from triton.runtime.autotuner import Autotuner

    triton.runtime.driver.set_active(_Driver())
    Autotuner.prune_configs = _smallest_blocks
    torch.cuda.device = lambda index: contextlib.nullcontext()  # type: ignore[assignment,misc]
    torch.cuda.get_device_properties = lambda *_: _PROPERTIES  # type: ignore[assignment]
    torch.cuda.get_device_capability = lambda *_: (8, 0)
    # Compiled extensions that mamba-ssm imports at its top and that nothing here calls.
    for name in ("selective_scan_cuda", "causal_conv1d_cuda"):
        sys.modules.setdefault(name, types.ModuleType(name))


def with_loop_index(package: str) -> None:
    """Give `range` in the modules of a package's kernels an index with `.to`."""
    for name, module in list(sys.modules.items()):
        if name.startswith(package) and module is not None:
            module.range = _range  # type: ignore[attr-defined]
