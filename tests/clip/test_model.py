"""Models by name, their inputs, and their losses; the truth is open_clip's and timm's own."""

import importlib
import json
import logging
import random
import socket

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from scipy.special import logsumexp, softmax
from torch.nn import functional as F

from landscape.clip import model as model_module
from landscape.clip.model import (
    OWN_NAMES,
    build_model,
    contrastive_objective,
    cross_entropy_objective,
    image_size_of,
    model_names,
    preprocess_for,
    tokenizer_for,
)
from landscape.curvature.objective import flatten
from landscape.curvature.operators.hessian import HessianOperator, gradient
from landscape.errors import ModelError, ObjectiveError
from landscape.linalg.operator import seeded

CAPTIONS = ["a dog", "cityscape at dusk", "stuffed flatbread", "a cat", "red circle"]
SMALL = {
    "embed_dim": 6,
    "vision_cfg": {"image_size": 8, "patch_size": 4, "width": 8, "layers": 1, "head_width": 4},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def small_names(tmp_path_factory):
    """Configurations of a few thousand parameters, registered with open_clip: softmax loss, sigmoid
    loss, captioning.
    """
    folder = tmp_path_factory.mktemp("configs")
    configs = {
        "test_custom_text": SMALL | {"custom_text": True},
        "test_sigmoid": SMALL | {"custom_text": True, "init_logit_bias": -10},
        "test_captioning": SMALL
        | {"custom_text": True, "multimodal_cfg": {"width": 8, "heads": 2, "layers": 1}},
    }
    for name, config in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    return list(configs)


@pytest.fixture(scope="module")
def tiny():
    return build_model("vit_tiny_64", seed=0, dtype=torch.float64)


def batch_for(model, *, rows=5, seed=0):
    height, width = image_size_of(model)
    image = torch.randn(rows, 3, height, width, generator=seeded(seed), dtype=torch.float64)
    text = open_clip.SimpleTokenizer(context_length=model.context_length)(CAPTIONS[:rows])
    return {"image": image, "text": text}


def picture(height, width, *, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# Names


def test_own_models_come_first_and_open_clips_follow_once_each():
    names = model_names()
    assert set(names) >= {"vit_tiny_64", "vit_small_64", "vit_b16_slip", "vit_l16_slip", "ViT-B-32"}
    assert tuple(names[: len(OWN_NAMES)]) == OWN_NAMES
    assert len(names) == len(set(names)) and set(names) == set(open_clip.list_models())


def test_importing_again_registers_nothing_twice():
    before = list(open_clip.factory._MODEL_CONFIG_PATHS)
    importlib.reload(model_module)
    assert open_clip.factory._MODEL_CONFIG_PATHS == before


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("vit_tinny_64", "vit_tiny_64"),
        ("vit-b-32", "ViT-B-32"),
        ("timm:resnet_18", "timm:resnet18"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_ones(wrong, right):
    with pytest.raises(ModelError, match=right) as caught:
        build_model(wrong)
    assert "\n" not in str(caught.value)


def test_a_timm_tag_that_does_not_exist_is_an_unknown_name():
    for ask in (build_model, preprocess_for):
        with pytest.raises(ModelError, match="unknown"):
            ask("timm:resnet18.no_such_tag")


# Building


@pytest.mark.parametrize("name", ["vit_tiny_64", "RN50"])
def test_a_seeded_model_is_the_one_that_open_clip_creates_under_that_seed(name):
    state = torch.get_rng_state()
    torch.manual_seed(7)
    expected = open_clip.create_model(name).state_dict()
    torch.set_rng_state(state)
    actual = build_model(name, seed=7).state_dict()
    assert list(actual) == list(expected)
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


def test_building_leaves_every_global_generator_as_it_was():
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    undisturbed = torch.rand(3), random.random(), np.random.rand()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    (
        build_model("vit_tiny_64", seed=0),
        build_model("vit_tiny_64"),
        build_model("timm:resnet18", seed=0),
    )
    disturbed = torch.rand(3), random.random(), np.random.rand()
    assert torch.equal(undisturbed[0], disturbed[0]) and undisturbed[1:] == disturbed[1:]


def test_without_a_seed_no_two_models_are_alike():
    torch.manual_seed(0)
    first = build_model("vit_tiny_64")
    torch.manual_seed(0)
    assert not torch.equal(first.visual.proj, build_model("vit_tiny_64").visual.proj)


def test_a_float64_model_has_the_float32_models_weights_and_is_in_eval_mode():
    single, double = (
        build_model("vit_tiny_64", seed=0),
        build_model("vit_tiny_64", seed=0, dtype=torch.float64),
    )
    assert all(
        torch.equal(a.double(), b)
        for a, b in zip(single.parameters(), double.parameters(), strict=True)
    )
    assert not any(module.training for module in double.modules())


def test_building_prints_nothing_and_leaves_logging_as_it_was(capfd):
    root = logging.getLogger()
    handlers = list(root.handlers)
    logging.disable(logging.NOTSET)
    for handler in handlers:
        root.removeHandler(handler)
    try:
        build_model("vit_tiny_64", seed=0)
        assert root.handlers == [] and root.manager.disable == logging.NOTSET
    finally:
        for handler in handlers:
            root.addHandler(handler)
    assert capfd.readouterr() == ("", "")


def test_a_classifier_is_timms(tiny):
    state = torch.get_rng_state()
    torch.manual_seed(3)
    expected = timm.create_model("resnet18", num_classes=10)
    torch.set_rng_state(state)
    for name in ("timm:resnet18", "timm/resnet18"):
        actual = build_model(name, seed=3, num_classes=10)
        assert all(
            torch.equal(a, b)
            for a, b in zip(actual.parameters(), expected.parameters(), strict=True)
        )
        assert not actual.training
    with pytest.raises(ValueError, match="num_classes"):
        build_model("vit_tiny_64", num_classes=10)


def needs_the_hub():
    return [
        name
        for name in open_clip.list_models()
        if "hf_model_name" in open_clip.get_model_config(name)["text_cfg"]
    ]


def test_nothing_connects_to_a_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("tried to connect")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    names = needs_the_hub()
    assert len(names) >= 5
    for name in [*names, "hf-hub:laion/CLIP-ViT-B-32"]:
        with pytest.raises(ModelError, match="nothing is downloaded"):
            build_model(name)
    with pytest.raises(ModelError, match="nothing is downloaded"):
        tokenizer_for("ViT-B-16-SigLIP")
    (
        build_model("vit_tiny_64"),
        build_model("timm:resnet18"),
        tokenizer_for("vit_tiny_64"),
        preprocess_for("timm:resnet18"),
    )


# This project's configurations


@pytest.mark.parametrize(
    ("name", "headless", "others"),
    [("vit_b16_slip", 85_798_656, 63_821_313), ("vit_l16_slip", 303_301_632, 63_952_385)],
)
def test_the_papers_vits_have_the_published_numbers_of_parameters(name, headless, others):
    """SLIP's towers without a head; the projection counts to the rest, as in the sources of arXiv
    2404.19394.
    """
    with torch.device("meta"):
        model = open_clip.create_model(name, device="meta")
    assert sum(parameter.numel() for parameter in model.visual.trunk.parameters()) == headless
    assert sum(parameter.numel() for parameter in model.parameters()) == headless + others
    assert model.visual.trunk.global_pool == "token"
    assert isinstance(model.transformer.resblocks[0].mlp.gelu, open_clip.transformer.QuickGELU)
    assert isinstance(model.visual.trunk.blocks[0].mlp.act, torch.nn.GELU)


def test_the_demo_towers_differ_in_width_alone():
    tiny, small = (open_clip.get_model_config(name) for name in ("vit_tiny_64", "vit_small_64"))
    assert tiny["text_cfg"] == small["text_cfg"]
    assert tiny["vision_cfg"] | {"width": 0} == small["vision_cfg"] | {"width": 0}
    sizes = [
        sum(p.numel() for p in build_model(name).visual.parameters())
        for name in ("vit_tiny_64", "vit_small_64")
    ]
    assert 100_000 <= sizes[0] <= 200_000 and 2 <= sizes[1] / sizes[0] <= 3


def test_the_medium_towers_are_of_one_size():
    """Between 1 and 2 M parameters each, the projection included: an architecture compared by its
    own Hessian needs equals.
    """
    names = ("vit_medium_64", "vmamba_medium_64", "simba_medium_64")
    sizes = [sum(p.numel() for p in build_model(name).visual.parameters()) for name in names]
    assert all(1.7e6 < size < 1.9e6 for size in sizes), sizes


def test_a_published_models_projection_is_drawn_as_slip_draws_it():
    """SLIP, models.py: standard deviation width ** -0.5; nn.Linear's own is sqrt(3) times
    smaller.
    """
    projection = build_model("vit_b16_slip", seed=0).visual.head.proj.weight
    # 393,216 draws: the relative standard error of their deviation is 0.11 %.
    assert projection.std().item() == pytest.approx(768**-0.5, rel=0.005)


# Inputs


@pytest.mark.parametrize("name", ["vit_tiny_64", "ViT-B-32", "ViT-L-14-336"])
def test_preprocessing_is_open_clips_evaluation_transform(name):
    with torch.device("meta"):
        _, _, expected = open_clip.create_model_and_transforms(name, device="meta")
    for size in ((70, 90), image_size_of(name)):
        image = Image.fromarray(picture(*size))
        assert torch.equal(preprocess_for(name)(image), expected(image))


def test_preprocessing_by_name_is_that_of_the_model(tiny):
    by_name, by_model = preprocess_for("vit_tiny_64"), preprocess_for(tiny)
    image = Image.fromarray(picture(50, 81))
    assert torch.equal(by_name(image), by_model(image))
    assert by_name.size == by_model.size == image_size_of(tiny) == (64, 64)


def test_pixels_become_their_distance_from_the_mean_in_standard_deviations():
    preprocessing = preprocess_for("vit_tiny_64")
    pixels = picture(64, 64)
    expected = (pixels / 255 - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    for form in (Image.fromarray(pixels), pixels, torch.from_numpy(pixels).permute(2, 0, 1)):
        actual = preprocessing(form)
        assert actual.shape == (3, 64, 64) and actual.dtype == torch.float32
        # float32 division: 1e-6 relative to values up to 3.
        np.testing.assert_allclose(actual.permute(1, 2, 0).numpy(), expected, atol=3e-6)


@pytest.mark.parametrize(
    "wrong",
    [torch.rand(3, 64, 64), np.zeros((3, 64, 64), np.uint8), "a picture", torch.zeros(3, 3)],
)
def test_preprocessing_refuses_what_is_not_a_picture(wrong):
    with pytest.raises(ValueError, match="Expected a PIL picture"):
        preprocess_for("vit_tiny_64")(wrong)


def test_the_papers_models_are_normalised_with_imagenets_statistics():
    preprocessing = preprocess_for("vit_b16_slip")
    assert (
        preprocessing.mean == timm.data.IMAGENET_DEFAULT_MEAN
        and preprocessing.std == timm.data.IMAGENET_DEFAULT_STD
    )
    assert preprocessing.interpolation == "bilinear" and preprocessing.size == (224, 224)


def test_a_classifiers_preprocessing_is_timms():
    model = build_model("timm:vit_tiny_patch16_224", seed=0)
    config = timm.data.resolve_model_data_config(model)
    expected = timm.data.create_transform(**config, is_training=False)
    image = Image.fromarray(picture(300, 260))
    for preprocessing in (preprocess_for(model), preprocess_for("timm:vit_tiny_patch16_224")):
        assert torch.equal(preprocessing(image), expected(image))
    with pytest.raises(ModelError, match="Preprocess the pictures yourself"):
        preprocess_for(torch.nn.Linear(2, 2))


def test_tokens_are_open_clips_at_the_models_own_length():
    tokens = tokenizer_for("vit_tiny_64")(CAPTIONS)
    assert torch.equal(tokens, open_clip.SimpleTokenizer(context_length=16)(CAPTIONS))
    assert tokens.shape == (5, 16)
    assert tokenizer_for("ViT-B/32")(CAPTIONS).shape == (5, 77)
    with pytest.raises(ModelError, match="classifier"):
        tokenizer_for("timm:resnet18")


# The contrastive loss


def test_the_contrastive_loss_is_the_mean_of_the_two_cross_entropies(tiny):
    """Written out with NumPy and SciPy; 1e-12 leaves room for the order of summation."""
    objective, params = contrastive_objective(tiny)
    batch = batch_for(tiny)
    with torch.no_grad():
        image, text = (
            tiny.encode_image(batch["image"]).numpy(),
            tiny.encode_text(batch["text"]).numpy(),
        )
        scale = np.exp(tiny.logit_scale.item())
    cosines = (image / np.linalg.norm(image, axis=1, keepdims=True)) @ (
        text / np.linalg.norm(text, axis=1, keepdims=True)
    ).T
    logits = scale * cosines
    rows, columns = (logsumexp(logits, axis=axis) - np.diag(logits) for axis in (1, 0))
    assert objective(params, batch).item() == pytest.approx(
        (rows.mean() + columns.mean()) / 2, rel=1e-12
    )


@pytest.mark.parametrize("name", ["vit_tiny_64", "test_custom_text"])
@pytest.mark.parametrize("output_dict", [False, True])
def test_features_and_loss_are_open_clips(name, output_dict, small_names):
    model = build_model(name, seed=1, dtype=torch.float64)
    model.output_dict = output_dict
    batch = batch_for(model)
    objective, params = contrastive_objective(model)
    features = objective.forward(params, batch)
    model.output_dict = False
    image, text, scale = model(batch["image"], batch["text"])
    # Without gradients torch's attention may take its fused path, which rounds otherwise.
    torch.testing.assert_close(features["image"], image, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(features["text"], text, rtol=1e-12, atol=1e-14)
    assert torch.equal(features["logit_scale"], scale.expand(5))
    expected = open_clip.ClipLoss()(image, text, scale)
    torch.testing.assert_close(objective.loss(features, batch), expected, rtol=1e-13, atol=0)


def test_gradients_reach_every_parameter_and_equal_those_through_open_clip(tiny):
    batch = batch_for(tiny)
    objective, params = contrastive_objective(tiny)
    expected = torch.autograd.grad(
        open_clip.ClipLoss()(*tiny(batch["image"], batch["text"])), list(tiny.parameters())
    )
    actual = gradient(objective, params, batch)
    assert list(params) == [name for name, _ in tiny.named_parameters()]
    # Sums in another order: 1e-12 of the largest entry.
    torch.testing.assert_close(actual, flatten(dict(enumerate(expected))), rtol=1e-9, atol=1e-12)
    assert expected[list(params).index("logit_scale")].abs() > 1e-4


@pytest.mark.parametrize("name", ["vit_tiny_64", "test_sigmoid"])
def test_features_of_chunks_of_rows_are_the_rows_of_the_features(name, small_names):
    model = build_model(name, seed=2, dtype=torch.float64)
    batch = batch_for(model)
    objective, params = contrastive_objective(model)
    whole = objective.forward(params, batch)
    chunks = [
        objective.forward(params, {key: value[rows] for key, value in batch.items()})
        for rows in (slice(2), slice(2, 5))
    ]
    assert {key: len(value) for key, value in whole.items()} == dict.fromkeys(whole, 5)
    for key, value in whole.items():
        torch.testing.assert_close(
            torch.cat([chunk[key] for chunk in chunks]), value, rtol=1e-12, atol=1e-13
        )


def test_hessian_products_agree_with_the_dense_hessian(clip_problem, clip_hessian):
    """The oracle differentiates another spelling of the loss row by row, and central differences
    confirm it.
    """
    objective, params = contrastive_objective(clip_problem.model)
    operator = HessianOperator(objective, params, clip_problem.batch)
    V = torch.randn(operator.n, 3, generator=seeded(0), dtype=torch.float64)
    torch.testing.assert_close(
        operator @ V, clip_hessian @ V, rtol=1e-9, atol=1e-9 * clip_hessian.abs().max().item()
    )


def test_a_sigmoid_model_gets_siglips_loss(small_names):
    model = build_model("test_sigmoid", seed=3, dtype=torch.float64)
    batch = batch_for(model)
    objective, params = contrastive_objective(model)
    image, text, scale, bias = model(batch["image"], batch["text"])
    labels = 2 * torch.eye(5, dtype=torch.float64) - 1
    by_hand = -F.logsigmoid(labels * (scale * image @ text.T + bias)).sum() / 5
    expected = torch.autograd.grad(by_hand, list(model.parameters()))
    torch.testing.assert_close(objective(params, batch), by_hand, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        gradient(objective, params, batch),
        flatten(dict(enumerate(expected))),
        rtol=1e-9,
        atol=1e-12,
    )


def test_a_model_whose_loss_is_not_known_is_refused(small_names):
    unknown = open_clip.create_model("test_sigmoid")
    with pytest.raises(ModelError, match="logit_bias"):
        contrastive_objective(unknown)
    with pytest.raises(ModelError, match="captioning"):
        contrastive_objective(build_model("test_captioning"))
    with pytest.raises(ModelError, match="ResNet"):
        contrastive_objective(build_model("timm:resnet18"))


@pytest.mark.parametrize("name", ["vit_tiny_64", "test_custom_text", "test_sigmoid"])
def test_image_and_text_and_the_scalars_are_all_of_a_model(name, small_names):
    model = build_model(name, seed=0)
    image, text, everything = (
        set(contrastive_objective(model, parameters=part)[1]) for part in ("image", "text", "all")
    )
    assert (
        image == {key for key in everything if key.startswith("visual.")} and "visual.proj" in image
    )
    assert not image & text
    assert everything - image - text == {
        key for key in ("logit_scale", "logit_bias") if getattr(model, key, None) is not None
    }
    assert any(key.endswith("token_embedding.weight") for key in text)


def test_a_towers_gradient_is_its_part_of_the_whole_and_the_rest_stays_constant(tiny):
    batch = batch_for(tiny)
    whole_objective, whole = contrastive_objective(tiny)
    full = dict(
        zip(
            whole,
            gradient(whole_objective, whole, batch).split([p.numel() for p in whole.values()]),
        )
    )
    for part in ("image", "text", ["visual.transformer.resblocks.0.*", "logit_scale"]):
        objective, params = contrastive_objective(tiny, parameters=part)
        assert 0 < len(params) < len(whole)
        expected = torch.cat([full[key] for key in params])
        torch.testing.assert_close(
            gradient(objective, params, batch), expected, rtol=1e-9, atol=1e-13
        )


def test_a_tower_that_is_partly_frozen_is_taken_without_its_frozen_part(small_names):
    model = build_model("test_custom_text", seed=0)
    model.text.positional_embedding.requires_grad_(False)
    assert "text.positional_embedding" not in contrastive_objective(model, parameters="text")[1]
    model.text.requires_grad_(False)
    with pytest.raises(ObjectiveError, match="frozen"):
        contrastive_objective(model, parameters="text")


def test_weight_decay_adds_half_the_squared_norm_of_the_chosen_parameters(tiny):
    batch = batch_for(tiny)
    plain, params = contrastive_objective(tiny, parameters="image")
    decayed, _ = contrastive_objective(tiny, parameters="image", weight_decay=0.3)
    added = 0.15 * sum(np.sum(tensor.numpy() ** 2) for tensor in params.values())
    assert (decayed(params, batch) - plain(params, batch)).item() == pytest.approx(added, rel=1e-10)


def test_a_batch_without_a_second_pair_or_of_raw_pixels_is_refused(tiny):
    objective, params = contrastive_objective(tiny)
    with pytest.raises(ObjectiveError, match="two pairs"):
        objective(params, batch_for(tiny, rows=1))
    batch = batch_for(tiny)
    with pytest.raises(ObjectiveError, match="torch.uint8"):
        objective(params, batch | {"image": batch["image"].to(torch.uint8)})


# The classifier's loss


def test_cross_entropy_is_the_mean_negative_log_probability_of_the_labels():
    model = build_model("timm:resnet18", seed=0, num_classes=4, dtype=torch.float64)
    image = torch.randn(6, 3, 64, 64, generator=seeded(1), dtype=torch.float64)
    label = torch.tensor([0, 1, 2, 3, 1, 1])
    objective, params = cross_entropy_objective(model)
    with torch.no_grad():
        probabilities = softmax(model(image).numpy(), axis=1)
    expected = -np.log(probabilities[np.arange(6), label.numpy()]).mean()
    assert objective(params, {"image": image, "label": label}).item() == pytest.approx(
        expected, rel=1e-12
    )
    assert list(params) == [name for name, _ in model.named_parameters()]


def test_cross_entropy_refuses_a_clip_model_and_its_towers(tiny):
    with pytest.raises(ModelError, match="contrastive"):
        cross_entropy_objective(tiny)
    classifier = build_model("timm:resnet18")
    with pytest.raises(ModelError, match="tower"):
        cross_entropy_objective(classifier, parameters="image")
    objective, params = cross_entropy_objective(classifier, parameters="fc.*")
    assert list(params) == ["fc.weight", "fc.bias"]
    with pytest.raises(ObjectiveError, match="uint8"):
        objective(
            params,
            {"image": torch.zeros(2, 3, 64, 64, dtype=torch.uint8), "label": torch.tensor([0, 1])},
        )


@pytest.mark.parametrize("layers", [10**6, [2, 10**9]])
def test_a_configuration_with_more_layers_than_anybody_builds_is_refused_before_it_is_built(
    tmp_path, layers
):
    config = {"embed_dim": 8, "vision_cfg": {"layers": layers, "width": 8}, "text_cfg": {}}
    (tmp_path / "deep.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="vision_cfg.layers is .* at most 4096"):
        build_model(str(tmp_path / "deep.json"))
