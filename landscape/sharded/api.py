"""`landscape.hessian`: the Hessian of a loss by a model's parameters.

In one process, or cut over the processes of a mesh.
"""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, overload

from torch import Tensor, nn

from landscape import curvature
from landscape.curvature.hvp.choice import HvpChoice
from landscape.curvature.objective import Batch
from landscape.curvature.operators.hessian import HessianOperator
from landscape.deprecation import renamed_keyword
from landscape.errors import ObjectiveError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from landscape.sharded.operator import ShardedHessianOperator


@overload
def hessian(
    model: nn.Module,
    loss: Callable[[Any, Batch], Tensor],
    batch: Batch,
    *,
    mesh: None = None,
    parameters: str | Sequence[str] = "all",
    weight_decay: float = 0.0,
    hvp: str | HvpChoice = "auto",
    max_memory: int | None = None,
    check: bool = True,
) -> HessianOperator: ...


@overload
def hessian(
    model: nn.Module,
    loss: Callable[[Any, Batch], Tensor],
    batch: Batch,
    *,
    mesh: "DeviceMesh",
    parameters: str | Sequence[str] = "all",
    weight_decay: float = 0.0,
    hvp: str | HvpChoice = "auto",
    max_memory: int | None = None,
    check: bool = True,
) -> "ShardedHessianOperator": ...


@renamed_keyword("product", "hvp")
def hessian(
    model: nn.Module,
    loss: Callable[[Any, Batch], Tensor],
    batch: Batch,
    *,
    mesh: "DeviceMesh | None" = None,
    parameters: str | Sequence[str] = "all",
    weight_decay: float = 0.0,
    hvp: str | HvpChoice = "auto",
    max_memory: int | None = None,
    check: bool = True,
) -> "HessianOperator | ShardedHessianOperator":
    """Build the Hessian of `loss(model, batch)` by the model's parameters.

    Args:
        model: Any module, in eval mode. It is not modified and its later training does not change
            the operator.
        loss: Returns one number, in nats by convention; may use the model in any way. With a mesh
            it must be a mean over the rows that it is given.
        batch: What `loss` takes: any nest of tensors. With a mesh, this process's rows.
        mesh: A DeviceMesh of one dimension, as torch.distributed.device_mesh.init_device_mesh makes
            it under torchrun: weights and vectors are cut over its processes, each passes its own
            rows, and the operator is that of the mean over all rows. Every process calls this, and
            the methods of the result, alike. See `ShardedHessianOperator`.
        parameters: "all" or shell patterns over the names of the parameters that require gradients,
            as "visual.*". The flat order is that of model.named_parameters().
        weight_decay: Adds weight_decay / 2 * |parameters|^2 to the loss.
        hvp, max_memory: As in HessianOperator. Row chunks need the network and the loss apart,
            so an Objective. With a mesh, hvp is "auto", "retained" or "rebuilt", and max_memory
            has to be None.
        check: Compare the first product with differences, and refuse one that is no second
            derivative of the loss. False turns that off; results say which it was.

    Raises:
        ObjectiveError: If the loss has no Hessian that could be trusted; the message says why and
            what to do. What only the first product
            shows is raised by that product.
        ValueError: If an option has an invalid value.

    Examples:
        >>> import torch, landscape
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> batch = torch.randn(32, 4), torch.randn(32, 1)
        >>> def loss(model, batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        ...
        >>> H = landscape.hessian(model, loss, batch)
        >>> H.n
        49
        >>> landscape.eigsh(H, k=3).converged
        tensor([True, True, True])
    """
    if mesh is None:
        _refuse_dtensors(model)
        return curvature.hessian(
            model,
            loss,
            batch,
            parameters=parameters,
            weight_decay=weight_decay,
            hvp=hvp,
            max_memory=max_memory,
            check=check,
        )
    from landscape.sharded.operator import sharded_hessian

    if max_memory is not None:
        raise ValueError(
            "max_memory: is not watched where a model is cut over processes. Leave it out; "
            "hvp='rebuilt' takes less memory."
        )
    return sharded_hessian(
        model,
        loss,
        batch,
        mesh=mesh,
        parameters=parameters,
        weight_decay=weight_decay,
        hvp=hvp,
        check=check,
    )


def _refuse_dtensors(model: object) -> None:
    """Refuse a model that is already cut.

    The message says how to measure it.

    Raises:
        ObjectiveError: If a parameter is a DTensor.
    """
    # No DTensor can exist before the module of DTensors is loaded.
    tensors = sys.modules.get("torch.distributed.tensor")
    if tensors is None or not isinstance(model, nn.Module):
        return
    for name, parameter in model.named_parameters():
        if isinstance(parameter, tensors.DTensor):
            raise ObjectiveError(
                f"{name}: is a DTensor, so the model is cut over processes. Pass the mesh, "
                "landscape.hessian(..., mesh=mesh), as docs/sharded.md shows."
            )
