"""Checkpoints read by rows: each process reads only its part of every tensor.

The files are those of `load_checkpoint`; names, copies and errors are the same. Pickles are read as
data, and so is .metadata of a folder of torch.distributed.checkpoint, which torch's own reader
unpickles.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from landscape.clip.checkpoint_state import (
    CheckpointInfo,
    check_convertible,
    check_copy,
    check_digest,
    check_finite,
    contents_of,
    describe,
    note_casts,
    notes_of_equal_copies,
    read_with_digest,
    state_of,
)
from landscape.clip.fit import check_has_numbers, fit_to_model
from landscape.clip.misfit import is_constant
from landscape.clip.stored_rows import StoredRows
from landscape.clip.unread_tensors import UnreadTensor
from landscape.containers.folders import Stamps, read_weights, stamps_of
from landscape.containers.weight_files import unreadable
from landscape.errors import CheckpointError

# Rows [start, stop) of the parameter of this name and shape that a process holds.
RowsOf = Callable[[str, torch.Size], tuple[int, int]]


@dataclass(frozen=True)
class VerifiedFiles:
    """Digest and state of the files that `verify_once` verified.

    Readers compare them with the files that they open.

    Attributes:
        sha256: Digest of the checkpoint.
        stamps: Name, bytes, time of change and inode of each file, as this process sees it.
    """

    sha256: str
    stamps: Stamps

    @classmethod
    def of(cls, path: Path, sha256: str, files: Sequence[Path]) -> "VerifiedFiles":
        """Record the state of the files as they are now.

        Raises:
            CheckpointError: If a file's state cannot be read.
        """
        try:
            stamps = stamps_of(files)
        except OSError as error:
            raise unreadable(path, error) from error
        return cls(sha256, tuple((Path(stamp[0]).name, *stamp[1:]) for stamp in stamps))

    def check(self, path: Path, files: Sequence[Path]) -> None:
        """Compare with the files as they are now.

        Raises:
            CheckpointError: If any has changed.
        """
        if VerifiedFiles.of(path, self.sha256, files) != self:
            raise CheckpointError(
                f"{path}: is not the file that was verified (size, time of change or inode of a "
                "file differ), so its numbers would belong to other weights. Call verify_once "
                "again."
            )


class CheckpointRows:
    """The tensors of a checkpoint, whose rows are read on demand; to be closed.

    Attributes:
        sha256: Digest of the checkpoint; see `landscape.containers.digest_of_checkpoint`.
        notes: What was chosen, renamed or left out, as one sentence each.
    """

    def __init__(
        self,
        path: Path,
        *,
        weights: str = "online",
        expected_sha256: str | None = None,
        verified: VerifiedFiles | None = None,
    ) -> None:
        """Read a checkpoint's structure, without its numbers.

        Numbers are read only for digest and checksums.

        Args:
            path: A file, an index of shards, or a folder that holds one or a checkpoint of
                torch.distributed.
            weights: "online" or "ema", as in `load_checkpoint`.
            expected_sha256: Expected digest in hexadecimal. Without it only the checksums inside
                the file are compared.
            verified: What `verify_once` returned for these files: neither digest nor checksums are
                computed again.

        Raises:
            CheckpointError: As `load_checkpoint`, except for what needs a model; also if the files
                are not those that were verified, or have another digest than is expected.
            ValueError: If `weights` is neither, or `verified` is not from `verify_once`.
        """
        check_copy(weights)
        self.path, self.weights, self._verified = path, weights, verified
        if verified is None:
            self.sha256, self.file = read_with_digest(path, expected_sha256)
        else:
            if not isinstance(verified, VerifiedFiles):
                raise ValueError(
                    f"verified must be what verify_once returned, got a {type(verified).__name__}. "
                    "To compare with a digest, give it as expected_sha256."
                )
            check_digest(path, verified.sha256, expected_sha256)
            self.sha256, self.file = verified.sha256, read_weights(path, verified=True)
            self.check_unchanged()
        self.contents = contents_of(path, self.file, weights)
        self._reader = StoredRows()
        self.tensors, notes = state_of(self.file, self.contents, weights, reader=self._reader)
        notes += notes_of_equal_copies(self.file, self.contents, asked=weights, reader=self._reader)
        self.notes = tuple(notes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        self._reader.close()

    def check_unchanged(self) -> None:
        """Compare the files with those that were verified, if any were.

        Raises:
            CheckpointError: If one has changed.
        """
        if self._verified is not None:
            self._verified.check(self.path, self.file.files)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor, by name.

        Prefixes of DistributedDataParallel and torch.compile are removed.
        """
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Return the stored dtype of each tensor, by name."""
        return {name: tensor.dtype for name, tensor in self.tensors.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Read rows [start, stop) of a tensor along dimension 0.

        All rows by default; in the stored dtype, on the CPU.

        Raises:
            CheckpointError: If there is no such tensor, or its file cannot be read or has changed.
            ValueError: If the tensor does not have these rows.
        """
        if name not in self.tensors:
            raise CheckpointError(
                f"{self.path}: has no tensor {name!r} among its {len(self.tensors)}. The names are "
                "the keys of its shapes."
            )
        tensor = self.tensors[name]
        rows = (start, (tensor.shape[0] if tensor.ndim else 1) if stop is None else stop)
        return _read(tensor, _checked_rows(name, tensor.shape, rows), tensor.dtype, None)


