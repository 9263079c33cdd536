"""How the HVPs of a run are computed: the request, and each series' choice.

A series chooses once, on its first batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from landscape import curvature
from landscape.deprecation import renamed_keyword, warn_of_old_name
from landscape.errors import LandscapeError, MemoryLimitError, ObjectiveError

if TYPE_CHECKING:
    from landscape.curvature import Batch, HessianBlocks, HessianOperator, Objective, Params
    from landscape.curvature.hvp import HvpChoice


# Strategies that record a graph once for all batches.
RECORDED = ("traced", "compiled")
# Number of products of a series from which recording a graph saves time, also in several processes;
# and total seconds of the products from which compiling the graph does.
_MIN_RECORDED_PRODUCTS, _MIN_COMPILED_SECONDS = 3000, 300.0


@dataclass(frozen=True, kw_only=True)
class HvpSettings:
    """Options for computing Hessian-vector products; see HessianOperator."""

    hvp: str = "auto"
    rows: int | None = None
    max_memory: int | None = None
    allow_tf32: bool = False

    @property
    def product(self) -> str:
        """Return `hvp`, of which this is the old name."""
        warn_of_old_name("product", "hvp")
        return self.hvp

    def check(self, method: str, hvp: str) -> None:
        """Refuse options that exclude each other.

        Raises:
            LandscapeError: If they do.
        """
        if self == HvpSettings():
            return
        if hvp == "finite-difference" or method == "pyhessian":
            by_differences = hvp == "finite-difference"
            other = f"--hvp {hvp}" if by_differences else f"method {method}"
            no_effect = "--rows" if by_differences else "--hvp, --rows"
            raise LandscapeError(
                f"{other}: makes products in a way of its own, so {no_effect}, --max-memory and "
                "--tf32 cannot be obeyed. Leave them out, or use another method."
            )
        if self.rows is not None and self.hvp not in ("auto", "rows"):
            raise LandscapeError(
                f"--rows: sizes chunks, but --hvp {self.hvp} takes none. Leave one of them out."
            )

    def check_blocks(self) -> None:
        """Refuse options that diagonal blocks cannot use.

        Raises:
            LandscapeError: If there is one.
        """
        if self.hvp in RECORDED:
            raise LandscapeError(
                f"--hvp {self.hvp}: records the product of all parameters, but modules are "
                "measured through parts of one graph. Leave --hvp out, or measure the modules "
                "in a run of their own."
            )

    def sharing(self, num_workers: int, free: int | None) -> Self:
        """Return the settings for one of several processes.

        `free` bytes are free for all of them; None where each process checks by itself.
        """
        memory = free if self.max_memory is None else self.max_memory
        return replace(self, max_memory=None if memory is None else memory // num_workers)


# The old name of its first argument.
setattr(HvpSettings, "__init__", renamed_keyword("product", "hvp")(HvpSettings.__init__))


def strategy_for(num_products: int, seconds: float, *, is_cpu: bool) -> str | None:
    """Choose the strategy of recording HVPs that saves time, if any.

    Recording takes the time of about 100 products in every process, and makes each a tenth faster.
    Compiling takes one to three minutes for a small network, once on a machine, and halves the
    time; loading what was compiled takes seconds. These are numbers for a CPU:
    experiments/benchmark_batch.txt.

    Args:
        num_products: Number of products of the series.
        seconds: Seconds of a product.
    """
    if num_products < _MIN_RECORDED_PRODUCTS:
        return None
    return "compiled" if is_cpu and num_products * seconds >= _MIN_COMPILED_SECONDS else "traced"


class SeriesProducts:
    """The operators of a series, all with the strategy of the first.

    Attributes:
        choice: The choice of the strategy; None before there is one.

    Args:
        choice: Result of `plain_choice` in another process.
    """

    def __init__(self, asked: HvpSettings, choice: Mapping[str, Any] | None = None) -> None:
        self.asked = asked
        self.choice: HvpChoice | None = None
        if choice is not None:
            trials = tuple(curvature.hvp.Trial(**trial) for trial in choice["trials"])
            self.choice = curvature.hvp.HvpChoice(**{**choice, "trials": trials})

    def plain_choice(self) -> dict[str, Any] | None:
        """Return the choice as plain values, which can be read without torch."""
        return None if self.choice is None else asdict(self.choice)

    def choose(
        self, objective: "Objective", params: "Params", read: "Callable[[], Batch]"
    ) -> "HessianOperator | None":
        """Choose the strategy by a product on the batch that `read` returns.

        Returns:
            The operator; None where the loss has no Hessian on this batch, which leaves the choice
            to the next batch.

        Raises:
            MemoryLimitError: If no strategy fits in memory.
        """
        try:
            operator = self.operator(objective, params, read())
            operator.choose()
        except MemoryLimitError:
            raise
        except (ObjectiveError, RuntimeError):
            return None
        self.keep(operator)
        return operator

    def record(
        self,
        objective: "Objective",
        params: "Params",
        batch: "Batch",
        *,
        strategy: str,
        reason: str,
    ) -> "HessianOperator":
        """Record the HVP by a strategy.

        Later batches use it too, if it works.

        Args:
            reason: Reason for the strategy, to be stored.

        Raises:
            ObjectiveError, MemoryLimitError: If the loss has no Hessian on this batch.
        """
        options = self._options() | {"hvp": strategy, "rows": None}
        operator = curvature.HessianOperator(objective, params, batch, **options)
        choice = operator.choose()
        # The length of the job is the reason, not a request of the user.
        self.choice = replace(choice, reason=choice.reason.replace("asked for", reason, 1))
        return operator

    def operator(
        self, objective: "Objective", params: "Params", batch: "Batch"
    ) -> "HessianOperator":
        """Build the Hessian on `batch`."""
        return curvature.HessianOperator(objective, params, batch, **self._options())

    def blocks(
        self,
        objective: "Objective",
        params: "Params",
        batch: "Batch",
        modules: "Mapping[str, tuple[str, ...]]",
    ) -> "HessianBlocks":
        """Build the diagonal blocks of the Hessian that belong to modules."""
        return curvature.HessianBlocks(objective, params, batch, modules, **self._options())

    def _options(self) -> dict[str, Any]:
        return {
            "hvp": self.choice or self.asked.hvp,
            "rows": self.asked.rows if self.choice is None else None,
            "max_memory": self.asked.max_memory,
            "allow_tf32": self.asked.allow_tf32,
        }

    def keep(self, operator: object) -> None:
        """Use this operator's choice for the next batches."""
        self.choice = getattr(operator, "choice", None) or self.choice

    def settings(self) -> dict[str, Any]:
        """Return the choice to store beside the numbers, as JSON values."""
        if self.choice is None:
            return {}
        return {"product": self.choice.title, "product_choice": self.choice.as_settings()}
