"""Processes that hold parts of one model: all make every step, or all raise.

A collective operation that only some processes call hangs, or gives garbage. So before each, the
processes compare which step they are at; one that has failed says so there, and all others raise
its message. Between that comparison and the operation nothing is done that can fail: buffers are
allocated before.
Imports torch.distributed, so nothing here is loaded without a mesh.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from landscape.curvature.hvp.memory import is_out_of_memory
from landscape.errors import (
    LandscapeError,
    MemoryLimitError,
    NumericalError,
    ObjectiveError,
    PictureError,
    WorkerDied,
    first_line,
)

# In the place of a step, which is the checksum of its name: a failure.
_FAILED = -1
# Numbers that a message about a step carries. Every such message has this size, whether the process
# goes on or has failed; how many numbers of it count is a part of the step's name. What has another
# size is sent after such a message alone.
_FRAME = 7
# What another process raised, as it is raised here; a LandscapeError for all else.
_RAISED: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (ObjectiveError, ValueError, MemoryLimitError, NumericalError, PictureError)
}
_SAME_MODEL = (
    "All must hold the same model and pass rows of one batch. Build the model from the same seed "
    "or checkpoint in every process."
)
_Result = TypeVar("_Result")
# The newer names, from torch 2.14 on.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
# Groups for small numbers on the CPU, by the group of the devices: a group is made once, by all its
# processes.
_on_cpu: "dict[dist.ProcessGroup, dist.ProcessGroup]" = {}


@dataclass
class _Section:
    """Whether a group is in a section of `together`, and its failures.

    Attributes:
        parted: Whether a process has failed, which all know, or is lost: nothing can be taken
            together until the end.
        failures: What each process said of its failure, None where it has none; None while none has
            failed.
    """

    depth: int = 0
    parted: bool = False
    failures: "list[tuple[str, str] | None] | None" = None


_sections: "dict[dist.ProcessGroup, _Section]" = {}


class Processes:
    """The processes of a mesh with one dimension.

    Args:
        mesh: A DeviceMesh of torch.distributed with one dimension. Weights go over its own backend,
            small numbers over gloo.

    Attributes:
        rank, size: Number of this process in the mesh, and number of processes.
        device_type: Where weights are, "cpu" or "cuda".

    Raises:
        ValueError: If the mesh has more than one dimension, or is no mesh.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        if not isinstance(mesh, DeviceMesh) or mesh.ndim != 1:
            got = (
                f"{mesh.ndim} dimensions"
                if isinstance(mesh, DeviceMesh)
                else f"a {type(mesh).__name__}"
            )
            raise ValueError(
                "mesh must be a DeviceMesh of one dimension, over which weights and vectors are "
                f"cut, got {got}. Make it with "
                "torch.distributed.device_mesh.init_device_mesh(device, (world_size,)), or take "
                'one dimension of a larger one, mesh["name"].'
            )
        self.group = mesh.get_group()
        self.rank, self.size, self.device_type = (
            mesh.get_local_rank(),
            mesh.size(),
            mesh.device_type,
        )
        self._numbers = _cpu_group(self.group)
        # All objects for one group share its state: the processes are at one step only.
        self._section = _sections.setdefault(self.group, _Section())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Processes) and other.group is self.group

    def __hash__(self) -> int:
        return hash(self.group)

    # --- steps ------------------------------------------------------------------------------------

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run work that all processes begin and end together.

        If one raises inside, all raise.

        Sections inside of another belong to that one.

        Raises:
            LandscapeError: Or one of its kinds, or ValueError: in every process that did not fail
                itself, what another process raised. MemoryLimitError where memory ran out;
                WorkerDied if a process has ended or does not answer.
        """
        section = self._section
        if section.depth:
            yield
            return
        section.depth, section.parted, section.failures = 1, False, None
        try:
            with _memory_errors():
                yield
            self.meet("the end of a common step")
        # Also an interrupt: otherwise the others would wait.
        except BaseException as error:
            if not section.parted and not isinstance(error, WorkerDied):
                self._tell(error)
            raise
        finally:
            section.depth = 0

    @property
    def have_parted(self) -> bool:
        """Tell whether a process has failed in this section.

        All processes know of it, and nothing can be done together until the section ends.
        """
        return self._section.parted

    def try_measure(self, work: Callable[[], _Result]) -> _Result | None:
        """Try work that may not be possible, inside of `together`.

        Returns its result; None, in all processes, if it fails in any.

        Raises:
            LandscapeError: See `together`: if memory ran out in a process, or processes took
                different paths or were lost.
        """
        try:
            result = work()
            self.meet("the end of an attempt")
            return result
        except Exception as error:
            if not self._section.parted:
                self._tell(error)
            # All processes have the same list, and so decide alike.
            failures = self._section.failures
            if failures is None or any(
                said and said[0] == MemoryLimitError.__name__ for said in failures
            ):
                raise
        self._section.parted, self._section.failures = False, None
        return None

    def meet(self, name: str) -> None:
        """Wait until all processes are at the step of this name.

        Raises:
            LandscapeError: See `together`. ObjectiveError if the processes are at different steps.
        """
        self._frames(name, [])

    def _frames(self, name: str, numbers: Sequence[float]) -> np.ndarray:
        """Meet at the step of this name, and exchange a few numbers.

        The same message carries both. The result has the shape (processes, numbers).
        """
        step = zlib.crc32(name.encode())
        frames = self._gathered(
            torch.tensor([step, *numbers, *[0.0] * (_FRAME - len(numbers))], dtype=torch.float64)
        ).numpy()
        steps = frames[:, 0].tolist()
        if all(other == step for other in steps):
            return np.asarray(frames[:, 1 : 1 + len(numbers)])
        self._section.parted = True
        messages = self._messages(None if _FAILED in steps else ("", name))
        if _FAILED in steps:
            self._section.failures = messages
            raise _repeated(messages, steps, self.size)
        places = {place: rank for rank, (_, place) in reversed(list(enumerate(messages))) if place}
        said = ", ".join(
            f"process {rank} at {place}"
            for place, rank in sorted(places.items(), key=lambda pair: pair[1])
        )
        raise ObjectiveError(
            f"The processes take different paths through the loss: {said}. Every process must use "
            "the same parameters in the same order, whatever its rows are. Look for branches that "
            "depend on the batch (such as mixtures of experts), and for models that differ between "
            "processes."
        )

    def _tell(self, error: BaseException) -> None:
        """Tell the others that this process has failed."""
        self._section.parted = True
        kind = MemoryLimitError.__name__ if is_out_of_memory(error) else type(error).__name__
        try:
            self._gathered(torch.tensor([_FAILED, *[0.0] * _FRAME], dtype=torch.float64))
            self._section.failures = self._messages((kind, str(error)))
        except Exception as lost:
            error.add_note(f"The other processes could not be told: {first_line(lost)}")

    def _messages(self, own: Any) -> list[Any]:
        if self.size == 1:
            return [own]
        messages: list[Any] = [None] * self.size
        with self._exchange():
            dist.all_gather_object(messages, own, group=self._numbers)
        return messages

    @contextmanager
    def _exchange(self, name: str | None = None) -> Iterator[None]:
        """Run a collective operation, with nothing else that can fail.

        The processes meet before it at the step of this name.

        Whatever stops it, the others cannot be told: they may still be in the operation.

        Raises:
            WorkerDied: Where torch raises an error.
        """
        try:
            if name is not None:
                self.meet(name)
            yield
        except RuntimeError as error:
            self._section.parted = True
            if is_out_of_memory(error):
                raise
            # Gloo adds advice that does not help.
            said = first_line(error).partition(". This is typically")[0].rsplit("] ", 1)[-1]
            lost = WorkerDied(
                "Another process ended, or did not answer within the timeout of the process group. "
                f"Look at its output. PyTorch says: {said}."
            )
            lost.is_repeated = True
            raise lost from error
        except BaseException:
            self._section.parted = True
            raise

    # --- numbers ----------------------------------------------------------------------------------

    def total(self, numbers: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Sum over the processes, with the same bits in all.

        The order of the sum is that of the processes.
        """
        if not numbers.size or self.size == 1:
            return numbers
        flat = np.ascontiguousarray(numbers, dtype=np.float64).reshape(-1)
        name = f"a sum of {len(flat)} numbers over the processes"
        few = len(flat) <= _FRAME
        parts = (
            self._frames(name, flat.tolist())
            if few
            else self._gathered(torch.from_numpy(flat), name).numpy()
        )
        # One after the other: floating-point sums depend on their order.
        total = parts[0].copy()
        for part in parts[1:]:
            total += part
        return np.asarray(total.reshape(np.shape(numbers)))

    def each(self, numbers: Sequence[int]) -> np.ndarray:
        """Gather the integers of all processes (processes, numbers).

        There must be as many in each.
        """
        name = f"a list of {len(numbers)} numbers"
        return np.asarray(
            self._gathered(torch.tensor(list(numbers), dtype=torch.int64), name).numpy()
        )

    def largest(self, number: float) -> float:
        """Return the largest number of all processes."""
        return float(self._frames("the largest of all numbers", [number]).max())

    def any_of(self, flags: Tensor) -> Tensor:
        """Combine flags by "or" over all processes.

        The result is bool; flags have one shape in all.
        """
        united = flags.to("cpu", torch.uint8, copy=True)
        with self._exchange(f"flags {tuple(flags.shape)} of all processes"):
            dist.all_reduce(united, op=dist.ReduceOp.MAX, group=self._numbers)
        return united.bool()

    def from_first(self, own: Any) -> Any:
        """Send what process 0 passes to every process; collective.

        Any value that can be pickled.
        """
        self.meet("a message of process 0")
        return self._messages(own if self.rank == 0 else None)[0]

    def must_agree(self, own: Any, what: str, advice: str = _SAME_MODEL) -> None:
        """Refuse a value that differs between processes.

        Any Python value that can be compared.

        Args:
            what: Names it, in the plural.
            advice: What to do.

        Raises:
            ObjectiveError: In all processes, if it differs.
        """
        self.meet(f"the comparison of {what}")
        values = self._messages(own)
        for rank, value in enumerate(values):
            if value != values[0]:
                self._section.parted = True
                raise ObjectiveError(
                    f"Processes 0 and {rank} have different {what}: {_short(values[0])} and "
                    f"{_short(value)}. {advice}"
                )

    def _gathered(self, own: Tensor, name: str | None = None) -> Tensor:
        """Gather numbers of all processes (processes, numbers) at a named step."""
        parts = torch.empty((self.size, *own.shape), dtype=own.dtype)
        with self._exchange(name):
            if self.size == 1:
                parts.copy_(own)
            else:
                dist.all_gather(list(parts), own, group=self._numbers)
        return parts

    # --- tensors ----------------------------------------------------------------------------------

    def gather(self, part: Float[Tensor, "r ..."], name: str) -> Float[Tensor, "p ..."]:
        """Join the parts of all processes, one after the other.

        All have one shape. With one process, the result is a copy of the part.

        Args:
            name: Name of the step.
        """
        part = part.clone() if self.size == 1 else part.contiguous()
        shape = (self.size * part.shape[0], *part.shape[1:])
        whole = part if self.size == 1 else torch.empty(shape, dtype=part.dtype, device=part.device)
        with self._exchange(f"{name} {_kind(part)}"):
            if self.size > 1 and whole.numel():
                _all_gather(whole, part, group=self.group)
        return whole

    def scatter_sum(self, whole: Float[Tensor, "p ..."], name: str) -> Float[Tensor, "r ..."]:
        """Sum over all processes, and return the part of this process.

        Args:
            name: Name of the step.
        """
        whole = whole.clone() if self.size == 1 else whole.contiguous()
        shape = (whole.shape[0] // self.size, *whole.shape[1:])
        part = (
            whole if self.size == 1 else torch.empty(shape, dtype=whole.dtype, device=whole.device)
        )
        with self._exchange(f"{name} {_kind(whole)}"):
            if self.size > 1 and whole.numel():
                _reduce_scatter(part, whole, group=self.group)
        return part


def _cpu_group(group: dist.ProcessGroup) -> dist.ProcessGroup:
    if dist.get_backend(group) == dist.Backend.GLOO:
        return group
    if group not in _on_cpu:
        ranks = dist.get_process_group_ranks(group)
        made: Any = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)
        _on_cpu[group] = made
    return _on_cpu[group]


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Translate out-of-memory errors, with advice.

    Raises:
        MemoryLimitError: In the place of what Python or torch raises.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryLimitError) or not is_out_of_memory(error):
            raise
        raise MemoryLimitError(
            "Memory ran out in one of the processes that share the model. Use hvp='rebuilt', "
            f"fewer rows in each process, or more processes. PyTorch says: {first_line(error)}"
        ) from error


def _kind(tensor: Tensor) -> str:
    """Describe shape and type of a tensor in words."""
    return f"of shape {tuple(tensor.shape)} in {str(tensor.dtype).removeprefix('torch.')}"


def _repeated(messages: Sequence[Any], steps: Sequence[int], size: int) -> Exception:
    rank = steps.index(_FAILED)
    kind, text = messages[rank] or ("", "")
    error = _RAISED.get(kind, LandscapeError)(
        f"Process {rank} of {size} failed, so all stop. It says: {text or kind}"
    )
    if isinstance(error, LandscapeError):
        error.is_repeated = True
    return error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
