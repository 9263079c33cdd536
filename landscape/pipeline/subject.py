"""What is measured: a model of a series, its objective, and the batches; ready to take the weights of any epoch."""

from dataclasses import dataclass

import torch

from landscape import threads
from landscape.clip.checkpoint import CheckpointInfo, load_checkpoint
from landscape.clip.image_text import CurvatureBatches, Pairs, Transform, curvature_batches
from landscape.clip.labels import with_labels
from landscape.clip.model import build_model, image_size_of, preprocess_for, tokenizer_for
from landscape.clip.objectives import contrastive_objective, cross_entropy_objective
from landscape.clip.recipes import RECIPES, training_transform
from landscape.curvature import Batch, Objective, Params, check_twice_differentiable
from landscape.errors import CheckpointError, ManifestError
from landscape.manifest import Checkpoint, CheckpointSeries, HessianSettings, Manifest

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, eq=False, kw_only=True)
class Subject:
    """One architecture on the batches of the protocol.

    Attributes:
        params: The parameters under study, the model's own: they follow every `load`.
    """

    model: torch.nn.Module
    objective: Objective
    params: Params
    batches: CurvatureBatches
    device: torch.device

    @classmethod
    def of(cls, manifest: Manifest, series: CheckpointSeries, pairs: Pairs, *, device: torch.device) -> "Subject":
        """Build the model of a series and check that the Hessian that the manifest asks for exists.

        Raises:
            ModelError: If the model is unknown or does not go with the objective.
            ManifestError: If the augmentation is unknown or more eigenvalues are asked for than there are parameters.
            ObjectiveError: If the model is not twice differentiable as it is, or a pattern matches no parameter.
            DataError: If the batches cannot be drawn.
        """
        hessian = manifest.hessian
        model = build_model(series.model, dtype=DTYPES[hessian.dtype], device=device)
        threads.fit(model)
        objective, params = objective_of(model, hessian)
        check_twice_differentiable(model)
        num_params = sum(parameter.numel() for parameter in params.values())
        if hessian.k > num_params:
            raise ManifestError(
                f"{manifest.path}: k is {hessian.k}, but the Hessian of series {series.name!r} has only {num_params} eigenvalues "
                f"(parameters: {hessian.parameters}). Lower k, or select more parameters."
            )
        batches = _batches(manifest, series, model, pairs)
        return cls(model=model, objective=objective, params=params, batches=batches, device=device)

    def load(self, checkpoint: Checkpoint) -> CheckpointInfo:
        """Take the weights of a checkpoint.

        Raises:
            CheckpointError: If the file is not what the manifest says, is unsafe, or does not fit the model.
        """
        info = load_checkpoint(self.model, checkpoint.path, expected_sha256=checkpoint.sha256)
        # timm counts from the first finished epoch, 0; the others count finished epochs.
        if info.epoch is not None and info.layout != "timm" and info.epoch != checkpoint.epoch:
            raise CheckpointError(
                f"{checkpoint.path}: says it is epoch {info.epoch}, but the manifest lists it as epoch {checkpoint.epoch}, so "
                "its spectrum would stand in the wrong panel. Correct the manifest, or name the right file."
            )
        return info

    def batch(self, index: int) -> Batch:
        """Batch `index` in the model's precision, on its device."""
        dtype = next(iter(self.params.values())).dtype
        return {
            name: value.to(self.device, dtype) if value.is_floating_point() else value.to(self.device)
            for name, value in self.batches[index].items()
        }


def objective_of(model: torch.nn.Module, hessian: HessianSettings) -> tuple[Objective, Params]:
    """The objective that the settings name, and the parameters under study.

    Raises:
        ModelError, ObjectiveError: As the makers of objectives.
    """
    make = contrastive_objective if hessian.objective == "contrastive" else cross_entropy_objective
    return make(model, parameters=hessian.parameters, weight_decay=hessian.weight_decay)


def _batches(manifest: Manifest, series: CheckpointSeries, model: torch.nn.Module, pairs: Pairs) -> CurvatureBatches:
    data = manifest.data
    preprocess = preprocess_for(model)
    transform: Transform = preprocess
    augmented = data.augmentation != "none"
    if augmented:
        if data.augmentation not in RECIPES:
            known = ", ".join(("none", *RECIPES))
            raise ManifestError(f"{manifest.path}: augmentation {data.augmentation!r} is unknown; it must be one of {known}.")
        transform = training_transform(data.augmentation, image_size_of(model), preprocess.mean, preprocess.std)
    contrastive = manifest.hessian.objective == "contrastive"
    return curvature_batches(
        pairs if contrastive else with_labels(pairs),
        num_samples=data.num_samples,
        batch_size=data.batch_size,
        seed=data.seed,
        transform=transform,
        tokenizer=tokenizer_for(series.model) if contrastive else None,
        augmentation=data.augmentation,
        augmentation_seed=data.seed if augmented else None,
    )


def settings_of(hessian: HessianSettings, device: torch.device, *, product: str) -> dict[str, str | int]:
    """How numbers are computed where the protocol leaves freedom; stored beside them."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {
        "device": name,
        "num_threads": torch.get_num_threads(),
        "product": "pyhessian" if hessian.method == "pyhessian" else product,
    }
