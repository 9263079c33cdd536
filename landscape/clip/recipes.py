"""Training recipes as data: a preset per published recipe, and one for the demo.

Nothing here trains: `landscape.clip.train` turns a recipe into an optimizer and a schedule,
curvature batches use its augmentation. torch is imported inside the functions that need it, so a
command line can list the presets at once.

Exponential moving averages are left out. mamba-clip keeps a second copy of both towers (momentum
from 0.996 to 1 along a cosine over all iterations) and evaluates that copy. The copy never enters
the loss, so the weights trained here are the same online weights, and only they are saved.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from landscape.suggestions import nearest


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of a picture before it is normalised.

    A probability of 0 leaves a step out.

    Attributes:
        crop_scale: Share of the area that a random crop keeps, (least, most); the crop is resized
            to the model's size.
        interpolation: How the crop is resized, "bilinear" or "bicubic".
        color_jitter: Strengths of (brightness, contrast, saturation, hue).
        blur_sigma: Radius of the Gaussian blur in pixels, (least, most), drawn uniformly.
        solarize_probability: Pixels of 128 and above are inverted.
    """

    crop_scale: tuple[float, float]
    interpolation: str = "bilinear"
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    color_jitter_probability: float = 0.0
    grayscale_probability: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_probability: float = 0.0
    solarize_probability: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """The settings of a training run besides the model, the pairs and the seed.

    The optimizer is AdamW. Weight decay excludes parameters with fewer than two dimensions and
    those whose name contains "bias", "ln" or "bn": the rule of SLIP, mamba-clip and open_clip
    alike. The logit scale is kept within [1, 100].

    Attributes:
        lr: Learning rate at the end of the warm-up.
        min_lr: Learning rate at which the cosine ends.
        warmup_epochs, warmup_steps: Length of the linear warm-up; one of them is 0.
        warmup_start_lr: Learning rate of the very first step; None means lr / warm-up steps, as
            open_clip_train does.
        batch_size: Pairs per step, over all processes together.
        precision: open_clip_train's name: "amp" (float16 autocast, scaled loss), "amp_bf16" or
            "fp32".
        grad_clip_norm: Largest gradient norm, or None.
        local_loss, gather_with_grad: open_clip's switches for the loss over several processes:
            whether each process scores only its own rows, and whether the gradient flows through
            the gathered features.
        sync_batch_norm: Batch statistics over all processes (CUDA only).
        image_mean, image_std: Normalisation as published, for comparison only. Training and
            measuring both use the model's own values, so that the two cannot disagree.
        source: Origin of every number, and which are unknown.
    """

    name: str
    lr: float
    min_lr: float
    warmup_epochs: int
    warmup_steps: int
    warmup_start_lr: float | None
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    batch_size: int
    epochs: int
    precision: str
    augmentation: Augmentation
    local_loss: bool
    gather_with_grad: bool
    sync_batch_norm: bool
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    source: str
    grad_clip_norm: float | None = None

    def __post_init__(self) -> None:
        if self.warmup_epochs and self.warmup_steps:
            raise ValueError(f"Recipe '{self.name}': give warmup_epochs or warmup_steps, not both.")
        if self.batch_size < 2:
            raise ValueError(
                f"Recipe '{self.name}': a contrastive batch needs 2 pairs or more, got "
                f"{self.batch_size}."
            )


_CLIP_MAMBA = Recipe(
    name="clip_mamba",
    lr=5e-4,
    min_lr=1e-5,
    warmup_epochs=1,
    warmup_steps=0,
    warmup_start_lr=1e-6,
    betas=(0.9, 0.98),
    eps=1e-8,
    weight_decay=0.5,
    batch_size=4096,
    epochs=25,
    precision="amp",
    augmentation=Augmentation(
        crop_scale=(0.5, 1.0),
        color_jitter=(0.4, 0.4, 0.2, 0.1),
        color_jitter_probability=0.8,
        grayscale_probability=0.2,
        blur_probability=0.1,
        solarize_probability=0.2,
    ),
    local_loss=True,
    gather_with_grad=True,
    sync_batch_norm=True,
    source=(
        "arXiv 2404.19394, code github.com/raytrun/mamba-clip 9c20682: main.py (optimizer, "
        "schedule, augmentation, precision), losses.py (local rows, gradient through the gather), "
        "run.sh (2 x 8 x 256 pairs, lr, weight decay, epochs; given for Simba_B, inferred for the "
        "other models). Not applied: the averaged copy of the weights, and the random choice "
        "between title and description."
    ),
    image_mean=(0.485, 0.456, 0.406),
    image_std=(0.229, 0.224, 0.225),
)

_SLIP_CLIP = dataclasses.replace(
    _CLIP_MAMBA,
    name="slip_clip",
    augmentation=Augmentation(crop_scale=(0.5, 1.0)),
    gather_with_grad=False,
    sync_batch_norm=False,
    source=(
        "CLIP baseline of SLIP, arXiv 2112.12750, code github.com/facebookresearch/SLIP: README "
        "(batch 4096, lr 5e-4, weight decay 0.5 for CLIP ViT-B; the same for every size), main.py "
        "(the rest), losses.py (local rows, no gradient through the gather). The ViT rows of arXiv "
        "2404.19394 repeat the published numbers of this recipe. Not applied: the random choice "
        "between title and description."
    ),
)

