"""Names and shapes: what is made to fit, and what the message says where nothing does. Models are
open_clip's and timm's.
"""

import json
import re

import open_clip
import pytest
import timm
import torch
import yaml
from torch import nn
from torch.nn.utils import parametrizations, prune

from landscape.clip.checkpoint import describe_checkpoint, load_checkpoint
from landscape.clip.model import build_model
from landscape.errors import CheckpointError

VISION = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16}
TEXT = {"context_length": 12, "vocab_size": 60, "width": 32, "heads": 2, "layers": 2}


def make_clip(*, quick_gelu=False, vision=None, text=None, custom=False, **options):
    make = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    return make(
        embed_dim=24,
        vision_cfg=VISION | (vision or {}),
        text_cfg=TEXT | (text or {}),
        quick_gelu=quick_gelu,
        **options,
    ).eval()


def same(model, state):
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def saved(tmp_path, state):
    torch.save({"epoch": 1, "name": "run", "state_dict": state}, tmp_path / "x.pt")
    return tmp_path / "x.pt"


def refusal(tmp_path, state, model):
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, saved(tmp_path, state))
    message = str(caught.value)
    assert "\n" not in message and message.startswith(
        f"{tmp_path / 'x.pt'}: does not fit the model: "
    )
    return message


# What is made to fit


@pytest.mark.parametrize(
    "prefix", ["model.", "net.", "module.model.", "model._orig_mod.", "model.module.", "a.b."]
)
def test_the_prefix_under_which_every_name_fits_is_taken_off(tmp_path, prefix):
    source, model = make_clip(), make_clip()
    path = saved(
        tmp_path, {f"{prefix}{name}": tensor for name, tensor in source.state_dict().items()}
    )
    info = load_checkpoint(model, path)
    assert same(model, source.state_dict()) and "Took the prefix" in info.notes[0]


def test_two_models_under_two_prefixes_are_not_guessed_between(tmp_path):
    state = make_clip().state_dict()
    both = {
        f"{prefix}.{name}": tensor
        for prefix in ("student", "teacher")
        for name, tensor in state.items()
    }
    message = refusal(tmp_path, both, make_clip())
    assert "The names under 'student.' and under 'teacher.' hold this model each" in message
    assert "Name the model" not in message


class Training(nn.Module):
    """As a LightningModule: the model as an attribute, and what the run needs beside it."""

    def __init__(self, model, **beside):
        super().__init__()
        self.model = model
        for name, module in beside.items():
            setattr(self, name, module)


