"""Steps that all processes make together, or none: all come to every step, or all raise.

A collective operation that only some processes call hangs, or gives garbage. So before each, the
processes compare which step they are at; one that has failed says so there, and all others raise
its message. Between that comparison and the operation nothing is done that can fail: buffers are
allocated before.
Imports torch.distributed, so nothing here is loaded without a mesh.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar
from weakref import WeakValueDictionary

import numpy as np
import torch
import torch.distributed as dist
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
FRAME = 7
# What another process raised, as it is raised here; a LandscapeError for all else.
_RAISED: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (ObjectiveError, ValueError, MemoryLimitError, NumericalError, PictureError)
}
_Result = TypeVar("_Result")
# The newer name, from torch 2.14 on.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
# Groups for small numbers on the CPU, by the group of the devices: a group is made once, by all its
# processes.
_on_cpu: "dict[dist.ProcessGroup, dist.ProcessGroup]" = {}


class Lender(Protocol):
    """A holder of pieces of weights, which other processes may ask for."""

    def padded_piece(self, weight: str) -> Tensor:
        """Return this process's piece of a weight, as large as that of every process."""
        ...


class Request(NamedTuple):
    """A weight that one process reads, of those that all processes have pieces of.

    Attributes:
        lender: Number of the holder of the pieces, the same in all processes.
        weight: Its name.
    """

    lender: tuple[int, int]
    weight: str


class _Said(NamedTuple):
    """What a process says where the processes are at different steps.

    Attributes:
        kind: Of its failure; "" if it has not failed.
        text: The message of its failure, or the name of its step.
        request: What it asks the others for; None for a step that all make.
        lenders: The numbers of those from which it can lend.
    """

    kind: str
    text: str
    request: Request | None = None
    lenders: frozenset[tuple[int, int]] = frozenset()


@dataclass
class _Section:
    """Whether a group is in a section of `together`, its failures, and what can be lent.

    Attributes:
        parted: Whether a process has failed, which all know, or is lost: nothing can be taken
            together until the end.
        failures: What each process said of its failure, None where it has none; None while none has
            failed.
        serial: Counts beginnings and ends of sections and failed attempts, and so is the same in
            all processes.
        num_lenders: How many have been registered since.
    """

    depth: int = 0
    parted: bool = False
    failures: "list[_Said | None] | None" = None
    serial: int = 0
    num_lenders: int = 0
    lenders: "WeakValueDictionary[tuple[int, int], Lender]" = field(
        default_factory=WeakValueDictionary
    )

    def begin(self) -> None:
        """Begin a section, or go on after an attempt that failed."""
        self.parted, self.failures = False, None
        self.count_anew()

    def count_anew(self) -> None:
        """Number lenders anew; a process that failed may have fewer than the others."""
        self.serial, self.num_lenders = self.serial + 1, 0


_sections: "dict[dist.ProcessGroup, _Section]" = {}


