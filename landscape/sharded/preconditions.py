"""What must hold before a model is cut over processes, and the cutting."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from landscape.curvature.guards.fingerprint import contents_of
from landscape.curvature.guards.preconditions import (
    check_autocast,
    check_batch,
    check_parameters,
    check_twice_differentiable,
    describe_batch,
)
from landscape.curvature.objective import Batch, Objective, Params
from landscape.errors import ObjectiveError
from landscape.sharded.lent import CutWeights
from landscape.sharded.processes import Processes
from landscape.version import VERSION


def cut_over(
    processes: Processes, objective: Objective, params: Params, batch: Batch
) -> tuple[CutWeights, tuple[int, ...]]:
    """Cut the weights of an objective over processes; collective.

    Returns:
        The weights, and the rows of the batch in each process.

    Raises:
        ObjectiveError: For what can be seen to be wrong before an evaluation; if models or settings
            differ.
        ValueError: If the parameters are not where the mesh is.
    """
    _check_before(objective, params, batch, processes)
    weights = CutWeights(processes, params, objective.module)
    processes.must_agree(
        _description(objective, params), "models, settings or versions of landscape"
    )
    processes.must_agree(_values(params, objective.module), "values of weights or buffers")
    return weights, tuple(processes.each([_num_rows(batch)])[:, 0].tolist())


def _check_before(objective: Objective, params: Params, batch: Batch, processes: Processes) -> None:
    """Refuse what can be seen to be wrong before an evaluation."""
    if objective.module is not None:
        refuse_wrapped(objective.module)
        check_twice_differentiable(objective.module)
        if unknown := params.keys() - dict(objective.module.named_parameters()).keys():
            raise ObjectiveError(
                f"{type(objective.module).__name__}: it has no parameter {min(unknown)!r}, so its "
                "loss cannot be a function of it. Take the parameters from "
                "select_parameters(model, ...)."
            )
    locals_ = {name: _local(tensor) for name, tensor in params.items()}
    # A process may have no entry of a parameter, or of any.
    check_parameters(
        locals_ if any(piece.numel() for piece in locals_.values()) else _one_of(locals_)
    )
    device = next(iter(locals_.values())).device
    if device.type != processes.device_type:
        raise ValueError(
            f"mesh is one of {processes.device_type} devices, but the parameters are on {device}. "
            "Bring both to one kind."
        )
    check_batch(batch, device)
    check_autocast(device)


def _one_of(pieces: Params) -> Params:
    """Replace empty pieces by ones."""
    return {
        name: torch.ones(1, dtype=piece.dtype, device=piece.device)
        for name, piece in pieces.items()
    }


def piece_of_process(weights: CutWeights, name: str, tensor: Tensor) -> Tensor:
    """Select this process's rows of a tensor shaped like a parameter, whole or a DTensor that is
    cut alike.
    """
    local = _local(tensor)
    if local is not tensor:
        return local
    cut = weights.cuts[name]
    return cut.as_rows(tensor)[cut.rows_of(weights.processes.rank)]


def _local(tensor: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def refuse_wrapped(module: nn.Module) -> None:
    """Refuse a module that another library has wrapped for several processes.

    Raises:
        ObjectiveError: For modules under fully_shard (FSDP2), FullyShardedDataParallel and
            DistributedDataParallel.
    """
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
    from torch.nn.parallel import DistributedDataParallel

    for name, part in module.named_modules():
        where = f"{name or 'the model'} ({type(part).__name__})"
        if isinstance(part, FSDPModule):
            raise ObjectiveError(
                f"{where}: is under fully_shard, whose gradients carry no graph, so they have no "
                "second derivative. Build the model without fully_shard, with plain weights or "
                "DTensors that are cut by rows (Shard(0)), and pass mesh=mesh."
            )
        if isinstance(part, FullyShardedDataParallel | DistributedDataParallel):
            raise ObjectiveError(
                f"{where}: adds up gradients by hooks, which have no second derivative. Pass the "
                "model inside of it, .module, and mesh=mesh."
            )


def _description(objective: Objective, params: Params) -> tuple[Any, ...]:
    """Describe what must be the same in every process, beside values."""
    module = objective.module
    shapes = (
        {} if module is None else {name: tuple(p.shape) for name, p in module.named_parameters()}
    )
    chosen = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in params.items()]
    return VERSION, torch.__version__, chosen, shapes, objective.weight_decay, objective.rowwise


def _values(params: Params, module: nn.Module | None) -> tuple[int, ...]:
    """Compute a number for every tensor that each process holds whole.

    Buffers are included.
    """
    from torch.distributed.tensor import DTensor

    others = [] if module is None else [*module.parameters(), *module.buffers()]
    plain = {
        id(tensor): tensor
        for tensor in (*params.values(), *others)
        if not isinstance(tensor, DTensor)
    }
    return contents_of([tensor for tensor in plain.values() if not tensor.is_meta])


def _num_rows(batch: Batch) -> int:
    """Count this process's rows: the shared first dimension of a batch.

    Raises:
        ObjectiveError: If there are none.
    """
    sizes = {
        len(leaf) if leaf.ndim else 0 for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)
    }
    if len(sizes) != 1 or not min(sizes):
        raise ObjectiveError(
            "A batch that is spread over processes needs tensors that all have one entry per row, "
            "and a row in each process, as means are weighted by rows; got "
            f"{describe_batch(batch)}. Expand what all rows share, and use no more processes than "
            "rows."
        )
    return sizes.pop()
