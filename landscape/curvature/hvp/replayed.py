"""HVPs whose kernel launches are recorded once as a CUDA graph and replayed.

For small batches, whose products take longer to launch than to compute. Written for CUDA 12 and
later; nothing here has run on a GPU yet, so what is replayed is compared with the plain product
before it is used.
Shapes: n = total size of the parameters, c = vectors multiplied at once.
"""

import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from threading import RLock
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.curvature.hvp.products import (
    AGREEMENT,
    SAME_OPERATIONS,
    Product,
    RetainedGraph,
    check_agreement,
)
from landscape.curvature.hvp.traced import TracedProduct
from landscape.curvature.hvp.traced_graph import BatchGraph, CannotTrace, TracedGraph
from landscape.errors import ObjectiveError
from landscape.linalg.operator import seeded

# Records what a function launches on a device, and returns what launches it again.
Recorder = Callable[[Callable[[], None], torch.device], Callable[[], object]]

# Runs before the recording, which must not meet what is set up on first use.
_WARM_UPS = 3
# Batches of a graph whose product is compared: the second shows whether the buffers are read at
# all.
_CHECKED_BATCHES = 2


def can_replay(device: torch.device) -> bool:
    """Tell whether launches can be recorded on a device."""
    return device.type == "cuda"


def cuda_graph(function: Callable[[], None], device: torch.device) -> Callable[[], object]:
    """Record the kernels that a function launches as a CUDA graph.

    The result launches them again. The function has to read and write the same memory at every
    call.

    Raises:
        RuntimeError: If it does something that cannot be recorded, such as waiting for the device.
    """
    with torch.cuda.device(device):
        current, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        # CUDA asks for warm-up runs on a stream of their own before a recording.
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                function()
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function()
    replay: Callable[[], object] = graph.replay
    return replay


class ReplayedGraph(Product):
    """Replay the backward pass of a retained graph; one vector at a time.

    Args:
        record: Function that records the pass; None for a CUDA graph.

    Raises:
        ObjectiveError: If what is replayed is not the plain product.
        RuntimeError: If the pass cannot be recorded.
    """

    name = "replayed"
    title = "double backward, retained graph, replayed as a CUDA graph"

    def __init__(self, plain: RetainedGraph, *, record: Recorder | None = None) -> None:
        super().__init__(plain.problem)
        like = plain.problem.like
        self._vector, self._product = (
            torch.zeros(1, self.size, dtype=like.dtype, device=like.device) for _ in range(2)
        )
        # Kept alive: the recorded pass reads its tensors.
        self.plain = plain
        with plain.problem.differentiating():
            self._replay = (record or cuda_graph)(
                lambda: plain._multiply(self._vector, self._product), like.device
            )
        _check_replayed(self, plain, AGREEMENT)

    def _multiply(self, rows: Float[Tensor, "c n"], out: Float[Tensor, "c n"]) -> None:
        for row, target in zip(rows, out):
            self._vector[0].copy_(row)
            self._replay()
            target.copy_(self._product[0])


class ReplayedTrace(TracedProduct):
    """Replay the product graph, recorded once for all batches and checkpoints.

    Operators that share a graph share its buffers; the saved tensors of a batch are copied into
    them when its turn comes.

    Args:
        record: Function that records the graph; None for a CUDA graph.

    Raises:
        ObjectiveError: If what is replayed is not the plain product.
        CannotTrace: If the saved tensors do not lie in memory as those of the recorded batch.
        RuntimeError: If the graph cannot be recorded.
    """

    name = "traced-replayed"
    title = "double backward, traced graph, replayed as a CUDA graph"

    def __init__(self, plain: TracedProduct, *, record: Recorder | None = None) -> None:
        super().__init__(plain.problem, plain.batch)
        with plain.problem.differentiating(), torch.no_grad():
            self._static = _static_product(plain, record or cuda_graph)
        self._static.check_fits(plain.batch)
        if self._static.num_checked < _CHECKED_BATCHES:
            try:
                _check_replayed(self, plain, SAME_OPERATIONS)
            except ObjectiveError:
                # Neither later batches nor operators that share it may use it.
                self._static.spoil()
                raise
            self._static.num_checked += 1

    def _multiply(self, rows: Float[Tensor, "c n"], out: Float[Tensor, "c n"]) -> None:
        with self._static.lock:
            super()._multiply(rows, out)

    def run(self, vectors: Sequence[Tensor]) -> Sequence[Tensor]:
        return self._static.multiply(self.batch, vectors)


def _check_replayed(
    replayed: Product, plain: Product, tolerances: dict[torch.dtype, float]
) -> None:
    """Compare the products of two different vectors.

    With two, a replay that always returns the first product is detected.

    Raises:
        ObjectiveError: If they differ by more than rounding can.
    """
    like = plain.problem.like
    for seed in range(2):
        row = torch.randn(1, plain.size, generator=seeded(seed), dtype=torch.float64).to(
            like.device, like.dtype
        )
        expected, product = torch.empty_like(row), torch.empty_like(row)
        plain.multiply(row, expected)
        replayed.multiply(row, product)
        check_agreement(product, expected, replayed.title, tolerances)


# --- memory that a recording reads and writes -----------------------------------------------------

# They hold no traced graph, so that a forgotten graph is freed, and its buffers with it.
_static_products: "weakref.WeakKeyDictionary[TracedGraph, StaticProduct]" = (
    weakref.WeakKeyDictionary()
)


