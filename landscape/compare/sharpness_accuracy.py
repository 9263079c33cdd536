"""Sharpness beside accuracy: spectra joined with answers, and their correlations.

A checkpoint is joined by series, epoch and the digest of its file. Every number says what its
interval covers: batches and pictures, with the checkpoints held fixed, or the series, taken as
drawn from more such series.

Shapes: r = resamples, p = points (checkpoints), batch = batches of all checkpoints together.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from landscape.compare.accuracy import SetScore, scores_of
from landscape.compare.accuracy_means import AccuracyMean, Key, accuracy_means
from landscape.compare.correlation import Correlation, correlations_of
from landscape.compare.metrics import METRICS
from landscape.compare.series import MetricValues, Series, read_series
from landscape.compare.statistics import Resampling, Sample
from landscape.errors import StoreError
from landscape.statistics import Bootstrap, Interval
from landscape.store.predictions import (
    CheckpointPredictions,
    PictureSet,
    PredictionStore,
    left_out_of,
    read_predictions,
)

# Measures of sharpness: the largest eigenvalue, and how far from convex.
SHARPNESS = ("lambda_max", "nep")
# All pictures are resampled for every condition: more resamples take long and add nothing.
_MAX_RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class CheckpointRow:
    """One checkpoint that has spectra and answers.

    Args:
        sharpness: Sharpness by metric, with the interval of the comparison; without metrics that no
            record contains.
        scores: Its accuracy on each set, with its interval.
        means: Means by name, see `accuracy_means`; without those that it does not have.
    """

    series: str
    label: str
    epoch: int
    sharpness: Mapping[str, Interval]
    scores: tuple[SetScore, ...]
    means: Mapping[str, Interval]

    @property
    def key(self) -> Key:
        return self.series, self.epoch


@dataclass(frozen=True, kw_only=True, eq=False)
class SharpnessAccuracy:
    """All results.

    Args:
        rows: In the order of the store of spectra, epochs ascending.
        means: The means that there are, by name.
        correlations: Correlations of every measure of sharpness with every mean.
        notes: Sentences on what was left out or could not be computed.
        files: Names of the files of answers, without their folders.
    """

    rows: tuple[CheckpointRow, ...]
    means: Mapping[str, AccuracyMean]
    correlations: tuple[Correlation, ...]
    notes: tuple[str, ...]
    files: tuple[str, ...]
    confidence: float
    num_resamples: int

    def row(self, series: str, epoch: int) -> CheckpointRow | None:
        return next((row for row in self.rows if row.key == (series, epoch)), None)


def sharpness_and_accuracy(
    spectra: Path,
    predictions: Sequence[Path],
    *,
    series: Sequence[str] | None = None,
    keep_unconverged: bool = False,
    confidence: float = 0.95,
    num_resamples: int = 4999,
    seed: int = 0,
) -> SharpnessAccuracy:
    """Join a store of spectra with files of answers.

    Args:
        spectra: A store of `landscape spectra`.
        predictions: Files of `landscape evaluate` and `landscape ood`.
        series: As in `SpectrumStore.open`.
        keep_unconverged: As in `compare_stores`.
        num_resamples: Resamples of sharpness, as in `compare_stores`; at most 2,000 where pictures
            are resampled.

    Raises:
        ValueError: If there is no file of answers, or a number is out of range.
        StoreError: If a file cannot be read or is named twice, two files answer for the same
            checkpoint about the same set, a checkpoint has another digest in the two kinds of file,
            or none is in both.
    """
    resampling = Resampling(confidence=confidence, num_resamples=num_resamples, seed=seed)
    bootstrap = Bootstrap(
        num_resamples=min(num_resamples, _MAX_RESAMPLES), confidence=confidence, seed=seed
    )
    measured, _ = read_series([spectra], series)
    answers = read_answers(predictions)
    joined, notes = _joined(spectra, measured, answers, named=series)
    observed = {
        (metric, (member.info.name, epoch)): observation
        for metric in SHARPNESS
        for member in measured
        for epoch in member.tables
        if (member.info.name, epoch) in joined
        and (
            observation := member.metric_values(
                epoch, METRICS[metric], keep_unconverged=keep_unconverged
            )
        )
        is not None
        and observation.counts.any()
    }
    chosen = PredictionStore(sets=answers.sets, checkpoints=joined)
    means = accuracy_means(chosen.sets, list(joined.values()), bootstrap)
    scores = scores_of(chosen, bootstrap)
    rows = tuple(
        CheckpointRow(
            series=member.info.name,
            label=member.info.label,
            epoch=epoch,
            sharpness={
                metric: resampling.location(observed[metric, key].counted)
                for metric in SHARPNESS
                if (metric, key) in observed
            },
            scores=tuple(score for score in scores if (score.series, score.epoch) == key),
            means={name: mean.values[key] for name, mean in means.items() if key in mean.values},
        )
        for member in measured
        for epoch in member.tables
        if (key := (member.info.name, epoch)) in joined
    )
    digests = {
        (member.info.name, epoch): table.batch_sha256
        for member in measured
        for epoch, table in member.tables.items()
    }
    correlations = []
    for metric in SHARPNESS:
        of_metric = {
            key: observation for (name, key), observation in observed.items() if name == metric
        }
        drawn = resampled_sharpness(of_metric, digests, bootstrap)
        values = {row.key: row.sharpness[metric] for row in rows if metric in row.sharpness}
        for mean in means.values():
            correlations += correlations_of(metric, mean, values, drawn, bootstrap)
    said = dict.fromkeys(
        [
            *notes,
            *left_out_of(answers.sets.values()),
            *(note for mean in means.values() for note in mean.notes),
        ]
    )
    return SharpnessAccuracy(
        rows=rows,
        means=means,
        correlations=tuple(correlations),
        notes=tuple(said),
        files=tuple(path.name for path in predictions),
        confidence=confidence,
        num_resamples=bootstrap.num_resamples,
    )


# --- reading and joining --------------------------------------------------------------------------


def read_answers(paths: Sequence[Path]) -> PredictionStore:
    """Read files of answers as one.

    Raises:
        ValueError: If there is no path.
        StoreError: If one cannot be read, is named twice, or contradicts another.
    """
    if not paths:
        raise ValueError("predictions: there are none, so there is nothing to join.")
    sets: dict[tuple[str, str], PictureSet] = {}
    checkpoints: dict[Key, CheckpointPredictions] = {}
    places: list[str] = []
    for path in paths:
        if os.path.realpath(path) in places:
            raise StoreError(
                f"{path}: named twice, and its answers would count twice; name each file once."
            )
        places.append(os.path.realpath(path))
        store = read_predictions(path)
        if store is None:
            raise StoreError(
                f"{path}: there is no such file; `landscape evaluate` and `landscape ood` write "
                "one."
            )
        for name, pictures in store.sets.items():
            if name in sets and sets[name].identity() != pictures.identity():
                raise StoreError(
                    f"{path}: {pictures.place} has other pictures, classes or prompts than in the "
                    "files before, so accuracies on it are not comparable. Evaluate all "
                    "checkpoints on the same ones, or leave a file out."
                )
            sets[name] = pictures
        for key, checkpoint in store.checkpoints.items():
            checkpoints[key] = (
                _merged(checkpoints[key], checkpoint, path) if key in checkpoints else checkpoint
            )
    return PredictionStore(sets=sets, checkpoints=checkpoints)


def _merged(
    first: CheckpointPredictions, second: CheckpointPredictions, path: Path
) -> CheckpointPredictions:
    """Merge the answers of two files for one checkpoint."""
    _check_digest(path, "in the files before", second, first.checkpoint_sha256)
    twice = [name for name in second.sets if name in first.sets]
    if twice:
        raise StoreError(
            f"{path}: series {second.series!r} epoch {second.epoch} answers about "
            f"{' '.join(twice[0]).strip()} in a file before too, and only one answer can count. "
            "Name one of the two files."
        )
    return replace(first, sets={**first.sets, **second.sets})


def _check_digest(path: Path, where: str, checkpoint: CheckpointPredictions, digest: str) -> None:
    if checkpoint.checkpoint_sha256 != digest:
        raise StoreError(
            f"{path}: series {checkpoint.series!r} epoch {checkpoint.epoch} is of other weights "
            f"(sha256 {checkpoint.checkpoint_sha256[:12]}) than {where} ({digest[:12]}), so its "
            "accuracy is not that of the model whose sharpness is known. Evaluate the same "
            "checkpoints."
        )


def _joined(
    spectra: Path,
    measured: Sequence[Series],
    answers: PredictionStore,
    *,
    named: Sequence[str] | None,
) -> tuple[dict[Key, CheckpointPredictions], list[str]]:
    """Select the checkpoints that have spectra and answers.

    The second value holds sentences on what is left out.

    Raises:
        StoreError: If a digest differs, or there are none.
    """
    joined: dict[Key, CheckpointPredictions] = {}
    without: list[str] = []
    for member in measured:
        for epoch, table in member.tables.items():
            checkpoint = answers.checkpoints.get((member.info.name, epoch))
            if checkpoint is None:
                without.append(f"{member.info.name} epoch {epoch}")
                continue
            _check_digest(spectra, f"in {spectra.name}", checkpoint, table.checkpoint_sha256)
            joined[checkpoint.key] = checkpoint
    if not joined:
        have = ", ".join(dict.fromkeys(name for name, _ in answers.checkpoints)) or "none"
        raise StoreError(
            f"{spectra}: no checkpoint of it has answers in the files of predictions, whose series "
            f"are: {have}. Evaluate the checkpoints of the same manifest, under the same names of "
            "series."
        )
    notes = []
    if without:
        notes.append(f"Without answers, so not in this chapter: {', '.join(without)}.")
    rest = [
        f"{name} epoch {epoch}"
        for name, epoch in answers.checkpoints
        if (name, epoch) not in joined
    ]
    if rest and named is None:
        notes.append(
            f"With answers but without spectra, so not in this chapter: {', '.join(rest)}."
        )
    return joined, notes


# --- resampling -----------------------------------------------------------------------------------


def resampled_sharpness(
    observed: Mapping[Key, MetricValues], digests: Mapping[Key, Sequence[str]], bootstrap: Bootstrap
) -> dict[Key, Float[np.ndarray, " r"]]:
    """Resample the batches that all checkpoints share.

    Gives the sharpness of each checkpoint in every resample. A batch is drawn for all checkpoints
    that were measured on it, as its pairs make all of them sharper or flatter together. The number
    drawn is one less than the number of batches, as in `landscape.statistics.stratified_weights`.

    Args:
        digests: Digests of the pairs of each batch, in the order of the records.
    """
    samples: dict[Key, Sample] = {key: values.counted for key, values in observed.items()}
    owned = {key: np.asarray(digests[key])[values.counts] for key, values in observed.items()}
    batches = np.unique(np.concatenate([np.zeros(0, dtype="<U1"), *owned.values()]))
    generator = np.random.default_rng([bootstrap.seed, len(batches)])
    drawn = (
        generator.integers(len(batches), size=(bootstrap.num_resamples, max(1, len(batches) - 1)))
        if len(batches)
        else None
    )
    resampled = {}
    for key, sample in samples.items():
        rows = {digest: row for row, digest in enumerate(owned[key])}
        place = np.array([rows.get(digest, -1) for digest in batches])
        rows_drawn = place[drawn]
        if (place >= 0).all():
            values = sample.at(rows_drawn)
        else:
            # A resample without any batch of this checkpoint has no value.
            counted = [row[row >= 0] for row in rows_drawn]
            values = np.array([float(sample.at(row)) if len(row) else np.nan for row in counted])
        resampled[key] = values
    return resampled
