"""The eigenpairs of one batch, by the method that the manifest names, within the memory that was allowed."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from landscape.errors import LandscapeError, MemoryLimitError
from landscape.manifest import HessianSettings

if TYPE_CHECKING:
    from torch import Tensor

    from landscape.clip.loaded_series import LoadedSeries
    from landscape.curvature import FiniteDifferenceOperator, HessianOperator
    from landscape.linalg import EigenPairs, SymmetricOperator
    from landscape.pipeline.products import SeriesProducts


# The batch of every checkpoint in which copies of multiple eigenvalues are looked for by a second random start. It is fixed, so
# that neither the order of the batches nor the number of workers changes a record.
_BATCH_FOR_COPIES = 0


@dataclass(frozen=True, kw_only=True)
class SolverSettings:
    """How eigenvalues are searched for, where the protocol leaves freedom.

    Args:
        recycle: Start from the eigenvectors of the batch before, not from a random vector. Saved 2 to 4 % of the products on
            small CLIP models (experiments/benchmark_peers.py), and gives up the quadrature, so no density, trace or negative
            mass comes of the run: off by default.
        max_basis_memory: Bytes that the Krylov vectors may take; None for as many as the products bring.
    """

    recycle: bool = False
    max_basis_memory: int | None = None

    def check(self, method: str) -> None:
        """Refuse what only Lanczos can obey.

        Raises:
            LandscapeError: If so.
        """
        if method != "lanczos" and self != SolverSettings():
            raise LandscapeError(
                f"method {method}: keeps no Krylov vectors, so --recycle and --max-basis-memory say nothing to it. Leave them "
                "out, or use method lanczos."
            )

    def max_basis(self, operator: "SymmetricOperator") -> int | None:
        """Vectors of this operator that fit; None if all do."""
        if self.max_basis_memory is None:
            return None
        from landscape.linalg.lanczos import num_vectors_in

        return num_vectors_in(self.max_basis_memory, operator)

    def room(self) -> dict[str, Any]:
        """The limit of the Krylov vectors as JSON values to store; nothing where there is none."""
        return {} if self.max_basis_memory is None else {"max_basis_memory": self.max_basis_memory}

    def sharing(self, num_workers: int) -> Self:
        """The same for one of several processes."""
        memory = self.max_basis_memory
        return replace(self, max_basis_memory=None if memory is None else memory // num_workers)

    def check_fits(self, operator: "SymmetricOperator", k: int) -> None:
        """Refuse a limit in which k eigenpairs cannot be found.

        Raises:
            MemoryLimitError: If so; says what would do.
        """
        from landscape.linalg.lanczos import LEAST_ROOM

        found, needed = self.max_basis(operator), k + LEAST_ROOM
        if found is not None and found < needed:
            size = operator.n - operator.num_unused
            each = size * operator.dtype.itemsize
            raise MemoryLimitError(
                f"--max-basis-memory: {self.max_basis_memory:,} bytes hold {found} vectors of {size:,} numbers, but {k} "
                f"eigenvalues need {needed}. Allow {needed * each:,} bytes or more, or restrict `parameters`."
            )


def _seed(hessian: HessianSettings, index: int) -> int:
    """A start of its own for every batch, so that the errors of their quadratures average out; the same for all epochs."""
    from landscape.clip.seeding import derive_seed

    return derive_seed("start", hessian.seed, index)


@dataclass
class Solver:
    """Finds eigenpairs, and remembers those of the batch before where they are to be recycled."""

    settings: SolverSettings = SolverSettings()
    _before: "dict[str, Tensor]" = field(default_factory=dict)

    def solve(
        self,
        hessian: HessianSettings,
        loaded: "LoadedSeries",
        index: int,
        *,
        series: str,
        hvp: str,
        products: "SeriesProducts",
    ) -> tuple["EigenPairs", "FiniteDifferenceOperator | HessianOperator"]:
        """Eigenpairs of batch `index`, and the operator that they are of.

        Raises:
            ObjectiveError, NumericalError: If there are none.
            MemoryLimitError: If the Krylov vectors of this batch do not fit.
        """
        from landscape.curvature import FiniteDifferenceOperator, HessianOperator
        from landscape.linalg import power_iteration

        batch = loaded.batch(index)
        operator: FiniteDifferenceOperator | HessianOperator
        if hvp == "finite-difference":
            operator = FiniteDifferenceOperator(loaded.objective, loaded.params, batch)
        else:
            operator = products.operator(loaded.objective, loaded.params, batch)
        if hessian.method == "lanczos":
            pairs = self.lanczos(operator, hessian, index, series=series)
        elif hessian.method == "power":
            pairs = power_iteration(
                operator, hessian.k, tol=hessian.tol, seed=_seed(hessian, index)
            )
        else:
            from landscape.curvature.reference import pyhessian_eigenpairs

            seed = _seed(hessian, index)
            pairs = pyhessian_eigenpairs(
                loaded.objective, loaded.params, batch, k=hessian.k, seed=seed, tol=hessian.tol
            )
        if hessian.method != "pyhessian" and hvp != "finite-difference":
            products.keep(operator)
        return pairs, operator

    def lanczos(
        self, operator: "SymmetricOperator", hessian: HessianSettings, index: int, *, series: str
    ) -> "EigenPairs":
        """Solve for batch `index` by Lanczos; for one batch, look for copies where the size makes that a choice.

        Raises:
            NumericalError, ObjectiveError, MemoryLimitError: As `solve`.
        """
        from landscape.linalg import eigsh
        from landscape.linalg.lanczos import num_spot_checks

        # Batches leave different parameters unused, so the first one does not tell for all.
        self.settings.check_fits(operator, hessian.k)
        pairs = eigsh(
            operator,
            hessian.k,
            hessian.which,  # type: ignore[arg-type]
            tol=hessian.tol,
            max_matvecs=hessian.max_matvecs,
            seed=_seed(hessian, index),
            num_checks=num_spot_checks(operator) if index == _BATCH_FOR_COPIES else None,
            max_basis=self.settings.max_basis(operator),
            start=self._before.get(series),
            return_vectors=self.settings.recycle,
        )
        if pairs.vectors is not None:
            self._before[series] = pairs.vectors
        return pairs

    def facts(self) -> dict[str, Any]:
        """What to store beside the numbers: JSON values."""
        facts: dict[str, Any] = {"start": "recycled"} if self.settings.recycle else {}
        return facts | self.settings.room()