@dataclass(frozen=True, eq=False, kw_only=True)
class LoadedRows:
    """The part of a model's tensors that one process holds.

    Attributes:
        parameters: Rows of each parameter, by its first name in the model; tied weights are there
            once.
        buffers: The model's persistent buffers, whole.
        info: What the checkpoint holds; equal on every process.
    """

    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    info: CheckpointInfo


def load_rows(
    model: nn.Module,
    path: Path,
    rows_of: RowsOf,
    *,
    weights: str = "online",
    expected_sha256: str | None = None,
    verified: VerifiedFiles | None = None,
    device: torch.device | None = None,
) -> LoadedRows:
    """Read this process's rows of a model's parameters, and all buffers.

    The model is not changed. Beside the result, a few MB are taken, whatever the size of the
    tensors.

    Args:
        model: Names, shapes, dtypes and ties; parameters may be on the meta device. Buffers that
            the file does not store must have numbers in the model.
        rows_of: (name, shape of the whole parameter) -> [start, stop) along dimension 0, which may
            be empty. It is not called for parameters without dimensions: those are read whole.
        weights, expected_sha256, verified: As in `CheckpointRows`.
        device: Device of the result; by default the CPU.

    Raises:
        CheckpointError: As `load_checkpoint`. Only the process that reads a number notices that it
            is not finite: let processes agree before they continue.
        ValueError: As `CheckpointRows`; also if a parameter does not have the rows that `rows_of`
            names.
    """
    with CheckpointRows(
        path, weights=weights, expected_sha256=expected_sha256, verified=verified
    ) as checkpoint:
        state, said = fit_to_model(path, checkpoint.tensors, model, aliases=checkpoint.file.aliases)
        expected = model.state_dict()
        for name, tensor in state.items():
            check_convertible(path, name, tensor, expected[name].dtype)
        check_has_numbers(
            path, {name: buffer for name, buffer in model.named_buffers() if name not in state}
        )
        rows = {
            name: _checked_rows(name, parameter.shape, rows_of(name, parameter.shape))
            if parameter.ndim
            else (0, 1)
            for name, parameter in model.named_parameters()
        }
        parameter_names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        rows |= {
            name: _all_rows(tensor) for name, tensor in state.items() if name not in parameter_names
        }
        read = {
            name: _read(state[name], part, expected[name].dtype, device)
            for name, part in rows.items()
        }
        checkpoint.check_unchanged()
    check_finite(path, {name: tensor for name, tensor in read.items() if not is_constant(name)})
    notes = (*checkpoint.notes, *said, *note_casts(state, expected))
    info = describe(
        path,
        checkpoint.sha256,
        checkpoint.file,
        checkpoint.contents,
        checkpoint.tensors,
        weights,
        notes=notes,
    )
    parameters = {name: tensor for name, tensor in read.items() if name in parameter_names}
    buffers = {name: tensor for name, tensor in read.items() if name not in parameter_names}
    return LoadedRows(parameters=parameters, buffers=buffers, info=info)