def _static_product(plain: TracedProduct, record: Recorder) -> "StaticProduct":
    """Return the recorded product of a traced graph.

    It is recorded now if it was not before.
    """
    graph = plain.batch.graph
    static = _static_products.get(graph)
    if static is None or static.is_spoilt:
        like = plain.problem.like
        vectors = plain.padded(torch.zeros(1, plain.size, dtype=like.dtype, device=like.device))
        static = _static_products[graph] = StaticProduct(
            graph.product, plain.batch, vectors, record
        )
    return static


class StaticProduct:
    """The product graph, recorded once.

    It holds the buffers for saved tensors and vectors that the recording reads.

    Attributes:
        lock: To be held from `multiply` until what it returned has been read.
        num_checked: Batches whose product was compared with the plain one.
        is_spoilt: Whether it was found to be wrong.

    Args:
        product: The product graph.
        vectors: Vectors as the graph takes them, for their shapes.
    """

    def __init__(
        self,
        product: Callable[..., Sequence[Tensor]],
        batch: BatchGraph,
        vectors: Sequence[Tensor],
        record: Recorder,
    ) -> None:
        # One recording serves every operator, copies included.
        self.lock = RLock()
        self.num_checked, self.is_spoilt = 0, False
        stretches, self._layout = _stretches(batch.saved)
        self._buffers = [stretch.clone() for stretch in stretches]
        self._vectors = [
            torch.zeros_like(vector, memory_format=torch.contiguous_format) for vector in vectors
        ]
        self._products: Sequence[Tensor] = ()
        self._owner: Callable[[], BatchGraph | None] = weakref.ref(batch)
        saved = [
            self._buffers[number].as_strided(tensor.shape, tensor.stride(), offset)
            for tensor, (number, offset) in zip(batch.saved, self._layout.places)
        ]

        def run() -> None:
            self._products = product(*saved, *self._vectors)

        self._replay = record(run, batch.saved[0].device if batch.saved else vectors[0].device)

    def __deepcopy__(self, memo: dict[int, Any]) -> "StaticProduct":
        """Return itself, as a recording cannot be copied."""
        return self

    def check_fits(self, batch: BatchGraph) -> None:
        """Refuse a batch whose saved tensors do not fit the buffers.

        Raises:
            CannotTrace: If so.
        """
        if _stretches(batch.saved)[1] != self._layout:
            raise CannotTrace(
                "what the graph needs of this batch lies in memory in another way than that of the "
                "recorded batch"
            )

    def spoil(self) -> None:
        """Refuse all further use."""
        self.is_spoilt = True

    def multiply(self, batch: BatchGraph, vectors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Compute HVPs by parameter, in memory that the next product overwrites.

        Args:
            vectors: Vectors by parameter, tables with their padding.
        """
        if self.is_spoilt:
            raise ObjectiveError(
                f"{ReplayedTrace.title}: was found to differ from the plain product on another "
                "batch."
            )
        self._load(batch)
        for static, vector in zip(self._vectors, vectors):
            static.copy_(vector)
        self._replay()
        return self._products

    def _load(self, batch: BatchGraph) -> None:
        """Copy the saved tensors of a batch into the buffers.

        All of them are copied: to find out which are those of the batch before takes as long.
        """
        if self._owner() is batch:
            return
        # After an interruption here the buffers belong to no batch.
        self._owner = _nobody
        for buffer, stretch in zip(self._buffers, _stretches(batch.saved)[0]):
            buffer.copy_(stretch)
        self._owner = weakref.ref(batch)


def _nobody() -> None:
    return None


@dataclass(frozen=True)
class _Layout:
    """The places of tensors in memory.

    Attributes:
        places: Number of the stretch of memory of each tensor, and its offset there.
        strided: Type, shape and strides of each tensor.
        lengths: Lengths of the stretches, in numbers.
    """

    places: tuple[tuple[int, int], ...]
    strided: tuple[Hashable, ...]
    lengths: tuple[int, ...]


def _stretches(tensors: Sequence[Tensor]) -> tuple[list[Tensor], _Layout]:
    """Return the memory of tensors as flat tensors.

    Views that overlap share a stretch.

    Raises:
        CannotTrace: If a tensor is not strided.
    """
    groups: dict[Hashable, list[tuple[int, int, int]]] = {}
    for index, tensor in enumerate(tensors):
        if tensor.layout != torch.strided:
            raise CannotTrace(f"a saved tensor has the layout {tensor.layout}")
        start = int(tensor.storage_offset())
        # Strides of torch are never negative, so the last element in memory is that of the last
        # indices.
        reach = sum(int((size - 1) * stride) for size, stride in zip(tensor.shape, tensor.stride()))
        stop = start + 1 + reach if tensor.numel() else start
        # By type too: offsets and lengths count numbers of one type.
        groups.setdefault((tensor.untyped_storage()._cdata, tensor.dtype), []).append(
            (start, stop, index)
        )
    stretches: list[tuple[int, int, int]] = []
    places = [(0, 0)] * len(tensors)
    for group in groups.values():
        first = len(stretches)
        for start, stop, index in sorted(group):
            # In order of their starts, a view that begins before the last stretch ends belongs to
            # it.
            if len(stretches) > first and start < stretches[-1][1]:
                begun, end, member = stretches[-1]
                stretches[-1] = begun, max(end, stop), member
            else:
                stretches.append((start, stop, index))
            places[index] = len(stretches) - 1, start - stretches[-1][0]
    flat = [
        tensors[index].as_strided((stop - start,), (1,), start) for start, stop, index in stretches
    ]
    strided = tuple((tensor.dtype, tensor.shape, tensor.stride()) for tensor in tensors)
    return flat, _Layout(tuple(places), strided, tuple(map(len, flat)))
