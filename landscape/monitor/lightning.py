"""A callback that monitors sharpness in a training by Lightning.

Imports Lightning, and is loaded when its name is first used.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from landscape.errors import MissingDependencyError
from landscape.monitor.monitor import SharpnessMonitor

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise MissingDependencyError(
        "LightningMonitor: needs Lightning, which is not installed here. Install it with pip "
        "install lightning."
    ) from error


class LightningMonitor(Callback):
    """Callback that monitors the sharpness of one batch's loss.

    Give it to a Trainer among its `callbacks`. A training that resumes from a checkpoint continues
    its record. Of several processes, the first one measures.

    Args:
        loss: `loss(module, batch)` of the LightningModule; returns one number.
        batch: Batch that the loss takes, on the device of the training.
        output: The record; by default `sharpness.jsonl` in the Trainer's root folder. False for
            none.
        with_optimizer: Whether the threshold of the only optimizer is recorded, and of an adaptive
            one the preconditioned sharpness.
        options: Further options of `SharpnessMonitor`.

    Attributes:
        monitor: The SharpnessMonitor; None before the training begins.
    """

    def __init__(
        self,
        loss: Callable[[Any, Any], Tensor],
        batch: Any,
        *,
        output: Path | str | bool = True,
        with_optimizer: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self.monitor: SharpnessMonitor | None = None
        self._loss, self._batch, self._output, self._options = loss, batch, output, options
        self._with_optimizer = with_optimizer

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        self._close()
        output = (
            Path(trainer.default_root_dir) / "sharpness.jsonl"
            if self._output is True
            else self._output or None
        )
        self.monitor = SharpnessMonitor(
            pl_module,
            self._loss,
            self._batch,
            output=output,
            start_step=trainer.global_step,
            # Lightning wraps optimizers of several processes and precisions.
            optimizer=getattr(trainer.optimizers[0], "optimizer", trainer.optimizers[0])
            if self._with_optimizer
            else None,
            **self._options,
        )

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Batches whose gradients are accumulated are no steps.
        if self.monitor is not None and trainer.global_step > self.monitor.num_steps:
            self.monitor.step(trainer.global_step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self.monitor is not None:
            self.monitor.close()
