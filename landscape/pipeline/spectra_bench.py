"""A series on the bench: its batches are measured here, by the strategy of the first."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from landscape import clip
from landscape.manifest import Checkpoint
from landscape.manifest.selection import Task
from landscape.pipeline import lockstep
from landscape.pipeline.forecast import num_products_of
from landscape.pipeline.optimizer import optimizer_of, preconditioner_facts
from landscape.pipeline.preparation import PreparedSeries
from landscape.pipeline.products import SeriesProducts
from landscape.pipeline.session import Bench
from landscape.pipeline.solve import Solver
from landscape.pipeline.spectra_record import (
    checked_record,
    columns_of,
    norm_of,
)
from landscape.pipeline.spectra_request import HVP_TITLES, SpectraRequest
from landscape.pipeline.vectors import (
    SpectrumWithVectors,
    layout_of,
    with_vectors,
)
from landscape.store import Record

if TYPE_CHECKING:
    from landscape.clip.loaded_series import LoadedSeries
    from landscape.curvature import FiniteDifferenceOperator, HessianOperator
    from landscape.linalg import EigenPairs
    from landscape.stability import OptimizerState, PreconditionedHessian


class SpectraBench(Bench):
    """A series whose spectra this process measures."""

    def __init__(
        self,
        measurement: SpectraRequest,
        loaded: "LoadedSeries",
        task: Task,
        prepared: PreparedSeries,
    ) -> None:
        super().__init__(loaded, prepared)
        self.measurement, self.series = measurement, task.series.name
        self.products = SeriesProducts(measurement.products, prepared.choice)
        self.solver = Solver(measurement.solver, with_vectors=measurement.keep_vectors)
        # State of the optimizer, where its preconditioner is requested.
        self.state: OptimizerState | None = None

    def load(self, checkpoint: Checkpoint) -> None:
        """Load a checkpoint's weights, and its optimizer's state where requested."""
        is_new = checkpoint != self.checkpoint
        super().load(checkpoint)
        if is_new and self.measurement.manifest.hessian.preconditioner != "none":
            self.checkpoint = None
            self.state = optimizer_of(self.loaded, checkpoint)
            self.checkpoint = checkpoint

    def measure(self, index: int) -> Record | SpectrumWithVectors:
        return _measure(self, index)

    def measure_all(self, indices: Sequence[int], *, contained: bool) -> list[Any]:
        product = None if self.products.choice is None else self.products.choice.product
        if len(indices) < 2 or not self.measurement.is_lockstep(product, self.loaded.device.type):
            return super().measure_all(indices, contained=contained)
        hessian = self.measurement.manifest.hessian
        return lockstep.measure_in_lockstep(
            indices,
            operator=lambda index: self.products.operator(
                self.loaded.objective, self.loaded.params, self.loaded.batch(index)
            ),
            solve=lambda index, operator: self.solver.lanczos(
                operator, hessian, index, series=self.series
            ),
            record=self._record,
            num_vectors=num_products_of(hessian),
            contained=contained,
        )

    def _record(
        self, index: int, eigenpairs: "EigenPairs", operator: "HessianOperator", seconds: float
    ) -> Record | SpectrumWithVectors:
        self.products.keep(operator)
        return _record(self, index, eigenpairs, operator, begun=time.process_time() - seconds)

    def facts(self, index: int, *, loss: float, checked: str, begun: float) -> dict[str, Any]:
        """Return the facts in every record about its batch and weights."""
        assert self.checkpoint is not None, "load comes first"
        return {
            "series": self.series,
            "epoch": self.checkpoint.epoch,
            "batch": index,
            "loss": loss,
            "batch_sha256": self.loaded.batches.digest(index),
            "checkpoint_sha256": self.info.sha256,
            "seconds": time.process_time() - begun,
            "extras": {"audit": self.prepared.audit, "operator": checked}
            | self.loaded.notes_on(self.info),
        }


def _measure(bench: SpectraBench, index: int) -> Record | SpectrumWithVectors:
    """Measure the spectrum of a batch.

    Raises:
        ObjectiveError, NumericalError: If there is none.
    """
    begun = time.process_time()
    hessian, hvp = bench.measurement.manifest.hessian, bench.measurement.hvp
    eigenpairs, operator = bench.solver.solve(
        hessian,
        bench.loaded,
        index,
        series=bench.series,
        hvp=hvp,
        products=bench.products,
        state=bench.state,
    )
    return _record(bench, index, eigenpairs, operator, begun=begun)


def _record(
    bench: SpectraBench,
    index: int,
    eigenpairs: "EigenPairs",
    operator: "FiniteDifferenceOperator | HessianOperator | PreconditionedHessian",
    *,
    begun: float,
) -> Record | SpectrumWithVectors:
    """Build the record of a batch, with its eigenvectors where they are kept.

    Raises:
        NumericalError: As in `checked_record`.
    """
    loaded, hessian, hvp = bench.loaded, bench.measurement.manifest.hessian, bench.measurement.hvp
    settings = (
        clip.settings_of(loaded, hessian, product=HVP_TITLES[hvp])
        | bench.products.settings()
        | bench.solver.facts()
    )
    if bench.state is not None:
        settings |= preconditioner_facts(bench.state)
    record = checked_record(
        Record,
        **columns_of(eigenpairs, hessian.k),
        parameter_norm=norm_of(loaded.params),
        num_params=operator.n,
        num_unused=operator.num_unused,
        settings=settings,
        **bench.facts(index, loss=operator.loss, checked=eigenpairs.checked, begun=begun),
    )
    if not bench.measurement.keep_vectors:
        return record
    layout = layout_of(loaded.model, loaded.params)
    return with_vectors(record, eigenpairs, layout, bench.measurement.manifest)
