"""Training losses of CLIP models and classifiers as functions of chosen parameters.

Shapes: b = pairs per batch, d = width of the joint space, c = number of classes.
"""

from collections.abc import Sequence
from typing import Any

import open_clip
import torch
from jaxtyping import Float
from open_clip.loss import SigLipLoss
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.curvature.objective import (
    Batch,
    ConvexCut,
    Objective,
    Params,
    call_with_parameters,
    select_parameters,
)
from landscape.errors import ModelError, ObjectiveError

_SCALARS = ("logit_scale", "logit_bias")


def contrastive_objective(
    model: nn.Module,
    *,
    parameters: str | Sequence[str] = "all",
    weight_decay: float = 0.0,
    loss: str | None = None,
) -> tuple[Objective, Params]:
    """Build the contrastive loss of one batch, with all b pairs compared.

    A batch is {"image": (b, 3, h, w), "text": (b, l)}. The value is that of open_clip.ClipLoss in
    nats, the mean of the two cross-entropies; or that of open_clip.SigLipLoss.

    The features of row i are "image" and "text" (b, d), of length 1, and the temperature
    exp(logit_scale), repeated for every row (b,). The loss reads the temperature of each row from
    that row, so a derivative taken through chunks of rows is complete.

    Args:
        model: An open_clip model of an image and a text tower, in eval mode.
        parameters: "all"; "image" for the image tower, `visual.*`, to which its projection into the
            joint space belongs; "text" for everything else but the scalars logit_scale and
            logit_bias; or shell patterns of names.
        weight_decay: Coefficient of the L2 term over the chosen parameters.
        loss: "clip" or "siglip". None: SigLIP's for a model whose configuration sets
            `init_logit_bias`, as such models are made for it; else CLIP's.

    Returns:
        The objective, and the chosen parameters, with respect to which to differentiate. The other
        parameters are constants.

    Raises:
        ModelError: If the model is no such model, or its loss is not known.
        ObjectiveError: If a pattern matches no parameter; on evaluation, if a batch has fewer than
            two pairs.
    """
    criterion = _criterion(model, loss)

    def forward(params: Params, batch: Batch) -> dict[str, Tensor]:
        _check_pictures(batch)
        return call_with_parameters(model, params, _clip_features, batch["image"], batch["text"])

    def value(features: dict[str, Tensor], batch: Batch) -> Float[Tensor, ""]:
        if features["image"].shape[0] < 2:
            raise ObjectiveError(
                f"a contrastive batch of {features['image'].shape[0]} pair has nothing to compare: "
                "its loss is 0 whatever the weights. Use batches of two pairs or more."
            )
        return criterion(features["image"], features["text"], **_columns(features))

    chosen = select_parameters(model, _tower_patterns(model, parameters))
    cut = _cut_at_logits(criterion)

    def rebound(other: nn.Module) -> Objective:
        return contrastive_objective(
            other, parameters=parameters, weight_decay=weight_decay, loss=loss
        )[0]

    return Objective(
        forward, value, weight_decay, model, rowwise=True, cut=cut, rebound=rebound
    ), chosen


