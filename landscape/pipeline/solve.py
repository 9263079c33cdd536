"""The eigenpairs of a batch, by the manifest's method.

The solver stays within the allowed memory.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from landscape import clip, curvature, linalg, stability
from landscape.errors import LandscapeError, MemoryLimitError, ObjectiveError
from landscape.manifest import HessianSettings

if TYPE_CHECKING:
    from torch import Tensor

    from landscape.clip.loaded_series import LoadedSeries
    from landscape.curvature import FiniteDifferenceOperator, HessianOperator
    from landscape.linalg import EigenPairs, SymmetricOperator
    from landscape.pipeline.products import SeriesProducts
    from landscape.stability import OptimizerState, PreconditionedHessian


# The batch of every checkpoint in which a second random start looks for copies of multiple
# eigenvalues. It is fixed, so that neither the order of the batches nor the number of workers
# changes a record.
_BATCH_FOR_COPIES = 0


@dataclass(frozen=True, kw_only=True)
class SolverSettings:
    """Settings of the eigenvalue solver that the protocol leaves free.

    Args:
        recycle: Start from the eigenvectors of the batch before, not from a random vector. Saved 2
            to 4 % of the products on small CLIP models (experiments/benchmark_peers.py). The
            quadrature is lost, so the run has no density, trace or negative mass: off by default.
        max_basis_memory: Bytes that the Krylov vectors may take; None for no limit.
    """

    recycle: bool = False
    max_basis_memory: int | None = None

    def check(self, method: str) -> None:
        """Refuse settings that only Lanczos can use.

        Raises:
            LandscapeError: If the method is another.
        """
        if method != "lanczos" and self != SolverSettings():
            raise LandscapeError(
                f"method {method}: keeps no Krylov vectors, so --recycle and --max-basis-memory "
                "say nothing to it. Leave them out, or use method lanczos."
            )

    def max_basis(self, operator: "SymmetricOperator") -> int | None:
        """Return how many vectors fit; None without a limit."""
        if self.max_basis_memory is None:
            return None
        return linalg.num_vectors_in(self.max_basis_memory, operator)

    def room(self) -> dict[str, Any]:
        """Return the limit of the Krylov vectors as JSON values to store.

        Empty where there is none.
        """
        return {} if self.max_basis_memory is None else {"max_basis_memory": self.max_basis_memory}

    def sharing(self, num_workers: int) -> Self:
        """Return the settings for one of several processes."""
        memory = self.max_basis_memory
        return replace(self, max_basis_memory=None if memory is None else memory // num_workers)

    def check_fits(self, operator: "SymmetricOperator", k: int) -> None:
        """Refuse a memory limit in which k eigenpairs cannot be computed.

        Raises:
            MemoryLimitError: If so; names a sufficient limit.
        """
        num_fitting, needed = self.max_basis(operator), k + linalg.MIN_EXTRA_VECTORS
        if num_fitting is not None and num_fitting < needed:
            raise MemoryLimitError(self._too_little(operator, num_fitting, needed, k))

    def _too_little(
        self, operator: "SymmetricOperator", num_fitting: int, needed: int, k: int
    ) -> str:
        space, each = operator.space, operator.dtype.itemsize
        if space.is_whole:
            size, share, num_processes = operator.n - operator.num_unused, "", 1
        else:
            support = operator.support_runs
            size = operator.num_local if support is None else len(support)
            share, num_processes = " of each process", space.processes.size  # type: ignore[attr-defined]
        return (
            f"--max-basis-memory: {self.max_basis_memory:,} bytes{share} hold {num_fitting} "
            f"vectors of {size:,} numbers, but {k} eigenvalues need {needed}. Allow "
            f"{num_processes * needed * size * each:,} bytes or more, or restrict `parameters`."
        )


def _seed(hessian: HessianSettings, index: int) -> int:
    """Return the seed of the starting vector of a batch.

    Every batch has its own, so that the errors of their quadratures average out. It is the same for
    all epochs.
    """
    return clip.derive_seed("start", hessian.seed, index)


def preconditioned_by(
    operator: "SymmetricOperator", state: "OptimizerState"
) -> "PreconditionedHessian":
    """Build the operator preconditioned by an optimizer's state.

    Raises:
        ObjectiveError: If they do not fit together.
    """
    try:
        return stability.PreconditionedHessian(operator, state)
    except ValueError as error:
        raise ObjectiveError(str(error)) from None


@dataclass
class Solver:
    """A solver that keeps the eigenvectors of the last batch for recycling.

    Args:
        with_vectors: Return eigenvectors, also where they are not recycled.
    """

    settings: SolverSettings = SolverSettings()
    with_vectors: bool = False
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
        state: "OptimizerState | None" = None,
    ) -> tuple["EigenPairs", "FiniteDifferenceOperator | HessianOperator | PreconditionedHessian"]:
        """Compute the eigenpairs of batch `index`; also return the operator.

        Args:
            state: Optimizer state whose preconditioner is applied; None for the Hessian itself.

        Raises:
            ObjectiveError, NumericalError: If there are none.
            MemoryLimitError: If the Krylov vectors of this batch do not fit.
        """
        batch = loaded.batch(index)
        operator: curvature.FiniteDifferenceOperator | curvature.HessianOperator
        if hvp == "finite-difference":
            operator = curvature.FiniteDifferenceOperator(loaded.objective, loaded.params, batch)
        else:
            operator = products.operator(loaded.objective, loaded.params, batch)
        measured = operator if state is None else preconditioned_by(operator, state)
        if hessian.method == "lanczos":
            eigenpairs = self.lanczos(measured, hessian, index, series=series)
        elif hessian.method == "power":
            eigenpairs = linalg.power_iteration(
                measured, hessian.k, tol=hessian.tol, seed=_seed(hessian, index)
            )
        else:
            seed = _seed(hessian, index)
            eigenpairs = curvature.pyhessian_eigenpairs(
                loaded.objective, loaded.params, batch, k=hessian.k, seed=seed, tol=hessian.tol
            )
        if hessian.method != "pyhessian" and hvp != "finite-difference":
            products.keep(operator)
        return eigenpairs, measured

    def lanczos(
        self, operator: "SymmetricOperator", hessian: HessianSettings, index: int, *, series: str
    ) -> "EigenPairs":
        """Compute the eigenpairs of batch `index` by Lanczos.

        For one batch, it also looks for copies of multiple eigenvalues where the size makes that a
        choice.

        Raises:
            NumericalError, ObjectiveError, MemoryLimitError: As in `solve`.
        """
        # Batches leave different parameters unused, so the first one does not tell for all.
        self.settings.check_fits(operator, hessian.k)
        eigenpairs = linalg.eigsh(
            operator,
            hessian.k,
            hessian.which,  # type: ignore[arg-type]
            tol=hessian.tol,
            max_matvecs=hessian.max_matvecs,
            seed=_seed(hessian, index),
            num_checks=linalg.num_spot_checks(operator) if index == _BATCH_FOR_COPIES else None,
            max_basis=self.settings.max_basis(operator),
            start=self._before.get(series),
            return_vectors=self.settings.recycle or self.with_vectors,
        )
        if self.settings.recycle and eigenpairs.vectors is not None:
            self._before[series] = eigenpairs.vectors
        return eigenpairs

    def facts(self) -> dict[str, Any]:
        """Return the settings to store beside the numbers, as JSON values."""
        facts: dict[str, Any] = {"start": "recycled"} if self.settings.recycle else {}
        return facts | self.settings.room()