def verify_once(
    path: Path, *, expected_sha256: str | None = None, group: dist.ProcessGroup | None = None
) -> VerifiedFiles:
    """Compute digest and checksums on the first process, then share them.

    The other processes wait in a collective, about a second for every GB: the timeout of the group
    must allow for it. Names and sizes of the files that each process sees are compared. Copies on
    several machines that have equal names and sizes but different bytes are not detected.

    Args:
        expected_sha256: Expected digest in hexadecimal. Without it the checksums inside the files
            are compared.
        group: The processes; by default all that torch.distributed knows, or this one where it is
            not initialised.

    Returns:
        The digest, and the files as this process sees them, to be given to `load_rows` as
        `verified`.

    Raises:
        CheckpointError: On every process alike, if any cannot read the files, if digest or
            checksums are wrong, or if they see different files. If one process raises any other
            error, the other processes raise a CheckpointError.
    """
    together = dist.is_available() and dist.is_initialized()
    rank, world_size = (dist.get_rank(group), dist.get_world_size(group)) if together else (0, 1)
    own: VerifiedFiles | None = None
    failure: BaseException | None = None
    try:
        own = _verified(path, expected_sha256) if rank == 0 else _looked_at(path)
    # An interrupt too, for which the others would wait.
    except BaseException as error:
        failure = error
    outcome = _Outcome.of(path, rank, own, failure)
    outcomes = [outcome]
    if world_size > 1:
        outcomes *= world_size
        dist.all_gather_object(outcomes, outcome, group=group)
    if failure is not None and not isinstance(failure, CheckpointError):
        raise failure
    for other in outcomes:
        if other.fault:
            raise CheckpointError(other.fault)
    for number, other in enumerate(outcomes):
        if other.sizes != outcomes[0].sizes:
            raise CheckpointError(
                f"{path}: is not the same for all processes (process 0 sees "
                f"{_summary(outcomes[0].sizes)}, process {number} {_summary(other.sizes)}), so "
                "they would hold parts of different weights. Copy it to every machine again."
            )
    assert own is not None
    return replace(own, sha256=outcomes[0].sha256)


@dataclass(frozen=True)
class _Outcome:
    """The message of one process to the others.

    It holds the digest that it computed and names and sizes of the files, or what went wrong.
    """

    sha256: str = ""
    sizes: tuple[tuple[str, int], ...] = ()
    fault: str = ""

    @classmethod
    def of(
        cls, path: Path, rank: int, own: VerifiedFiles | None, failure: BaseException | None
    ) -> "_Outcome":
        if isinstance(failure, CheckpointError):
            return cls(fault=str(failure))
        if failure is not None or own is None:
            said = f"{type(failure).__name__}: {failure}".partition("\n")[0]
            return cls(
                fault=(
                    f"{path}: was not verified, because process {rank} failed, so all stop. It "
                    f"says: {said}"
                )
            )
        return cls(own.sha256, tuple((name, size) for name, size, *_ in own.stamps))


def _looked_at(path: Path) -> VerifiedFiles:
    return VerifiedFiles.of(path, "", read_weights(path, verified=True).files)


def _verified(path: Path, expected_sha256: str | None) -> VerifiedFiles:
    # Looked at first, so that a file that changes meanwhile is not taken for what was verified.
    before = _looked_at(path)
    sha256, file = read_with_digest(path, expected_sha256)
    verified = replace(before, sha256=sha256)
    verified.check(path, file.files)
    return verified


def _summary(sizes: tuple[tuple[str, int], ...]) -> str:
    return f"{len(sizes)} file{'s' * (len(sizes) != 1)} of {sum(size for _, size in sizes)} bytes"


def _all_rows(tensor: Tensor) -> tuple[int, int]:
    return (0, tensor.shape[0] if tensor.ndim else 1)


def _checked_rows(name: str, shape: torch.Size, rows: tuple[int, int]) -> tuple[int, int]:
    start, stop = rows
    length = shape[0] if shape else 1
    if not 0 <= start <= stop <= length or (not shape and stop - start != 1):
        raise ValueError(
            f"{name!r} of shape {tuple(shape)} has no rows [{start}, {stop}); expected 0 <= start "
            f"<= stop <= {length}{'' if shape else ', all of it'}."
        )
    return start, stop


def _read(
    tensor: Tensor, rows: tuple[int, int], dtype: torch.dtype, device: torch.device | None
) -> Tensor:
    """Read rows into memory of their own.

    A constant that was filled in from the model is no UnreadTensor; its rows are all copied.
    """
    if isinstance(tensor, UnreadTensor):
        return tensor.read(*rows, dtype=dtype, device=device)
    return tensor.to(device, dtype, copy=True)
