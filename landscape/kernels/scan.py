"""Scans that are differentiable to any order, in both modes and under vmap, on any device.

Knows arrays, not networks: imports only torch and landscape.errors; a back end is imported when it first runs.
Shapes: b = batch, d = channels, n = states per channel, g = groups of channels that share B and C, l = length.

Back ends: "reference" is the recurrence as a Python loop, for any device; "log_depth" is plain PyTorch in ceil(log2 l)
rounds, for any device; "cpu" is Numba; "gpu" is Triton. "auto" takes the kernel of the tensors' device where it is
installed, and "log_depth" elsewhere.
"""

import functools
import importlib.util
import os
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from landscape.errors import MissingDependencyError
from landscape.kernels import reference
from landscape.kernels.forward_mode import forward_rule

Backend = Literal["auto", "reference", "log_depth", "cpu", "gpu"]
_NEEDS = {"cpu": "numba", "gpu": "triton"}


@functools.cache
def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def resolve_backend(backend: Backend, device: torch.device) -> str:
    """The back end that runs on `device`.

    Raises:
        ValueError: If the back end is unknown, or is for another device.
        MissingDependencyError: If the back end was asked for by name and its package is not installed.
    """
    if backend == "auto":
        kernel = {"cpu": "cpu", "cuda": "gpu"}.get(device.type, "log_depth")
        return kernel if kernel == "log_depth" or _is_installed(_NEEDS[kernel]) else "log_depth"
    if backend not in ("reference", "log_depth", "cpu", "gpu"):
        raise ValueError(f"backend must be one of auto, reference, log_depth, cpu, gpu; got {backend!r}.")
    if backend in _NEEDS and not _is_installed(_NEEDS[backend]):
        raise MissingDependencyError(
            f"backend={backend!r} needs the package {_NEEDS[backend]}, which is not installed: "
            f"`pip install {_NEEDS[backend]}`, or use backend='auto'."
        )
    # Triton's interpreter runs on the CPU; the tests use it where there is no GPU.
    interpreted = backend == "gpu" and os.environ.get("TRITON_INTERPRET") == "1"
    runs_on = {"cpu": "cpu", "gpu": "cuda"}.get(backend, device.type)
    if device.type != runs_on and not interpreted:
        raise ValueError(f"backend={backend!r} runs on {runs_on} tensors, got {device.type} ones: use backend='auto'.")
    return backend


@torch.library.custom_op("landscape::linear_scan", mutates_args=())
def _kernel(a: Tensor, b: Tensor, reverse: bool, backend: str) -> Tensor:
    if backend == "cpu":
        from landscape.kernels import cpu

        return cpu.linear_scan(a, b, reverse)
    from landscape.kernels import gpu

    return gpu.linear_scan(a, b, reverse)


@_kernel.register_fake
def _(a: Tensor, b: Tensor, reverse: bool, backend: str) -> Tensor:
    return torch.empty_like(b, memory_format=torch.contiguous_format)


def _to_front(in_dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of one shape for each example, with the mapped dimension first, in all of them."""
    moved = (x[None] if dim is None else x.movedim(dim, 0) for x, dim in zip(tensors, in_dims))
    return torch.broadcast_tensors(*moved)


# torch.func.linearize records the operator itself, not the Function below.
@_kernel.register_vmap
def _(info: Any, in_dims: tuple, a: Tensor, b: Tensor, reverse: bool, backend: str) -> tuple[Tensor, int]:
    return _kernel(*_to_front(in_dims, a, b), reverse, backend), 0


def _shift(x: Tensor, later: bool) -> Tensor:
    """Move by one step, to later or to earlier times; a zero moves in."""
    return F.pad(x[..., :-1], (1, 0)) if later else F.pad(x[..., 1:], (0, 1))


class _LinearScan(torch.autograd.Function):
    """The recurrence with derivatives that are made of the same function, hence have derivatives themselves."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, reverse: bool, backend: str) -> Tensor:
        if backend != "log_depth":
            return _kernel(a, b, reverse, backend)
        h = reference.linear_scan_log_depth(a, b, reverse=reverse)
        # A Function may not return its input.
        return h.clone() if h is b else h

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        a, _, ctx.reverse, ctx.backend = inputs
        ctx.save_for_backward(a, output)
        ctx.save_for_forward(a, output)

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor, Tensor, None, None]:
        # The adjoint runs the other way: g_t = dh_t + a_{t+1} g_{t+1}, and then da_t = g_t h_{t-1}.
        a, h = ctx.saved_tensors
        g = _LinearScan.apply(_shift(a, later=ctx.reverse), dh, not ctx.reverse, ctx.backend)
        return g * _shift(h, later=not ctx.reverse), g, None, None

    @staticmethod
    def jvp(ctx: Any, da: Tensor | None, db: Tensor | None, *_: None) -> Tensor:
        with forward_rule(ctx) as (a, h):
            source = torch.zeros_like(h) if db is None else db
            if da is not None:
                source = source + da * _shift(h, later=not ctx.reverse)
            return _LinearScan.apply(a, source, ctx.reverse, ctx.backend)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, a: Tensor, b: Tensor, reverse: bool, backend: str) -> tuple[Tensor, int]:
        return _LinearScan.apply(*_to_front(in_dims, a, b), reverse, backend), 0


