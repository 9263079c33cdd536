"""Fingerprints that tell whether a loss, its weights and batches have changed.

They see code, plain values and shapes.

Used to remember what was found of one product for the next one of the same kind.
"""

import sys
from collections import UserDict, UserList, deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import cache, partial
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from landscape.curvature.objective import Batch, Objective

# Whole numbers by their size in bytes.
_WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

# Objects that are looked through for what functions capture.
_MAX_CAPTURED = 10_000
# Packages whose objects hold nothing that a loss is computed from, and their classes that may.
_OPAQUE = frozenset({"torch", "numpy", *sys.stdlib_module_names})
_HOLDERS = (nn.Module, SimpleNamespace, UserDict, UserList)
_NUMBERS = (bool, int, float, complex)
# Tensors up to this size are compared to the bit, larger ones by sums over this many pieces, and
# over every so many entries.
_EXACT, _PIECES, _STRIDE = 2**20, 64, 61


def code_of(objective: Objective) -> Hashable:
    """Fingerprint the computation of an objective.

    It tells as much as the code and the plain values of its functions and modules show.
    """
    functions = signature_of(objective.forward), signature_of(objective.loss)
    return functions, () if objective.module is None else tuple(
        attributes_of(part) for part in objective.module.modules()
    )


def contents_of(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """Return numbers that change with the tensors' values and their order.

    There is a number per tensor: a sum of its bits, read as whole numbers.
    """
    plain = [
        tensor.detach()
        for tensor in tensors
        if tensor.layout == torch.strided and not tensor.is_quantized
    ]
    return tuple(torch.stack([_sum_of_bits(tensor) for tensor in plain]).tolist()) if plain else ()


def _sum_of_bits(tensor: Tensor) -> Tensor:
    flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).contiguous().view(-1)
    num_bytes = flat.numel() * flat.element_size()
    # In words of 8 bytes where they fit, which torch adds without converting them.
    fits = (
        num_bytes % 8 == 0
        and flat.storage_offset() * flat.element_size() % 8 == 0
        and flat.element_size() <= 8
    )
    words = flat.view(torch.int64) if fits else flat.view(_WHOLE[flat.element_size()]).long()
    # Shifted, so that signs count in more than the last bit; times odd numbers, so that places
    # count.
    return (
        (words ^ (words >> 29)) * torch.arange(1, 2 * len(words) + 1, 2, device=words.device)
    ).sum()


def attributes_of(part: Any, depth: int = 0) -> Hashable:
    """Return the class of an object, its plain values and its functions."""
    own = getattr(part, "__dict__", {})
    plain = {name: value for name, value in own.items() if _is_plain(value)}
    called = [
        value
        for value in own.values()
        if callable(value) and not isinstance(value, (type, nn.Module))
    ]
    return (
        type(part),
        repr(sorted(plain.items())),
        tuple(signature_of(function, depth + 1) for function in called),
    )


def _is_plain(value: Any, depth: int = 0) -> bool:
    if isinstance(value, (bool, int, float, str, type(None))):
        return True
    if depth > 2 or not isinstance(value, (dict, list, tuple)) or len(value) > 100:
        return False
    inner = value.items() if isinstance(value, dict) else value
    return all(_is_plain(part, depth + 1) for part in inner)


def structure_of(batch: Batch) -> Hashable:
    """Describe the nesting of a batch, and its tensors' types and shapes.

    The number of rows is left out.
    """
    leaves, spec = tree_flatten(batch)
    return str(spec), tuple(
        (leaf.dtype, leaf.shape[1:]) if isinstance(leaf, Tensor) else type(leaf) for leaf in leaves
    )


def signature_of(value: Any, depth: int = 0) -> Hashable:
    """Fingerprint a function by its code and plain values.

    A lambda that is written anew in a loop is the same.
    """
    if depth == 8:
        return (type(value),)
    if isinstance(value, partial):
        inner = [
            value.func,
            *value.args,
            *(keyword for _, keyword in sorted(value.keywords.items())),
        ]
        return tuple(signature_of(part, depth + 1) for part in inner)
    code: Any = getattr(value, "__code__", None)
    if code is None:
        return repr(value) if _is_plain(value) else attributes_of(value, depth)
    inner = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
    inner += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    inner += [
        value.__globals__.get(name)
        for name in names_in(code)
        if _is_plain(value.__globals__.get(name))
    ]
    inner += [value.__self__] if hasattr(value, "__self__") else []
    return code, tuple(signature_of(part, depth + 1) for part in inner)


def _is_filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


# --- what functions capture -----------------------------------------------------------------------


def captured_by(functions: Iterable[Any], module: nn.Module | None) -> Hashable:
    """Fingerprint what functions can reach other than through their arguments.

    It covers code, numbers, tensors and arrays.

    Looks through closures, defaults, bound objects, attributes and containers, and of code that is
    not installed as a library through the globals, and the members of its modules and classes, that
    it names. What lies in C code, in slots, or behind a name that is made at run time is not seen.

    Args:
        module: Its parameters and buffers are left out; its other attributes are not.
    """
    own = [] if module is None else [*module.parameters(), *module.buffers()]
    search = _Search(own={id(tensor) for tensor in own})
    waiting: list[Any] = [*functions, module]
    while waiting and len(search.seen) < _MAX_CAPTURED:
        waiting.extend(search.look(waiting.pop()))
        if not waiting:
            waiting.extend(search.members())
    if waiting:
        # Not all was seen, so that nothing is the same as anything.
        search.marks.append(object())
    return tuple(search.marks)


