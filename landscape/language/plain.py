"""Plain paths through the modules of transformers, which can be differentiated twice.

No fused kernels, and all digits of float64.

Imports no transformers: everything is found in the modules that a model is made of.
"""

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# The decorator of transformers that takes a function of mamba_ssm, causal_conv1d or fla where that
# package is installed.
_FALLBACK = "use_kernel_func_from_hub_with_fallback"
# The flag by which earlier versions decided.
_FAST_PATH = "is_fast_path_available"


class WholeDoubles(TorchFunctionMode):
    """A mode that keeps float64 where code asks for float32.

    transformers computes norms, the softmax of attention, time steps and losses in float32, so that
    16 bits do not lose more. Of a model in float64 the same casts would leave 24 of its 53 bits.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        given = (*args, *kwargs.values())
        if not any(isinstance(value, Tensor) and value.dtype == torch.float64 for value in given):
            return func(*args, **kwargs)
        if func is Tensor.float:
            return args[0]
        kept = [torch.float64 if value is torch.float32 else value for value in args]
        named = {
            name: torch.float64 if value is torch.float32 else value
            for name, value in kwargs.items()
        }
        return func(*kept, **named)


# Functions that look rows up, each with its first arguments; other names of these arguments follow.
_LOOKUPS: dict[Any, tuple[str, ...]] = {
    F.embedding: ("index", "table"),
    torch.embedding: ("table", "index"),
    torch.gather: ("table", "dim", "index"),
    Tensor.gather: ("table", "dim", "index"),
}
_SAME = {"input": "table", "weight": "table", "indices": "index"}


class _CheckedLookups(TorchFunctionMode):
    """A mode that refuses rows that a table does not have.

    A kernel never sees them: on CUDA it would end all work of the process.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        names = _LOOKUPS.get(func, ())
        same = _SAME | ({"input": "index"} if func is F.embedding else {})
        given = dict(zip(names, args)) | {
            same.get(name, name): value for name, value in kwargs.items()
        }
        if names and given["index"].numel():
            num_rows = given["table"].shape[given.get("dim", 0)]
            least, most = (int(bound) for bound in torch.aminmax(given["index"]))
            if least < 0 or most >= num_rows:
                raise IndexError(f"row {least if least < 0 else most} of a table of {num_rows}")
        return func(*args, **kwargs)


def checked_lookups() -> TorchFunctionMode:
    """Make an embedding of a missing row raise IndexError on every device.

    This holds in the section.
    """
    return _CheckedLookups()


@contextmanager
def plain_paths(model: nn.Module) -> Iterator[None]:
    """Evaluate a model by the code of transformers, at full precision.

    All digits of its parameters are kept.

    The functions that are put in the place of kernels belong to the modules of transformers; they
    are put back.
    """
    swaps = [*_plain_functions(frozenset(type(part).__module__ for part in model.modules()))]
    before = [(module, name, getattr(module, name)) for module, name, _ in swaps]
    dtype = next(model.parameters()).dtype
    try:
        for module, name, plain in swaps:
            setattr(module, name, plain)
        with ExitStack() as stack:
            if dtype == torch.float64:
                stack.enter_context(WholeDoubles())
            yield
    finally:
        for module, name, function in before:
            setattr(module, name, function)


def names_of_kernels(model: nn.Module) -> list[str]:
    """List a model's functions that transformers would replace by kernels.

    It does where a kernel is installed.
    """
    swaps = _plain_functions(frozenset(type(part).__module__ for part in model.modules()))
    return sorted({name for _, name, plain in swaps if callable(plain)})


@cache
def _plain_functions(modules: Iterable[str]) -> tuple[tuple[ModuleType, str, Any], ...]:
    """Pair names that may stand for a kernel with plain replacements."""
    swaps: list[tuple[ModuleType, str, Any]] = []
    for module in (sys.modules[name] for name in sorted(modules)):
        if isinstance(getattr(module, _FAST_PATH, None), bool):
            swaps.append((module, _FAST_PATH, False))
        swaps += [
            (module, name, inspect.unwrap(value))
            for name, value in vars(module).items()
            if _is_fallback(value)
        ]
    return tuple(swaps)


def _is_fallback(function: Callable[..., Any]) -> bool:
    code = getattr(function, "__code__", None)
    return hasattr(function, "__wrapped__") and _FALLBACK in getattr(code, "co_qualname", "")
