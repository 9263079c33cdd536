"""Measure landscape's Hessian of transformers' state-space models, and print one line of JSON.

Usage: python models.py CLASS. Tiny random models on their PyTorch paths, float32, eager attention.
"product" is one product against central differences of the gradient in float32, whose own error at
these steps is about 1e-4.
"""

import json
import sys
import time
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from measure import judged
from torch import Tensor, nn

import landscape

_COMMON = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "vocab_size": 50,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ATTENTION = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32}
CONFIGS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "Mamba": ("Mamba", {"state_size": 4}),
    "Mamba, use_mambapy=True": ("Mamba", {"state_size": 4, "use_mambapy": True}),
    "Mamba2": (
        "Mamba2",
        {"state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    ),
    "FalconMamba": ("FalconMamba", {"state_size": 4}),
    "Jamba": (
        "Jamba",
        {
            "mamba_d_state": 4,
            "num_experts": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "use_mamba_kernels": False,
        }
        | _ATTENTION,
    ),
    "Rwkv": ("Rwkv", {"attention_hidden_size": 16, "context_length": 16}),
    "Rwkv, rescale_every=0": (
        "Rwkv",
        {"attention_hidden_size": 16, "context_length": 16, "rescale_every": 0},
    ),
    "Qwen3Next": (
        "Qwen3Next",
        {
            "head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
        }
        | {
            "linear_value_head_dim": 8,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 16,
        }
        | {
            "shared_expert_intermediate_size": 16,
            "layer_types": ["linear_attention", "full_attention"],
        }
        | _ATTENTION,
    ),
    "Lfm2": ("Lfm2", {"block_ff_dim": 32, "layer_types": ["conv", "full_attention"]} | _ATTENTION),
}
_STEPS = (1e-2, 1e-3)


def build(name: str) -> nn.Module:
    import transformers

    prefix, settings = CONFIGS[name]
    config = getattr(transformers, f"{prefix}Config")(**_COMMON, **settings)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    return getattr(transformers, f"{prefix}ForCausalLM")(config).eval()


def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    return model(**batch).loss


def difference_error(model: nn.Module, batch: Mapping[str, Tensor], operator: Any) -> float:
    """The smallest distance of a product from differences of gradients over the steps, relative."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    direction = torch.randn(operator.n, generator=torch.Generator().manual_seed(1))
    direction /= direction.norm()
    parts = [
        part.view_as(parameter)
        for part, parameter in zip(direction.split([p.numel() for p in parameters]), parameters)
    ]

    def gradient_at(step: float) -> Tensor:
        with torch.no_grad():
            for parameter, part in zip(parameters, parts):
                parameter.add_(part, alpha=step)
        gradients = torch.autograd.grad(loss(model, batch), parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, part in zip(parameters, parts):
                parameter.sub_(part, alpha=step)
        flat = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients)]
        return torch.cat([part.flatten() for part in flat]).double()

    product = (operator @ direction).double()
    differences = [(gradient_at(step) - gradient_at(-step)) / (2 * step) for step in _STEPS]
    return min(float((product - d).norm() / d.norm()) for d in differences)


def measured(name: str) -> dict[str, str]:
    try:
        model = build(name)
    # A tiny configuration may be refused by the release that is pinned.
    except Exception as error:
        return {"built": f"no: {type(error).__name__}: {str(error)[:80]}"}
    ids = torch.randint(3, 50, (2, 8), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": ids}
    row = {"built": "yes", "n": f"{sum(p.numel() for p in model.parameters()):,}"}
    for column, measure in (("product", _product), ("eigsh", _eigsh), ("audit", _audit)):
        start = time.monotonic()
        try:
            row[column] = measure(model, batch)
        # What landscape says instead is what the table is about.
        except Exception as error:
            row[column] = f"{type(error).__name__}: {str(error)[:100]}"
        row[column] += f", {time.monotonic() - start:.1f} s"
    return row


def _product(model: nn.Module, batch: Mapping[str, Tensor]) -> str:
    return f"{difference_error(model, batch, landscape.hessian(model, loss, batch)):.0e}"


def _eigsh(model: nn.Module, batch: Mapping[str, Tensor]) -> str:
    pairs = landscape.eigsh(landscape.hessian(model, loss, batch), k=2, tol=1e-3, seed=0)
    values = ", ".join(f"{value:.4g}" for value in pairs.values.tolist())
    return (
        f"{values}; {pairs.num_matvecs} products; "
        f"{'all' if bool(pairs.converged.all()) else 'not all'} converged"
    )


def _audit(model: nn.Module, batch: Mapping[str, Tensor]) -> str:
    return judged(landscape.audit(model, loss, batch))


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(json.dumps({"key": sys.argv[1]} | measured(sys.argv[1])))
