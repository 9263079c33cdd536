"""How the products of a run are computed: what was asked for, and what each series chose, once, on its first batch."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from landscape.errors import LandscapeError, MemoryLimitError, ObjectiveError

if TYPE_CHECKING:
    from landscape.curvature import (
        Batch,
        HessianBlocks,
        HessianOperator,
        Objective,
        Params,
        ProductChoice,
    )


# Strategies that record a graph once for all batches.
RECORDED = ("traced", "compiled")
# Products of a series from which recording a graph pays in several processes; and seconds of them from which compiling it does.
_LEAST_RECORDED, _LEAST_COMPILED_SECONDS = 3000, 300.0


@dataclass(frozen=True, kw_only=True)
class ProductSettings:
    """What may be asked of products; as for HessianOperator."""

    product: str = "auto"
    rows: int | None = None
    max_memory: int | None = None
    allow_tf32: bool = False

    def check(self, method: str, hvp: str) -> None:
        """Refuse what cannot be meant together.

        Raises:
            LandscapeError: If so.
        """
        if self == ProductSettings():
            return
        if hvp == "finite-difference" or method == "pyhessian":
            other = f"--hvp {hvp}" if hvp == "finite-difference" else f"method {method}"
            raise LandscapeError(
                f"{other}: makes products in a way of its own, so --product, --rows, --max-memory and --tf32 cannot be obeyed. "
                "Leave them out, or use another method."
            )
        if self.rows is not None and self.product not in ("auto", "rows"):
            raise LandscapeError(
                f"--rows: sizes chunks, but --product {self.product} takes none. Leave one of them out."
            )

    def check_blocks(self) -> None:
        """Refuse what diagonal blocks cannot use.

        Raises:
            LandscapeError: If so.
        """
        if self.product in RECORDED:
            raise LandscapeError(
                f"--product {self.product}: records the product of all parameters, but modules are measured through parts of one "
                "graph. Leave --product out, or measure the modules in a run of their own."
            )

    def sharing(self, num_workers: int, free: int | None) -> Self:
        """The same for one of several processes, where `free` bytes are free for all of them; None where each looks by itself."""
        memory = free if self.max_memory is None else self.max_memory
        return replace(self, max_memory=None if memory is None else memory // num_workers)


def strategy_for(num_products: int, seconds: float, *, is_cpu: bool) -> str | None:
    """The way of recording HVPs that pays for so many products of so many seconds; None where none does.

    Recording takes the time of about 100 products in every process, and makes each a tenth faster. Compiling takes one to three
    minutes for a small network, once on a machine, and halves the time; loading what was compiled takes seconds. These are
    numbers for a CPU: experiments/benchmark_batch.txt.
    """
    if num_products < _LEAST_RECORDED:
        return None
    return "compiled" if is_cpu and num_products * seconds >= _LEAST_COMPILED_SECONDS else "traced"


class SeriesProducts:
    """Makes the operators of one series, all in the way that the first of them chose.

    Attributes:
        choice: None before there is one.

    Args:
        choice: What `plain_choice` gave in another process.
    """

    def __init__(self, asked: ProductSettings, choice: Mapping[str, Any] | None = None) -> None:
        self.asked = asked
        self.choice: ProductChoice | None = None
        if choice is not None:
            from landscape.curvature.choice import ProductChoice, Trial

            self.choice = ProductChoice(
                **{**choice, "trials": tuple(Trial(**trial) for trial in choice["trials"])}
            )

    def plain_choice(self) -> dict[str, Any] | None:
        """The choice as plain values, which can be sent without loading torch where they arrive."""
        return None if self.choice is None else asdict(self.choice)

    def choose(
        self, objective: "Objective", params: "Params", read: "Callable[[], Batch]"
    ) -> "HessianOperator | None":
        """Let an operator on the batch that `read` gives choose, with one product.

        Returns:
            The operator; None where the loss has no Hessian on this batch, which leaves the choice to the next one.

        Raises:
            MemoryLimitError: If no way fits in memory.
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
        """Let an operator record its HVP by a strategy, and use that for the next batches, where it works.

        Args:
            reason: Why it is taken, to be stored.

        Raises:
            ObjectiveError, MemoryLimitError: If the loss has no Hessian on this batch.
        """
        from landscape.curvature import HessianOperator

        options = self._options() | {"product": strategy, "rows": None}
        operator = HessianOperator(objective, params, batch, **options)
        choice = operator.choose()
        # Nobody asked for it but the length of the job.
        self.choice = replace(choice, reason=choice.reason.replace("asked for", reason, 1))
        return operator

    def operator(
        self, objective: "Objective", params: "Params", batch: "Batch"
    ) -> "HessianOperator":
        """The Hessian on `batch`."""
        from landscape.curvature import HessianOperator

        return HessianOperator(objective, params, batch, **self._options())

    def blocks(
        self,
        objective: "Objective",
        params: "Params",
        batch: "Batch",
        modules: "Mapping[str, tuple[str, ...]]",
    ) -> "HessianBlocks":
        """Its diagonal blocks that belong to modules."""
        from landscape.curvature import HessianBlocks

        return HessianBlocks(objective, params, batch, modules, **self._options())

    def _options(self) -> dict[str, Any]:
        return {
            "product": self.choice or self.asked.product,
            "rows": self.asked.rows if self.choice is None else None,
            "max_memory": self.asked.max_memory,
            "allow_tf32": self.asked.allow_tf32,
        }

    def keep(self, operator: object) -> None:
        """Use for the next batches what this operator has come to."""
        self.choice = getattr(operator, "choice", None) or self.choice

    def settings(self) -> dict[str, Any]:
        """What to store beside the numbers: JSON values."""
        if self.choice is None:
            return {}
        return {"product": self.choice.title, "product_choice": self.choice.as_settings()}
