"""Names and shapes: what is made to fit, and what the message says where nothing does. Models are open_clip's and timm's."""

import open_clip
import pytest
import timm
import torch
from torch import nn

from landscape.clip.checkpoint import load_checkpoint
from landscape.errors import CheckpointError

VISION = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16}
TEXT = {"context_length": 12, "vocab_size": 60, "width": 32, "heads": 2, "layers": 2}


def make_clip(*, quick_gelu=False, vision=None, text=None, custom=False, **options):
    make = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    return make(
        embed_dim=24, vision_cfg=VISION | (vision or {}), text_cfg=TEXT | (text or {}), quick_gelu=quick_gelu, **options
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
    assert "\n" not in message and message.startswith(f"{tmp_path / 'x.pt'}: does not fit the model: ")
    return message


# What is made to fit


@pytest.mark.parametrize("prefix", ["model.", "net.", "module.model.", "model._orig_mod.", "model.module.", "a.b."])
def test_the_prefix_under_which_every_name_fits_is_taken_off(tmp_path, prefix):
    source, model = make_clip(), make_clip()
    path = saved(tmp_path, {f"{prefix}{name}": tensor for name, tensor in source.state_dict().items()})
    info = load_checkpoint(model, path)
    assert same(model, source.state_dict()) and "Took the prefix" in info.notes[0]


def test_two_models_under_two_prefixes_are_not_guessed_between(tmp_path):
    state = make_clip().state_dict()
    both = {f"{prefix}.{name}": tensor for prefix in ("student", "teacher") for name, tensor in state.items()}
    message = refusal(tmp_path, both, make_clip())
    assert f"{len(state)} of {2 * len(state)} names begin with 'student.' and hold this model" in message
    assert "Name the model" not in message


def test_constants_that_come_and_go_are_noted_and_weights_never_filled_in(tmp_path):
    source, model = timm.create_model("test_resnet"), timm.create_model("test_resnet")
    state = {name: tensor for name, tensor in source.state_dict().items() if not name.endswith("num_batches_tracked")}
    info = load_checkpoint(model, saved(tmp_path, state | {"position_ids": torch.arange(4)}))
    assert [note.split(" ")[0] for note in info.notes] == ["Left", "Filled"] and "'position_ids'" in info.notes[0]
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    del state["conv1.0.weight"]
    assert "1 of 92 tensors missing ('conv1.0.weight')" in refusal(tmp_path, state, timm.create_model("test_resnet"))


def test_a_parameter_with_the_name_of_a_constant_is_a_weight(tmp_path):
    model = nn.Linear(2, 1)
    model.attn_mask = nn.Parameter(torch.zeros(2))
    assert "1 of 3 tensors missing ('attn_mask')" in refusal(tmp_path, nn.Linear(2, 1).state_dict(), model)


def test_the_three_numbers_of_openais_archives_are_left_out(tmp_path):
    source, model = make_clip(), make_clip()
    numbers = {name: torch.tensor(12) for name in ("input_resolution", "context_length", "vocab_size")}
    info = load_checkpoint(model, saved(tmp_path, {**numbers, **source.state_dict()}))
    assert same(model, source.state_dict()) and "'input_resolution', 'context_length', 'vocab_size'" in info.notes[0]
    message = refusal(tmp_path, source.state_dict() | {"context_length": torch.ones(3)}, make_clip())
    assert "1 tensors that the model does not have ('context_length')" in message


def as_transformers(state):
    """The names of transformers' CLIPModel; experiments/containers compares with its own forward pass."""
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
            yield f"{'text' if name == 'text_projection' else 'visual'}_projection.weight", tensor.T.contiguous()
        elif name in fixed:
            yield fixed[name], tensor
        elif tower is None:
            module, _, kind = name.rpartition(".")
            yield f"{norms[module]}.{kind}", tensor
        else:
            number, rest = name.removeprefix(f"{tower}.").split(".", 1)
            if rest.startswith("attn.in_proj_"):
                for which, part in zip("qkv", tensor.chunk(3)):
                    yield f"{towers[tower]}.{number}.self_attn.{which}_proj.{rest.removeprefix('attn.in_proj_')}", part.clone()
            else:
                module, _, kind = rest.rpartition(".")
                yield f"{towers[tower]}.{number}.{parts[module]}.{kind}", tensor


def test_transformers_names_become_open_clips(tmp_path):
    source, model = make_clip(), make_clip()
    state = dict(as_transformers(source.state_dict())) | {"text_model.embeddings.position_ids": torch.arange(12)[None]}
    info = load_checkpoint(model, saved(tmp_path, state))
    assert same(model, source.state_dict())
    assert "q, k and v joined" in info.notes[0] and "position_ids" in info.notes[1]
    del state["vision_model.encoder.layers.1.self_attn.k_proj.weight"]
    assert "'visual.transformer.resblocks.1.attn.in_proj_weight'" in refusal(tmp_path, state, make_clip())


# What the message says; each advice is then followed on the model's own maker


def test_another_number_of_classes_is_named_and_fits_when_it_is_said(tmp_path):
    state = timm.create_model("test_vit", num_classes=6).state_dict()
    message = refusal(tmp_path, state, timm.create_model("test_vit"))
    assert "The checkpoint has 6 classes, the model 1000: say num_classes: 6." in message
    load_checkpoint(timm.create_model("test_vit", num_classes=6), saved(tmp_path, state))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_byobnet"])
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


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (
            lambda: make_clip(text={"context_length": 20}),
            "Its texts have 20 tokens: say model_args: {force_context_length: 20}.",
        ),
        (lambda: make_clip(vision={"layers": 3}), "3 blocks under 'visual.transformer.resblocks' (the model 2)"),
        (lambda: make_clip(vision={"width": 64, "head_width": 16}), "the same kind of model in another size"),
        (lambda: make_clip(vision={"patch_size": 4}), "Its patches are 4 pixels wide, the model's 8"),
        (lambda: make_clip(custom=True), "say model_args: {force_custom_text: true}."),
    ],
)
def test_the_difference_of_two_models_is_named(tmp_path, source, words):
    message = refusal(tmp_path, source().state_dict(), make_clip())
    assert words in message and "Name the model that wrote" not in message


def test_adapters_and_norms_are_called_what_they_are(tmp_path):
    state = {"base_model.model.proj.lora_A.weight": torch.ones(2, 2)}
    assert "merge_and_unload" in refusal(tmp_path, state, make_clip())
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    assert "Remove the norm" in refusal(tmp_path, model.state_dict(), nn.Sequential(nn.Linear(2, 2)))


def test_names_that_nothing_explains_are_grouped(tmp_path):
    message = refusal(tmp_path, timm.create_model("test_resnet").state_dict(), make_clip())
    assert "Name the model that wrote this checkpoint." in message
    assert ": 32 of 62 begin with 'visual.'" in message
