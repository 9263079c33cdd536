"""The same loss in float64, for differences that float32 has too few digits for."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from landscape.curvature.audits.differences import Point, Precision
from landscape.curvature.objective import Batch, Objective, Params


def promoted(
    objective: Objective, params: Params, batch: Batch, *, precision: Precision | None = None
) -> Point | None:
    """Return the point in float64; None if that fails.

    It is on a copy of the module if there is one. It fails if something in the loss cannot be
    converted.
    """
    try:
        wide = objective
        if objective.module is not None and objective.rebound is not None:
            wide = objective.rebound(_copied(objective.module))
        wide = replace(wide, forward=widening(wide.forward), loss=widening(wide.loss))
        point = Point(wide, widened(params), widened(batch), precision=precision)
        return point if point.digits == torch.float64 else None
    # What a kernel or a loss raises when it meets another type is not known; the model is then
    # judged as it is.
    except Exception:
        return None


def _copied(module: nn.Module) -> nn.Module:
    """Copy a module to float64 so that it computes the same function."""
    wide = copy.deepcopy(module)
    for part, own in zip(wide.modules(), module.modules()):
        # Its default is the rounding of the type that it is given.
        if isinstance(part, nn.RMSNorm) and part.eps is None:
            weight = own.weight if isinstance(own, nn.RMSNorm) else None
            part.eps = torch.finfo(torch.float32 if weight is None else weight.dtype).eps
    return wide.to(torch.float64)


def widened(nest: Any) -> Any:
    """Convert every floating-point tensor of a nest to float64.

    The nest stays the same; the tensors are detached from any graph.
    """
    return tree_map(_widened, nest)


def _widened(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
        return leaf
    return leaf.detach().double().requires_grad_(leaf.requires_grad)


def widening(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that captured float32 tensors are taken to float64."""

    @wraps(function)
    def widened(*args: Any) -> Any:
        with _Widening():
            return function(*args)

    return widened


class _Widening(TorchFunctionMode):
    """Mode that converts captured float32 tensors in float64 operations.

    A loss may have captured them, such as class weights.
    """

    def __torch_function__(
        self,
        function: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if {torch.float32, torch.float64} <= {leaf.dtype for leaf in given}:
            args, kwargs = tree_map(_in_float64, (args, kwargs))
        return function(*args, **kwargs)


def _in_float64(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.dtype == torch.float32 else leaf
