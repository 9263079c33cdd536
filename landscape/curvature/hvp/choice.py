"""Choice of the strategy that computes products with the Hessian, and why it was made.

It is the fastest that fits in memory, found by trying; another is taken when memory runs out.

On a CPU the retained graph is taken where it fits, because nothing there is faster for one batch;
whether it fits is seen while the first product is computed. Where it does not, each other strategy
that fits computes that product, and the fastest is kept. Measured on 100 pairs of small CLIP
models, in the memory of an evaluation with its graph: retained 3.3 to 3.5, rebuilt 2.5 to 2.6, jvp
of the gradient 4.6 to 4.7, chunks of 16 rows 0.6 to 0.7. So forward mode, which is not faster
either, saves no memory and is used only where it is asked for. So are recorded graphs, which pay
for many batches: `landscape.pipeline` knows how many there are.
Shapes: n = total size of the parameters, c = vectors multiplied at once, k = vectors to multiply.
"""

from dataclasses import asdict, dataclass
from typing import Any

from landscape.curvature.hvp.products import RebuiltGraph, RetainedGraph, TangentOfGradient
from landscape.curvature.hvp.replayed import ReplayedGraph, ReplayedTrace
from landscape.curvature.hvp.row_chunks import RowChunks
from landscape.curvature.hvp.traced import CompiledProduct, TracedProduct

# In the order in which they are fallen back to: each takes less memory than the one before it.
_LADDER = ("retained", "rebuilt", "rows")
STRATEGIES = ("auto", "retained", "rebuilt", "jvp", "rows", "traced", "compiled")
# Strategies that record a graph once for many batches.
RECORDED = (TracedProduct.name, ReplayedTrace.name, CompiledProduct.name)
_CLASSES = (
    RetainedGraph,
    RebuiltGraph,
    TangentOfGradient,
    RowChunks,
    ReplayedGraph,
    TracedProduct,
    ReplayedTrace,
    CompiledProduct,
)
_TITLES = {strategy.name: strategy.title for strategy in _CLASSES}
# Share of the allowed or free memory that tensors may take. On a CPU the C library's
# heap held up to 2.4 times what lived in it (1.1 times where each tensor is mapped for itself), and
# running over is fatal; on a GPU it is an error.
SHARE = {"cpu": 0.4, "cuda": 0.9}
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A strategy that was tried.

    Holds `seconds` for a vector and the `mebibytes` at its peak, or the `failure` for which it was
    not taken.
    """

    product: str
    rows: int | None = None
    seconds: float | None = None
    mebibytes: int | None = None
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class HvpChoice:
    """How products are computed, and why.

    Another operator of the same model and batch size may be given it as `hvp`.

    Attributes:
        product: "retained", "rebuilt", "jvp", "rows", "replayed", "traced", "traced-replayed" or
            "compiled".
        rows: Rows in a chunk, for "rows".
        columns: Vectors multiplied by one pass.
        reason: Why this strategy was chosen.
        limit: Bytes that tensors might take: two fifths of what was allowed or free on a CPU, nine
            tenths on a GPU.
        held: Bytes of tensors that are kept between products, as counted; 0 where that was not
            counted.
        peak: The same at the peak of a product.
        trials: Strategies that were tried, in order.
    """

    product: str
    rows: int | None = None
    columns: int = 1
    allow_tf32: bool = False
    reason: str = ""
    limit: int = 0
    held: int = 0
    peak: int = 0
    trials: tuple[Trial, ...] = ()

    @property
    def title(self) -> str:
        """Describe in words how products are computed."""
        return _TITLES[self.product] + (f" of {self.rows}" if self.rows else "")

    def __str__(self) -> str:
        return f"{self.title}: {self.reason}"

    def as_settings(self) -> dict[str, Any]:
        """Return plain JSON values for a record."""
        facts = asdict(self)
        return facts | {
            f"{key}_mebibytes": facts.pop(key) // _MIB for key in ("limit", "held", "peak")
        }


def rank(product: str) -> int:
    """Return the place of a strategy on the ladder.

    What is not on the ladder comes before it.
    """
    return _LADDER.index(product) if product in _LADDER else 0


def check_arguments(
    hvp: str | HvpChoice, rows: int | None, columns: int | None, max_memory: int | None
) -> None:
    if isinstance(hvp, str) and hvp not in STRATEGIES:
        raise ValueError(f"hvp must be one of {', '.join(STRATEGIES)} or a HvpChoice, got {hvp!r}.")
    if rows is not None and hvp not in ("auto", "rows"):
        raise ValueError(
            f"rows are those of a chunk, and hvp={hvp!r} takes no chunks. Leave one of them out."
        )
    for name, value in (("rows", rows), ("columns", columns), ("max_memory", max_memory)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
