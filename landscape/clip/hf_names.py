"""Names of transformers' CLIP, translated to open_clip's.

    transformers                                     open_clip
    text_model.embeddings.token_embedding.weight     token_embedding.weight
    text_model.embeddings.position_embedding.weight  positional_embedding
    text_model.encoder.layers.N.                     transformer.resblocks.N.
    text_model.final_layer_norm.                     ln_final.
    text_projection.weight (e, w)                    text_projection (w, e), transposed
    vision_model.embeddings.class_embedding          visual.class_embedding
    vision_model.embeddings.patch_embedding.weight   visual.conv1.weight
    vision_model.embeddings.position_embedding       visual.positional_embedding
    vision_model.pre_layrnorm., post_layernorm.      visual.ln_pre., visual.ln_post.
    vision_model.encoder.layers.N.                   visual.transformer.resblocks.N.
    visual_projection.weight (e, w)                  visual.proj (w, e), transposed

In each layer q, k and v, in this order, become rows of one matrix; layer_norm1, mlp.fc1 become
ln_1, mlp.c_fc.

Shapes: w = width of a tower, e = width of the joint space.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_LAYER = re.compile(r"(text_model|vision_model)\.encoder\.layers\.(\d+)\.(.+)")
_BLOCKS = {"text_model": "transformer.resblocks", "vision_model": "visual.transformer.resblocks"}
_WITHIN = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_OUTSIDE = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
}
_TRANSPOSED = {
    "text_projection.weight": "text_projection",
    "visual_projection.weight": "visual.proj",
}
_JOINED = ("q_proj", "k_proj", "v_proj")


def is_hf_clip(names: Mapping[str, object]) -> bool:
    """Tell whether the names are those of transformers' CLIPModel."""
    return (
        "text_model.final_layer_norm.weight" in names
        and "vision_model.pre_layrnorm.weight" in names
    )


def hf_clip_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of transformers' CLIPModel.

    Other tensors keep their names.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in _TRANSPOSED and tensor.ndim == 2:
            renamed[_TRANSPOSED[name]] = tensor.T.contiguous()
        elif match := _LAYER.fullmatch(name):
            renamed.update(_within_layer(state, match, tensor))
        else:
            renamed[_OUTSIDE.get(name, name)] = tensor
    return renamed


def _within_layer(
    state: Mapping[str, Tensor], match: re.Match[str], tensor: Tensor
) -> dict[str, Tensor]:
    tower, number, rest = match.groups()
    block = f"{_BLOCKS[tower]}.{number}"
    part, _, kind = rest.rpartition(".")
    attention, _, projection = part.rpartition(".")
    if attention == "self_attn" and projection in _JOINED:
        names = [f"{tower}.encoder.layers.{number}.self_attn.{which}.{kind}" for which in _JOINED]
        if not all(name in state and state[name].shape == tensor.shape for name in names):
            return {match.string: tensor}
        joined = torch.cat([state[name] for name in names]) if projection == "q_proj" else None
        return {} if joined is None else {f"{block}.attn.in_proj_{kind}": joined}
    return {f"{block}.{_WITHIN[part]}.{kind}" if part in _WITHIN else match.string: tensor}
