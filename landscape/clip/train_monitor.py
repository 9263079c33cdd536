"""The sharpness monitor of a training run.

It measures a fixed batch of the run's pairs, and writes its record beside the checkpoints.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from landscape.clip.image_text import curvature_batches
from landscape.clip.model import preprocess_for, tokenizer_for
from landscape.clip.objectives import contrastive_objective
from landscape.clip.pairs import Pairs
from landscape.monitor import Measurement, SharpnessMonitor

if TYPE_CHECKING:
    from landscape.clip.train_folder import RunFolder
    from landscape.clip.train_loop import Process

RECORD = "sharpness.jsonl"


class _Shown:
    """A sink that shows every measurement as a text."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show

    def begin(self, start_step: int | None) -> None:
        pass

    def write(self, measurement: Measurement) -> None:
        if measurement.hessian is not None:
            self._show(f"sharpness {measurement.hessian.value:.4g}")

    def close(self) -> None:
        pass


@dataclass(frozen=True, eq=False)
class Watched:
    """Data, time budget and scope of a run's monitor.

    Args:
        pairs: Image-text pairs of the training.
        budget: Share of the training time that the monitor may take.
        update_sharpness: Whether to measure along the optimizer's next step too.
    """

    pairs: Pairs
    budget: float
    update_sharpness: bool = False

    def start(
        self,
        folder: "RunFolder",
        process: "Process",
        *,
        start_step: int,
        show: Callable[[str], None],
    ) -> SharpnessMonitor:
        """Start the monitor of a run.

        It measures the first batch of the protocol in the run's manifest, without augmentation, as
        `landscape spectra` does.

        Args:
            start_step: Finished training steps.
            show: Function that takes a short text about each measurement.

        Raises:
            ObjectiveError, StoreError: As in SharpnessMonitor.
        """
        model, size = process.model, folder.data.batch_size
        batches = curvature_batches(
            self.pairs,
            num_samples=size,
            batch_size=size,
            seed=folder.data.seed,
            transform=preprocess_for(model),
            tokenizer=tokenizer_for(model),
        )
        objective, params = contrastive_objective(model)
        like = next(iter(params.values()))
        batch: dict[str, Any] = {
            name: tensor.to(like.device, like.dtype)
            if tensor.is_floating_point()
            else tensor.to(like.device)
            for name, tensor in batches[0].items()
        }
        return SharpnessMonitor(
            model,
            objective,
            batch,
            budget=self.budget,
            optimizer=process.optimizer,
            update_sharpness=self.update_sharpness,
            output=folder.path / RECORD,
            start_step=start_step,
            sinks=[_Shown(show)],
        )