def cross_entropy_objective(
    model: nn.Module,
    *,
    parameters: str | Sequence[str] = "all",
    weight_decay: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[Objective, Params]:
    """Build the mean cross-entropy of one batch in nats.

    A batch is {"image": (b, 3, h, w), "label": (b,)}, for a classifier.

    Args:
        model: image -> logits (b, c), in eval mode.
        parameters: "all", or shell patterns of names.
        weight_decay: Coefficient of the L2 term over the chosen parameters.
        label_smoothing: Share of the target that is spread over all classes, as in
            torch.nn.CrossEntropyLoss.

    Raises:
        ModelError: If the model is a CLIP model, or a tower of one is asked for.
        ObjectiveError: If a pattern matches no parameter.
    """
    if hasattr(model, "logit_scale"):
        raise ModelError(
            f"{type(model).__name__}: is a CLIP model, which gives no classes. Use objective: "
            "contrastive."
        )
    if parameters in ("image", "text"):
        raise ModelError(
            f"{type(model).__name__}: a classifier has no {parameters!r} tower. Use parameters: "
            "all, or patterns."
        )

    def forward(params: Params, batch: Batch) -> Float[Tensor, "b c"]:
        _check_pictures(batch)
        return call_with_parameters(model, params, nn.Module.__call__, batch["image"])

    def loss(logits: Float[Tensor, "b c"], batch: Batch) -> Float[Tensor, ""]:
        return F.cross_entropy(logits, batch["label"], label_smoothing=label_smoothing)

    chosen = select_parameters(model, parameters)
    cut = ConvexCut(outputs=lambda logits, batch: logits, convex=loss)

    def rebound(other: nn.Module) -> Objective:
        options = {"weight_decay": weight_decay, "label_smoothing": label_smoothing}
        return cross_entropy_objective(other, parameters=parameters, **options)[0]

    return Objective(
        forward, loss, weight_decay, model, rowwise=True, cut=cut, rebound=rebound
    ), chosen


def _criterion(model: nn.Module, loss: str | None) -> nn.Module:
    if isinstance(model, open_clip.CoCa):
        raise ModelError(
            "CoCa: is trained on captioning too, so the contrastive loss is not all of it. Choose "
            "a CLIP model."
        )
    if not isinstance(model, open_clip.CLIP | open_clip.CustomTextCLIP):
        raise ModelError(
            f"{type(model).__name__}: is no CLIP model of open_clip, so it has no contrastive "
            "loss. Use objective: cross_entropy, or in Python landscape.hessian(model, loss, "
            "batch)."
        )
    if loss is not None and loss not in ("clip", "siglip"):
        raise ValueError(f'loss must be "clip" or "siglip", got {loss!r}.')
    has_bias = getattr(model, "logit_bias", None) is not None
    made_for_siglip = getattr(model, "landscape_config", {}).get("init_logit_bias") is not None
    if has_bias and loss is None and not made_for_siglip:
        raise ModelError(
            f"{type(model).__name__}: has a logit_bias, but not from a configuration with "
            "init_logit_bias, so it may be trained with the sigmoid or the softmax loss. Say "
            '`loss: siglip` or `loss: clip` (in Python loss="siglip").'
        )
    if loss == "siglip" and not has_bias:
        raise ModelError(
            f"{type(model).__name__}: has no logit_bias, which the sigmoid loss of SigLIP needs; "
            "say `model_args: {init_logit_bias: -10}` as open_clip_train --siglip sets it, or "
            "`loss: clip`."
        )
    return (
        SigLipLoss()
        if (loss or ("siglip" if has_bias else "clip")) == "siglip"
        else open_clip.ClipLoss()
    )


def _columns(features: dict[str, Tensor]) -> dict[str, Float[Tensor, "b 1"]]:
    """Return temperature and bias as columns.

    So each row of logits is scaled and shifted by the numbers of its own row.
    """
    return {name: features[name][:, None] for name in _SCALARS if name in features}


def _cut_at_logits(criterion: Any) -> ConvexCut:
    """Cut the loss at the logits of all pairs (b, b).

    Both cross-entropies and the sigmoid loss are convex in them.
    """

    def outputs(features: dict[str, Tensor], batch: Batch) -> Float[Tensor, "b b"]:
        logits = criterion.get_logits(features["image"], features["text"], **_columns(features))
        # ClipLoss also returns the logits of the texts, which are the transposed matrix.
        return logits[0] if isinstance(logits, tuple) else logits

    def convex(logits: Float[Tensor, "b b"], batch: Batch) -> Float[Tensor, ""]:
        rows = len(logits)
        if isinstance(criterion, SigLipLoss):
            signs = criterion.get_ground_truth(logits.device, logits.dtype, rows)
            return -F.logsigmoid(signs * logits).sum() / rows
        target = torch.arange(rows, device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    return ConvexCut(outputs, convex)


def _clip_features(model: nn.Module, image: Tensor, text: Tensor) -> dict[str, Tensor]:
    """Run open_clip's own forward pass, with one entry per row for everything.

    The scalars are repeated for every row.
    """
    output = model(image, text)
    if not isinstance(output, dict):
        output = dict(zip(("image_features", "text_features", *_SCALARS), output))
    rows = image.shape[0]
    scalars = {name: output[name].reshape(()).expand(rows) for name in _SCALARS if name in output}
    return {"image": output["image_features"], "text": output["text_features"], **scalars}


def _tower_patterns(model: nn.Module, parameters: str | Sequence[str]) -> str | list[str]:
    if parameters == "image":
        return "visual.*"
    if parameters == "text":
        tower = {
            name: parameter.requires_grad
            for name, parameter in model.named_parameters()
            if not name.startswith("visual.") and name not in _SCALARS
        }
        # Where all are frozen, select_parameters says so.
        return [name for name, is_free in tower.items() if is_free] or list(tower)
    return parameters if isinstance(parameters, str) else list(parameters)


def _check_pictures(batch: Batch) -> None:
    if not batch["image"].is_floating_point():
        raise ObjectiveError(
            f"pictures are {batch['image'].dtype}, but a model takes normalised floating-point "
            "ones. Apply preprocess_for(model) first."
        )
