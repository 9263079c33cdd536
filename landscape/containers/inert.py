"""Pickles read as data: nothing that they name is imported, no call is made.

A pickle is a program for a small stack machine. Here the machine works on records: a class or
function becomes a `Global` (its name), a call an `Inert` (name, arguments, state), a tensor a
`TensorStub` (where its numbers lie in the file). Only containers, strings and numbers become real
objects. Safety needs no list of forbidden names, because no name leads to an object; `REFUSED`
exists to tell the user that a file was made to run code.

Memory: what is built is proportional to the pickle, whose size the caller checks. Work: keys are
simple values, because the hash of nested tuples that share parts takes exponential time.
"""

import pickle
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from typing import Any, BinaryIO

from landscape.containers.inert_calls import MAKERS
from landscape.containers.stand_ins import (
    ITEM_SIZES,
    Global,
    Inert,
    NeedsCode,
    Storage,
    TensorStub,
    TooLarge,
    simple_key,
)

_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "UntypedStorage": "uint8",
}

# None of these is reachable here. A file that asks for them was made to run code.
REFUSED = re.compile(
    r"(os|posix|nt|sys|subprocess|_posixsubprocess|shutil|socket|_socket|ctypes|_ctypes|runpy|pty"
    r"|importlib|_imp|code|marshal|"
    r"webbrowser|pip|timeit|pdb|cProfile|profile|commands|http|urllib|requests)(\..*)?"
    r"|builtins\.(eval|exec|execfile|compile|open|__import__|input|breakpoint)|io\.open(_code)?"
    r"|torch\.hub\..*"
)
_MAX_COPIES = 1 << 24

# Instructions of the base class that only build or move plain values. Every other one is replaced
# below, or refused as unknown.
_INHERITED = tuple(
    getattr(pickle, name)
    for name in (
        "PROTO FRAME STOP MARK POP POP_MARK DUP PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET "
        "LONG_BINGET NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT "
        "BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 UNICODE "
        "BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 "
        "EMPTY_LIST LIST EMPTY_DICT EMPTY_SET GLOBAL STACK_GLOBAL BINPERSID "
    ).split()
)


