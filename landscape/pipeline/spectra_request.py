"""What is asked of `landscape spectra`: settings, and what they mean for each series."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from landscape.manifest import CheckpointSeries, Manifest
from landscape.manifest.selection import Selection
from landscape.pipeline import lockstep
from landscape.pipeline.audit import check_hvp
from landscape.pipeline.preparation import PreparedSeries
from landscape.pipeline.products import HvpSettings
from landscape.pipeline.remaining import RunReport
from landscape.pipeline.session import Measurement
from landscape.pipeline.shard_settings import ShardSettings
from landscape.pipeline.solve import SolverSettings
from landscape.store import SpectrumStore, SpectrumWriter

HVP_TITLES = {
    "double-backward": "double backward, retained graph",
    "finite-difference": "central differences of gradients",
}


@dataclass(frozen=True, kw_only=True)
class SpectraRequest(Measurement):
    """Settings of a measurement of the extreme eigenvalues of every batch of every checkpoint.

    Args:
        output: The store.
        hvp: "double-backward", or "finite-difference" where only first derivatives exist.
        unaudited: Measure without an audit of the second derivatives; every record says so.
        shards: Processes that share each model, for a dry run.
        keep_vectors: Also keep the eigenvectors of every batch.
    """

    manifest: Manifest
    output: Path
    hvp: str = "double-backward"
    unaudited: bool = False
    products: HvpSettings = HvpSettings()
    solver: SolverSettings = SolverSettings()
    selection: Selection = Selection()
    device: str | None = None
    shards: ShardSettings | None = None
    keep_vectors: bool = False

    def check(self) -> None:
        """Refuse contradictory settings, and parts that the manifest lacks.

        Raises:
            LandscapeError: If there are any.
        """
        check_hvp(self.manifest, self.hvp)
        self.products.check(self.manifest.hessian.method, self.hvp)
        self.solver.check(self.manifest.hessian.method)
        self.selection.check(self.manifest)
        if self.manifest.hessian.method == "pyhessian":
            from landscape.curvature.pyhessian import import_pyhessian

            import_pyhessian()

    @property
    def num_planned(self) -> int:
        return sum(len(task.indices) for task in self.selection.tasks(self.manifest))

    def num_recorded(self, series: CheckpointSeries) -> int:
        """Return the number of batches that can share a recorded graph."""
        return sum(
            len(task.indices)
            for task in self.selection.tasks(self.manifest)
            if task.series.name == series.name
        )

    @property
    def chained(self) -> str | None:
        return "--recycle" if self.solver.recycle else None

    def sharing(self, num_workers: int, free: int | None) -> Self:
        products = self.products.sharing(num_workers, free)
        return replace(self, products=products, solver=self.solver.sharing(num_workers))

    def completed(self, store: SpectrumStore | SpectrumWriter) -> frozenset[str]:
        """Return the keys of the measured batches."""
        return store.completed_vectors() if self.keep_vectors else store.completed_keys()

    def is_lockstep(self, product: str | None, device: str) -> bool:
        """Tell whether the batches of a unit are solved together.

        That depends on the strategy of the HVPs and the device.
        """
        hessian = self.manifest.hessian
        is_possible = (
            hessian.method == "lanczos"
            and hessian.preconditioner == "none"
            and not self.solver.recycle
        )
        return is_possible and product in lockstep.STRATEGIES and device in lockstep.DEVICES

    def unit_seconds(self, prepared: PreparedSeries) -> float:
        product = None if prepared.choice is None else prepared.choice["product"]
        return (
            lockstep.UNIT_SECONDS
            if self.is_lockstep(product, "cuda" if prepared.num_gpus else "cpu")
            else 0.0
        )

    def num_unconverged(self, record: Any) -> int:
        """Count the values of a record that missed the tolerance."""
        return int((~record.converged).sum())

    def report(self, **counts: Any) -> RunReport:
        """Build the report of a run."""
        return RunReport(output=self.output, num_planned=self.num_planned, **counts)