def test_class_weights_of_the_loss_are_refused_and_the_model_alone_is_taken(tmp_path):
    source = timm.create_model("test_resnet", num_classes=3)
    state = Training(source, loss=nn.CrossEntropyLoss(weight=torch.ones(3))).state_dict()
    message = refusal(tmp_path, state, timm.create_model("test_resnet", num_classes=3))
    assert (
        f"{len(state) - 1} of {len(state)} names begin with 'model.' and hold this model" in message
    )
    assert "beside them stands 'loss.weight'" in message
    assert "the run's loss weighs the classes" in message and "Name the model" not in message
    prefix = re.search(r"save the tensors under '(.*?)' alone, that prefix removed", message)[1]
    alone = {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
    model = timm.create_model("test_resnet", num_classes=3)
    load_checkpoint(model, saved(tmp_path, alone))
    assert same(model, source.state_dict())


def test_a_layer_beside_the_model_is_not_called_a_loss(tmp_path):
    state = Training(
        timm.create_model("test_resnet"), loss=nn.Linear(3, 2, bias=False)
    ).state_dict()
    message = refusal(tmp_path, state, timm.create_model("test_resnet"))
    assert (
        "beside them stands 'loss.weight': this may change the loss. If it does not, save the "
        "tensors under" in message
    )


def test_counts_of_metrics_beside_the_model_are_left_out_with_a_note(tmp_path):
    source, metric = timm.create_model("test_resnet"), nn.Module()
    for name in ("tp", "fp", "tn", "fn"):
        metric.register_buffer(name, torch.zeros(3, dtype=torch.int64))
    model = timm.create_model("test_resnet")
    state = Training(source, accuracy=metric).state_dict()
    info = load_checkpoint(model, saved(tmp_path, state))
    assert same(model, source.state_dict())
    assert (
        "Left out 'accuracy.tp', 'accuracy.fp', 'accuracy.tn' and 1 more: counts of metrics"
        in info.notes[1]
    )
    assert "'accuracy.tp'" in refusal(
        tmp_path, state | {"accuracy.tp": torch.zeros(3)}, timm.create_model("test_resnet")
    )


@pytest.mark.parametrize(
    "average", [torch.optim.swa_utils.AveragedModel, timm.utils.ModelEmaV2, lambda model: model]
)
@pytest.mark.parametrize("name", ["ema", "model_ema", "swa_model", "averaged"])
def test_the_average_that_a_module_keeps_is_the_other_copy(tmp_path, average, name):
    trained, mean = timm.create_model("test_resnet"), timm.create_model("test_resnet")
    nn.init.ones_(mean.fc.weight)
    path = saved(tmp_path, Training(trained, **{name: average(mean)}).state_dict())
    assert describe_checkpoint(path).available == ("online", "ema")
    for weights, source in (("online", trained), ("ema", mean)):
        model = timm.create_model("test_resnet")
        info = load_checkpoint(model, path, weights=weights)
        assert same(model, source.state_dict())
        assert f"The module holds 'model.' and its average '{name}.'." in info.notes
    assert not any("Left out" in note for note in info.notes)
    assert f"under '{name}.', the average of 'model.'" in load_checkpoint(model, path).notes[1]


def test_an_average_of_which_of_two_models_is_not_guessed(tmp_path):
    models = [timm.create_model("test_resnet") for _ in range(3)]
    path = saved(tmp_path, Training(models[0], other=models[1], ema=models[2]).state_dict())
    with pytest.raises(
        CheckpointError,
        match="under 'ema.' and under 'model.' and under 'other.' hold this model each",
    ):
        load_checkpoint(timm.create_model("test_resnet"), path)
    with pytest.raises(CheckpointError, match="has no averaged weights"):
        load_checkpoint(timm.create_model("test_resnet"), path, weights="ema")


def test_a_model_that_owns_its_average_gets_both(tmp_path):
    source, model = (Training(nn.Linear(2, 1), ema=nn.Linear(2, 1)) for _ in range(2))
    load_checkpoint(model, saved(tmp_path, source.state_dict()))
    assert same(model, source.state_dict())


def test_constants_that_come_and_go_are_noted_and_weights_never_filled_in(tmp_path):
    source, model = timm.create_model("test_resnet"), timm.create_model("test_resnet")
    state = {
        name: tensor
        for name, tensor in source.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    info = load_checkpoint(model, saved(tmp_path, state | {"position_ids": torch.arange(4)}))
    assert [note.split(" ")[0] for note in info.notes] == [
        "Left",
        "Filled",
    ] and "'position_ids'" in info.notes[0]
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    del state["conv1.0.weight"]
    assert "1 of 92 tensors missing ('conv1.0.weight')" in refusal(
        tmp_path, state, timm.create_model("test_resnet")
    )


def test_a_parameter_with_the_name_of_a_constant_is_a_weight(tmp_path):
    model = nn.Linear(2, 1)
    model.attn_mask = nn.Parameter(torch.zeros(2))
    assert "1 of 3 tensors missing ('attn_mask')" in refusal(
        tmp_path, nn.Linear(2, 1).state_dict(), model
    )


def test_the_three_numbers_of_openais_archives_are_left_out(tmp_path):
    source, model = make_clip(), make_clip()
    numbers = {
        name: torch.tensor(12) for name in ("input_resolution", "context_length", "vocab_size")
    }
    info = load_checkpoint(model, saved(tmp_path, {**numbers, **source.state_dict()}))
    assert (
        same(model, source.state_dict())
        and "'input_resolution', 'context_length', 'vocab_size'" in info.notes[0]
    )
    message = refusal(
        tmp_path, source.state_dict() | {"context_length": torch.ones(3)}, make_clip()
    )
    assert "1 tensors that the model does not have ('context_length')" in message


def as_transformers(state):
    """The names of transformers' CLIPModel; experiments/containers compares with its own forward
    pass.
    """
    towers = {
        "transformer.resblocks": "text_model.encoder.layers",
        "visual.transformer.resblocks": "vision_model.encoder.layers",
    }
    fixed = {
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "logit_scale": "logit_scale",
    }
    parts = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    norms = {
        "ln_final": "text_model.final_layer_norm",
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
    }
    for name, tensor in state.items():
        tower = next((tower for tower in towers if name.startswith(f"{tower}.")), None)
        if name in ("text_projection", "visual.proj"):
            yield (
                f"{'text' if name == 'text_projection' else 'visual'}_projection.weight",
                tensor.T.contiguous(),
            )
        elif name in fixed:
            yield fixed[name], tensor
        elif tower is None:
            module, _, kind = name.rpartition(".")
            yield f"{norms[module]}.{kind}", tensor
        else:
            number, rest = name.removeprefix(f"{tower}.").split(".", 1)
            if rest.startswith("attn.in_proj_"):
                for which, part in zip("qkv", tensor.chunk(3)):
                    yield (
                        f"{towers[tower]}.{number}.self_attn.{which}_proj.{rest.removeprefix('attn.in_proj_')}",
                        part.clone(),
                    )
            else:
                module, _, kind = rest.rpartition(".")
                yield f"{towers[tower]}.{number}.{parts[module]}.{kind}", tensor


def test_transformers_names_become_open_clips(tmp_path):
    source, model = make_clip(), make_clip()
    state = dict(as_transformers(source.state_dict())) | {
        "text_model.embeddings.position_ids": torch.arange(12)[None]
    }
    info = load_checkpoint(model, saved(tmp_path, state))
    assert same(model, source.state_dict())
    assert "q, k and v joined" in info.notes[0] and "position_ids" in info.notes[1]
    del state["vision_model.encoder.layers.1.self_attn.k_proj.weight"]
    assert "'visual.transformer.resblocks.1.attn.in_proj_weight'" in refusal(
        tmp_path, state, make_clip()
    )


# What the message says; each advice is then followed on the model's own maker


def test_another_number_of_classes_is_named_and_fits_when_it_is_said(tmp_path):
    state = timm.create_model("test_vit", num_classes=6).state_dict()
    message = refusal(tmp_path, state, timm.create_model("test_vit"))
    assert "The checkpoint has 6 classes, the model 1000: say num_classes: 6." in message
    load_checkpoint(timm.create_model("test_vit", num_classes=6), saved(tmp_path, state))


@pytest.mark.parametrize(
    "name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_byobnet"]
)
def test_the_number_of_classes_is_found_in_every_kind_of_classifier(tmp_path, name):
    state = timm.create_model(name, num_classes=6).state_dict()
    assert "say num_classes: 6." in refusal(tmp_path, state, timm.create_model(name))


def test_another_picture_size_is_named_in_pixels(tmp_path):
    message = refusal(tmp_path, make_clip(vision={"image_size": 96}).state_dict(), make_clip())
    assert "that of 96 x 96 pixels at patch 8: say model_args: {force_image_size: 96}." in message
    state = timm.create_model("test_vit", img_size=32).state_dict()
    message = refusal(tmp_path, state, timm.create_model("test_vit"))
    assert "32 x 32 pixels at patch 16: say model_args: {img_size: 32}." in message


def test_the_sigmoid_loss_is_named_by_its_bias(tmp_path):
    siglip = make_clip(init_logit_bias=-10.0)
    assert "say loss: siglip." in refusal(tmp_path, siglip.state_dict(), make_clip())
    load_checkpoint(make_clip(init_logit_bias=0.0), saved(tmp_path, siglip.state_dict()))
    assert "do not say loss: siglip" in refusal(tmp_path, make_clip().state_dict(), siglip)


def configuration(tmp_path, name, *, vision=None, text=None):
    """An open_clip configuration file of the small model."""
    path = tmp_path / f"{name}.json"
    described = {
        "embed_dim": 24,
        "vision_cfg": VISION | (vision or {}),
        "text_cfg": TEXT | (text or {}),
    }
    path.write_text(json.dumps(described))
    return path


def arguments_in(message):
    return yaml.safe_load(re.search(r"say (model_args: \{.*?\})\.$", message)[1])["model_args"]


@pytest.mark.parametrize(
    ("other", "model_args", "words"),
    [
        ({"text": {"context_length": 20}}, {}, "Its texts have 20 tokens"),
        (
            {"vision": {"image_size": 96}},
            {},
            "Its position embedding is that of 96 x 96 pixels at patch 8",
        ),
        ({}, {"force_custom_text": True}, "The names of its text tower begin with 'text.'"),
    ],
)
def test_the_arguments_that_a_message_says_make_the_checkpoint_fit(
    tmp_path, other, model_args, words
):
    base = str(configuration(tmp_path, "base"))
    source = build_model(str(configuration(tmp_path, "other", **other)), model_args=model_args)
    message = refusal(tmp_path, source.state_dict(), build_model(base))
    assert words in message
    model = build_model(base, model_args=arguments_in(message))
    load_checkpoint(model, saved(tmp_path, source.state_dict()))
    assert same(model, source.state_dict())


def test_the_picture_size_that_a_message_says_makes_a_classifier_fit(tmp_path):
    source = timm.create_model("test_vit", img_size=32)
    message = refusal(tmp_path, source.state_dict(), build_model("timm:test_vit"))
    model = build_model("timm:test_vit", model_args=arguments_in(message))
    load_checkpoint(model, saved(tmp_path, source.state_dict()))
    assert same(model, source.state_dict())


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            {"vision": {"layers": 3}},
            "3 blocks under 'visual.transformer.resblocks' (the model 2): name the model of that "
            "depth",
        ),
        (
            {"vision": {"width": 64}},
            "the same kind of model in another size. Name the model of that size",
        ),
        (
            {"vision": {"patch_size": 4}},
            "Its patches are 4 pixels wide, the model's 8: name the model with these patches",
        ),
    ],
)
def test_a_model_of_another_size_fits_by_its_configuration(tmp_path, other, words):
    path = configuration(tmp_path, "other", **other)
    source = build_model(str(path))
    message = refusal(tmp_path, source.state_dict(), make_clip())
    assert (
        f"{words}, or give its configuration with config:." in message
        and "Name the model that wrote" not in message
    )
    model = build_model("base", config=path)
    load_checkpoint(model, saved(tmp_path, source.state_dict()))
    assert same(model, source.state_dict())


