"""The same loss in float64, for differences that float32 has too few digits for."""

import copy

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from landscape.curvature.differences import Point, Precision
from landscape.curvature.objective import Batch, Objective, Params


def promoted(objective: Objective, params: Params, batch: Batch, *, precision: Precision | None = None) -> Point | None:
    """The point in float64, on a copy of the module where there is one; None if something in the loss does not follow."""
    try:
        wide = objective
        if objective.module is not None and objective.rebound is not None:
            wide = objective.rebound(copy.deepcopy(objective.module).to(torch.float64))
        same = {name: tensor.detach().double() for name, tensor in params.items()}
        point = Point(wide, same, tree_map(_widened, batch), precision=precision)
        return point if point.digits == torch.float64 else None
    # What a kernel or a loss raises when it meets another type is not known; the model is then judged as it is.
    except Exception:
        return None


def _widened(leaf: object) -> object:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
