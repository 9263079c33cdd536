"""Fused kernels, in Triton's interpreter: mamba-ssm's, fla-core's and accelerated-scan's."""

from collections.abc import Callable

import references
import torch
from measure import Case
from operations import INTERPRETER, SEQUENCE, dual, interpreted, operation
from torch import Tensor

_HEADS = {"q": (1, 8, 2, 4), "k": (1, 8, 2, 4), "v": (1, 8, 2, 4)}


@operation("mamba-ssm/mamba_chunk_scan_combined")
def mamba_chunk_scan() -> Case:
    interpreted("mamba_ssm")
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    return dual(
        lambda *inputs: mamba_chunk_scan_combined(*inputs, chunk_size=16),
        dtype=torch.float32,
        how=INTERPRETER,
    )


def _rows(
    function: Callable[..., Tensor], reference: Callable[..., Tensor], *rows: str, weights: str = ""
) -> Case:
    """Something that works on rows (5, 8), with weights (8,)."""
    shapes = dict.fromkeys(rows, (5, 8)) | dict.fromkeys(weights.split(), (8,))
    return Case(function, reference, shapes=shapes, dtype=torch.float32, how=INTERPRETER)


@operation("mamba-ssm/rms_norm_fn")
def mamba_rms_norm() -> Case:
    interpreted("mamba_ssm")
    from mamba_ssm.ops.triton.layer_norm import rms_norm_fn

    return _rows(
        lambda x, weight: rms_norm_fn(x, weight, None, eps=1e-6),
        references.rms_norm,
        "x",
        weights="weight",
    )


@operation("mamba-ssm/layer_norm_fn")
def mamba_layer_norm() -> Case:
    interpreted("mamba_ssm")
    from mamba_ssm.ops.triton.layer_norm import layer_norm_fn

    return _rows(layer_norm_fn, references.layer_norm, "x", weights="weight bias")


@operation("mamba-ssm/layernorm_gated.rmsnorm_fn")
def mamba_gated_norm() -> Case:
    interpreted("mamba_ssm")
    from mamba_ssm.ops.triton.layernorm_gated import rmsnorm_fn

    return _rows(
        lambda x, z, weight: rmsnorm_fn(x, weight, None, z=z, eps=1e-6),
        lambda x, z, weight: references.rms_norm(x, weight) * torch.nn.functional.silu(z),
        "x",
        "z",
        weights="weight",
    )


@operation("mamba-ssm/k_activations.swiglu")
def mamba_swiglu() -> Case:
    interpreted("mamba_ssm")
    from mamba_ssm.ops.triton.k_activations import swiglu

    return _rows(lambda x, y: swiglu(torch.cat([x, y], -1)), references.swiglu, "x", "y")


@operation("fla-core/modules.rms_norm")
def fla_rms_norm() -> Case:
    interpreted("fla")
    from fla.modules.norm.layernorm import rms_norm

    return _rows(
        lambda x, weight: rms_norm(x, weight, None, eps=1e-6),
        references.rms_norm,
        "x",
        weights="weight",
    )


@operation("fla-core/modules.swiglu")
def fla_swiglu() -> Case:
    interpreted("fla")
    from fla.modules.activations.ops import swiglu

    return _rows(lambda x, y: swiglu(x, y), references.swiglu, "x", "y")


@operation("fla-core/modules.causal_conv1d")
def fla_convolution() -> Case:
    interpreted("fla")
    from fla.modules.causal_conv1d.ops import causal_conv1d

    return Case(
        lambda x, weight: causal_conv1d(x, weight)[0],
        references.causal_convolution,
        shapes={"x": (1, 8, 4), "weight": (4, 3)},
        dtype=torch.float32,
        how=INTERPRETER,
    )


def _of_heads(
    function: Callable[..., Tensor], reference: Callable[..., Tensor], **more: tuple[int, ...]
) -> Case:
    from interpreter import with_loop_index

    with_loop_index("fla.")
    return Case(function, reference, shapes=_HEADS | more, dtype=torch.float32, how=INTERPRETER)


def _unit(k: Tensor) -> Tensor:
    return k / (k.square().sum(-1, keepdim=True) + 1e-3).sqrt()


def _gated_linear_attention(kernel: Callable[..., tuple[Tensor, ...]]) -> Case:
    return _of_heads(
        lambda q, k, v, g: kernel(q, k, v, torch.nn.functional.logsigmoid(g), scale=0.5)[0],
        lambda q, k, v, g: references.linear_attention(q, k, v, g.sigmoid(), scale=0.5),
        g=(1, 8, 2, 4),
    )


