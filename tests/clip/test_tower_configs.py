"""The towers inside open_clip models: sizes, names and shapes against the paper's released files,
and their loading.

tests/published_keys holds the names and shapes of the released state dicts, with braces to be
expanded as a shell does.
"""

import hashlib
import itertools
import json
import re
import warnings
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from torch import Tensor, nn

import landscape.clip
import landscape.towers
from landscape.clip.published import is_published, published_state_dict
from landscape.errors import CheckpointError
from landscape.linalg.operator import seeded

CONFIGS = Path(landscape.clip.__file__).parent / "configs"
KEYS = Path(__file__).parent / "published_keys"
# name: (released file, parameters of the headless tower, entries of the released state dict)
PUBLISHED = {
    "vmamba_t220": ("CLIP_VMamba_T220", 31_715_904, 705),
    "vmamba_s": ("CLIP_VMamba_S", 49_378_752, 1101),
    "vmamba_b": ("CLIP_VMamba_B", 87_532_800, 1101),
    "simba_s": ("CLIP_Simba_S", 25_693_088, 1027),
    "simba_b": ("CLIP_Simba_B", 39_183_744, 1255),
    "simba_l": ("CLIP_Simba_L", 65_736_512, 1559),
}
SMALL = [
    f"{family}_{size}_64" for family in ("vmamba", "simba") for size in ("tiny", "small", "medium")
]


def _expand(line: str) -> list[str]:
    choices = []
    for i, part in enumerate(re.split(r"\{([^}]*)\}", line)):
        if i % 2 and ".." in part:
            first, last = map(int, part.split(".."))
            choices.append([str(number) for number in range(first, last + 1)])
        else:
            choices.append(part.split(",") if i % 2 else [part])
    return ["".join(choice) for choice in itertools.product(*choices)]


def _published_entries(name: str) -> dict[str, Tensor]:
    """The released state dict with its shapes and dtypes and no memory."""
    _, digest, *lines = (KEYS / f"{PUBLISHED[name][0]}.txt").read_text().splitlines()
    expanded = [entry for line in lines for entry in _expand(line)]
    assert digest == "# " + hashlib.sha256("\n".join(sorted(expanded)).encode()).hexdigest()
    entries = {}
    for entry in expanded:
        key, shape, dtype = re.fullmatch(r"(\S+) \(([\d, ]*)\) (\w+)", entry).groups()
        sizes = [int(size) for size in shape.split(",") if size.strip()]
        entries[key] = torch.empty(sizes, dtype=getattr(torch, dtype), device="meta")
    return entries


