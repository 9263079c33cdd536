"""The empirical Fisher matrix: the mean of outer products of per-sample gradients.

With l the losses of N samples it is J^T J / N for their Jacobian J, which is the Gauss-Newton
matrix of half their mean square: that matrix is built here, so a product is one pass through the
graph of the losses and one through that of their pullback, and the first is checked.
Shapes: n = total size of the parameters, N = number of samples.

Source: Kunstner, Balles & Hennig, Limitations of the empirical Fisher approximation for natural
gradient descent (2019), arXiv 1905.12558.
"""

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from landscape.curvature.objective import Batch, Objective, Params, select_parameters
from landscape.curvature.operators.gauss_newton import GaussNewtonOperator
from landscape.errors import ObjectiveError


class EmpiricalFisherOperator(GaussNewtonOperator):
    """The mean over samples of g_i g_i^T, in squared nats per squared parameter.

    g_i is the gradient of the loss of sample i. It is positive semidefinite, of rank N at most, and
    neither the Hessian nor the Fisher matrix: the Fisher matrix of a classifier is the
    Gauss-Newton matrix of its cross-entropy.

    Args:
        model: Any module, in eval mode.
        losses: Returns the losses of the samples, a vector (N,).
        params: Parameters at which to take the matrix.
        batch: Any nest of tensors that `losses` takes.
        check: Hold the first product against a central difference of the losses.

    Attributes:
        loss: Mean of the losses, in nats.
        num_samples: N.

    Raises:
        ObjectiveError: If the losses are no vector, and as GaussNewtonOperator.

    Examples:
        >>> import torch, landscape
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        >>> batch = torch.randn(32, 4).double(), torch.randn(32, 1).double()
        >>> def loss(model, batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        ...
        >>> from landscape.curvature import select_parameters
        >>> def losses(model, batch):
        ...     return (model(batch[0]) - batch[1]).square().squeeze(1)
        ...
        >>> F = landscape.EmpiricalFisherOperator(model, losses, select_parameters(model), batch)
        >>> F.n, F.num_samples
        (49, 32)
    """

    def __init__(
        self,
        model: nn.Module,
        losses: Callable[[Any, Batch], Tensor],
        params: Params,
        batch: Batch,
        *,
        check: bool = True,
    ) -> None:
        def vector(model: Any, batch: Batch) -> Tensor:
            return _checked(losses(model, batch))

        # The Hessian of this function by the losses is the identity over N.
        objective = Objective.from_outputs(model, vector, _half_mean_square)
        super().__init__(objective, params, batch, check=check)
        # Until here `loss` is the half mean square that the matrix is made of; what is reported is
        # the mean.
        (values,) = self._outputs
        self.loss = float(values.detach().double().mean())
        self.num_samples = len(values)


def empirical_fisher(
    model: nn.Module,
    losses: Callable[[Any, Batch], Tensor],
    batch: Batch,
    *,
    parameters: str | Sequence[str] = "all",
    check: bool = True,
) -> EmpiricalFisherOperator:
    """Build the empirical Fisher matrix of per-sample losses.

    Args:
        model: Any module, in eval mode. It is not modified and its later training does not change
            the operator.
        losses: Returns a vector, the loss of each sample, whose mean is the loss:
            `lambda model, batch: cross_entropy(model(batch[0]), batch[1], reduction="none")`.
        batch: Batch that `losses` takes: any nest of tensors.
        parameters, check: As in `landscape.hessian`.

    Raises:
        ObjectiveError: If there is no such matrix, or none that could be trusted.

    Examples:
        >>> import torch, landscape
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        >>> batch = torch.randn(32, 4).double(), torch.randn(32, 1).double()
        >>> def loss(model, batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        ...
        >>> def losses(model, batch):
        ...     return (model(batch[0]) - batch[1]).square().squeeze(1)
        ...
        >>> F = landscape.empirical_fisher(model, losses, batch)
        >>> bool(landscape.eigsh(F, k=1, which="SA").values > -1e-12)
        True
    """
    params = select_parameters(model, parameters)
    return EmpiricalFisherOperator(model, losses, params, batch, check=check)


def _half_mean_square(losses: Float[Tensor, " N"], batch: Batch) -> Float[Tensor, ""]:
    return losses.square().mean() / 2


def _checked(losses: Any) -> Float[Tensor, " N"]:
    """Refuse what is no vector of losses.

    Raises:
        ObjectiveError: If it is none.
    """
    if not isinstance(losses, Tensor) or losses.ndim != 1 or not len(losses):
        got = (
            f"a tensor of shape {tuple(losses.shape)}"
            if isinstance(losses, Tensor)
            else f"a {type(losses).__name__}"
        )
        raise ObjectiveError(
            f"The losses of the samples must be a vector, one entry for each, got {got}: the "
            "empirical Fisher matrix is made of a gradient per sample. Leave out the mean, as with "
            "reduction='none'."
        )
    return losses
