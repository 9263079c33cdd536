"""Tensors of a checkpoint, made from stubs and memory-mapped from its files.

So what is not used is not copied.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from landscape.containers.stand_ins import (
    ITEM_SIZES,
    ChunkedStub,
    Global,
    NamedStub,
    Span,
    Stub,
    TensorStub,
)
from landscape.containers.weight_files import damaged, unreadable
from landscape.errors import CheckpointError

_MAX_DEPTH = 200


class StoredTensors:
    """A reader of tensors from any number of files.

    Views of one storage stay views of one storage.
    """

    def __init__(self) -> None:
        self._files: dict[Path, torch.UntypedStorage] = {}
        self._storages: dict[tuple[Span, str], torch.UntypedStorage] = {}
        self._opened: dict[Path, Any] = {}

    def read(self, stub: Stub) -> Tensor:
        """Read a tensor, on the CPU.

        Raises:
            CheckpointError: If its file cannot be read or has changed since it was opened.
        """
        path = stub.path if isinstance(stub, NamedStub) else _path_of(stub)
        try:
            if isinstance(stub, NamedStub):
                return self._read_named(stub)
            return (
                self._read_chunks(stub) if isinstance(stub, ChunkedStub) else self._read_view(stub)
            )
        except OSError as error:
            raise unreadable(path, error) from error
        except (RuntimeError, ValueError, SafetensorError) as error:
            raise damaged(path, error) from error

    def state(self, stubs: Mapping[str, Stub]) -> dict[str, Tensor]:
        """Read tensors by name."""
        return {name: self.read(stub) for name, stub in stubs.items()}

    def tree(self, value: Any) -> Any:
        """Copy nested containers with every stub replaced by its tensor.

        Stand-ins of other objects stay.
        """
        return self._tree(value, {}, _MAX_DEPTH)

    def _tree(self, value: Any, done: dict[int, Any], depth: int) -> Any:
        if id(value) in done:
            return done[id(value)]
        if depth < 0:
            raise CheckpointError(
                f"A checkpoint is nested deeper than {_MAX_DEPTH} levels, as none is. Save its "
                "weights alone."
            )
        if isinstance(value, Stub):
            done[id(value)] = self.read(value)
        elif isinstance(value, dict):
            done[id(value)] = {}
            done[id(value)].update(
                (key, self._tree(item, done, depth - 1)) for key, item in value.items()
            )
        elif type(value) is list:
            done[id(value)] = []
            done[id(value)].extend(self._tree(item, done, depth - 1) for item in value)
        elif type(value) is tuple:
            done[id(value)] = tuple(self._tree(item, done, depth - 1) for item in value)
        elif isinstance(value, Global) and value.name.removeprefix("torch.") in ITEM_SIZES:
            return getattr(torch, value.name.removeprefix("torch."))
        else:
            return value
        return done[id(value)]

    def _read_named(self, stub: NamedStub) -> Tensor:
        if stub.path not in self._opened:
            self._opened[stub.path] = safe_open(stub.path, framework="pt", device="cpu")
        tensor: Tensor = self._opened[stub.path].get_tensor(stub.name)
        return tensor

    def _read_view(self, stub: TensorStub) -> Tensor:
        dtype = getattr(torch, stub.dtype)
        storage = self._storage(stub)
        return torch.empty((0,), dtype=dtype).set_(storage, stub.offset, stub.shape, stub.stride)

    def _read_chunks(self, stub: ChunkedStub) -> Tensor:
        if len(stub.chunks) == 1 and stub.chunks[0][1].shape == stub.shape:
            return self._read_view(stub.chunks[0][1])
        whole = torch.empty(stub.shape, dtype=getattr(torch, stub.dtype))
        for offsets, piece in stub.chunks:
            place = tuple(
                slice(start, start + length)
                for start, length in zip(offsets, piece.shape, strict=True)
            )
            whole[place] = self._read_view(piece)
        return whole

    def _storage(self, stub: TensorStub) -> torch.UntypedStorage:
        span = stub.storage.span
        if span is None:
            raise ValueError("a storage without a place in the file")
        key = (span, stub.storage.key)
        if key not in self._storages:
            if span.path not in self._files:
                mapped: Any = torch.UntypedStorage.from_file(
                    str(span.path), False, span.path.stat().st_size
                )
                self._files[span.path] = mapped
            whole = self._files[span.path]
            if span.start + span.size > whole.nbytes():
                raise ValueError("the file became shorter")
            part: Any = whole[span.start : span.start + span.size]
            # Archives align storages to 64 bytes; files before torch 1.6 and pieces of distributed
            # checkpoints do not.
            aligned = span.start % ITEM_SIZES[stub.storage.dtype] == 0
            part = part if aligned and span.byteorder == "little" else part.clone()
            if span.byteorder != "little":
                part.byteswap(getattr(torch, stub.storage.dtype))
            self._storages[key] = part
        return self._storages[key]


def _path_of(stub: TensorStub | ChunkedStub) -> Path:
    first = stub.chunks[0][1] if isinstance(stub, ChunkedStub) else stub
    return first.storage.span.path if first.storage.span is not None else Path("the checkpoint")
