"""A monitor that measures sharpness while a training loop runs.

It leaves the training as it is.
"""

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from landscape.curvature.objective import Batch, Objective
from landscape.deprecation import renamed_keyword
from landscape.errors import first_line
from landscape.linalg.lanczos import Which
from landscape.monitor.measurement import Measurement
from landscape.monitor.meter import Meter, Reading
from landscape.monitor.record import RecordWriter
from landscape.monitor.sinks import Sink
from landscape.monitor.spacing import Spacing
from landscape.monitor.untouched import synchronize


class SharpnessMonitor:
    """Monitor of extreme Hessian eigenvalues of one batch's loss during training.

    Call `step()` after every optimizer step, or let `attach(optimizer)` do so. Most calls return at
    once; a measurement is made when it is due: at least `every` steps after the last, and so rarely
    that all of them take at most `budget` of the training time (wall time; see
    `landscape.monitor.spacing`). The first call measures.

    A measurement changes nothing in the training: modes of modules, gradients, buffers, optimizer,
    autocast and the random states of torch, CUDA, NumPy and Python are afterwards as before.
    Forward hooks of the model run. Between measurements it holds a vector of the size of the
    parameters for each eigenvalue, and as many more with an adaptive optimizer.

    The loss is measured in eval mode: dropout is off, and batch norm uses its running statistics.
    Every measurement starts near the eigenvectors of the last one, with enough of a random vector
    added that its certificate is that of a random start: residual bounds, and a statement about
    eigenvalues that were not seen. HVPs are compared with differences of gradients in the first and
    every tenth measurement, and where the loss has other operations than in the last comparison.

    If the first measurement of a monitor fails, that is an error. A later failure, such as an
    infinite loss or an exception of the loss, is recorded with its reason, the first of them with a
    warning, and the training goes on; what fails along the update leaves the eigenvalues.

    Args:
        model: The model in training; torch.compile's and DistributedDataParallel's wrappers are
            looked through. In a training on several processes, make the monitor in the first one
            alone.
        loss: `loss(model, batch)`, one number; or an Objective of the model.
        batch: Batch that the loss takes, on the model's device; the same at every measurement.
        every: Minimum number of steps between measurements.
        budget: Largest share of the training time; None for no limit.
        k: Number of eigenvalues.
        which: "LA" the largest, "LM" largest in magnitude, "SA" the smallest.
        tol: Wanted relative residual. A value is right to about tol^2 / relative gap.
        parameters: "all" or shell patterns of names, as in `landscape.hessian`.
        weight_decay: Coefficient of the L2 term that is added to the loss.
        optimizer: Optimizer of the training. Its stability threshold is recorded beside the
            sharpness; of an adaptive one also the eigenvalues of the preconditioned Hessian. Muon
            has the latter alone.
        update_sharpness: Whether to measure the critical and the directional sharpness along the
            step that the optimizer would take next on this batch, at some ten forward passes, a
            gradient and a product; see `landscape.critical_sharpness`. A copy of the optimizer
            takes the step.
        output: File of the record; see `landscape.monitor.read_record`. An existing record is
            continued.
        start_step: Steps that the training has taken already. Needed where the output holds
            measurements; those of later steps are superseded, as the training takes these steps
            again.
        sinks: Further receivers of the measurements; see `landscape.monitor.sinks`.
        eval_mode: False measures in the mode that the model is in, and refuses batch norm and
            dropout in train mode.
        hvp, max_memory: As in HessianOperator.
        max_matvecs: Limit on products; see `landscape.eigsh`.
        seed: Seed of the random starts.
        clock: Function that returns the seconds that the budget counts.

    Attributes:
        measurements: All measurements of this monitor, with those of the record that it continues.
        num_steps: Steps that the training has taken.

    Raises:
        ObjectiveError: If the optimizer holds other parameters than those measured; from the first
            measurement, if the loss has no Hessian that could be trusted.
        StoreError: If the output cannot be written, is of something else, or holds measurements and
            `start_step` is missing.
        ValueError: If an argument is invalid.

    Examples:
        >>> import torch, landscape
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> batch = torch.randn(32, 4), torch.randn(32, 1)
        >>> def loss(model, batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        ...
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> monitor = landscape.SharpnessMonitor(model, loss, batch, every=5, budget=None)
        >>> for step in range(10):
        ...     optimizer.zero_grad()
        ...     loss(model, batch).backward()
        ...     optimizer.step()
        ...     if measurement := monitor.step():
        ...         print(measurement.step, measurement.hessian.converged)
        ...
        1 (True,)
        6 (True,)
    """

    @renamed_keyword("product", "hvp")
    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Batch], Tensor] | Objective,
        batch: Batch,
        *,
        every: int = 1,
        budget: float | None = 0.05,
        k: int = 1,
        which: Which = "LA",
        tol: float = 1e-2,
        parameters: str | Sequence[str] = "all",
        weight_decay: float = 0.0,
        optimizer: torch.optim.Optimizer | None = None,
        update_sharpness: bool = False,
        output: Path | str | None = None,
        start_step: int | None = None,
        sinks: Iterable[Sink] = (),
        eval_mode: bool = True,
        hvp: str = "auto",
        max_memory: int | None = None,
        max_matvecs: int | None = None,
        seed: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if start_step is not None and start_step < 0:
            raise ValueError(f"start_step must be 0 steps or more, got {start_step}.")
        self._meter = Meter(
            model,
            loss,
            batch,
            k=k,
            which=which,
            tol=tol,
            parameters=parameters,
            weight_decay=weight_decay,
            optimizer=optimizer,
            update_sharpness=update_sharpness,
            eval_mode=eval_mode,
            hvp=hvp,
            max_memory=max_memory,
            max_matvecs=max_matvecs,
            seed=seed,
        )
        # A wrong number is refused before the record is opened.
        Spacing(every=every, budget=budget)
        path = None if output is None else Path(output)
        self._writer = (
            None
            if path is None
            else RecordWriter(path, self._meter.settings(), start_step=start_step)
        )
        self.measurements: list[Measurement] = (
            [] if self._writer is None else list(self._writer.kept)
        )
        self._spacing = Spacing(
            every=every,
            budget=budget,
            clock=clock,
            spent=sum(made.seconds for made in self.measurements),
            trained=self.measurements[-1].training_seconds if self.measurements else 0.0,
        )
        self._sinks = tuple(sinks)
        for sink in self._sinks:
            sink.begin(start_step)
        self.num_steps = start_step or 0
        self._has_warned = False

    @property
    def last(self) -> Measurement | None:
        """Return the last measurement; None before the first."""
        return self.measurements[-1] if self.measurements else None

    def step(
        self, step: int | None = None, *, loss: float | Tensor | None = None
    ) -> Measurement | None:
        """Count a training step, and measure if that is due.

        Args:
            step: Steps taken so far; by default one more than before.
            loss: The loss of the training step, to be recorded beside the measurement; read only
                then.

        Returns:
            The measurement; None where none was due.

        Raises:
            LandscapeError: From the first measurement of this monitor, if it fails, as is any
                exception of the loss; or if the record cannot be written.
        """
        self.num_steps = self.num_steps + 1 if step is None else step
        if not self._spacing.is_due(self.num_steps):
            return None
        try:
            reading = self._read()
        except Exception as error:
            # The loss is the user's and may raise anything; the loop cannot expect it here.
            if not self._meter.has_measured:
                raise
            self._warn(first_line(error))
            return self._keep(loss, failure=first_line(error))
        if reading.failure:
            self._warn(reading.failure)
        return self._keep(loss, reading)

    def measure(self, *, loss: float | Tensor | None = None) -> Measurement:
        """Measure now, even if no measurement is due.

        The time counts as spent all the same. Before the loop, this measures the initialisation.

        Raises:
            LandscapeError: If it fails, or the record cannot be written.
        """
        return self._keep(loss, self._read())

    def _read(self) -> Reading:
        with self._spacing.measuring(self.num_steps):
            # First wait for the GPU's work for the training, then for that of the measurement.
            synchronize(self._meter.model)
            reading = self._meter.measure()
            synchronize(self._meter.model)
        return reading

    def _keep(
        self, loss: float | Tensor | None, reading: Reading | None = None, *, failure: str = ""
    ) -> Measurement:
        spacing = self._spacing
        made = Measurement(
            step=self.num_steps,
            training_loss=_number(loss),
            seconds=spacing.last_seconds,
            training_seconds=spacing.trained,
            share=spacing.share if spacing.trained > 0 else None,
            **({"failure": failure} if reading is None else vars(reading)),
        )
        with spacing.writing():
            while self.measurements and self.measurements[-1].step >= made.step:
                self.measurements.pop()
            self.measurements.append(made)
            if self._writer is not None:
                self._writer.add(made)
            for sink in self._sinks:
                sink.write(made)
        return made

    def _warn(self, failure: str) -> None:
        if not self._has_warned:
            warnings.warn(
                f"step {self.num_steps}: the sharpness could not be measured, and the training "
                f"goes on: {failure} Later failures are recorded without a warning.",
                RuntimeWarning,
                stacklevel=3,
            )
            self._has_warned = True

    def attach(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Register `step` to run after every step of an optimizer.

        The training loop then needs no change.

        Returns:
            A handle; its `remove()` undoes that.
        """

        def count(*_: Any) -> None:
            self.step()

        return optimizer.register_step_post_hook(count)

    def close(self) -> None:
        """Close the record and the sinks. May be called twice."""
        if self._writer is not None:
            self._writer.close()
        for sink in self._sinks:
            sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Literal[False]:
        self.close()
        return False


def _number(loss: float | Tensor | None) -> float | None:
    return None if loss is None else float(loss.detach() if isinstance(loss, Tensor) else loss)
