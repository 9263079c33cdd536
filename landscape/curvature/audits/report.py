"""Results of an audit: a row for each test, and the report of all rows."""

from dataclasses import dataclass

import torch

from landscape.deprecation import warn_of_old_name

WHOLE = "the whole loss"
ZERO_TO_ROUNDING = "gradient and Hessian are zero to rounding"


@dataclass(frozen=True)
class AuditRow:
    """Result of a test of a module, or of the whole loss.

    Attributes:
        name: Dotted name and class of the module, or "the whole loss".
        test: "determinism", "graph", "gradient", "product", "symmetry" or "precision".
        error: Relative; None where there is no number.
        verdict: "passed", "failed" or "undecided".
        reason: Why, where it did not pass.
    """

    name: str
    test: str
    error: float | None
    verdict: str
    reason: str = ""


@dataclass(frozen=True)
class AuditReport:
    """Results of all tests.

    Attributes:
        rows: The tests of the whole loss, then those of the modules to blame.
        dtype: Type in which the tests were made.
        num_gradients: Gradients spent on the whole loss; those of the search for the module are not
            counted.
        num_products: Hessian-vector products likewise.
    """

    rows: tuple[AuditRow, ...]
    dtype: torch.dtype
    num_gradients: int
    num_products: int

    @property
    def passed(self) -> bool:
        return all(row.verdict == "passed" for row in self.rows)

    @property
    def is_zero_to_rounding(self) -> bool:
        """Tell whether the only doubt is a vanishing gradient and Hessian.

        They are then too small for differences to show, as at a perfect fit.
        """
        doubtful = [row for row in self.rows if row.verdict != "passed"]
        return bool(doubtful) and all(row.reason == ZERO_TO_ROUNDING for row in doubtful)

    @property
    def worst_error(self) -> float | None:
        """Return the largest error among the tests of the whole loss.

        None where no such test has an error.
        """
        errors = [row.error for row in self.rows if row.name == WHOLE and row.error is not None]
        return max(errors, default=None)

    @property
    def failed_test(self) -> str:
        """Return the name of the first test that did not pass; "" where all did."""
        return next((row.test for row in self.rows if row.verdict != "passed"), "")

    @property
    def faulty_modules(self) -> tuple[str, ...]:
        """Name the modules that did not pass, the innermost first.

        "the whole loss" comes last. Empty after a pass.
        """
        names = dict.fromkeys(row.name for row in self.rows if row.verdict != "passed")
        return tuple(sorted(names, key=lambda name: name == WHOLE))

    @property
    def blamed(self) -> tuple[str, ...]:
        """Return `faulty_modules`, of which this is the old name."""
        warn_of_old_name("blamed", "faulty_modules")
        return self.faulty_modules

    def __str__(self) -> str:
        cells = [("module", "test", "error", "verdict", "")]
        for row in self.rows:
            cells.append(
                (
                    row.name,
                    row.test,
                    "" if row.error is None else f"{row.error:.1e}",
                    row.verdict,
                    row.reason,
                )
            )
        widths = [max(len(row[column]) for row in cells) for column in range(4)]
        return "\n".join(
            "  ".join([*(text.ljust(width) for text, width in zip(row, widths)), row[4]]).rstrip()
            for row in cells
        )