def _build(name: str, device: str = "cpu") -> nn.Module:
    open_clip.add_model_config(CONFIGS)
    with torch.device(device):
        return open_clip.create_model(name, device=device)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_headless_tower_has_the_published_size_names_and_shapes(name):
    with torch.device("meta"):
        tower = timm.create_model(name, num_classes=0)
    assert sum(p.numel() for p in tower.parameters()) == PUBLISHED[name][1]
    published = {
        k.removeprefix("visual."): v.shape
        for k, v in _published_entries(name).items()
        if k.startswith("visual.")
    }
    assert {k: v.shape for k, v in tower.state_dict().items()} == published


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("weights", ["online", "ema"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_released_checkpoint_loads_strictly_into_the_open_clip_model(name, weights, prefix):
    entries = _published_entries(name)
    assert len(entries) == PUBLISHED[name][2]
    model = _build(f"{name}_clip", "meta")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        renamed = published_state_dict(
            {prefix + key: value for key, value in entries.items()}, weights=weights
        )
    model.load_state_dict(renamed, strict=True)
    # The paper's text tower, projections and temperature: 63,821,313 parameters beside a tower of
    # width 768.
    width = model.visual.trunk.num_features
    assert (
        sum(p.numel() for p in model.parameters()) - PUBLISHED[name][1]
        == 63_821_313 + (width - 768) * 512
    )


def _as_published(model: nn.Module, *, averaged: float) -> dict[str, Tensor]:
    """The state dict of `model` under the published names, with EMA twins that are `averaged` times
    the online weights.
    """
    entries = {}
    for name, value in model.state_dict().items():
        if name == "visual.head.proj.weight":
            name, value = "image_projection", value.T
        name = name.replace("visual.trunk.", "visual.")
        first, dot, rest = name.partition(".")
        entries[name] = value
        if name != "logit_scale":
            entries[f"{first}_e{dot}{rest}"] = averaged * value
    return entries


def _statistics(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: value
        for name, value in model.state_dict().items()
        if "running" in name or "num_batches" in name
    }


def test_features_of_a_loaded_model_are_the_towers_times_the_published_projection():
    source = _build("vmamba_tiny_64").eval()
    entries = _as_published(source, averaged=0.5)
    entries["image_projection"] = torch.randn(60, 64, generator=seeded(0))
    model = _build("vmamba_tiny_64").eval()
    model.load_state_dict(published_state_dict(entries), strict=True)
    x = torch.randn(2, 3, 64, 64, generator=seeded(1))
    expected = source.visual.trunk(x) @ entries["image_projection"]
    torch.testing.assert_close(model.encode_image(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["vmamba_tiny_64", "simba_tiny_64"])
def test_averaged_weights_are_taken_whole_but_for_the_temperature_and_the_statistics(name):
    source = _build(name)
    entries = _as_published(source, averaged=0.5)
    for key in _statistics(source):
        entries[key.replace("visual.trunk", "visual_e")] = torch.tensor(-1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        renamed = published_state_dict(entries, weights="ema")
    untouched = {"logit_scale", *_statistics(source)}
    assert len(untouched) == (1 if name.startswith("vmamba") else 10)
    for key, value in source.state_dict().items():
        torch.testing.assert_close(
            renamed[key], value if key in untouched else 0.5 * value, rtol=0, atol=0
        )
    messages = [str(warning.message) for warning in caught]
    assert [("batch-norm statistics" in message) for message in messages] == (
        [True] if name.startswith("simba") else []
    )


def test_a_checkpoint_without_averages_says_so_and_its_online_weights_load():
    source = _build("vmamba_tiny_64")
    entries = {
        k: v
        for k, v in _as_published(source, averaged=0.5).items()
        if not k.split(".")[0].endswith("_e")
    }
    assert is_published(entries)
    _build("vmamba_tiny_64").load_state_dict(published_state_dict(entries), strict=True)
    with pytest.raises(CheckpointError, match="weights='ema' needs .*_e.* use weights='online'"):
        published_state_dict(entries, weights="ema")


def test_another_layout_is_refused_with_what_was_found():
    source = _build("vmamba_tiny_64").state_dict()
    assert not is_published(source)
    with pytest.raises(
        CheckpointError, match="expected an entry 'image_projection', got ln_final, .*visual"
    ):
        published_state_dict(source)
    with pytest.raises(ValueError, match="'online' or 'ema', got 'EMA'"):
        published_state_dict(source, weights="EMA")


@pytest.mark.parametrize("name", SMALL)
def test_a_small_model_encodes_pictures_and_captions_and_trains_every_parameter(name):
    torch.manual_seed(0)
    model = _build(name)
    assert model.visual.image_size == (64, 64)
    pictures = torch.randn(3, 3, 64, 64, generator=seeded(0))
    captions = open_clip.tokenize(
        ["a cat", "two dogs", "three birds"], context_length=model.context_length
    )
    image, text, scale = model(pictures, captions)
    assert image.shape == text.shape == (3, 64)
    (scale * image @ text.T).log_softmax(0).trace().neg().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("family", ["vmamba", "simba"])
@pytest.mark.parametrize("size", ["tiny", "small"])
def test_small_models_of_one_size_differ_in_the_image_tower_only_and_hardly_in_its_parameters(
    family, size
):
    ours, vit = (
        json.loads((CONFIGS / f"{kind}_{size}_64.json").read_text()) for kind in (family, "vit")
    )
    assert ours["text_cfg"] == vit["text_cfg"] and ours["embed_dim"] == vit["embed_dim"]
    counts = [
        sum(p.numel() for p in _build(f"{kind}_{size}_64", "meta").visual.parameters())
        for kind in (family, "vit")
    ]
    assert counts[0] == pytest.approx(counts[1], rel=0.05)


@pytest.mark.parametrize("name", [*PUBLISHED, *SMALL])
def test_every_tower_is_registered_and_takes_the_head_that_is_asked_for(name):
    with torch.device("meta"):
        tower = timm.create_model(name)
    assert timm.is_model(name) and tower.num_classes == 1000
    assert tower.get_classifier().weight.shape == (1000, tower.num_features)
    assert tower.default_cfg["classifier"] + ".weight" in tower.state_dict()
    assert tower.default_cfg["first_conv"] + ".weight" in tower.state_dict()
    assert "mean" in tower.default_cfg and not tower.pretrained_cfg.get("url")


@pytest.mark.parametrize("name", ["vmamba_tiny_64", "simba_tiny_64"])
def test_a_tower_can_be_locked_below_its_last_groups(name):
    model = _build(name)
    model.lock_image_tower(unlocked_groups=2)
    free = {
        key for key, parameter in model.visual.trunk.named_parameters() if parameter.requires_grad
    }
    locked = set(dict(model.visual.trunk.named_parameters())) - free
    assert free and locked and any("patch_embed" in key for key in locked)
    assert any("classifier.norm" in key or "post_network" in key for key in free)
