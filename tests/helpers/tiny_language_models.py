"""Causal language models of transformers with a thousand random weights, and their own losses in
float64.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

VOCABULARY = 20
_ATTENTION = {"num_attention_heads": 2, "num_key_value_heads": 1}
_SMALL = {"vocab_size": VOCABULARY, "hidden_size": 8, "initializer_range": 0.3}
_EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1}


def configs() -> dict[str, Any]:
    """By name a configuration of each architecture."""
    import transformers

    transformers.logging.set_verbosity_error()
    return {
        "gpt2": transformers.GPT2Config(
            vocab_size=VOCABULARY, n_positions=32, n_embd=8, n_layer=1, n_head=2
        ),
        "llama": transformers.LlamaConfig(
            **_SMALL,
            **_ATTENTION,
            intermediate_size=16,
            num_hidden_layers=1,
            max_position_embeddings=32,
        ),
        "mamba": transformers.MambaConfig(
            **_SMALL, state_size=4, num_hidden_layers=1, conv_kernel=3
        ),
        "mamba2": transformers.Mamba2Config(
            **_SMALL,
            state_size=4,
            num_hidden_layers=1,
            conv_kernel=3,
            num_heads=4,
            head_dim=4,
            n_groups=1,
            chunk_size=4,
        ),
        "jamba": transformers.JambaConfig(
            **_SMALL,
            **_ATTENTION,
            **_EXPERTS,
            intermediate_size=16,
            num_hidden_layers=2,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            mamba_d_state=4,
            mamba_d_conv=3,
            mamba_dt_rank=2,
        ),
        "qwen3_next": transformers.Qwen3NextConfig(
            **_SMALL,
            **_ATTENTION,
            **_EXPERTS,
            intermediate_size=16,
            num_hidden_layers=2,
            head_dim=4,
            linear_num_value_heads=2,
            linear_num_key_heads=1,
            linear_key_head_dim=4,
            linear_value_head_dim=4,
            linear_conv_kernel_dim=3,
            moe_intermediate_size=8,
            shared_expert_intermediate_size=8,
            layer_types=["linear_attention", "full_attention"],
        ),
        "gemma2": transformers.Gemma2Config(
            **_SMALL,
            **_ATTENTION,
            intermediate_size=16,
            num_hidden_layers=1,
            head_dim=4,
            final_logit_softcapping=2.0,
        ),
        "granite": transformers.GraniteConfig(
            **_SMALL, **_ATTENTION, intermediate_size=16, num_hidden_layers=1, logits_scaling=3.0
        ),
        "cohere": transformers.CohereConfig(
            **_SMALL, **_ATTENTION, intermediate_size=16, num_hidden_layers=1, logit_scale=0.25
        ),
        # Its output layer is scaled by more than configurations of others say.
        "minicpm3": transformers.MiniCPM3Config(
            **_SMALL,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=16,
            num_hidden_layers=1,
            q_lora_rank=4,
            kv_lora_rank=4,
            qk_nope_head_dim=4,
            qk_rope_head_dim=4,
            v_head_dim=4,
            dim_model_base=4,
        )
        if hasattr(transformers, "MiniCPM3Config")
        else None,
    }


def tokens(rows: int = 2, length: int = 7, *, seed: int = 1) -> Tensor:
    """Random tokens (rows, length)."""
    return torch.randint(
        0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed)
    )


@contextmanager
def doubles() -> Iterator[None]:
    """Let the code of transformers mean float64 where it says float32, by what it looks up."""
    names = {"float32": torch.float64, "float": torch.float64}
    with mock.patch.multiple(torch, **names), mock.patch.object(Tensor, "float", Tensor.double):
        yield


def own_loss(model: nn.Module, ids: Tensor) -> Tensor:
    """What transformers itself computes, in float64."""
    with doubles():
        loss: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
    assert loss.dtype == torch.float64
    return loss


def dense_hessian(model: nn.Module, ids: Tensor, params: list[Tensor] | None = None) -> Tensor:
    """All second derivatives (n, n) of the model's own loss by some parameters, by double backward
    of many rows at once.
    """
    params = list(model.parameters()) if params is None else params
    gradients = torch.autograd.grad(
        own_loss(model, ids), params, create_graph=True, materialize_grads=True
    )
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    rows = []
    for block in torch.eye(len(flat), dtype=flat.dtype).split(128):
        pieces = torch.autograd.grad(flat, params, block, retain_graph=True, is_grads_batched=True)
        rows.append(torch.cat([piece.reshape(len(block), -1) for piece in pieces], dim=1))
    return torch.cat(rows)
