"""A model of a manifest that classifies pictures, at any of its checkpoints.

It is built as it was trained. Shapes: b = pictures, c = classes, d = width of the common space.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from open_clip import IMAGENET_CLASSNAMES
from torch import Tensor, nn
from torch.nn import functional as F

from landscape import threads
from landscape.clip.checkpoint import CheckpointInfo, check_fit, load_checkpoint
from landscape.clip.loaded_series import check_epoch, check_run_settings
from landscape.clip.model import Preprocessing, is_classifier, preprocess_for, tokenizer_for
from landscape.clip.trained import as_trained, build_as_trained
from landscape.curvature.hvp.memory import is_out_of_memory
from landscape.datasets import Classes
from landscape.errors import ModelError
from landscape.manifest import Checkpoint, CheckpointSeries, HessianSettings, json_sha256
from landscape.zeroshot.text import cached_class_features

# These only choose which settings of the model are listed.
_CONTRASTIVE, _CLASSIFIER = (
    HessianSettings(objective="contrastive"),
    HessianSettings(objective="cross_entropy"),
)


@dataclass(eq=False, kw_only=True)
class ZeroShotModel:
    """The model of a series, which scores every picture for every class.

    It is made by `of`.

    Attributes:
        preprocess: The model's preprocessing of pictures.
        tokenizer: Tokenizer of its text tower; None for a classifier.
        used: The settings of its training that were used, each with its source.
        num_at_once: Pictures that the image tower processes at a time; halved where memory does not
            hold them.
    """

    series: CheckpointSeries
    model: nn.Module
    preprocess: Preprocessing
    tokenizer: Any
    device: torch.device
    used: dict[str, list[Any]]
    num_at_once: int
    _digest: str = ""
    _classes: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, series: CheckpointSeries, *, device: torch.device) -> "ZeroShotModel":
        """Build the model of a series, with random weights.

        Raises:
            ModelError: If it cannot be built, or its text tower has no tokenizer without the
                network.
        """
        model = build_as_trained(series, device=device)
        threads.fit(model)
        classifies = is_classifier(series.model)
        return cls(
            series=series,
            model=model,
            preprocess=preprocess_for(model),
            tokenizer=None if classifies else tokenizer_for(model),
            device=device,
            used=as_trained(model, series.trained, _CLASSIFIER if classifies else _CONTRASTIVE),
            num_at_once=32 if device.type == "cpu" else 256,
        )

    @property
    def weights(self) -> str:
        return str(self.series.trained.get("weights", "online"))

    @property
    def gives_logits(self) -> bool:
        """Tell whether scores are a classifier's logits instead of cosines."""
        return self.tokenizer is None

    @property
    def logit_scale(self) -> float:
        """Return the factor that the model has learned for its cosines."""
        logarithm: Any = self.model.logit_scale
        return float(logarithm.detach().exp())

    def load(self, checkpoint: Checkpoint) -> CheckpointInfo:
        """Load the weights of a checkpoint.

        Raises:
            CheckpointError: If the file is not what the manifest says, is unsafe, or does not fit
                the model.
        """
        self._classes, self._digest = {}, ""
        info = load_checkpoint(
            self.model, checkpoint.path, expected_sha256=checkpoint.sha256, weights=self.weights
        )
        self._check_run(checkpoint, info.settings)
        check_epoch(checkpoint, info.epoch, info.stored_epoch)
        self._digest = info.sha256
        return info

    def check_fit(self, checkpoint: Checkpoint) -> None:
        """Check by names, shapes and epoch that a checkpoint can be loaded.

        Its numbers are not read.

        Raises:
            CheckpointError: As `load`, except for what needs the numbers.
        """
        contents = check_fit(self.model, checkpoint.path, weights=self.weights)
        self._check_run(checkpoint, contents.settings)
        check_epoch(checkpoint, contents.epoch, contents.stored_epoch)

    def _check_run(self, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
        if self.series.reads_runs:
            check_run_settings(checkpoint, settings, self.series.trained)

    def check_classes(self, classes: Classes, *, name: str) -> None:
        """Refuse classes among which the model cannot choose.

        Raises:
            ModelError: If it is a classifier, and these are not the classes that it was trained on.
        """
        if self.tokenizer is not None:
            return
        outputs = getattr(self.model, "num_classes", None)
        if (
            outputs != len(IMAGENET_CLASSNAMES)
            or [names[0] for names in classes.names] != IMAGENET_CLASSNAMES
        ):
            raise ModelError(
                f"series {self.series.name!r}: {self.series.model} is a classifier with {outputs} "
                "outputs and reads no text, so it can be evaluated on ImageNet's "
                f"{len(IMAGENET_CLASSNAMES)} classes alone, by open_clip's names in order, but "
                f"{name} has {len(classes.names)} classes, or others. Leave the set out, or use a "
                "CLIP model."
            )

    @torch.no_grad()
    def scores(self, pictures: Float[Tensor, "b 3 h w"], classes: Classes) -> Float[Tensor, "b c"]:
        """Compute the cosine of each picture with each class.

        For a classifier it is the logit.
        """
        features = self.see(pictures)
        if self.tokenizer is None:
            return features
        return features @ self.class_features(classes).T

    def class_features(self, classes: Classes) -> Float[Tensor, "c d"]:
        """Compute the direction of each class.

        See `landscape.zeroshot.text.class_features`.

        Raises:
            DataError: If a class has none.
        """
        if classes.digest not in self._classes:
            features = cached_class_features(
                self._encode_text, classes, model_digest=self._text_digest()
            )
            self._classes[classes.digest] = features.to(self.device)
        return self._classes[classes.digest]

    def settings(self) -> dict[str, Any]:
        """List as JSON values how scores are computed.

        These are the settings that a protocol leaves open.
        """
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        score = "logit" if self.gives_logits else "cosine"
        return {
            "device": device,
            "dtype": "float32",
            "score": score,
            "num_threads": torch.get_num_threads(),
        }

    def _text_digest(self) -> str:
        """Digest everything that a text feature depends on.

        This is the weights, and the architecture that reads them.
        """
        config = getattr(self.model, "landscape_config", {})
        return json_sha256(
            {
                "weights": self._digest,
                "which": self.weights,
                "model": self.series.model,
                "config": repr(config),
                "trained": self.series.trained.changes(),
                "device": self.device.type,
            }
        )

    @torch.no_grad()
    def _encode_text(self, prompts: Sequence[str]) -> Float[Tensor, "p d"]:
        model: Any = self.model
        encoded: Tensor = model.encode_text(self.tokenizer(list(prompts)).to(self.device))
        return encoded.float()

    @torch.no_grad()
    def see(self, pictures: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Compute the direction of each picture.

        For a classifier, these are its logits.
        """
        while True:
            try:
                return torch.cat(
                    [self._see(piece.to(self.device)) for piece in pictures.split(self.num_at_once)]
                )
            except Exception as error:
                if not is_out_of_memory(error) or self.num_at_once == 1:
                    raise
                self.num_at_once //= 2

    def _see(self, pictures: Float[Tensor, "b 3 h w"]) -> Tensor:
        model: Any = self.model
        if self.tokenizer is None:
            return model(pictures).float()
        return F.normalize(model.encode_image(pictures).float(), dim=1)
