"""The scans' recurrences as plain PyTorch: the reference for all other back ends.

They run where no other back end does. Knows arrays, not networks: imports only torch. Ordinary
autograd differentiates everything here, in any mode.
Shapes: b = batch, d = channels, n = states per channel, g = groups of channels that share B and C,
l = length.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def linear_scan_loop(
    a: Float[Tensor, "*rows l"], b: Float[Tensor, "*rows l"], *, reverse: bool = False
) -> Float[Tensor, "*rows l"]:
    """Run h_t = a_t h_{t-1} + b_t step by step.

    This is the definition.
    """
    # `unbind` instead of indexing: the gradient of each indexing is as large as the whole array.
    pairs = list(zip(a.unbind(-1), b.unbind(-1)))
    h = torch.zeros_like(b[..., 0])
    states = []
    for a_t, b_t in reversed(pairs) if reverse else pairs:
        h = a_t * h + b_t
        states.append(h)
    return torch.stack(states[::-1] if reverse else states, dim=-1)


def linear_scan_log_depth(
    a: Float[Tensor, "*rows l"], b: Float[Tensor, "*rows l"], *, reverse: bool = False
) -> Float[Tensor, "*rows l"]:
    """Run the linear recurrence in ceil(log2 l) rounds over the whole array.

    h_t = a_t h_{t-1} + b_t. The work is O(l log l); it is for devices with many cores. After the
    round with stride s, (a_t, b_t) is the composition of the steps t - 2 s + 1 ... t.

    Source: Hillis & Steele, Data parallel algorithms (1986); Blelloch, Prefix sums and their
    applications (1990), section 1.4.1.
    """
    length = b.shape[-1]
    stride = 1
    while stride < length:
        pad, earlier, later = (stride, 0), slice(None, -stride), slice(stride, None)
        if reverse:
            pad, earlier, later = (0, stride), later, earlier
        # The step (a1, b1) followed by (a2, b2) is (a2 a1, a2 b1 + b2). b comes first, since it
        # needs the a of the round before. The padding stands for the initial state, which is zero.
        b = b + a * F.pad(b[..., earlier], pad)
        # The first `stride` steps are complete: their coefficient multiplies the initial state,
        # which is zero.
        a = F.pad(a[..., later] * a[..., earlier], pad)
        stride *= 2
    return b


def per_channel(B: Float[Tensor, "..."], channels: int) -> Float[Tensor, "#b d n #l"]:
    """Expand B or C of `selective_scan` to one row per channel.

    They may have any of the shapes that it takes.
    """
    if B.dim() == 2:
        return B[None, :, :, None]
    if B.dim() == 3:
        return B[:, None].expand(-1, channels, -1, -1)
    # Groups consist of consecutive channels, so each group's row is repeated in place.
    return B.repeat_interleave(channels // B.shape[1], dim=1)


def step_sizes(
    delta: Float[Tensor, "b d l"], delta_bias: Float[Tensor, " d"] | None, delta_softplus: bool
) -> Float[Tensor, "b d l"]:
    """Compute the step sizes that discretise the state equation."""
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    return F.softplus(delta) if delta_softplus else delta


def finish(
    y: Float[Tensor, "b d l"],
    u: Float[Tensor, "b d l"],
    D: Float[Tensor, " d"] | None,
    z: Float[Tensor, "b d l"] | None,
) -> Float[Tensor, "b d l"]:
    """Add the skip connection and apply the gate."""
    if D is not None:
        y = y + D[:, None] * u
    return y if z is None else y * F.silu(z)


def selective_scan_loop(
    u: Float[Tensor, "b d l"],
    delta: Float[Tensor, "b d l"],
    A: Float[Tensor, "d n"],
    B: Float[Tensor, "..."],
    C: Float[Tensor, "..."],
    delta_bias: Float[Tensor, " d"] | None = None,
    delta_softplus: bool = False,
) -> tuple[Float[Tensor, "b d l"], Float[Tensor, "b d n"]]:
    """Run the recurrence of `selective_scan` step by step.

    Returns:
        y without skip connection and gate, and the last state h_{l-1}.

    Source: Gu & Dao, Mamba: Linear-time sequence modeling with selective state spaces (2023),
    equations 2 and 4, with the input matrix discretised as delta B, as the authors' code does.
    """
    channels = u.shape[1]
    delta = step_sizes(delta, delta_bias, delta_softplus)
    B, C = (per_channel(X, channels).expand(-1, -1, -1, u.shape[-1]) for X in (B, C))
    h = u.new_zeros(u.shape[0], *A.shape)
    outputs = []
    # `unbind` instead of indexing: the gradient of each indexing is as large as the whole array.
    for step, source, B_t, C_t in zip(
        delta[:, :, None].unbind(-1), u[:, :, None].unbind(-1), B.unbind(-1), C.unbind(-1)
    ):
        # Shapes: step and source (b, d, 1), A (d, n), B_t and h (b, d, n). exp(delta A) is the
        # exact solution of h' = A h over a step, where A is diagonal.
        h = torch.exp(step * A) * h + step * B_t * source
        outputs.append((h * C_t).sum(dim=-1))
    return torch.stack(outputs, dim=-1), h
