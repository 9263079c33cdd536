"""A series whose model is cut into rows that several processes hold.

It loads checkpoints, audits the second derivatives, and measures the record of a batch.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from landscape.clip.checkpoint_rows import VerifiedFiles, load_rows, verify_once
from landscape.clip.loaded_series import LoadedSeries, Notes, settings_of
from landscape.clip.meta_model import place_rows, remove_rows
from landscape.curvature import flatten
from landscape.curvature.audits import ZERO_TO_ROUNDING
from landscape.curvature.audits.spot_check_result import EARLIER
from landscape.curvature.hvp.memory import free_memory
from landscape.curvature.hvp.row_chunks import take_rows
from landscape.errors import ObjectiveError
from landscape.manifest import Checkpoint, CheckpointSeries
from landscape.pipeline.audit import AUDITED_ROWS, audited_in_turn
from landscape.pipeline.cut_vectors import gathered_in_first
from landscape.pipeline.forecast import num_products_of
from landscape.pipeline.shard_memory import memory_of_rank
from landscape.pipeline.shard_settings import rows_of_process
from landscape.pipeline.solve import Solver
from landscape.pipeline.spectra import SpectraMeasurement
from landscape.pipeline.spectra_record import checked_record, columns_of
from landscape.pipeline.spectra_request import HVP_TITLES
from landscape.pipeline.vectors import (
    SpectrumWithVectors,
    bytes_of_vectors,
    layout_of,
    with_vectors,
)
from landscape.sharded.check import audited
from landscape.sharded.finite_difference import ShardedFiniteDifferenceOperator
from landscape.sharded.layout import Cut
from landscape.sharded.lent import gathered_on_demand
from landscape.sharded.operator import ShardedHessianOperator
from landscape.sharded.processes import Processes
from landscape.store import Record
from landscape.store.table import task_key
from landscape.store.vectors import RoundedVector
from landscape.terminal import size_text

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from landscape.clip.checkpoint_state import CheckpointInfo
    from landscape.linalg import EigenPairs

CutOperator = ShardedHessianOperator | ShardedFiniteDifferenceOperator
_TITLES = {"auto": "retained", "retained": "retained", "rebuilt": "rebuilt"}


class CutSeries:
    """A series of whose model this process holds some rows.

    Attributes:
        audit: The verdict of its audit.
    """

    def __init__(
        self,
        measurement: SpectraMeasurement,
        loaded: LoadedSeries,
        series: CheckpointSeries,
        mesh: "DeviceMesh",
        processes: Processes,
    ) -> None:
        self.measurement, self.loaded, self.series = measurement, loaded, series
        self.mesh, self.processes = mesh, processes
        self.audit: dict[str, Any] = {}
        self._solver = Solver(measurement.solver, with_vectors=measurement.keep_vectors)
        self._verifications: dict[Checkpoint, VerifiedFiles] = {}
        self._info: CheckpointInfo | None = None
        self._notes, self._said = Notes(), 0
        # Operator of a checkpoint's first batch; later batches reuse its weights.
        self._first: CutOperator | None = None

    def look_at(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Check that every process can load these checkpoints.

        Names and shapes are checked, not values. Collective.
        """
        for checkpoint in checkpoints:
            self._verified(checkpoint)
            self.loaded.check_fit(checkpoint)

    def _verified(self, checkpoint: Checkpoint) -> VerifiedFiles:
        """Return a checkpoint's files with their digest.

        The digest is computed once; collective the first time.
        """
        if checkpoint not in self._verifications:
            self._verifications[checkpoint] = verify_once(
                checkpoint.path, expected_sha256=checkpoint.sha256, group=self.processes.group
            )
        return self._verifications[checkpoint]

    def load(self, checkpoint: Checkpoint) -> "CheckpointInfo":
        """Read this process's rows of a checkpoint; collective."""
        self.release()
        size, rank = self.processes.size, self.processes.rank

        def rows_of(name: str, shape: torch.Size) -> tuple[int, int]:
            rows = Cut.even(shape, size).rows_of(rank)
            return rows.start, rows.stop

        model, device = self.loaded.model, self.loaded.device
        rows = load_rows(
            model,
            checkpoint.path,
            rows_of,
            weights=self.loaded.trained.get("weights", "online"),
            verified=self._verified(checkpoint),
            device=device,
        )
        self.loaded.check_run(checkpoint, rows.info)
        buffers = dict(model.named_buffers(remove_duplicate=False))
        for name, value in rows.buffers.items():
            buffers[name].copy_(value)
        place_rows(model, rows.parameters, self.mesh)
        self.loaded.check_loss(self._evaluate)
        self._info = rows.info
        self._notes.add(self.loaded, rows.info, series=self.series.name)
        return rows.info

    def _evaluate(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function of the model, with weights gathered on demand.

        A layer's weights are gathered when it reads them. Returns the function's result.
        Collective.
        """
        with gathered_on_demand(self.processes, self.loaded.model) as weights:
            return weights.evaluate(self.loaded.model, function, *args)

    def new_notes(self) -> list[str]:
        """Return the notes on data and checkpoints that were not returned before."""
        notes = list(self._notes.by_sentence.values())
        new, self._said = notes[self._said :], len(notes)
        return new

    def release(self) -> None:
        """Release the weights."""
        self._first = self._info = None
        remove_rows(self.loaded.model)

    def _operator(self, index: int) -> CutOperator:
        """Build the Hessian on this process's rows of a batch; collective."""
        batch = self._own_rows(self.loaded.batch(index))
        if self._first is None:
            self._first = (
                self._by_differences(batch)
                if self._is_by_differences
                else self._new_operator(batch)
            )
            # The operator has copied the rows.
            remove_rows(self.loaded.model)
            return self._first
        if isinstance(self._first, ShardedFiniteDifferenceOperator):
            return self._first.on(batch)
        operator = self._first.at(self._first.params, batch=batch, check=False)
        checked = self._first.spot_check
        # As in one process, the first product of each checkpoint is checked.
        operator.spot_check = (
            None
            if checked is None
            else replace(checked, reason=f"{checked.reason}{checked.reason and ', '}{EARLIER}")
        )
        return operator

    def _new_operator(self, batch: Any) -> ShardedHessianOperator:
        objective, params = self.loaded.objective_on(
            self.loaded.model, self.measurement.manifest.hessian
        )
        return ShardedHessianOperator(
            objective, params, batch, mesh=self.mesh, hvp=self.measurement.products.hvp
        )

    @property
    def _is_by_differences(self) -> bool:
        return self.measurement.hvp == "finite-difference"

    def _by_differences(self, batch: Any) -> ShardedFiniteDifferenceOperator:
        objective, params = self.loaded.objective_on(
            self.loaded.model, self.measurement.manifest.hessian
        )
        return ShardedFiniteDifferenceOperator(objective, params, batch, mesh=self.mesh)

    def _own_rows(self, batch: Any, num_rows: int | None = None) -> Any:
        """Return this process's share of the first `num_rows` rows, or of all."""
        num_rows = len(next(iter(batch.values()))) if num_rows is None else num_rows
        return take_rows(batch, rows_of_process(num_rows, self.processes.rank, self.processes.size))

    def audited(self) -> dict[str, Any]:
        """Audit the last checkpoint by all processes; collective.

        As `landscape.pipeline.audit.verdict_of` does in one process.

        Raises:
            ObjectiveError: If the audit failed.
        """
        for checkpoint in audited_in_turn(self.series):
            info = self.load(checkpoint)
            batch = self.loaded.first_batch()
            num_rows = max(self.processes.size, min(AUDITED_ROWS, len(next(iter(batch.values())))))
            check = audited(self._new_operator(self._own_rows(batch, num_rows)))
            if check.verdict == "passed" or check.reason != ZERO_TO_ROUNDING:
                break
        facts = {
            "epoch": checkpoint.epoch,
            "checkpoint_sha256": info.sha256,
            "num_processes": self.processes.size,
        }
        if check.verdict == "passed":
            assert check.product_error is not None and check.gradient_error is not None
            worst = max(check.product_error, check.gradient_error)
            return {"passed": True, "worst_error": worst, "dtype": check.reason, **facts}
        if check.reason == ZERO_TO_ROUNDING:
            return {"passed": False, "reason": f"undecided: {ZERO_TO_ROUNDING}", **facts}
        raise ObjectiveError(
            f"series {self.series.name!r} ({self.series.model}): the audit came to no verdict "
            f"({check.reason}), so its eigenvalues might not be those of the Hessian. See "
            f"`landscape audit {self.measurement.manifest.path}`, in one process; measure with "
            "--hvp finite-difference, or anyway, and marked so, with --unaudited."
        )

    def measure(self, checkpoint: Checkpoint, index: int) -> Record | SpectrumWithVectors | None:
        """Measure a batch; return the record in process 0, None elsewhere.

        Collective.

        Raises:
            LandscapeError: If there is no record.
        """
        begun = time.process_time()
        operator = self._operator(index)
        try:
            hessian = self.measurement.manifest.hessian
            eigenpairs = self._solver.lanczos(operator, hessian, index, series=self.series.name)
            norm = operator.space.norm(flatten(operator.params))
            vectors = self._vectors(eigenpairs, operator, checkpoint, index)
            seconds = float(self.processes.total(np.array([time.process_time() - begun]))[0])
        finally:
            operator.release()
        if self.processes.rank:
            return None
        record = self._record(
            checkpoint, index, eigenpairs, operator, parameter_norm=norm, seconds=seconds
        )
        if vectors is None:
            return record
        layout = layout_of(self.loaded.model, self.loaded.params)
        return with_vectors(record, eigenpairs, layout, self.measurement.manifest, vectors)

    def _vectors(
        self, eigenpairs: "EigenPairs", operator: CutOperator, checkpoint: Checkpoint, index: int
    ) -> list[RoundedVector] | None:
        """Gather the eigenvectors where they are to be kept; collective."""
        if not self.measurement.keep_vectors:
            return None
        assert eigenpairs.vectors is not None, "the solver was told to return them"
        where = task_key(self.series.name, checkpoint.epoch, index)
        return gathered_in_first(eigenpairs.vectors, operator.space, where)

    def _record(
        self,
        checkpoint: Checkpoint,
        index: int,
        eigenpairs: "EigenPairs",
        operator: CutOperator,
        **facts: float,
    ) -> Record:
        assert self._info is not None
        hessian, count = self.measurement.manifest.hessian, self.processes.size
        how = f"double backward, {_TITLES[self.measurement.products.hvp]} graph"
        how = HVP_TITLES[self.measurement.hvp] if self._is_by_differences else how
        product = f"{how}, model over {count} processes"
        settings = (
            settings_of(self.loaded, hessian, product=product)
            | self._solver.facts()
            | {"num_processes": count}
        )
        return checked_record(
            Record,
            **columns_of(eigenpairs, hessian.k),
            **facts,
            series=self.series.name,
            epoch=checkpoint.epoch,
            batch=index,
            loss=operator.loss,
            batch_sha256=self.loaded.batches.digest(index),
            checkpoint_sha256=self._info.sha256,
            num_params=operator.n,
            num_unused=operator.num_unused,
            settings=settings,
            extras={"audit": self.audit, "operator": eigenpairs.checked}
            | self.loaded.notes_on(self._info),
        )

    def vector_bytes(self) -> int:
        """Estimate the bytes of a batch's vectors on the disk, at most."""
        num_params = layout_of(self.loaded.model, self.loaded.params).n
        return bytes_of_vectors(self.measurement.manifest.hessian.k, num_params, num_params)

    def memory_text(self) -> str:
        """Describe the memory that each process needs, and what is free."""
        hessian = self.measurement.manifest.hessian
        memory = memory_of_rank(
            self.loaded.model,
            self.loaded.params,
            num_processes=self.processes.size,
            num_vectors=num_products_of(hessian),
            max_basis_memory=self.measurement.solver.max_basis_memory,
        )
        free = size_text(free_memory(torch.device(self.mesh.device_type)))
        return f"needs {memory.text(self.processes.size)}; {free} are free."
