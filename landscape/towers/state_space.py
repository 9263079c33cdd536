"""The state-space arithmetic and the gradient checkpointing of both Mamba towers.

Shapes: b = pictures, d = channels of the scan, n = states per channel, l = tokens, g = groups of
channels that share B and C.
"""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from landscape import kernels


def initial_A_log(num_channels: int, num_states: int) -> Float[Tensor, "d n"]:
    """Return log(1..n) for every channel.

    So A = -exp(A_log) = -1..-n, the real S4D initialisation (Gu et al. 2022, arXiv 2206.11893).
    """
    return torch.arange(1, num_states + 1, dtype=torch.float32).log().repeat(num_channels, 1)


def state_space(
    u: Float[Tensor, "b d l"],
    delta: Float[Tensor, "b d l"],
    A_log: Float[Tensor, "d n"],
    B: Float[Tensor, "b g n l"],
    C: Float[Tensor, "b g n l"],
    D: Float[Tensor, " d"],
    delta_bias: Float[Tensor, " d"],
) -> Float[Tensor, "b d l"]:
    """Run the state-space layer's selective scan along the tokens.

    y_t = C_t . h_t + D u_t with h_t = exp(dt A) h_{t-1} + dt B_t u_t, dt = softplus(delta + bias),
    A = -exp(A_log). The result is float32 for half-precision input, as in the published kernels.
    """
    # Looked up at every call, so that an experiment can replace the scan.
    scan = kernels.selective_scan
    # A < 0 whatever A_log is, so every factor exp(dt A) is below 1 and states decay.
    A = -torch.exp(_at_least_float32(A_log))
    return cast(
        Tensor,
        scan(_at_least_float32(u), delta, A, B, C, D, delta_bias=delta_bias, delta_softplus=True),
    )


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    """Run `block`, keep only its input, and recompute it for derivatives.

    It is non-reentrant, because reentrant checkpointing drops second derivatives. The parameters
    are passed as arguments: a block run inside `functional_call` would otherwise be recomputed
    after the call, with the module's own values.
    """
    named = dict(block.named_parameters())

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return functional_call(block, dict(zip(named, values)), (x,))

    return checkpoint(run, x, *named.values(), use_reentrant=False)