@operation("fla-core/chunk_gla")
def fla_gla() -> Case:
    interpreted("fla")
    from fla.ops.gla import chunk_gla

    return _gated_linear_attention(chunk_gla)


@operation("fla-core/chunk_gated_delta_rule")
def fla_gated_delta_rule() -> Case:
    interpreted("fla")
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    log_gate = torch.nn.functional.logsigmoid
    return _of_heads(
        lambda q, k, v, g, beta: chunk_gated_delta_rule(
            q, _unit(k), v, log_gate(g), beta.sigmoid(), scale=0.5
        )[0],
        lambda q, k, v, g, beta: references.delta_rule(
            q, _unit(k), v, beta.sigmoid(), g.sigmoid(), scale=0.5
        ),
        g=(1, 8, 2),
        beta=(1, 8, 2),
    )


@operation("fla-core/fused_recurrent_gla")
def fla_recurrent_gla() -> Case:
    interpreted("fla")
    from fla.ops.gla import fused_recurrent_gla

    return _gated_linear_attention(fused_recurrent_gla)


@operation("fla-core/fused_recurrent_rwkv4")
def fla_rwkv4() -> Case:
    interpreted("fla")
    from fla.ops.rwkv4.fused_recurrent import fused_recurrent_rwkv4

    def wkv(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
        state = k.new_zeros(k.shape[0], 3, 1, k.shape[2])
        state[:, 2] = -1e30
        return fused_recurrent_rwkv4(w, u, k, v, state)[0]

    return Case(
        wkv,
        lambda w, u, k, v: references.rwkv4(-w.exp(), u, k, v),
        shapes={"w": (4,), "u": (4,), "k": (1, 6, 4), "v": (1, 6, 4)},
        dtype=torch.float32,
        how=INTERPRETER,
    )


@operation("fla-core/modules.rms_norm_gated")
def fla_gated_norm() -> Case:
    interpreted("fla")
    from fla.modules.norm.fused_norm_gate import rms_norm_gated

    return _rows(
        lambda x, z, weight: rms_norm_gated(x, z, weight, None, eps=1e-6),
        lambda x, z, weight: references.rms_norm(x, weight) * torch.nn.functional.silu(z),
        "x",
        "z",
        weights="weight",
    )


@operation("fla-core/modules.l2_norm")
def fla_l2_norm() -> Case:
    interpreted("fla")
    from fla.modules.norm.l2norm import l2norm

    return _rows(
        lambda x: l2norm(x), lambda x: x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6), "x"
    )


@operation("fla-core/fused_recurrent_hgrn")
def fla_hgrn() -> Case:
    interpreted("fla")
    from fla.ops.hgrn import fused_recurrent_hgrn

    return Case(
        lambda a, x: fused_recurrent_hgrn(x, torch.nn.functional.logsigmoid(a))[0],
        lambda a, x: references.linear_recurrence(a.sigmoid(), x),
        shapes=SEQUENCE,
        dtype=torch.float32,
        how=INTERPRETER,
    )


@operation("fla-core/fused_recurrent_delta_rule")
def fla_recurrent_delta_rule() -> Case:
    interpreted("fla")
    from fla.ops.delta_rule import fused_recurrent_delta_rule

    return _of_heads(
        lambda q, k, v, beta: fused_recurrent_delta_rule(q, _unit(k), v, beta.sigmoid(), scale=0.5)[
            0
        ],
        lambda q, k, v, beta: references.delta_rule(q, _unit(k), v, beta.sigmoid(), scale=0.5),
        beta=(1, 8, 2),
    )


@operation("fla-core/chunk_simple_gla")
def fla_simple_gla() -> Case:
    interpreted("fla")
    from fla.ops.simple_gla import chunk_simple_gla

    log_gate = torch.nn.functional.logsigmoid
    return _of_heads(
        lambda q, k, v, g: chunk_simple_gla(q, k, v, log_gate(g), scale=0.5)[0],
        lambda q, k, v, g: references.linear_attention(
            q, k, v, g.sigmoid()[..., None].expand_as(k), scale=0.5
        ),
        g=(1, 8, 2),
    )


@operation("accelerated-scan/scalar.scan")
def accelerated_triton() -> Case:
    interpreted("accelerated_scan")
    from accelerated_scan.scalar import scan

    def along_length(a: Tensor, x: Tensor) -> Tensor:
        return scan(
            a.sigmoid().transpose(1, 2).contiguous(), x.transpose(1, 2).contiguous()
        ).transpose(1, 2)

    return Case(
        along_length,
        lambda a, x: references.linear_recurrence(a.sigmoid(), x),
        shapes={"a": (1, 8, 1), "x": (1, 8, 1)},
        dtype=torch.float32,
        how=INTERPRETER,
    )
