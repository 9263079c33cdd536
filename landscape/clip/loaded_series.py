"""A checkpoint series ready for measurement: model, loss and batches.

The model takes the weights of any epoch.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from landscape import threads
from landscape.clip.checkpoint import CheckpointInfo, check_fit, load_checkpoint
from landscape.clip.image_text import CurvatureBatches, Pairs, Transform, curvature_batches
from landscape.clip.labels import with_labels
from landscape.clip.model import image_size_of, preprocess_for, tokenizer_for
from landscape.clip.recipes import RECIPES, training_transform
from landscape.clip.trained import as_trained, build_as_trained, objective_as_trained
from landscape.curvature import Batch, Objective, Params
from landscape.curvature.guards import check_twice_differentiable
from landscape.errors import CheckpointError, DataError, LandscapeError, ManifestError, PictureError
from landscape.manifest import Checkpoint, CheckpointSeries, HessianSettings, Manifest, TrainedAs
from landscape.manifest.run_files import inside_checkpoint
from landscape.manifest.trained import Disagreement
from landscape.suggestions import did_you_mean


class Batches(Protocol):
    """The fixed batches of a measurement, each read on demand."""

    @property
    def notes(self) -> tuple[str, ...]:
        """List notes on the batches, a sentence each."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]: ...

    def digest(self, i: int) -> str:
        """Compute the sha256 of what batch i is made of."""
        ...


# Calls a function with a model that has its weights, and further arguments.
Evaluate = Callable[..., Any]


def called_with(model: torch.nn.Module) -> Evaluate:
    """Call functions with a model that holds all of its weights."""

    def evaluate(function: Callable[..., Any], *args: Any) -> Any:
        return function(model, *args)

    return evaluate


DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, eq=False, kw_only=True)
class LoadedSeries:
    """The model of a series with the batches of the protocol.

    Attributes:
        params: The parameters under study. They belong to the model and change with every `load`.
        trained: What is known of the model as it was trained.
        used: The settings of its training that were used, each with its source; see `as_trained`.
        reads_runs: Whether to compare with what a checkpoint holds about its run.
    """

    model: torch.nn.Module
    objective: Objective
    params: Params
    batches: Batches
    device: torch.device
    trained: TrainedAs = field(default_factory=TrainedAs)
    used: dict[str, list[Any]] = field(default_factory=dict)
    reads_runs: bool = True

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        series: CheckpointSeries,
        pairs: Pairs,
        *,
        device: torch.device,
        on_meta: bool = False,
    ) -> "LoadedSeries":
        """Build a series' model and check that the requested Hessian exists.

        Args:
            on_meta: Build it without numbers, for processes that hold parts of it; see
                `build_model`.

        Raises:
            ModelError: If the model is unknown or does not go with the objective.
            ManifestError: If the augmentation is unknown or more eigenvalues are asked for than
                there are parameters.
            ObjectiveError: If the model is not twice differentiable as it is, or a pattern matches
                no parameter.
            DataError: If the batches cannot be drawn.
        """
        hessian = manifest.hessian
        model = build_as_trained(
            series, dtype=DTYPES[hessian.dtype], device=device, on_meta=on_meta
        )
        threads.fit(model)
        objective, params = objective_as_trained(model, hessian, series.trained)
        check_twice_differentiable(model)
        num_params = sum(parameter.numel() for parameter in params.values())
        if hessian.k > num_params:
            raise ManifestError(
                f"{manifest.path}: k is {hessian.k}, but the Hessian of series {series.name!r} has "
                f"only {num_params} eigenvalues (parameters: {hessian.parameters}). Lower k, or "
                "select more parameters."
            )
        batches = _batches(manifest, model, pairs)
        return cls(
            model=model,
            objective=objective,
            params=params,
            batches=batches,
            device=device,
            trained=series.trained,
            used=as_trained(model, series.trained, hessian),
            reads_runs=series.reads_runs,
        )

    def objective_on(
        self, model: torch.nn.Module, hessian: HessianSettings
    ) -> tuple[Objective, Params]:
        """Build the same loss for another instance of the model.

        Returns:
            The loss and the instance's parameters under study.
        """
        return objective_as_trained(model, hessian, self.trained)

    def load(self, checkpoint: Checkpoint) -> CheckpointInfo:
        """Load the weights of a checkpoint.

        Raises:
            CheckpointError: If the file is not what the manifest says, is unsafe, or does not fit
                the model.
            ModelError: As `check_loss`.
        """
        weights = self.trained.get("weights", "online")
        info = load_checkpoint(
            self.model, checkpoint.path, expected_sha256=checkpoint.sha256, weights=weights
        )
        self.check_run(checkpoint, info)
        self.check_loss(called_with(self.model))
        return info

    def check_run(self, checkpoint: Checkpoint, info: CheckpointInfo) -> None:
        """Refuse a checkpoint that states another run or epoch.

        Raises:
            CheckpointError: If so.
        """
        self._check_settings(checkpoint, info.settings)
        check_epoch(checkpoint, info.epoch, info.stored_epoch)

    def check_loss(self, evaluate: Evaluate) -> None:
        """See with the weights of a checkpoint that the loss is the one that was trained, where the
        model has its own.

        Args:
            evaluate: Calls a function with the model, and further arguments, without derivatives.
        """

    def _check_settings(self, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
        if self.reads_runs:
            check_run_settings(checkpoint, settings, self.trained)

    def notes_on(self, info: CheckpointInfo) -> dict[str, list[str]]:
        """Collect notes on the run, a checkpoint and the data for storage.

        The result is empty where there are none.
        """
        notes = [*self.trained.notes, *info.notes, *self.batches.notes]
        return {"notes": notes} if notes else {}

    def check_fit(self, checkpoint: Checkpoint) -> None:
        """Check by names, shapes and epoch that a checkpoint can be loaded.

        Its numbers are not read.

        Raises:
            CheckpointError: As `load`, except for what needs the numbers.
        """
        contents = check_fit(
            self.model, checkpoint.path, weights=self.trained.get("weights", "online")
        )
        self._check_settings(checkpoint, contents.settings)
        check_epoch(checkpoint, contents.epoch, contents.stored_epoch)

    def batch(self, index: int) -> Batch:
        """Read batch `index` in the model's precision, on its device."""
        dtype = next(iter(self.params.values())).dtype
        return {
            name: value.to(self.device, dtype)
            if value.is_floating_point()
            else value.to(self.device)
            for name, value in self.batches[index].items()
        }

    def first_batch(self, indices: Iterable[int] | None = None) -> Batch:
        """Read the first batch whose pictures can be read.

        Args:
            indices: Batches to try, in this order; by default all.

        Raises:
            PictureError: If there is none; the error of the first batch.
        """
        first: PictureError | None = None
        for index in range(len(self.batches)) if indices is None else indices:
            try:
                return self.batch(index)
            except PictureError as error:
                first = first or error
        assert first is not None, "there is at least one batch"
        raise first


class Notes:
    """Notes on data, runs and checkpoints, each sentence once.

    Of sentences that differ only in their numbers, as those of several epochs do, a series keeps
    the first.
    """

    def __init__(self) -> None:
        self.by_sentence: dict[str, str] = {}

    def add(self, loaded: LoadedSeries, info: CheckpointInfo, *, series: str) -> None:
        """Add the notes of a checkpoint that was just loaded."""
        self.by_sentence |= {note: note for note in loaded.batches.notes}
        for note in (*loaded.trained.notes, *info.notes):
            self.by_sentence.setdefault(
                f"{series} {re.sub('[0-9]+', '0', note)}", f"{series}: {note}"
            )


def device_of(name: str | None) -> torch.device:
    """Return the named device; by default CUDA where there is one.

    Raises:
        LandscapeError: If it is not there.
    """
    try:
        device = torch.device(
            name if name is not None else "cuda" if torch.cuda.is_available() else "cpu"
        )
        torch.empty(0, device=device)
    # torch raises what the back end raises: AssertionError, RuntimeError, NotImplementedError.
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise LandscapeError(
            f"device {name!r} is not available here ({reason}). Ask for another, such as cpu."
        ) from error
    return device


def check_run_settings(
    checkpoint: Checkpoint, settings: Mapping[str, Any], trained: TrainedAs
) -> None:
    """Compare a checkpoint's run settings with those its model was built by.

    All checkpoints of a series must come from one run.

    Raises:
        CheckpointError: If they disagree.
    """
    for file in inside_checkpoint(settings, checkpoint.path):
        try:
            file.trained.joined(trained)
        except Disagreement as error:
            raise CheckpointError(
                f"{checkpoint.path}: {error}, so its weights mean another function than the rest "
                "of its series. Make two series of the two runs, or say `run_files: ignore` for "
                "the series."
            ) from None


def check_epoch(
    checkpoint: Checkpoint, epoch: int | None, stored_epoch: int | float | None
) -> None:
    """Refuse a checkpoint that was written after another epoch than is listed.

    Raises:
        CheckpointError: If so.
    """
    if epoch is not None and epoch != checkpoint.epoch:
        stored = (
            "" if stored_epoch in (None, epoch) else f" (it stores {stored_epoch}, counted from 0)"
        )
        raise CheckpointError(
            f"{checkpoint.path}: was written after {epoch} finished epochs{stored}, but the "
            f"manifest lists it as epoch {checkpoint.epoch}, so its spectrum would be drawn in the "
            f"wrong panel. List it as epoch {epoch}, or name the right file."
        )


def _batches(manifest: Manifest, model: torch.nn.Module, pairs: Pairs) -> CurvatureBatches:
    data = manifest.data
    preprocess = preprocess_for(model)
    transform: Transform = preprocess
    augmented = data.augmentation != "none"
    if augmented:
        if data.augmentation not in RECIPES:
            known = ("none", *RECIPES)
            raise ManifestError(
                f"{manifest.path}: augmentation {data.augmentation!r} is unknown; it must be one "
                f"of {', '.join(known)}.{did_you_mean(data.augmentation, known)}"
            )
        transform = training_transform(
            data.augmentation, image_size_of(model), preprocess.mean, preprocess.std
        )
    contrastive = manifest.hessian.objective == "contrastive"
    if contrastive and not isinstance(pairs.target(0), str):
        raise DataError(
            f"{pairs.name}: there are classes in place of captions, but a contrastive loss "
            "compares captions. Use objective: cross_entropy, or other data."
        )
    return curvature_batches(
        pairs if contrastive else with_labels(pairs),
        num_samples=data.num_samples,
        batch_size=data.batch_size,
        seed=data.seed,
        transform=transform,
        tokenizer=tokenizer_for(model) if contrastive else None,
        augmentation=data.augmentation,
        augmentation_seed=data.seed if augmented else None,
        on_bad_picture=data.on_bad_picture,  # type: ignore[arg-type]
    )


def settings_of(series: LoadedSeries, hessian: HessianSettings, *, product: str) -> dict[str, Any]:
    """Describe how numbers are computed, and of which function.

    These are the settings that the protocol leaves open. They are stored beside the numbers.
    """
    device = series.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "num_threads": torch.get_num_threads(),
        "product": "pyhessian" if hessian.method == "pyhessian" else product,
        "as_trained": series.used,
    }
