"""The scans of state space models, differentiable to any order.

They work in both modes, under vmap, and on any device. Knows arrays, not networks: a kernel is
imported when it first runs.
Shapes: b = batch, d = channels, n = states per channel, g = groups of channels that share B and C,
l = length.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from landscape.kernels import reference
from landscape.kernels.backends import Backend, resolve_backend
from landscape.kernels.first_order import training_scan
from landscape.kernels.linear import linear_scan
from landscape.kernels.selective import fused

__all__ = ["linear_scan", "selective_scan"]


def _expect_shape(name: str, x: Tensor | None, *shapes: tuple[int, ...]) -> None:
    if x is not None and tuple(x.shape) not in shapes:
        allowed = " or ".join(str(shape) for shape in shapes)
        raise ValueError(
            f"selective_scan: {name} must have shape {allowed} to fit u and A, got "
            f"{tuple(x.shape)}."
        )


def _check_selective(tensors: dict[str, Tensor | None]) -> None:
    u, A = tensors["u"], tensors["A"]
    assert u is not None and A is not None
    for name, x in tensors.items():
        if x is None:
            continue
        if x.is_complex():
            raise ValueError(
                f"selective_scan: {name} is complex, which is not supported: pass real tensors."
            )
        if x.device != u.device:
            raise ValueError(
                f"selective_scan: all tensors must be on one device, got u on {u.device}, {name} "
                f"on {x.device}."
            )
    if u.dim() != 3 or A.dim() != 2 or u.shape[-1] == 0:
        raise ValueError(
            "selective_scan: u must have shape (batch, channels, length >= 1) and A (channels, "
            f"states), got {tuple(u.shape)} and {tuple(A.shape)}."
        )
    (b, d, length), n = u.shape, A.shape[1]
    _expect_shape("A", A, (d, n))
    for name in ("delta", "z"):
        _expect_shape(name, tensors[name], (b, d, length))
    for name in ("D", "delta_bias"):
        _expect_shape(name, tensors[name], (d,))
    for name in ("B", "C"):
        x = tensors[name]
        assert x is not None
        groups = x.shape[1] if x.dim() == 4 and x.shape[1] and d % x.shape[1] == 0 else 1
        _expect_shape(name, x, (d, n), (b, n, length), (b, groups, n, length))


def _compute_dtype(tensors: dict[str, Tensor | None]) -> torch.dtype:
    """Choose the dtype of the computation.

    float64 if all tensors are; float32 if they are float32 or narrower, as in mamba-ssm.

    Raises:
        ValueError: If the dtypes are mixed or of another kind.
    """
    dtypes = {x.dtype for x in tensors.values() if x is not None}
    if dtypes == {torch.float64}:
        return torch.float64
    if dtypes <= {torch.float32, torch.float16, torch.bfloat16}:
        return torch.float32
    raise ValueError(
        "selective_scan: tensors must all be float64, or all float32 (float16 and bfloat16 are "
        f"computed in float32), got {', '.join(sorted(map(str, dtypes)))}: convert them to one "
        "dtype."
    )


def _refuse_negative_steps(delta: Tensor) -> None:
    """Refuse negative step sizes where reading them costs nothing.

    That is on the CPU, outside vmap and torch.compile.
    """
    if delta.device.type != "cpu" or delta.numel() == 0 or torch.compiler.is_compiling():
        return
    try:
        smallest = float(delta.detach().amin())
    except RuntimeError:  # values cannot be read under vmap
        return
    if smallest < 0:
        raise ValueError(
            f"selective_scan: delta (with its bias) is negative, {smallest:.3g}, where states "
            "would grow instead of decay: step sizes must be >= 0; pass delta_softplus=True or "
            "apply softplus first."
        )


def _in_memory(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, backend: str
) -> tuple[Float[Tensor, "b d l"], Float[Tensor, "b d n"]]:
    """Compute y and the last state with all states in memory.

    All steps are one `linear_scan`.
    """
    channels = u.shape[1]
    B, C = reference.per_channel(B, channels), reference.per_channel(C, channels)
    # (b, d, 1, l) times (d, n, 1): decay and h have n times as many elements as u.
    decay = torch.exp(delta[:, :, None] * A[:, :, None])
    h = linear_scan(decay, (delta * u)[:, :, None] * B, backend=backend)  # type: ignore[arg-type]
    return (h * C).sum(dim=-2), h[..., -1]


def selective_scan(
    u: Float[Tensor, "b d l"],
    delta: Float[Tensor, "b d l"],
    A: Float[Tensor, "d n"],
    B: Float[Tensor, "..."],
    C: Float[Tensor, "..."],
    D: Float[Tensor, " d"] | None = None,
    z: Float[Tensor, "b d l"] | None = None,
    delta_bias: Float[Tensor, " d"] | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    backend: Backend = "auto",
) -> Float[Tensor, "b d l"] | tuple[Float[Tensor, "b d l"], Float[Tensor, "b d n"]]:
    r"""Run the selective state space model, with mamba-ssm's conventions.

    The signature is that of its `selective_scan_fn`. With delta' = delta + delta_bias, through
    softplus if asked for, and per channel d and state n, from h_{-1} = 0,

        h_t = exp(delta'_t A) h_{t-1} + delta'_t B_t u_t,    y_t = sum_n C_t h_t + D u_t,
        out_t = y_t silu(z_t).

    Differentiable to any order in reverse and forward mode, under `torch.func` and with
    `is_grads_batched`; unlike in mamba-ssm, the last state is differentiable too.

    Args:
        u: Input.
        delta: Step sizes, >= 0 after bias and softplus. A negative step size is an error on the
            CPU; on other devices and under vmap nothing is checked, since reading the values would
            stall the device.
        A: State matrix, diagonal, usually negative.
        B: Input matrix: (b, n, l), or (b, g, n, l) for g groups of consecutive channels, or
            constant in time, (d, n).
        C: Output matrix, as `B`.
        D: Skip connection.
        z: Gate.
        delta_bias: Added to `delta`.
        delta_softplus: Whether softplus is applied to the sum.
        return_last_state: Also return h_{l-1}.
        backend: See `landscape.kernels.backends`. "cpu" keeps no states in memory, unless the last
            state is asked for or B or C is constant. float16 and bfloat16 are computed in float32.
            "auto" uses mamba-ssm's kernel inside
            `landscape.kernels.first_order.first_order_kernels`.

    Returns:
        out in the dtype of `u`, or (out, last state).

    Raises:
        ValueError: If shapes, dtypes, devices, step sizes or the back end do not fit, or the length
            is zero.
        MissingDependencyError: If a back end was asked for by name and is not installed.

    Source: Gu & Dao, Mamba: Linear-time sequence modeling with selective state spaces (2023),
    section 3.
    """
    tensors = {
        "u": u,
        "delta": delta,
        "A": A,
        "B": B,
        "C": C,
        "D": D,
        "z": z,
        "delta_bias": delta_bias,
    }
    _check_selective(tensors)
    dtype = _compute_dtype(tensors)
    chosen = resolve_backend(backend, u.device)
    x, delta, A, B, C = (tensor.to(dtype) for tensor in (u, delta, A, B, C))
    D, z, delta_bias = (
        None if tensor is None else tensor.to(dtype) for tensor in (D, z, delta_bias)
    )
    # softplus is never negative, so only step sizes without it need to be read.
    if not delta_softplus:
        _refuse_negative_steps(reference.step_sizes(delta, delta_bias, False))
    if (
        backend == "auto"
        and not return_last_state
        and (first_order := training_scan(x)) is not None
    ):
        return first_order(x, delta, A, B, C, D, z, delta_bias, delta_softplus).to(u.dtype)
    # The fused kernels do not return the last state, and they index B and C by time.
    if chosen == "cpu" and not return_last_state and B.dim() > 2 and C.dim() > 2:
        y = fused(x, delta, A, B, C, D, delta_bias, delta_softplus)
        # D is in y already, so that its gradient comes from the same pass over u.
        return reference.finish(y, x, None, z).to(u.dtype)
    if chosen == "reference":
        y, last = reference.selective_scan_loop(x, delta, A, B, C, delta_bias, delta_softplus)
    else:
        y, last = _in_memory(
            x, reference.step_sizes(delta, delta_bias, delta_softplus), A, B, C, chosen
        )
    out = reference.finish(y, x, D, z).to(u.dtype)
    return (out, last) if return_last_state else out