class _Search:
    """State of the search through what functions capture.

    Attributes:
        marks: Marks of the values, in the order in which they were met.
        seen: Objects by their id; kept, so that no other takes its number meanwhile.
        names: Names that code has used.
        places: Modules and classes, not of libraries, whose members of these names are looked at.
    """

    def __init__(self, own: set[int]) -> None:
        self.marks: list[Hashable] = []
        self.seen: dict[int, Any] = {}
        self.names: dict[str, None] = {}
        self.places: dict[int, Any] = {}
        self._own = own

    def look(self, value: Any) -> Iterable[Any]:
        """Record an object, and return those that it leads to."""
        if isinstance(value, _NUMBERS):
            self.marks.append(repr(value))
        elif id(value) not in self.seen:
            self.seen[id(value)] = value
            if id(value) in self._own:
                return ()
            if not isinstance(value, (Tensor, np.ndarray, np.generic)):
                return self._reached_from(value)
            self.marks.append(_mark_of(value))
        return ()

    def members(self) -> list[Any]:
        """List unseen members of places that code has named."""
        named = [
            vars(place)[name]
            for place in self.places.values()
            for name in self.names
            if name in vars(place)
        ]
        # Numbers have no identity by which they were seen.
        self.marks.extend(repr(value) for value in named if isinstance(value, _NUMBERS))
        return [
            value
            for value in named
            if not isinstance(value, _NUMBERS) and id(value) not in self.seen
        ]

    def _reached_from(self, value: Any) -> Iterable[Any]:
        """List what an object holds that a function's result can depend on.

        The object may be used as the function or in it. The order does not change.
        """
        if value is None:
            return ()
        if isinstance(value, (str, bytes)):
            self.marks.append(value)
            return ()
        if isinstance(value, (set, frozenset)):
            return sorted(value, key=repr)
        if isinstance(value, FunctionType):
            return self._reached_from_function(value)
        if isinstance(value, MethodType):
            return value.__func__, value.__self__
        if isinstance(value, partial):
            return value.func, *value.args, *value.keywords.values()
        if isinstance(value, property):
            return (value.fget,)
        if isinstance(value, (staticmethod, classmethod)):
            return (value.__func__,)
        if isinstance(value, dict):
            return value.values()
        if isinstance(value, (list, tuple, deque)):
            return value
        if isinstance(value, (type, ModuleType)):
            if not _is_of_a_library(value):
                self.places[id(value)] = value
            return value.__mro__[1:] if isinstance(value, type) else ()
        if _root(type(value)) in _OPAQUE and not isinstance(value, _HOLDERS):
            return ()
        # A recurrent layer keeps a list of whatever stood for its parameters last.
        inner = [
            part for name, part in getattr(value, "__dict__", {}).items() if name != "_flat_weights"
        ]
        return *inner, type(value)

    def _reached_from_function(self, function: FunctionType) -> Iterable[Any]:
        cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
        held = *cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()
        if _is_of_a_library(function):
            return held
        self.marks.append(function.__code__)
        names = dict.fromkeys([*names_in(function.__code__), "forward", "__call__"])
        self.names |= names
        return *held, *(
            function.__globals__[name] for name in names if name in function.__globals__
        )


def _mark_of(value: Any) -> Hashable:
    """Return numbers that change with the values of a tensor or array.

    They change with the order of the values, too.
    """
    if not isinstance(value, Tensor):
        value = np.asarray(value)
        if value.dtype.kind not in "biufc":
            return str(value.dtype), value.shape
        value = torch.from_numpy(np.ascontiguousarray(value))
    tensor = value.detach()
    facts = tensor.shape, tensor.dtype, str(tensor.device)
    if tensor.layout != torch.strided or tensor.is_quantized:
        return facts
    flat = tensor.reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    if len(flat) <= _EXACT:
        return *facts, hash(flat.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    flat = flat.double()
    even = flat[: len(flat) // _STRIDE * _STRIDE].view(-1, _STRIDE).sum(0)
    sums = [piece.sum() for piece in flat.tensor_split(_PIECES)]
    return *facts, repr([*torch.stack(sums).tolist(), *even.tolist()])


def _root(thing: Any) -> str:
    """Return the package that a function, class or module is from."""
    return str(thing.__name__ if isinstance(thing, ModuleType) else thing.__module__).partition(
        "."
    )[0]


def _is_of_a_library(thing: Any) -> bool:
    """Tell whether its globals can be taken not to change.

    They are the globals of the code of a function, class or module.
    """
    root = _root(thing)
    return root in _OPAQUE or root == "landscape" or _is_installed(root)


@cache
def _is_installed(package: str) -> bool:
    path = getattr(sys.modules.get(package), "__file__", None) or ""
    return "site-packages" in path or "dist-packages" in path


def names_in(code: CodeType) -> Iterator[str]:
    """Yield the names that code looks up, functions within it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_in(constant)
