"""Folders of torch.distributed.checkpoint (DCP), read shard by shard without running code.

.metadata      a pickle: which tensors there are, in which pieces, and where each piece lies
__R_N.distcp   the pieces of rank R one after another, each an archive of torch.save
"""

import io
import shlex
from pathlib import Path
from typing import Any, BinaryIO

from landscape.containers.inert import InertUnpickler
from landscape.containers.stand_ins import ChunkedStub, Inert, TensorStub
from landscape.containers.weight_files import LARGEST_PICKLE, WeightFile, read_archive, refusal
from landscape.errors import CheckpointError
from landscape.files import open_regular

METADATA = ".metadata"
DISTRIBUTED = "distributed"
_LARGEST_OBJECT = 1 << 20


def convert_line(folder: Path) -> str:
    """Return the command that converts a folder of torch.distributed.checkpoint to one file."""
    target = folder.with_name(f"{folder.name}.pt")
    return shlex.join(
        [
            "python",
            "-m",
            "torch.distributed.checkpoint.format_utils",
            "dcp_to_torch",
            str(folder),
            str(target),
        ]
    )


class _Unreadable(Exception):
    """The folder has something in it that is not read here."""


def read_distributed(folder: Path, *, verified: bool) -> WeightFile:
    """Read a folder of torch.distributed.checkpoint, with tensors as stubs.

    Raises:
        CheckpointError: If a file is missing, damaged or written in another way; the message has
            the command that converts it.
    """
    program = (folder / METADATA).read_bytes()
    try:
        machine = InertUnpickler(io.BytesIO(program), limit=max(len(program), LARGEST_PICKLE))
        metadata = _attributes(machine.load())
        with _Shards(folder, verified) as shards:
            flat = _read_entries(metadata, shards)
        stored = _nest(flat, metadata.get("planner_data"))
    except CheckpointError:
        raise
    except _Unreadable as error:
        raise CheckpointError(
            f"{folder}: is a checkpoint of torch.distributed that is not read here ({error}). "
            f"Where you trust it, make one file of it: {convert_line(folder)}"
        ) from error
    except Exception as error:
        raise refusal(folder / METADATA, error, len(program)) from error
    return WeightFile(
        path=folder, kind=DISTRIBUTED, stored=stored, files=(folder / METADATA, *shards.paths)
    )


def _attributes(value: Any) -> dict[str, Any]:
    """Return the attributes with which a dataclass was pickled."""
    state = value.state if isinstance(value, Inert) else None
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
        state = {**(state[0] or {}), **state[1]}
    if not isinstance(state, dict):
        raise _Unreadable(
            f"its metadata hold a {getattr(value, 'name', type(value).__name__)} of unknown content"
        )
    return state


class _Shards:
    """The files that hold the pieces."""

    def __init__(self, folder: Path, verified: bool) -> None:
        self.folder, self.verified = folder, verified
        self.open: dict[str, BinaryIO] = {}

    def __enter__(self) -> "_Shards":
        return self

    def __exit__(self, *ignored: object) -> None:
        for file in self.open.values():
            file.close()

    @property
    def paths(self) -> tuple[Path, ...]:
        """List every file that was needed."""
        return tuple(self.folder / name for name in sorted(self.open))

    def read(self, place: dict[str, Any]) -> WeightFile:
        """Read the archive at a place."""
        name, offset, length = place.get("relative_path"), place.get("offset"), place.get("length")
        if (
            type(name) is not str
            or Path(name).name != name
            or type(offset) is not int
            or type(length) is not int
        ):
            raise _Unreadable("its metadata do not say where the pieces lie")
        if place.get("transform_descriptors"):
            raise _Unreadable("its pieces are compressed")
        if name not in self.open:
            self.open[name] = open_regular(self.folder / name)
        file = self.open[name]
        if min(offset, length) < 0 or offset + length > (self.folder / name).stat().st_size:
            raise CheckpointError(
                f"{self.folder / name}: is shorter than {METADATA} beside it says, so it was cut "
                "short. Copy it again."
            )
        return read_archive(self.folder / name, file, offset, length, verified=self.verified)


def _read_entries(metadata: dict[str, Any], shards: _Shards) -> dict[str, Any]:
    """Read every tensor and small object, by its flat name."""
    places: dict[str, list[tuple[tuple[int, ...] | None, dict[str, Any]]]] = {}
    for index, place in (metadata.get("storage_data") or {}).items():
        where = _attributes(index)
        places.setdefault(where["fqn"], []).append((where.get("offset"), _attributes(place)))
    flat = {}
    for name, described in metadata["state_dict_metadata"].items():
        if described.name.endswith(".TensorStorageMetadata"):
            flat[name] = _tensor(name, _attributes(described), places.get(name, []), shards)
        else:
            [(_, place)] = places[name]
            if place["length"] <= _LARGEST_OBJECT:
                flat[name] = shards.read(place).stored
    return flat


def _tensor(
    name: str,
    described: dict[str, Any],
    places: list[tuple[tuple[int, ...] | None, dict[str, Any]]],
    shards: _Shards,
) -> ChunkedStub:
    """Assemble a tensor from pieces that cover it exactly."""
    size = described["size"]
    chunks = []
    for offset, place in places:
        piece = shards.read(place).stored
        if not isinstance(piece, TensorStub):
            raise _Unreadable(
                f"a piece of {name!r} is a {getattr(piece, 'name', type(piece).__name__)}"
            )
        chunks.append((offset or (0,) * len(piece.shape), piece))
    described_chunks = sorted(
        (_attributes(chunk)["offsets"], _attributes(chunk)["sizes"])
        for chunk in described["chunks"]
    )
    if sorted((offset, piece.shape) for offset, piece in chunks) != described_chunks:
        raise _Unreadable(f"the pieces of {name!r} are not those that its metadata list")
    _check_cover(name, size, chunks)
    return ChunkedStub(chunks[0][1].dtype, size, tuple(chunks))


def _check_cover(
    name: str, size: tuple[int, ...], chunks: list[tuple[tuple[int, ...], TensorStub]]
) -> None:
    """Refuse pieces that do not fill the tensor exactly.

    Pieces that lie within the tensor, do not overlap and together have its number of elements fill
    it.
    """
    boxes = [
        (offset, tuple(o + n for o, n in zip(offset, piece.shape, strict=True)))
        for offset, piece in chunks
    ]
    within = all(
        len(end) == len(size) and all(e <= s for e, s in zip(end, size, strict=True))
        for _, end in boxes
    )
    apart = not any(
        all(a < d and c < b for a, b, c, d in zip(*first, *second, strict=True)) and size
        for i, first in enumerate(boxes)
        for second in boxes[:i]
    )
    total = 1
    for length in size:
        total *= length
    same_dtype = len({piece.dtype for _, piece in chunks}) == 1
    if not (
        chunks
        and within
        and apart
        and same_dtype
        and sum(piece.size for _, piece in chunks) == total
    ):
        raise _Unreadable(f"the pieces of {name!r} do not make up the whole of it")


def _nest(flat: dict[str, Any], paths: Any) -> dict[str, Any]:
    """Rebuild nested dictionaries from the planner's path of each flat name."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        path = paths.get(name) if isinstance(paths, dict) else None
        path = path if isinstance(path, tuple) and path else (name,)
        place = nested
        for part in path[:-1]:
            place = place.setdefault(str(part), {})
            if not isinstance(place, dict):
                raise _Unreadable(f"the name {name!r} is used twice")
        place[str(path[-1])] = value
    return nested
