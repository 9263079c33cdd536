"""Samples of eigenvalues for figures, and the epochs that get a panel.

There is one sample per series and epoch. Knows no store and no matplotlib.

Shapes: k = eigenvalues per batch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

# Figure 3 of arXiv 2404.19394: initialisation and epochs 5, 10, 15, 20, 25.
PUBLISHED_EPOCHS = (0, 5, 10, 15, 20, 25)


@dataclass(frozen=True)
class EigenvalueSample:
    """Top-k Hessian eigenvalues of one checkpoint, one row per mini-batch.

    Args:
        series: Name of the checkpoint series; it decides the colour, in order of first appearance.
        label: Label of the series in the legend.
        epoch: Number of finished epochs; 0 is initialisation.
        values: Eigenvalues in nats per squared parameter; a batch that failed is a row of NaN.
        converged: Whether the residual bound of each value met the tolerance of the run.
        planned: Number of batches the manifest asks for; more than there are rows while a run is
            unfinished.

    Raises:
        ValueError: If the shapes differ, the epoch is negative, or there are more rows than
            planned.
    """

    series: str
    label: str
    epoch: int
    values: Float[np.ndarray, "batches k"]
    converged: Bool[np.ndarray, "batches k"]
    planned: int

    def __post_init__(self) -> None:
        where = f"sample of series {self.series!r}, epoch {self.epoch}"
        if self.values.ndim != 2 or self.values.shape != self.converged.shape:
            raise ValueError(
                f"{where}: values and converged must have the same shape (batches, k), "
                f"got {self.values.shape} and {self.converged.shape}."
            )
        if self.epoch < 0:
            raise ValueError(f"{where}: the epoch must be 0 (initialisation) or more.")
        if self.num_batches > self.planned:
            raise ValueError(
                f"{where}: {self.num_batches} batches, but only {self.planned} were planned."
            )

    @property
    def num_batches(self) -> int:
        """Count the batches that have a row, including failed ones."""
        return int(self.values.shape[0])

    @property
    def finite(self) -> Bool[np.ndarray, "batches k"]:
        """Mark the values that are finite."""
        return np.isfinite(self.values)

    def negative_share(self, *, keep_unconverged: bool) -> float:
        """Compute NEP as the comparison does.

        It is over the batches of which every value is finite and converged; NaN without any.

        Args:
            keep_unconverged: Count batches with values that did not converge too.
        """
        batches = (self.finite & (self.converged | keep_unconverged)).all(axis=1)
        return float(np.mean(self.values[batches] < 0)) if batches.any() else float("nan")


def epochs_to_draw(available: Iterable[int], *, num_panels: int = 6) -> tuple[int, ...]:
    """Choose the epochs that get a panel.

    The published epochs 0, 5, 10, 15, 20, 25 when all exist and `num_panels` is six. Otherwise the
    first epoch (0, if measured), the last, and between them the distinct epochs closest to equal
    spacing, by the sum of squared distances. All epochs when there are no more than `num_panels`.

    Args:
        available: Epochs with at least one sample; order and repetitions do not matter.
        num_panels: Largest number of epochs to return, at least 2.

    Returns:
        Ascending epochs.
    """
    if num_panels < 2:
        raise ValueError(f"num_panels must be at least 2, got {num_panels}.")
    epochs = np.array(sorted(set(available)), dtype=np.int64)
    if num_panels == len(PUBLISHED_EPOCHS) and set(PUBLISHED_EPOCHS) <= set(epochs.tolist()):
        return PUBLISHED_EPOCHS
    if len(epochs) > num_panels:
        from scipy.optimize import linear_sum_assignment

        targets = np.linspace(epochs[0], epochs[-1], num_panels)
        _, chosen = linear_sum_assignment((targets[:, None] - epochs[None, :]) ** 2)
        epochs = np.sort(epochs[chosen])
    return tuple(epochs.tolist())


def disambiguate(labels: Mapping[str, str]) -> dict[str, str]:
    """Map series to distinct labels, in the same order.

    Equal labels get the name of their series.
    """
    texts = list(labels.values())
    return {
        name: text if texts.count(text) == 1 else f"{text} ({name})"
        for name, text in labels.items()
    }
