"""Result of a spot check, and what may be taken over from an earlier one."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class SpotCheck:
    """Result of comparing an operator's first product with differences.

    Attributes:
        verdict: "passed", "undecided", or "not made".
        product_error: Error of the product against a central difference of gradients, relative, the
            largest over the parameters.
        gradient_error: Error of the gradient, along that vector and along itself, against central
            differences of the loss, relative. None where rounding hides it, as behind a large
            constant in the loss.
        reason: Why it is undecided or was not made, or how it passed other than at first sight.
    """

    verdict: str
    product_error: float | None = None
    gradient_error: float | None = None
    reason: str = ""

    def __str__(self) -> str:
        if self.verdict == "not made":
            return f"operator not checked: {self.reason}"
        if self.verdict == "undecided":
            return f"operator check undecided: {self.reason}"
        if self.product_error is None:
            return f"operator checked: {self.reason}"
        gradient = (
            "" if self.gradient_error is None else f" and gradient within {self.gradient_error:.1e}"
        )
        hidden = (
            ", the gradient hidden by the rounding of the loss"
            if self.gradient_error is None
            else ""
        )
        reason = self.reason and f" {self.reason}"
        return (
            f"operator checked: product within {self.product_error:.1e}{gradient} of central "
            f"differences{reason}{hidden}"
        )


EARLIER = "on an earlier batch"
AT_EARLIER_WEIGHTS = "at earlier weights"
NOT_ASKED = SpotCheck("not made", reason="check=False")


@dataclass(frozen=True)
class EarlierCheck:
    """A check of the same loss at other weights, as during training.

    Attributes:
        made: Result of the check there.
        strategy, operations: As in `FirstProduct`.
    """

    made: SpotCheck
    strategy: tuple[str, int | None]
    operations: int

    def holds_for(self, strategy: tuple[str, int | None], operations: int) -> bool:
        """Tell whether the check says something of another product.

        It does if the loss does the same operations, as far as its graph shows, and products are
        computed by the same strategy.
        """
        return self.operations != 0 and (self.strategy, self.operations) == (strategy, operations)

    @property
    def verdict(self) -> SpotCheck:
        """Return the result for a product at other weights."""
        return replace(
            self.made, reason=f"{self.made.reason}{self.made.reason and ', '}{AT_EARLIER_WEIGHTS}"
        )