def _check_pair(a: Tensor, b: Tensor) -> None:
    if a.dtype != b.dtype or a.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"linear_scan: a and b must both be float32 or both be float64, got {a.dtype} and {b.dtype}; a recurrence "
            "multiplies rounding errors, so half precision is not supported. Convert them with .float()."
        )
    if a.device != b.device:
        raise ValueError(f"linear_scan: a and b must be on one device, got {a.device} and {b.device}.")
    if a.dim() == 0 or b.dim() == 0 or a.shape[-1] != b.shape[-1] or b.shape[-1] == 0:
        raise ValueError(
            f"linear_scan: the last dimension of a and b is time, of one length >= 1; got shapes {tuple(a.shape)} and "
            f"{tuple(b.shape)}."
        )


def linear_scan(
    a: Float[Tensor, "*#rows l"], b: Float[Tensor, "*#rows l"], *, reverse: bool = False, backend: Backend = "auto"
) -> Float[Tensor, "*rows l"]:
    r"""First-order linear recurrence h_t = a_t h_{t-1} + b_t along the last dimension, from h_{-1} = 0.

    Differentiable to any order in reverse and forward mode, under `torch.func` and with `is_grads_batched`.

    Args:
        a: Coefficients; a_0 multiplies the initial state, which is zero. Leading dimensions broadcast.
        b: Sources. float32 or float64, as `a`.
        reverse: Run from the end to the beginning: h_t = a_t h_{t+1} + b_t, from h_l = 0.
        backend: See the module; "reference" is differentiated by ordinary autograd, all others by scans.

    Returns:
        Every state h_t, contiguous.

    Raises:
        ValueError: If shapes, dtypes, devices or the back end do not fit, or the length is zero.
        MissingDependencyError: If a back end was asked for by name and is not installed.

    Source: the adjoint of a linear recurrence is the reversed recurrence, as in Martin & Cundy, Parallelizing linear
    recurrent neural nets over sequence length (2018), section 2.2.
    """
    _check_pair(a, b)
    chosen = resolve_backend(backend, b.device)
    try:
        a, b = torch.broadcast_tensors(a, b)
    except RuntimeError:
        raise ValueError(f"linear_scan: shapes {tuple(a.shape)} and {tuple(b.shape)} do not broadcast.") from None
    if chosen == "reference":
        return reference.linear_scan_loop(a, b, reverse=reverse)
    return _LinearScan.apply(a, b, reverse, chosen)


def _expect_shape(name: str, x: Tensor | None, *shapes: tuple[int, ...]) -> None:
    if x is not None and tuple(x.shape) not in shapes:
        allowed = " or ".join(str(shape) for shape in shapes)
        raise ValueError(f"selective_scan: {name} must have shape {allowed} to fit u and A, got {tuple(x.shape)}.")