_OPEN_CLIP = Recipe(
    name="open_clip",
    lr=5e-4,
    min_lr=0.0,
    warmup_epochs=0,
    warmup_steps=10_000,
    warmup_start_lr=None,
    betas=(0.9, 0.98),
    eps=1e-6,
    weight_decay=0.2,
    batch_size=64,
    epochs=32,
    precision="amp",
    augmentation=Augmentation(crop_scale=(0.9, 1.0), interpolation="bicubic"),
    local_loss=False,
    gather_with_grad=False,
    sync_batch_norm=False,
    source=(
        "Defaults of open_clip_train 3.3 (params.py, scheduler.py) and open_clip's "
        "AugmentationCfg; betas, eps and lr are the ones it gives to models with 'vit' in their "
        "name, others get its other set. Its batch size is per process; here it is that of one "
        "process."
    ),
    image_mean=(0.48145466, 0.4578275, 0.40821073),
    image_std=(0.26862954, 0.26130258, 0.27577711),
)

_OPENMOJI_DEMO = dataclasses.replace(
    _SLIP_CLIP,
    name="openmoji_demo",
    lr=1e-3,
    weight_decay=0.1,
    batch_size=64,
    epochs=5,
    precision="fp32",
    source=(
        "Our own, not published: the optimizer, the shape of the schedule and the augmentation of "
        "slip_clip; lr, weight decay, batch and epochs were chosen so that a small model learns "
        "from 3,535 emoji within a minute on a CPU. vit_tiny_64, held-out pairs in batches of 120: "
        "loss 5.06 -> 3.05 nats, ln 120 = 4.79. With slip_clip's own numbers and batches of 128 "
        "the loss hardly changes in so few steps."
    ),
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for recipe in (_CLIP_MAMBA, _SLIP_CLIP, _OPEN_CLIP, _OPENMOJI_DEMO)
}


def get_recipe(name: str, *, model: str) -> Recipe:
    """Return the preset of that name.

    For "open_clip", the optimizer settings are those that open_clip_train has for this model.

    Raises:
        ValueError: If there is no preset of that name.
    """
    if name not in RECIPES:
        raise ValueError(f"Unknown recipe {name!r}; {nearest(name, RECIPES)}")
    if name != "open_clip":
        return RECIPES[name]
    from open_clip_train.params import get_default_params

    by_model = get_default_params(model)
    betas = (by_model["beta1"], by_model["beta2"])
    return dataclasses.replace(RECIPES[name], lr=by_model["lr"], betas=betas, eps=by_model["eps"])


def learning_rate(recipe: Recipe, step: int, *, steps_per_epoch: int, epochs: int) -> float:
    """Compute the learning rate of optimizer step `step` (0 is the first).

    The run has `epochs` epochs. Linear over the W warm-up steps from `warmup_start_lr` at step 0 to
    `lr` at step W - 1, both ends included; then half a cosine from `lr` at step W towards `min_lr`,
    which the step after the last one would reach.

    Source: mamba-clip and SLIP, utils.cosine_scheduler; with `warmup_start_lr=None` and `min_lr=0`
    it is open_clip_train.scheduler.cosine_lr.
    """
    num_warmup = recipe.warmup_steps or recipe.warmup_epochs * steps_per_epoch
    if step < num_warmup:
        start = recipe.lr / num_warmup if recipe.warmup_start_lr is None else recipe.warmup_start_lr
        return start + (recipe.lr - start) * step / max(num_warmup - 1, 1)
    done = (step - num_warmup) / (steps_per_epoch * epochs - num_warmup)
    return recipe.min_lr + 0.5 * (recipe.lr - recipe.min_lr) * (1 + math.cos(math.pi * done))


def training_transform(
    recipe: str | Recipe,
    image_size: int | tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> Callable[[Any], Any]:
    """Build the recipe's augmentation as a torchvision transform.

    It maps an RGB PIL picture to a normalised float32 tensor (3, h, w). Every random draw comes
    from torch's default generator, so seeding that one repeats the picture bit for bit.

    Raises:
        ValueError: If `recipe` is a name and there is no preset of that name.
    """
    from torchvision import transforms

    if isinstance(recipe, str) and recipe not in RECIPES:
        raise ValueError(f"Unknown recipe {recipe!r}; {nearest(recipe, RECIPES)}")
    what = (RECIPES[recipe] if isinstance(recipe, str) else recipe).augmentation
    interpolation = transforms.InterpolationMode(what.interpolation)
    steps: list[Any] = [
        transforms.RandomResizedCrop(image_size, scale=what.crop_scale, interpolation=interpolation)
    ]
    if what.color_jitter_probability:
        steps.append(
            transforms.RandomApply(
                [transforms.ColorJitter(*what.color_jitter)], p=what.color_jitter_probability
            )
        )
    if what.grayscale_probability:
        steps.append(transforms.RandomGrayscale(p=what.grayscale_probability))
    if what.blur_probability:
        steps.append(transforms.RandomApply([_PilBlur(what.blur_sigma)], p=what.blur_probability))
    if what.solarize_probability:
        steps.append(transforms.RandomSolarize(threshold=128, p=what.solarize_probability))
    return transforms.Compose(
        [*steps, transforms.ToTensor(), transforms.Normalize(tuple(mean), tuple(std))]
    )


@dataclass(frozen=True)
class _PilBlur:
    """Gaussian blur as in PIL, which the published code uses.

    torchvision's needs a kernel size and cuts the tails.
    """

    sigma: tuple[float, float]

    def __call__(self, picture: Any) -> Any:
        import torch
        from PIL import ImageFilter

        least, most = self.sigma
        radius = least + (most - least) * torch.rand(()).item()
        return picture.filter(ImageFilter.GaussianBlur(radius=radius))