@pytest.mark.parametrize(
    ("model_args", "words"),
    [
        ({"depth": 3}, "3 blocks under 'blocks'"),
        ({"embed_dim": 128}, "in another size"),
        ({"patch_size": 8}, "Its patches are 8 pixels wide, the model's 16"),
    ],
)
def test_a_classifier_of_another_size_fits_by_its_arguments(tmp_path, model_args, words):
    source = timm.create_model("test_vit", **model_args)
    message = refusal(tmp_path, source.state_dict(), build_model("timm:test_vit"))
    assert words in message and message.endswith("or give its arguments with model_args:.")
    model = build_model("timm:test_vit", model_args=model_args)
    load_checkpoint(model, saved(tmp_path, source.state_dict()))
    assert same(model, source.state_dict())


class Adapted(nn.Module):
    """A linear layer with a LoRA adapter, by peft's names."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(layer.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, layer.out_features, bias=False)})

    def merged(self):
        with torch.no_grad():
            self.base_layer.weight += self.lora_B["default"].weight @ self.lora_A["default"].weight
        return self.base_layer


def test_adapters_fit_when_they_are_merged(tmp_path):
    source = timm.create_model("test_vit")
    source.head = Adapted(source.head)
    state = {f"base_model.model.{name}": tensor for name, tensor in source.state_dict().items()}
    message = refusal(tmp_path, state, timm.create_model("test_vit"))
    assert (
        "LoRA adapters. Merge them first, with peft's model.merge_and_unload(), and save its "
        "state_dict()." in message
    )
    source.head = source.head.merged()
    model = timm.create_model("test_vit")
    load_checkpoint(model, saved(tmp_path, source.state_dict()))
    assert same(model, source.state_dict())


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (parametrizations.weight_norm, "a parametrization, such as a norm"),
        (parametrizations.spectral_norm, "a parametrization, such as a norm"),
        (nn.utils.weight_norm, "a weight norm"),
        (nn.utils.spectral_norm, "a spectral norm"),
        (lambda module: prune.l1_unstructured(module, "weight", 2), "a pruned weight"),
    ],
)
def test_weights_in_parts_fit_when_they_are_put_together_as_the_message_says(tmp_path, make, what):
    source = nn.Sequential(nn.Linear(4, 3))
    make(source[0])
    message = refusal(tmp_path, source.state_dict(), nn.Sequential(nn.Linear(4, 3)))
    assert f"The weights are stored in the parts of {what}." in message
    for module in source:
        eval(
            re.search(r"with (torch\.nn\.utils\..*?\)), then", message)[1],
            {"torch": torch, "module": module},
        )
    model = nn.Sequential(nn.Linear(4, 3))
    load_checkpoint(model, saved(tmp_path, source.state_dict()))
    assert same(model, source.state_dict())


def test_names_that_nothing_explains_are_grouped(tmp_path):
    message = refusal(tmp_path, timm.create_model("test_resnet").state_dict(), make_clip())
    assert "Name the model that wrote this checkpoint." in message
    assert ": 32 of 62 begin with 'visual.'" in message