class Steps:
    """The steps of the processes of a mesh with one dimension.

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
        return isinstance(other, Steps) and other.group is self.group

    def __hash__(self) -> int:
        return hash(self.group)

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
        section.depth = 1
        section.begin()
        try:
            with _memory_errors():
                yield
                # Also here, another process may ask for a weight.
                self.meet("the end of a common step")
        # Also an interrupt: otherwise the others would wait.
        except BaseException as error:
            if not section.parted and not isinstance(error, WorkerDied):
                self._tell(error)
            raise
        finally:
            section.depth = 0
            section.count_anew()

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
                said and said.kind == MemoryLimitError.__name__ for said in failures
            ):
                raise
        self._section.begin()
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
        frames, _ = self._frames_or_lent(name, numbers, None)
        return frames

    def _frames_or_lent(
        self, name: str, numbers: Sequence[float], request: Request | None
    ) -> tuple[np.ndarray, Tensor | None]:
        """Meet as `_frames` does; while another process asks for a weight, lend and meet again.

        Args:
            request: What this process asks for at this step. If the others are at another one, the
                second result is what they lend: the pieces of all, one after the other.
        """
        # What is asked for may be of another evaluation than what others gather under that name.
        step = zlib.crc32((name if request is None else f"{name}, {request}").encode())
        frame = torch.tensor([step, *numbers, *[0.0] * (FRAME - len(numbers))], dtype=torch.float64)
        while True:
            frames = self._gathered(frame).numpy()
            steps = frames[:, 0].tolist()
            if all(other == step for other in steps):
                return np.asarray(frames[:, 1 : 1 + len(numbers)]), None
            self._section.parted = True
            own = _Said("", name, request, frozenset(self._section.lenders))
            messages: list[_Said | None] = self._messages(None if _FAILED in steps else own)
            if _FAILED in steps:
                self._section.failures = messages
                raise _repeated(messages, steps, self.size)
            asked = next((said.request for said in messages if said and said.request), None)
            if asked is None or any(said and asked.lender not in said.lenders for said in messages):
                raise _different_steps(messages)
            self._section.parted = False
            pieces = self._lent(asked)
            if asked == request:
                return frames, pieces

    def _lent(self, asked: Request) -> Tensor:
        """Gather the pieces of a weight that a process asks for; collective.

        The others need not read it: of a batch of one row, torch keeps a view of a weight where it
        otherwise keeps copies, one for every row.
        """
        try:
            part = self._section.lenders[asked.lender].padded_piece(asked.weight)
            whole = self._room_for(part)
        except BaseException as error:
            self._tell(error)
            raise
        return self._joined(part, whole, f"the lending of {asked.weight} {kind_of(part)}")

    def _tell(self, error: BaseException) -> None:
        """Tell the others that this process has failed."""
        self._section.parted = True
        kind = MemoryLimitError.__name__ if is_out_of_memory(error) else type(error).__name__
        try:
            self._gathered(torch.tensor([_FAILED, *[0.0] * FRAME], dtype=torch.float64))
            self._section.failures = self._messages(_Said(kind, str(error)))
        except Exception as lost:
            error.add_note(f"The other processes could not be told: {first_line(lost)}")

    def register(self, lender: Lender) -> tuple[int, int]:
        """Number a holder of pieces; all processes register the same ones in the same order.

        It is known for as long as something else refers to it.
        """
        section = self._section
        section.num_lenders += 1
        number = section.serial, section.num_lenders
        section.lenders[number] = lender
        return number

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

    def _gathered(self, own: Tensor, name: str | None = None) -> Tensor:
        """Gather numbers of all processes (processes, numbers) at a named step."""
        parts = torch.empty((self.size, *own.shape), dtype=own.dtype)
        with self._exchange(name):
            if self.size == 1:
                parts.copy_(own)
            else:
                dist.all_gather(list(parts), own, group=self._numbers)
        return parts

    def _room_for(self, part: Tensor) -> Tensor:
        return torch.empty(
            (self.size * part.shape[0], *part.shape[1:]), dtype=part.dtype, device=part.device
        )

    def _joined(
        self, part: Tensor, whole: Tensor, step: str, request: Request | None = None
    ) -> Tensor:
        with self._exchange():
            _, lent = self._frames_or_lent(step, [], request)
            if lent is not None:
                return lent
            if self.size == 1:
                whole.copy_(part)
            elif whole.numel():
                _all_gather(whole, part, group=self.group)
        return whole


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


def kind_of(tensor: Tensor) -> str:
    """Describe shape and type of a tensor in words."""
    return f"of shape {tuple(tensor.shape)} in {str(tensor.dtype).removeprefix('torch.')}"


def _different_steps(messages: Sequence[_Said | None]) -> ObjectiveError:
    """Say at which steps the processes are, each by the first process that is there."""
    places = {said.text: rank for rank, said in reversed(list(enumerate(messages))) if said}
    said = ", ".join(
        f"process {rank} at {place}"
        for place, rank in sorted(places.items(), key=lambda pair: pair[1])
    )
    return ObjectiveError(
        f"The processes take different paths through the loss: {said}. Every process must use the "
        "same parameters in the same order, whatever its rows are. Look for branches that depend "
        "on the batch (such as mixtures of experts), and for models that differ between processes."
    )


def _repeated(messages: Sequence[_Said | None], steps: Sequence[int], size: int) -> Exception:
    rank = steps.index(_FAILED)
    kind, text = (messages[rank] or _Said("", ""))[:2]
    error = _RAISED.get(kind, LandscapeError)(
        f"Process {rank} of {size} failed, so all stop. It says: {text or kind}"
    )
    if isinstance(error, LandscapeError):
        error.is_repeated = True
    return error
