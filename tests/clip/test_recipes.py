"""Recipes against the code that they were published with, and against open_clip_train."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transform import image_transform
from open_clip_train.params import parse_args
from open_clip_train.scheduler import cosine_lr
from PIL import Image

from landscape.clip.recipes import (
    RECIPES,
    Augmentation,
    get_recipe,
    learning_rate,
    training_transform,
)


def noise_picture(size=48):
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def outputs(recipe, picture, *, num_draws):
    transform = training_transform(recipe, 16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    torch.manual_seed(0)
    return torch.stack([transform(picture) for _ in range(num_draws)])


@pytest.mark.parametrize("name", ["clip_mamba", "slip_clip"])
def test_the_published_schedule_is_followed_at_every_step(name):
    steps_per_epoch, epochs = 7, 25
    num_cosine = steps_per_epoch * (epochs - 1)
    cosine = 1e-5 + 0.5 * (5e-4 - 1e-5) * (1 + np.cos(np.pi * np.arange(num_cosine) / num_cosine))
    published = np.concatenate([np.linspace(1e-6, 5e-4, steps_per_epoch), cosine])
    rates = [
        learning_rate(RECIPES[name], i, steps_per_epoch=steps_per_epoch, epochs=epochs)
        for i in range(len(published))
    ]
    np.testing.assert_allclose(rates, published, rtol=1e-12)


def test_the_clip_mamba_schedule_takes_these_values_by_hand():
    def rate(step):
        return learning_rate(RECIPES["clip_mamba"], step, steps_per_epoch=10, epochs=3)

    assert rate(0) == pytest.approx(1e-6)
    assert rate(9) == pytest.approx(5e-4)
    assert rate(10) == pytest.approx(5e-4)
    assert rate(20) == pytest.approx((5e-4 + 1e-5) / 2)
    assert rate(29) == pytest.approx(1e-5 + 4.9e-4 * (1 + math.cos(math.pi * 0.95)) / 2)


@pytest.mark.parametrize("num_warmup", [1, 5, 60])
def test_the_open_clip_schedule_is_the_one_of_open_clip_train(num_warmup):
    recipe = dataclasses.replace(RECIPES["open_clip"], warmup_steps=num_warmup)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = cosine_lr(optimizer, recipe.lr, num_warmup, 8 * 5)
    rates = [learning_rate(recipe, step, steps_per_epoch=8, epochs=5) for step in range(40)]
    np.testing.assert_allclose(rates, [theirs(step) for step in range(40)], rtol=1e-12)


@pytest.mark.parametrize("model", ["ViT-B-32", "RN50"])
def test_the_open_clip_preset_has_the_defaults_of_open_clip_train(model):
    defaults = parse_args(["--model", model])
    recipe = get_recipe("open_clip", model=model)
    assert (recipe.lr, recipe.eps, recipe.weight_decay) == (defaults.lr, defaults.eps, defaults.wd)
    assert recipe.betas == (defaults.beta1, defaults.beta2)
    assert (recipe.batch_size, recipe.epochs, recipe.warmup_steps) == (
        defaults.batch_size,
        defaults.epochs,
        defaults.warmup,
    )
    assert (recipe.precision, recipe.grad_clip_norm) == (
        defaults.precision,
        defaults.grad_clip_norm,
    )
    assert (recipe.local_loss, recipe.gather_with_grad) == (
        defaults.local_loss,
        defaults.gather_with_grad,
    )
    assert (recipe.image_mean, recipe.image_std) == (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)


def test_the_open_clip_augmentation_is_the_one_of_open_clip():
    ours = training_transform("open_clip", 32, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
    theirs = image_transform(32, is_train=True)
    for seed in range(5):
        torch.manual_seed(seed)
        expected = theirs(noise_picture())
        torch.manual_seed(seed)
        torch.testing.assert_close(ours(noise_picture()), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", RECIPES)
def test_an_augmented_picture_repeats_under_its_seed_and_only_there(name):
    transform = training_transform(name, 24, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    def draw(seed):
        torch.manual_seed(seed)
        return transform(noise_picture())

    assert draw(1).shape == (3, 24, 24)
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


# The bounds below are four standard deviations of a binomial share over 600 draws: 4 * sqrt(p (1 -
# p) / 600).
def test_one_picture_in_five_is_grey_and_one_in_five_solarized_in_clip_mamba():
    orange = Image.new("RGB", (24, 24), (200, 100, 40))
    pictures = outputs("clip_mamba", orange, num_draws=600)
    grey = (pictures.amax(dim=1) - pictures.amin(dim=1)).amax(dim=(1, 2)) == 0
    assert grey.double().mean().item() == pytest.approx(0.2, abs=0.066)
    # White stays above 128 under every brightness (0.6 and more), and solarizing turns it below
    # 128.
    white = outputs("clip_mamba", Image.new("RGB", (24, 24), "white"), num_draws=600)
    assert (white.mean(dim=(1, 2, 3)) < 0.5).double().mean().item() == pytest.approx(0.2, abs=0.066)


def test_blur_and_jitter_come_as_often_as_they_should():
    # A crop of the whole square picture at its own size changes nothing, so what changed was
    # blurred, or jittered.
    blur = Augmentation(crop_scale=(1.0, 1.0), blur_probability=0.1)
    jitter = Augmentation(
        crop_scale=(1.0, 1.0), color_jitter=(0.4, 0.4, 0.2, 0.1), color_jitter_probability=0.8
    )
    for augmentation, share in ((blur, 0.1), (jitter, 0.8)):
        recipe = dataclasses.replace(RECIPES["clip_mamba"], augmentation=augmentation)
        pictures = outputs(recipe, noise_picture(16), num_draws=600)
        plain = torch.from_numpy(np.array(noise_picture(16))).permute(2, 0, 1) / 255
        changed = (pictures != plain).flatten(1).any(dim=1).double().mean().item()
        assert changed == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 600))


def test_slip_clip_crops_and_does_nothing_else():
    flat = outputs("slip_clip", Image.new("RGB", (24, 24), (200, 100, 40)), num_draws=50)
    expected = torch.tensor([200, 100, 40])[:, None, None].expand(50, 3, 16, 16) / 255
    assert torch.equal(flat, expected)


def test_an_unknown_recipe_is_refused_with_the_names_that_exist():
    with pytest.raises(ValueError, match="Unknown recipe 'sgd'.*clip_mamba.*openmoji_demo"):
        get_recipe("sgd", model="ViT-B-32")
    with pytest.raises(ValueError, match="Unknown recipe 'sgd'"):
        training_transform("sgd", 16, (0.5,) * 3, (0.5,) * 3)


def test_a_recipe_has_one_length_of_warm_up_and_at_least_two_pairs():
    with pytest.raises(ValueError, match="not both"):
        dataclasses.replace(RECIPES["clip_mamba"], warmup_steps=3)
    with pytest.raises(ValueError, match="2 pairs or more, got 1"):
        dataclasses.replace(RECIPES["clip_mamba"], batch_size=1)
