"""The calls of pickles that make plain values and tensors, carried out on stand-ins.

Every other call becomes an `Inert`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import TYPE_CHECKING, Any

from landscape.containers.stand_ins import (
    ITEM_SIZES,
    MAX_DIMS,
    Global,
    Inert,
    NeedsCode,
    Storage,
    TensorStub,
    TooLarge,
    simple_key,
)

if TYPE_CHECKING:
    from landscape.containers.inert import InertUnpickler


def _dict(machine: InertUnpickler, args: tuple[Any, ...]) -> dict[Any, Any]:
    content = next((arg for arg in args if isinstance(arg, (dict, list))), {})
    machine.charge(len(content))
    pairs: Iterator[Any] = iter(content.items() if isinstance(content, dict) else content)
    return {simple_key(key): value for key, value in pairs}


def _set(machine: InertUnpickler, args: tuple[Any, ...]) -> set[Any]:
    content = args[0] if args and isinstance(args[0], (list, tuple)) else ()
    machine.charge(len(content))
    return set(map(simple_key, content))


def _complex(machine: InertUnpickler, args: tuple[Any, ...]) -> complex:
    if not all(type(arg) in (int, float) for arg in args) or len(args) > 2:
        raise ValueError("a complex number of no numbers")
    return complex(*args)


def _encode(machine: InertUnpickler, args: tuple[Any, ...]) -> bytes:
    """Encode text as Latin-1, as pickles of protocol 2 write bytes.

    Any other encoding, or a literal used many times, would increase the memory needed.
    """
    if len(args) != 2 or type(args[0]) is not str or args[1] != "latin1":
        raise NeedsCode("_codecs.encode")
    machine.charge(len(args[0]))
    return args[0].encode("latin1")


def _bytearray(machine: InertUnpickler, args: tuple[Any, ...]) -> Any:
    return (
        args[0] if len(args) == 1 and type(args[0]) is bytes else Inert("builtins.bytearray", args)
    )


def _size(machine: InertUnpickler, args: tuple[Any, ...]) -> Any:
    return args[0] if len(args) == 1 and isinstance(args[0], tuple) else Inert("torch.Size", args)


def _tensor(machine: InertUnpickler, args: tuple[Any, ...]) -> TensorStub | Inert:
    storage, offset, shape, stride = args[:4]
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    # Metadata marks a view whose numbers are the negative or conjugate of what is stored.
    if any(args[6:]):
        return Inert("torch._utils._rebuild_tensor_v2", args)
    return _strided(machine, storage, storage.dtype, offset, shape, stride)


def _tensor_of_dtype(machine: InertUnpickler, args: tuple[Any, ...]) -> TensorStub:
    storage, offset, shape, stride, _, _, dtype = args[:7]
    name = dtype.name.removeprefix("torch.") if isinstance(dtype, Global) else ""
    if not isinstance(storage, Storage) or name not in ITEM_SIZES:
        raise ValueError(f"a tensor of dtype {name!r}")
    return _strided(machine, storage, name, offset, shape, stride)


def _strided(
    machine: InertUnpickler, storage: Storage, dtype: str, offset: Any, shape: Any, stride: Any
) -> TensorStub:
    """Make a view that lies within its storage.

    Unfolded it must be no larger than the file.
    """
    if type(shape) is not tuple or type(stride) is not tuple:
        raise ValueError("a tensor without a shape")
    numbers = (offset, *shape, *stride)
    if (
        len(shape) != len(stride)
        or len(shape) > MAX_DIMS
        or any(type(n) is not int or n < 0 for n in numbers)
    ):
        raise ValueError("a tensor whose shape and strides are no sizes")
    size = prod(shape)
    if size * ITEM_SIZES[dtype] > machine.limit:
        raise TooLarge(size)
    last = offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
    if size and (last + 1) * ITEM_SIZES[dtype] > storage.size * ITEM_SIZES[storage.dtype]:
        raise ValueError(f"a tensor that reaches to element {last} of a storage of {storage.size}")
    return TensorStub(dtype, shape, stride, offset, storage)


def _first_tensor(machine: InertUnpickler, args: tuple[Any, ...]) -> Any:
    """Return a parameter's tensor."""
    return (
        args[0]
        if args and isinstance(args[0], TensorStub)
        else Inert("torch.nn.parameter.Parameter", args)
    )


def _from_type(machine: InertUnpickler, args: tuple[Any, ...]) -> Any:
    """Make a tensor with attributes, or of a subclass.

    The arguments are (function, type, arguments, state).
    """
    function, _, inner, state = args
    made = machine.call(function, inner)
    if isinstance(made, Inert):
        made.state = state
        return _local_part(made)
    return made


def _local_part(tensor: Inert) -> Any:
    """Return the tensor in a DTensor that this process held entirely.

    Other DTensors stay stand-ins.
    """
    if tensor.args[:1] != (Global("torch.distributed.tensor.DTensor"),) or len(tensor.args) < 3:
        return tensor
    parts = (
        [part for part in tensor.state if isinstance(part, dict)]
        if isinstance(tensor.state, tuple)
        else []
    )
    local = next((part["_local_tensor"] for part in parts if "_local_tensor" in part), None)
    spec = next((part["_spec"] for part in parts if isinstance(part.get("_spec"), Inert)), None)
    placements = (
        spec.state.get("placements") if spec is not None and isinstance(spec.state, dict) else None
    )
    placements = placements if isinstance(placements, tuple) else ()
    summed = not placements or any(
        getattr(placement, "name", "").endswith("Partial") for placement in placements
    )
    if isinstance(local, TensorStub) and local.shape == tensor.args[2] and not summed:
        return local
    tensor.name = "part of a torch.distributed.tensor.DTensor"
    return tensor


def _reconstructor(machine: InertUnpickler, args: tuple[Any, ...]) -> Inert:
    """Make an object from (class, base, value of the base).

    So pickles of protocol 2 make an object of a class.
    """
    made = Inert(args[0].name if isinstance(args[0], Global) else "object", args[1:])
    machine.charge(sum(len(arg) for arg in args[2:] if isinstance(arg, (dict, list))))
    if len(args) > 2 and isinstance(args[2], dict):
        made.entries.update(args[2])
    if len(args) > 2 and isinstance(args[2], list):
        made.items.extend(args[2])
    return made


MAKERS: dict[str, Callable[[InertUnpickler, tuple[Any, ...]], Any]] = {
    **dict.fromkeys(
        (
            "collections.OrderedDict",
            "collections.Counter",
            "collections.defaultdict",
            "builtins.dict",
        ),
        _dict,
    ),
    **dict.fromkeys(("builtins.set", "builtins.frozenset"), _set),
    "builtins.complex": _complex,
    "builtins.bytearray": _bytearray,
    "_codecs.encode": _encode,
    "copyreg._reconstructor": _reconstructor,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _first_tensor,
    "torch._utils._rebuild_parameter_with_state": _first_tensor,
    "torch.nn.parameter.Parameter": _first_tensor,
    "torch._tensor._rebuild_from_type_v2": _from_type,
}