class InertUnpickler(pickle._Unpickler):
    """The stack machine of pickles, without imports and calls.

    `dispatch` of the base class is replaced wherever it would import, call or set something.

    Args:
        program: The pickle; nothing behind it is read.
        limit: Size of the file in bytes, which no tensor can exceed.
        storage: (storage type, key, number of elements, further arguments) -> Storage; None forbids
            tensors.
    """

    dispatch = {code[0]: pickle._Unpickler.dispatch[code[0]] for code in _INHERITED}
    # Attributes of the base class, which does not declare them.
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]
    readline: Callable[[], bytes]

    def __init__(
        self, program: BinaryIO, *, limit: int, storage: Callable[..., Storage] | None = None
    ) -> None:
        super().__init__(program, encoding="latin1")
        self.limit = limit
        self.make_storage = storage
        self.names: set[str] = set()
        self._copies_left = min(limit, _MAX_COPIES)

    def charge(self, amount: int) -> None:
        """Count values copied from one object to another, up to a limit.

        A pickle can ask for such a copy many times at a few bytes each.
        """
        self._copies_left -= amount
        if self._copies_left < 0:
            raise TooLarge(amount)

    def find_class(self, module: Any, name: Any) -> Global:
        """Name an object, without looking it up."""
        if type(module) is not str or type(name) is not str:
            raise ValueError("a name that is no text")
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full = f"{module}.{name}"
        if REFUSED.fullmatch(full):
            raise NeedsCode(full)
        self.names.add(full)
        return Global(full)

    def persistent_load(self, identity: Any) -> Storage | Global:
        """Return the storage of ("storage", type, key, location, number of elements, ...)."""
        # Before torch 1.6 a module's class came with its source text.
        if (
            type(identity) is tuple
            and identity[:1] == ("module",)
            and isinstance(identity[1], Global)
        ):
            return identity[1]
        if (
            self.make_storage is None
            or type(identity) is not tuple
            or len(identity) < 5
            or identity[0] != "storage"
        ):
            raise ValueError("a persistent id that is no storage")
        _, kind, key, _, size, *more = identity
        dtype = _STORAGES.get(kind.name.rpartition(".")[2]) if type(kind) is Global else None
        if dtype is None or type(size) is not int or size < 0:
            raise ValueError("a storage of unknown type or size")
        if size > self.limit or size * ITEM_SIZES[dtype] > self.limit:
            raise TooLarge(size)
        return self.make_storage(str(key), dtype, size, *more)

    def call(self, function: Any, args: Any) -> Any:
        """Make the plain value or stand-in for the result of a call."""
        if type(args) is not tuple:
            raise ValueError("arguments that are no tuple")
        if isinstance(function, Global):
            make = MAKERS.get(function.name)
            return Inert(function.name, args) if make is None else make(self, args)
        if isinstance(function, Inert):
            return Inert(f"{function.name}()", args)
        raise ValueError(f"a call of a {type(function).__name__}")

    def _reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self.call(self.stack[-1], args)

    def _new_with_keywords(self) -> None:
        keywords = self.stack.pop()
        args = self.stack.pop()
        self.stack[-1] = self.call(self.stack[-1], (*args, keywords))

    def _object(self) -> None:
        function, *args = self.pop_mark()
        self.append(self.call(function, tuple(args)))

    def _instance(self) -> None:
        module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))
        self.append(self.call(self.find_class(module, name), tuple(self.pop_mark())))

    def _build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.state = state
        elif not isinstance(target, (dict, set, TensorStub)):
            raise ValueError(f"a state for a {type(target).__name__}")

    def _append_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, (list, Inert)):
            raise ValueError(f"an element for a {type(target).__name__}")
        (target.items if isinstance(target, Inert) else target).extend(items)

    def _assign_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, (dict, Inert)):
            raise ValueError(f"an entry for a {type(target).__name__}")
        entries = target.entries if isinstance(target, Inert) else target
        for key, value in zip(items[::2], items[1::2], strict=True):
            entries[simple_key(key)] = value

    def _add_items(self) -> None:
        items = self.pop_mark()
        target = self.stack[-1]
        if isinstance(target, Inert):
            target.items.extend(items)
        elif isinstance(target, set):
            target.update(map(simple_key, items))
        else:
            raise ValueError(f"an element for a {type(target).__name__}")

    def _append(self) -> None:
        item = self.stack.pop()
        self._append_items([item])

    def _assign(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._assign_items([key, value])

    def _dict_of_items(self) -> None:
        items = self.pop_mark()
        self.append(
            {simple_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}
        )

    def _frozenset(self) -> None:
        self.append(frozenset(map(simple_key, self.pop_mark())))

    def _bytearray(self) -> None:
        # The base class allocates the declared length before it reads.
        length = int.from_bytes(self.read(8), "little")
        if length > self.limit:
            raise TooLarge(length)
        self.append(bytes(self.read(length)))


for _code, _method in {
    pickle.REDUCE: InertUnpickler._reduce,
    pickle.NEWOBJ: InertUnpickler._reduce,
    pickle.NEWOBJ_EX: InertUnpickler._new_with_keywords,
    pickle.OBJ: InertUnpickler._object,
    pickle.INST: InertUnpickler._instance,
    pickle.BUILD: InertUnpickler._build,
    pickle.APPEND: InertUnpickler._append,
    pickle.APPENDS: lambda machine: machine._append_items(machine.pop_mark()),
    pickle.SETITEM: InertUnpickler._assign,
    pickle.SETITEMS: lambda machine: machine._assign_items(machine.pop_mark()),
    pickle.ADDITEMS: InertUnpickler._add_items,
    pickle.FROZENSET: InertUnpickler._frozenset,
    pickle.DICT: InertUnpickler._dict_of_items,
    pickle.BYTEARRAY8: InertUnpickler._bytearray,
}.items():
    InertUnpickler.dispatch[_code[0]] = _method  # type: ignore[assignment]
