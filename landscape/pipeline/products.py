"""How the products of a run are computed: what was asked for, and what each series chose, once, on its first batch."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from landscape.errors import LandscapeError, MemoryLimitError, ObjectiveError

if TYPE_CHECKING:
    from landscape.curvature import Batch, HessianBlocks, HessianOperator, Objective, Params, ProductChoice


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
            raise LandscapeError(f"--rows: sizes chunks, but --product {self.product} takes none. Leave one of them out.")


class SeriesProducts:
    """Makes the operators of one series, all in the way that the first of them chose.

    Attributes:
        choice: None before there is one.
    """

    def __init__(self, asked: ProductSettings) -> None:
        self.asked = asked
        self.choice: ProductChoice | None = None

    def choose(self, objective: "Objective", params: "Params", read: "Callable[[], Batch]") -> "HessianOperator | None":
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

    def operator(self, objective: "Objective", params: "Params", batch: "Batch") -> "HessianOperator":
        """The Hessian on `batch`."""
        from landscape.curvature import HessianOperator

        return HessianOperator(objective, params, batch, **self._options())

    def blocks(
        self, objective: "Objective", params: "Params", batch: "Batch", modules: "Mapping[str, tuple[str, ...]]"
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

    def operators(self, objective: "Objective", params: "Params", batches: "Iterable[Batch]") -> "Iterator[HessianOperator]":
        """The Hessians on several batches, one after the other; each takes the way that the one before has come to.

        After a batch that cannot be read or has no Hessian, which raises, the next one follows.
        """
        return _InTurn(self, objective, params, iter(batches))

    def keep(self, operator: object) -> None:
        """Use for the next batches what this operator has come to."""
        self.choice = getattr(operator, "choice", None) or self.choice

    def settings(self) -> dict[str, Any]:
        """What to store beside the numbers: JSON values."""
        if self.choice is None:
            return {}
        return {"product": self.choice.title, "product_choice": self.choice.as_settings()}


class _InTurn:
    """An iterator and no generator, since the first error would end one."""

    def __init__(self, products: SeriesProducts, objective: "Objective", params: "Params", batches: "Iterator[Batch]") -> None:
        self._products, self._objective, self._params, self._batches = products, objective, params, batches
        self._last: HessianOperator | None = None

    def __iter__(self) -> "Iterator[HessianOperator]":
        return self

    def __next__(self) -> "HessianOperator":
        self._products.keep(self._last)
        self._last = None
        self._last = self._products.operator(self._objective, self._params, next(self._batches))
        return self._last
