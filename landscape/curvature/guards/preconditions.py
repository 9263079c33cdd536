"""Conditions for a useful Hessian, checked before any derivative is taken.

What only the autograd graph can tell is checked in landscape.curvature.guards.graph.
Imports only torch, landscape.errors and landscape.curvature.objective.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from landscape.curvature.objective import Batch, Params
from landscape.errors import ObjectiveError
from landscape.linalg.vectors import all_finite

# The attributes by which torch, timm, open_clip, transformers and VMamba switch gradient
# checkpointing on.
_CHECKPOINTING_SWITCHES = ("grad_checkpointing", "gradient_checkpointing", "use_checkpoint")
_EVAL = "Call model.eval() first."
SCALED_BY_FREQUENCY = (
    "divides the gradient of every row by how often the batch looks it up (scale_grad_by_freq), so "
    "it is no derivative of the loss, and neither is what would pass for the Hessian"
)


def check_twice_differentiable(module: nn.Module) -> None:
    """Refuse a model whose loss has no meaningful Hessian.

    The loss must be a deterministic, twice differentiable function.

    Batch norm without running statistics (track_running_stats=False) passes: it uses the statistics
    of the batch in eval mode too, by design, and its double backward agrees with central
    differences.

    Raises:
        ObjectiveError: On train-mode batch norm or instance norm with running statistics, active
            dropout of any kind, train-mode spectral norm, gradient checkpointing, or an embedding
            with max_norm or scale_grad_by_freq; the message begins with the module's dotted name.
    """
    for name, part in module.named_modules():
        fault = _train_mode_fault(part) if part.training else None
        fault = fault or _checkpointing_fault(part) or _embedding_fault(part)
        if fault:
            raise ObjectiveError(f"{name or 'the model'} ({type(part).__name__}): {fault}")


def _train_mode_fault(part: nn.Module) -> str | None:
    if isinstance(part, _BatchNorm):
        return (
            "is batch norm in train mode, which couples the rows of a batch and rewrites the "
            "running statistics it keeps at every evaluation, so the loss is not the one that the "
            f"model has when used. {_EVAL}"
        )
    if isinstance(part, _InstanceNorm) and part.track_running_stats:
        return (
            "is instance norm in train mode, which rewrites its running statistics at every "
            f"evaluation. {_EVAL}"
        )
    if isinstance(part, nn.RReLU):
        return (
            "draws its slopes at random in train mode, so the loss is not a function of the "
            f"parameters. {_EVAL}"
        )
    if _has_spectral_norm(part):
        return (
            "is under spectral norm in train mode, whose power iteration changes the loss without "
            f"being differentiated, so the second derivative would be wrong. {_EVAL}"
        )
    if rate := _active_dropout(part):
        return (
            f"has active dropout ({rate}), so the loss is random and not a function of the "
            f"parameters. {_EVAL}"
        )
    return None


def _has_spectral_norm(part: nn.Module) -> bool:
    # As a parametrization, and as the older hook.
    return isinstance(part, _SpectralNorm) or any(
        isinstance(hook, SpectralNorm) for hook in part._forward_pre_hooks.values()
    )


def _active_dropout(part: nn.Module) -> str | None:
    """Return name and value of a train-mode module's drop rate.

    By name, because every library has its own class (torch's attention and recurrent layers keep a
    plain number), and all of them call it drop-something, or are called that and hold `p` or
    `prob`.
    """
    kind = type(part).__name__.lower()
    is_dropout = "drop" in kind or "stochasticdepth" in kind
    for name, value in vars(part).items():
        named = "drop" in name.lower() or (is_dropout and name in ("p", "prob"))
        if (
            named
            and isinstance(value, (int, float))
            and not isinstance(value, bool)
            and 0 < value <= 1
        ):
            return f"{name}={value:g}"
    return None


def _checkpointing_fault(part: nn.Module) -> str | None:
    for switch in _CHECKPOINTING_SWITCHES:
        if getattr(part, switch, False) is True:
            return (
                f"has gradient checkpointing switched on ({switch}=True), which drops terms of the "
                "second derivative or recomputes the network in every product. Switch it off; "
                "model.set_grad_checkpointing(False) does so in timm and open_clip."
            )
    return None


def _embedding_fault(part: nn.Module) -> str | None:
    """Describe what is wrong with an embedding; None if nothing is.

    A padding_idx is no fault in itself: whether a batch looks that row up, the graph tells.
    """
    if not isinstance(part, (nn.Embedding, nn.EmbeddingBag)):
        return None
    if part.max_norm is not None:
        return (
            f"rescales its weights in place in every forward pass (max_norm={part.max_norm:g}), "
            "which is not differentiated, so its curvature would be that of another loss. Rescale "
            "the table once and set module.max_norm = None."
        )
    if part.scale_grad_by_freq:
        return (
            f"{SCALED_BY_FREQUENCY}. Set module.scale_grad_by_freq = False, which leaves the loss "
            "as it is."
        )
    return None


def check_autocast(device: torch.device) -> None:
    """Refuse to differentiate under torch.autocast.

    Raises:
        ObjectiveError: If autocast is enabled for the kind of `device`.
    """
    if torch.is_autocast_enabled(device.type):
        raise ObjectiveError(
            f"torch.autocast is enabled for {device.type}: it would compute second derivatives in "
            f"{torch.get_autocast_dtype(device.type)}, which leaves no correct digits in small "
            "eigenvalues. Leave the autocast block first."
        )


def check_parameters(params: Params) -> None:
    """Refuse parameters that cannot form one real vector in float32 or float64.

    Raises:
        ObjectiveError: If there are none or they have no entries, their types or devices differ,
            the type is another, or a value is not finite.
    """
    if not params:
        raise ObjectiveError(
            "No parameters were given, so there is no derivative to take. Use "
            "select_parameters(model, ...)."
        )
    if not any(tensor.numel() for tensor in params.values()):
        raise ObjectiveError(
            f"The selected parameters ({', '.join(params)}) have 0 entries in all, so there is no "
            "derivative. Select others."
        )
    first, like = next(iter(params.items()))
    for name, tensor in params.items():
        # Second derivatives are differences of large terms that cancel: the 8 or 11 bits of half
        # precision do not survive that.
        if tensor.dtype not in (torch.float32, torch.float64):
            raise ObjectiveError(
                f"{name}: is in {tensor.dtype}, but curvature needs float32 or float64: fewer bits "
                "leave no correct digits in a second derivative, and complex or whole numbers have "
                "no Hessian here. Convert the model, e.g. with model.float()."
            )
        if (tensor.dtype, tensor.device) != (like.dtype, like.device):
            raise ObjectiveError(
                f"{name}: is in {tensor.dtype} on {tensor.device}, but {first} is in {like.dtype} "
                f"on {like.device}. All selected parameters form one vector; bring them to one "
                "type and device with model.to(device, dtype)."
            )
        if not all_finite(tensor):
            raise ObjectiveError(
                f"{name}: has infinite or NaN entries, so the loss has no curvature there. Load a "
                "checkpoint from before the divergence."
            )


def check_batch(batch: Batch, device: torch.device) -> None:
    """Refuse a batch that is not where the parameters are.

    Raises:
        ObjectiveError: If a tensor of the batch is on another device.
    """
    for name, tensor in tensors_of(batch):
        if tensor.device != device:
            raise ObjectiveError(
                f"{name}: is on {tensor.device}, but the parameters are on {device}. An operator "
                "is bound to one batch for life, and moving it is left to you: "
                f"batch.to({str(device)!r})."
            )


def check_loss(loss: Any, batch: Batch, *, dtype: torch.dtype) -> None:
    """Refuse what is not one finite number that depends on the parameters.

    Args:
        dtype: That of the parameters; a loss with fewer bits is refused.

    Raises:
        ObjectiveError: If `loss` is no such number; the message describes the batch.
    """
    if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.is_floating_point():
        got = (
            f"a tensor of shape {tuple(loss.shape)} in {loss.dtype}"
            if isinstance(loss, Tensor)
            else f"a {type(loss).__name__}"
        )
        raise ObjectiveError(
            f"The loss must be one real number, a tensor of shape (), got {got}. Reduce it, e.g. "
            "with .mean()."
        )
    if not torch.isfinite(loss):
        raise ObjectiveError(
            f"The loss is {loss.item()} on the batch {describe_batch(batch)}, so it has no "
            "curvature there. Look for an infinite input, a logarithm of zero or a diverged "
            "checkpoint."
        )
    if torch.finfo(loss.dtype).eps > torch.finfo(dtype).eps:
        raise ObjectiveError(
            f"The loss is in {loss.dtype}, but the parameters are in {dtype}, so digits get lost "
            "on the way. Take autocast and casts out of the loss."
        )
    if not loss.requires_grad:
        raise ObjectiveError(
            "The loss does not depend on any of the selected parameters through differentiable "
            "operations. Look for .detach(), .item(), torch.no_grad() or a model captured from "
            "outside, or select other parameters."
        )


@contextmanager
def reading_only(params: Params) -> Iterator[None]:
    """Refuse an evaluation that writes into the parameters it is given.

    What is done to their `.data` is not seen.

    Raises:
        ObjectiveError: If it has, naming the parameter.
    """
    # PyTorch counts the changes in place of a tensor in `_version`.
    before = {name: tensor._version for name, tensor in params.items()}
    yield
    for name, tensor in params.items():
        if tensor._version != before[name]:
            raise ObjectiveError(
                f"{name}: is written to in place while the loss is evaluated, so the loss is that "
                "of other parameters than those given. Look for max_norm in an embedding or an "
                "assignment under no_grad, and do it once before, or not at all."
            )


def check_same_loss(first: float, second: float, *, dtype: torch.dtype) -> None:
    """Refuse a loss with two values at the same parameters and batch.

    The tolerance, 1000 units of rounding relative to max(1, |loss|), lets the order of additions on
    a GPU vary; dropout of any rate that matters moves a loss by more.

    Raises:
        ObjectiveError: If they differ by more.
    """
    # Not `>`, which NaN would pass.
    if not abs(first - second) <= 1000 * torch.finfo(dtype).eps * max(1.0, abs(first)):
        raise ObjectiveError(
            "The loss is random: evaluated twice at the same parameters and batch it gave "
            f"{first:.9g} and {second:.9g}, so it has no Hessian. Look for dropout that ignores "
            "eval mode, sampling or random augmentation; take it out of the loss."
        )


def describe_batch(batch: Batch) -> str:
    """Describe names and shapes of the batch's tensors, for messages."""
    parts = [f"{name} {tuple(tensor.shape)}" for name, tensor in tensors_of(batch)]
    return ", ".join(parts) or f"({type(batch).__name__} without tensors)"


def tensors_of(batch: Batch, name: str = "batch") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested mappings, lists and tuples, with their paths.

    The mappings of Hugging Face are included.
    """
    if isinstance(batch, Tensor):
        yield name, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from tensors_of(value, f"{name}[{key!r}]")
    elif isinstance(batch, (list, tuple)):
        for index, value in enumerate(batch):
            yield from tensors_of(value, f"{name}[{index}]")