def _check_selective(tensors: dict[str, Tensor | None]) -> None:
    u, A = tensors["u"], tensors["A"]
    assert u is not None and A is not None
    for name, x in tensors.items():
        if x is None:
            continue
        if x.is_complex():
            raise ValueError(f"selective_scan: {name} is complex, which is not supported: pass real tensors.")
        if x.device != u.device:
            raise ValueError(f"selective_scan: all tensors must be on one device, got u on {u.device}, {name} on {x.device}.")
    if u.dim() != 3 or A.dim() != 2 or u.shape[-1] == 0:
        raise ValueError(
            f"selective_scan: u must have shape (batch, channels, length >= 1) and A (channels, states), got "
            f"{tuple(u.shape)} and {tuple(A.shape)}."
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
    """float64 if all tensors are; float32 if they are float32 or narrower, as mamba-ssm computes."""
    dtypes = {x.dtype for x in tensors.values() if x is not None}
    if dtypes == {torch.float64}:
        return torch.float64
    if dtypes <= {torch.float32, torch.float16, torch.bfloat16}:
        return torch.float32
    raise ValueError(
        "selective_scan: tensors must all be float64, or all float32 (float16 and bfloat16 are computed in float32), got "
        f"{', '.join(sorted(map(str, dtypes)))}: convert them to one dtype."
    )


def _refuse_negative_steps(delta: Tensor) -> None:
    """Only where looking costs nothing: on the CPU, outside vmap and torch.compile."""
    if delta.device.type != "cpu" or delta.numel() == 0 or torch.compiler.is_compiling():
        return
    try:
        smallest = float(delta.detach().amin())
    except RuntimeError:  # values cannot be read under vmap
        return
    if smallest < 0:
        raise ValueError(
            f"selective_scan: delta (with its bias) is negative, {smallest:.3g}, where states would grow instead of decay: "
            "step sizes must be >= 0; pass delta_softplus=True or apply softplus first."
        )


def _composed(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, backend: str
) -> tuple[Float[Tensor, "b d l"], Float[Tensor, "b d n"]]:
    """The states of all steps in memory, by one `linear_scan`: what the fused kernels are compared with."""
    channels = u.shape[1]
    B, C = reference.per_channel(B, channels), reference.per_channel(C, channels)
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
    r"""Selective state space model, with the signature and the conventions of mamba-ssm's `selective_scan_fn`.

    With delta' = delta + delta_bias, through softplus if asked for, and per channel d and state n, from h_{-1} = 0,

        h_t = exp(delta'_t A) h_{t-1} + delta'_t B_t u_t,    y_t = sum_n C_t h_t + D u_t,    out_t = y_t silu(z_t).

    Differentiable to any order in reverse and forward mode, under `torch.func` and with `is_grads_batched`; unlike in
    mamba-ssm, the last state is differentiable too.

    Args:
        u: Input.
        delta: Step sizes, >= 0 after bias and softplus. A negative one is an error on the CPU; on other devices and under
            vmap nothing is checked, since reading the values would stall the device.
        A: State matrix, diagonal, usually negative.
        B: Input matrix: (b, n, l), or (b, g, n, l) for g groups of consecutive channels, or constant in time, (d, n).
        C: Output matrix, as `B`.
        D: Skip connection.
        z: Gate.
        delta_bias: Added to `delta`.
        delta_softplus: Whether softplus follows.
        return_last_state: Also return h_{l-1}.
        backend: See the module. "cpu" keeps no states in memory, unless the last state is asked for or B or C is constant;
            float16 and bfloat16 are computed in float32.

    Returns:
        out in the dtype of `u`, or (out, last state).

    Raises:
        ValueError: If shapes, dtypes, devices, step sizes or the back end do not fit, or the length is zero.
        MissingDependencyError: If a back end was asked for by name and is not installed.

    Source: Gu & Dao, Mamba: Linear-time sequence modeling with selective state spaces (2023), section 3.
    """
    tensors = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    _check_selective(tensors)
    dtype = _compute_dtype(tensors)
    chosen = resolve_backend(backend, u.device)
    x, delta, A, B, C = (tensor.to(dtype) for tensor in (u, delta, A, B, C))
    D, z, delta_bias = (None if tensor is None else tensor.to(dtype) for tensor in (D, z, delta_bias))
    if not delta_softplus:
        _refuse_negative_steps(reference.step_sizes(delta, delta_bias, False))
    if chosen == "reference":
        y, last = reference.selective_scan_loop(x, delta, A, B, C, delta_bias, delta_softplus)
    else:
        y, last = _composed(x, reference.step_sizes(delta, delta_bias, delta_softplus), A, B, C, chosen)
    out = reference.finish(y, x, D, z).to(u.dtype)
    return (out, last) if return_last_state else out
