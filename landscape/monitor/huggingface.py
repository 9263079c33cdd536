"""A callback that monitors sharpness in the Hugging Face Trainer.

Imports transformers, and is loaded when its name is first used.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from landscape.errors import MissingDependencyError
from landscape.monitor.monitor import SharpnessMonitor

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise MissingDependencyError(
        "HuggingFaceMonitor: needs transformers, which is not installed here. Install it with pip "
        "install transformers."
    ) from error


def own_loss(model: Any, batch: Any) -> Tensor:
    """Return the loss that a transformers model computes from a labelled batch."""
    loss: Tensor = model(**batch).loss
    return loss


class HuggingFaceMonitor(TrainerCallback):
    """Callback that monitors the sharpness of one batch's loss.

    Give it to a Trainer among its `callbacks`. A training that resumes from a checkpoint continues
    its record. Of several processes, the first one measures.

    Args:
        batch: Batch that the loss takes, as a dictionary for `model(**batch)`; on the device of the
            training.
        loss: `loss(model, batch)`; by default the loss that the model computes itself.
        output: The record; by default `sharpness.jsonl` in the Trainer's output folder. False for
            none.
        with_optimizer: Whether the threshold of the Trainer's optimizer is recorded, and of an
            adaptive one the preconditioned sharpness.
        options: Further options of `SharpnessMonitor`.

    Attributes:
        monitor: The SharpnessMonitor; None before the training begins.
    """

    def __init__(
        self,
        batch: Any,
        *,
        loss: Callable[[Any, Any], Tensor] = own_loss,
        output: Path | str | bool = True,
        with_optimizer: bool = False,
        **options: Any,
    ) -> None:
        self.monitor: SharpnessMonitor | None = None
        self._batch, self._loss, self._output, self._options = batch, loss, output, options
        self._with_optimizer = with_optimizer

    def on_train_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        if not state.is_world_process_zero:
            return
        self.close()
        output = (
            Path(args.output_dir) / "sharpness.jsonl"
            if self._output is True
            else self._output or None
        )
        self.monitor = SharpnessMonitor(
            objects["model"],
            self._loss,
            self._batch,
            output=output,
            start_step=state.global_step,
            # accelerate wraps the optimizer.
            optimizer=getattr(objects["optimizer"], "optimizer", objects["optimizer"])
            if self._with_optimizer
            else None,
            **self._options,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        if self.monitor is not None:
            self.monitor.step(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        self.close()

    def close(self) -> None:
        """Close the record. May be called twice."""
        if self.monitor is not None:
            self.monitor.close()
