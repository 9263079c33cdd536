"""The operations as plain loops, which autograd differentiates right to any order.

Shapes: b = batch, l = length, h = heads, k and v = widths of keys and values, d = channels, n =
states.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_recurrence(a: Tensor, x: Tensor, dim: int = 1) -> Tensor:
    """h_t = a_t h_{t-1} + x_t along one dimension."""
    h, states = torch.zeros_like(x.select(dim, 0)), []
    for a_t, x_t in zip(a.unbind(dim), x.unbind(dim)):
        h = a_t * h + x_t
        states.append(h)
    return torch.stack(states, dim)


def linear_attention(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """S_t = diag(decay_t) S_{t-1} + k_t v_t', o_t = scale S_t' q_t; q, k (b, l, h, k), v (b, l, h,
    v), decay like k.
    """
    S, outputs = q.new_zeros(*q.shape[:1], *q.shape[2:], v.shape[-1]), []
    for t in range(q.shape[1]):
        S = S if decay is None else decay[:, t, :, :, None] * S
        S = S + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append(scale * (q[:, t, :, :, None] * S).sum(-2))
    return torch.stack(outputs, 1)


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """S_t = decay_t S_{t-1}; S_t += beta_t k_t (v_t - S_t' k_t)'; o_t = scale S_t' q_t; beta, decay
    (b, l, h).
    """
    S, outputs = q.new_zeros(*q.shape[:1], *q.shape[2:], v.shape[-1]), []
    for t in range(q.shape[1]):
        S = S if decay is None else decay[:, t, :, None, None] * S
        error = v[:, t] - (k[:, t, :, :, None] * S).sum(-2)
        S = S + beta[:, t, :, None, None] * k[:, t, :, :, None] * error[:, :, None, :]
        outputs.append(scale * (q[:, t, :, :, None] * S).sum(-2))
    return torch.stack(outputs, 1)


def state_space_dual(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Mamba-2: x (b, l, h, v), dt (b, l, h), A (h), B and C (b, l, 1, n), one group."""
    b, l, h, _ = x.shape
    B, C = (M.expand(b, l, h, M.shape[-1]) for M in (B, C))
    decay = torch.exp(dt * A)[..., None].expand(B.shape)
    return linear_attention(C, B, x * dt[..., None], decay)


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Mamba: u, delta (b, d, l), A (d, n), B and C (b, n, l)."""
    decay = torch.exp(delta[:, :, None] * A[None, :, :, None])
    h = linear_recurrence(decay, (delta * u)[:, :, None] * B[:, None], dim=-1)
    return (h * C[:, None]).sum(2)


def mlstm(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    """xLSTM's matrix memory with exponential input and sigmoid forget gates; q, k, v (b, h, l, k),
    i, f (b, h, l).
    """
    C, n, outputs = (
        q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1]),
        torch.zeros_like(q[:, :, 0]),
        [],
    )
    for t in range(q.shape[2]):
        forget, write = f[:, :, t, None].sigmoid(), i[:, :, t, None].exp()
        C = forget[..., None] * C + write[..., None] * k[:, :, t, :, None] * v[:, :, t, None, :]
        n = forget * n + write * k[:, :, t]
        query = q[:, :, t] * q.shape[-1] ** -0.5
        size = (query * n).sum(-1, keepdim=True).abs().clamp(min=1)
        outputs.append((query[..., None] * C).sum(-2) / size)
    return torch.stack(outputs, 2)


def rwkv4(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """RWKV-4: w, u (d); k, v (b, l, d); the decay of a step is exp(w) for w < 0."""
    top, bottom, outputs = torch.zeros_like(k[:, 0]), torch.zeros_like(k[:, 0]), []
    for t in range(k.shape[1]):
        now = torch.exp(u + k[:, t])
        outputs.append((top + now * v[:, t]) / (bottom + now))
        top = torch.exp(w) * top + torch.exp(k[:, t]) * v[:, t]
        bottom = torch.exp(w) * bottom + torch.exp(k[:, t])
    return torch.stack(outputs, 1)


def causal_convolution(x: Tensor, weight: Tensor) -> Tensor:
    """Depthwise: x (b, l, d), weight (d, width), no activation."""
    width = weight.shape[1]
    padded = F.pad(x, (0, 0, width - 1, 0))
    return sum(padded[:, i : i + x.shape[1]] * weight[:, i] for i in range(width))


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return rms_norm(centred, weight, eps) + bias


def swiglu(x: Tensor, y: Tensor) -> Tensor:
    return x * torch.sigmoid(x) * y
