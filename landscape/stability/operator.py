"""The Hessian preconditioned by an optimizer: P^-1/2 H P^-1/2.

It is an operator with the certificates of H.

Shapes: n = total size of the parameters, l = entries that this process holds,
k = number of vectors.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from landscape.curvature.objective import Params, unflatten
from landscape.linalg.block_scaled import BlockScaledOperator, MatrixFactor
from landscape.linalg.diagonals import DiagonalOperator
from landscape.linalg.operator import (
    SymmetricOperator,
    check_is_operator,
    refuse_cut,
    seeded,
)
from landscape.linalg.scaled import ScaledOperator
from landscape.stability.muon import inverse_root, is_right
from landscape.stability.optimizer_state import OptimizerState, state_of
from landscape.stability.preconditioner import Piece, preconditioner, second_moments
from landscape.stability.threshold import StabilityThreshold, threshold_of


class _OfParameters(Protocol):
    """An operator that knows the parameters of its coordinates."""

    params: Params
    weight_decay: float

    @property
    def module(self) -> nn.Module | None: ...


class PreconditionedHessian(ScaledOperator):
    """P^-1/2 (H + W) P^-1/2 for the preconditioner P of an optimizer.

    W are the L2 terms that the optimizer adds to the loss; see `preconditioned`.

    Args:
        H: An operator of named parameters.
        state: State of the optimizer, of at least these parameters.

    Attributes:
        hessian: H.
        state: State of the optimizer.
        params, loss: Those of H.
        scales: The diagonal of P^-1/2, zero where a parameter cannot move. In the matrices of Muon,
            whose P is not diagonal, the number that multiplies their factors.
        factors: P^-1/2 of the matrices of Muon, without the learning rates.
        sign: -1 where the optimizer maximises the loss: the operator is then that of the negated
            loss. Otherwise 1.

    Raises:
        ValueError: As in `preconditioned`.
    """

    def __init__(self, H: SymmetricOperator, state: OptimizerState) -> None:
        of = _checked_operator(H)
        with H.space.together():
            decay = _added_decay(of, state)
            self.hessian, self.state, self.params = H, state, of.params
            self.sign = -1.0 if state.maximizes else 1.0
            scales = _scales(H, of, state, decay)
            self.factors = _factors(H, of, state, scales)
            # P^-1/2 W P^-1/2 is diagonal: the decay of each entry times the square of its scale.
            diagonal = (
                _by_parameter(H, of, decay) * scales.square() if any(decay.values()) else None
            )
            inner = H if self.sign > 0 else -H
            if self.factors:
                inner = BlockScaledOperator(inner, self.factors)
            super().__init__(inner, scales, diagonal)

    @property
    def loss(self) -> float:
        """Return the loss of H, in nats."""
        return float(cast(Any, self.hessian).loss)

    @property
    def parameter_names(self) -> tuple[str, ...]:
        return tuple(self.params)

    @cached_property
    def threshold(self) -> StabilityThreshold:
        """Compute the eigenvalue above which the optimizer diverges on a quadratic.

        See `stability_threshold`.

        Raises:
            ValueError: As in `stability_threshold`.
        """
        return threshold_of(self.state)

    def unflatten(self, vector: Float[Tensor, " l"]) -> Params:
        """Split a vector into views by parameter name, in the parameters' shapes."""
        return unflatten(vector, self.params)

    def directions(self, vectors: Float[Tensor, "l k"]) -> Float[Tensor, "l k"]:
        """Multiply vectors by P^-1/2, which gives their directions in parameter space.

        An eigenvector of this operator becomes an eigenvector of P^-1 H.
        """
        scaled = vectors * self.scales[:, None]
        for block in self.factors:
            block.multiply(scaled, block.factor)
        return scaled

    def matmat(self, V: Float[Tensor, "l k"]) -> Float[Tensor, "l k"]:
        self._check_first()
        return super().matmat(V)

    def matmat_in_support(self, V: Float[Tensor, "s k"]) -> Float[Tensor, "s k"]:
        self._check_first()
        return super().matmat_in_support(V)

    def _check_first(self) -> None:
        """Let H check its products along an unscaled vector.

        In such a vector all entries have the same weight.
        """
        check = getattr(self.hessian, "check", None)
        if check is not None:
            check()
        elif not self.hessian.checked:
            self.hessian.matmat(self.hessian.random(seeded(0))[:, None])


def preconditioned(
    H: SymmetricOperator,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    model: nn.Module | None = None,
) -> PreconditionedHessian:
    """Build the Hessian preconditioned by an optimizer: P^-1/2 H P^-1/2.

    Its eigenvalues are those of P^-1 H.

    P makes the optimizer's step -lr P^-1 times its momentum: 1 for SGD, the root of the second
    moments with bias correction and eps for Adam, AdamW and RMSprop, a matrix beside each parameter
    for Muon; see landscape.stability.preconditioner and .muon. The largest eigenvalue compares with
    `stability_threshold(optimizer)`, which Muon does not have. Where groups have several learning
    rates, the largest, lr, is the reference: a group with a fraction r of it has P / r. The state
    is that after the optimizer's last step, and is copied into the operator.

    Weight decay: what SGD, RMSprop and Adam add to the gradient is an L2 term of the loss, and is
    added to H, group by group, unless H has it already. The decoupled decay of AdamW is part of no
    loss, and is left out.

    Args:
        H: The Hessian of the loss at the model's present parameters: a HessianOperator,
            HessianOfBatches, GaussNewtonOperator, FiniteDifferenceOperator or
            ShardedHessianOperator.
        optimizer: torch's SGD, Adam, AdamW, RMSprop or Muon, with the parameters of H among its
            own; a list of them where several train the model, as Muon and AdamW. Others that it
            trains matter only by their learning rates.
        model: The model that it trains, where H is of a copy, such as one in float64. Parameters
            are matched by name. By default the model of H, whose parameters are looked up in the
            optimizer by identity.

    Returns:
        The operator, which solvers take as any other. Compare its largest eigenvalue with its
        `threshold`.

    Raises:
        ValueError: If the optimizer is another one, lacks parameters of H or trains another model;
            has made no step for a parameter that the loss depends on; holds a state that is not
            finite, or P of zero; if the model's parameters have changed since H was made; if H has
            another L2 term than the optimizer; if H is no Hessian of named parameters, or, for
            Muon, cut over processes.

    Examples:
        >>> import torch, landscape
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> batch = torch.randn(32, 4), torch.randn(32, 1)
        >>> def loss(model, batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        ...
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> H = landscape.hessian(model, loss, batch)
        >>> P = landscape.preconditioned(H, optimizer)
        >>> v = torch.ones(P.n)
        >>> torch.equal(P @ v, H @ v)
        True
    """
    of = _checked_operator(H)
    with H.space.together():
        named = _live_parameters(H, of, model)
        state = state_of(optimizer, named)
        _check_unmoved(H, of, named)
    return PreconditionedHessian(H, state)


def preconditioner_of(
    H: SymmetricOperator, optimizer: torch.optim.Optimizer, model: nn.Module | None = None
) -> DiagonalOperator:
    """Build the preconditioner P of an optimizer as a diagonal operator.

    It stands beside H as an approximation, up to a factor: see `landscape.compare_curvature`.
    Entries that the loss of H does not reach, or that do not move, are 0, as those of H are.

    Args:
        H, optimizer, model: As in `preconditioned`.

    Raises:
        ValueError: As in `preconditioned`.

    Examples:
        >>> import torch, landscape
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        >>> batch = torch.randn(32, 4).double(), torch.randn(32, 1).double()
        >>> def loss(model, batch):
        ...     return (model(batch[0]) - batch[1]).square().mean()
        ...
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> loss(model, batch).backward()
        >>> update = landscape.next_update(optimizer, model)
        >>> H = landscape.hessian(model, loss, batch)
        >>> P = landscape.preconditioner_of(H, optimizer)
        >>> (P @ torch.ones(P.n).double()).unique()
        tensor([1.], dtype=torch.float64)
    """
    made = preconditioned(H, optimizer, model)
    refuse_cut(H, "preconditioner_of")
    if made.factors:
        raise ValueError(
            f"{made.state.where}: P of Muon is not diagonal, so there is no diagonal operator. Use "
            "preconditioned(H, optimizer), or select the parameters of the others."
        )
    scales = made.scales.double()
    # The scales are P^-1/2.
    entries = torch.where(scales > 0, scales.square().reciprocal(), 0.0)
    return DiagonalOperator(entries.to(H.dtype))


def _checked_operator(H: SymmetricOperator) -> _OfParameters:
    check_is_operator(H)
    if not all(hasattr(H, name) for name in ("params", "weight_decay", "module")):
        raise ValueError(
            f"{type(H).__name__}: does not say which parameters its coordinates are, so none can "
            "be preconditioned. Pass the operator that landscape.hessian, hessian_of_batches or "
            "gauss_newton returns, not a combination of some."
        )
    return cast(_OfParameters, H)


def _live_parameters(
    H: SymmetricOperator, of: _OfParameters, model: nn.Module | None
) -> dict[str, Tensor]:
    """Return the model's own tensors for the parameters of H, by name.

    The optimizer should hold these.
    """
    module = of.module if model is None else model
    if module is None:
        raise ValueError(
            f"{type(H).__name__}: was made of an objective without a module, so it does not know "
            "the tensors that the optimizer trains. Pass the model: preconditioned(H, optimizer, "
            "model)."
        )
    own = dict(module.named_parameters())
    missing = next((name for name in of.params if name not in own), None)
    if missing is not None:
        raise ValueError(
            f"{type(module).__name__}: has no parameter {missing!r}, which the operator has, so it "
            "is another model. Pass the model that the operator was made of, or a copy of it with "
            "the same names."
        )
    return {name: own[name] for name in of.params}


def _check_unmoved(H: SymmetricOperator, of: _OfParameters, named: Mapping[str, Tensor]) -> None:
    """Refuse an operator whose parameters are no longer those of the model."""
    for name, tensor in named.items():
        piece, copied = _piece(H, name)(tensor.detach()), of.params[name]
        if piece.numel() != copied.numel() or not torch.equal(
            piece.reshape(-1).to(copied), copied.reshape(-1)
        ):
            raise ValueError(
                f"{name}: has changed since the operator was made, so the optimizer's state "
                "belongs to other parameters. Make the operator after the last step of the "
                "optimizer, and preconditioned(...) before its next."
            )


def _piece(H: SymmetricOperator, name: str) -> Piece:
    """Return the function that takes this process's part of a tensor.

    The tensor has the shape of the parameter `name`.
    """
    piece_of = getattr(H, "piece_of", None)
    return (lambda tensor: tensor) if piece_of is None else (lambda tensor: piece_of(name, tensor))


def _added_decay(of: _OfParameters, state: OptimizerState) -> dict[str, float]:
    """Return the coefficient of the L2 term that H lacks, by parameter."""
    own = {name: state.l2_coefficient(state.parameters[name].group) for name in of.params}
    if not of.weight_decay:
        return own
    other = next((name for name, decay in own.items() if decay not in (0, of.weight_decay)), None)
    if other is not None or len(set(own.values())) > 1:
        decays = ", ".join(f"{decay:g}" for decay in sorted(set(own.values())))
        raise ValueError(
            f"weight_decay: the operator has {of.weight_decay:g}, the optimizer {decays}, so which "
            "loss is minimised is open. Build the operator with weight_decay=0; what the optimizer "
            "adds to the gradient is then added here."
        )
    # torch negates the gradient where it maximises, and adds the decay afterwards: -H has the decay
    # of H with the wrong sign.
    return dict.fromkeys(own, 2 * of.weight_decay if state.maximizes else 0.0)


def _scales(
    H: SymmetricOperator, of: _OfParameters, state: OptimizerState, decay: Mapping[str, float]
) -> Float[Tensor, " l"]:
    """Compute the diagonal of P^-1/2.

    It is zero where the loss has no curvature, as P need not be known there.
    """
    reached = torch.ones(H.num_local, dtype=torch.bool, device=H.device)
    if (support := H.support_runs) is not None:
        reached = support.expand(
            torch.ones(len(support), dtype=torch.bool, device=H.device), H.num_local
        )
    waiting, pieces = [], []
    for name, mask in unflatten(reached, of.params).items():
        group = state.parameters[name].group
        if _is_matrix(state, name):
            # Its factor mixes the entries, so all count where the loss reaches any.
            waiting += [name] if bool(mask.any()) and not state.parameters[name].entries else []
            pieces.append(
                mask.any().expand(mask.numel()).to(H.dtype) * state.relative_rate(group) ** 0.5
            )
            continue
        P = preconditioner(state, name, _piece(H, name))
        # An L2 term has curvature in every entry, also where the loss has none.
        counts = mask if not decay[name] else torch.ones_like(mask)
        if P is None:
            waiting += [name] if bool(counts.any()) else []
            pieces.append(torch.zeros(mask.numel(), dtype=H.dtype, device=H.device))
            continue
        P = P.to(H.device).reshape(-1).expand(mask.numel())
        counts = counts.reshape(-1)
        _check_positive(state, name, P, counts)
        rate = state.relative_rate(group)
        # A group with a fraction r of the largest rate has P / r, so P^-1/2 is sqrt(r / P).
        pieces.append(torch.where(counts, (rate / P).sqrt(), 0.0).to(H.dtype))
    if waiting:
        raise ValueError(_no_step(state, waiting, len(of.params)))
    _check_moments(H, of, state)
    return torch.cat(pieces)


def _check_moments(H: SymmetricOperator, of: _OfParameters, state: OptimizerState) -> None:
    """Refuse a state that no gradient has entered; collective where the model is cut.

    Raises:
        ValueError: If the mean squares of all gradients are 0.
    """
    # One at a time, since each is a copy in float64.
    known = (second_moments(state, name, _piece(H, name)) for name in of.params)
    moved = [bool(each.any()) for each in known if each is not None]
    if moved and not H.space.any(any(moved)):
        raise ValueError(
            f"{state.where}: counts steps, but the mean squares of all gradients are 0, so P would "
            "be eps alone and the values meaningless. Reading a state before training "
            "(torch.distributed.checkpoint's get_optimizer_state_dict) makes such a step; take the "
            "state from after a step of the training."
        )


def _is_matrix(state: OptimizerState, name: str) -> bool:
    """Tell whether P of a parameter is a matrix."""
    return state.kind_of(state.parameters[name].group) == "Muon"


def _factors(
    H: SymmetricOperator, of: _OfParameters, state: OptimizerState, scales: Float[Tensor, " l"]
) -> tuple[MatrixFactor, ...]:
    """Compute P^-1/2 of the matrices of Muon that the loss reaches and that move."""
    names = [name for name in of.params if _is_matrix(state, name)]
    if names:
        refuse_cut(H, "preconditioned, with Muon")
    factors, start = [], 0
    for name, tensor in of.params.items():
        stop = start + tensor.numel()
        if name in names and bool(scales[start:stop].any()):
            root = inverse_root(state, name)
            assert root is not None, "a parameter without a state was refused before"
            shape = state.parameters[name].shape
            factor = root.to(H.device, H.dtype)
            factors.append(MatrixFactor(start, (shape[0], shape[1]), factor, is_right(shape)))
        start = stop
    return tuple(factors)


def _check_positive(
    state: OptimizerState, name: str, P: Float[Tensor, " p"], counts: Tensor
) -> None:
    zeros = int(((P <= 0) & counts).sum())
    if zeros:
        raise ValueError(
            f"{state.where}: its preconditioner of {name!r} is 0 at {zeros} of {P.numel()} "
            "entries, whose gradient was always 0 and whose eps is 0, so P^-1/2 does not exist. "
            "Use an eps above 0, or measure other parameters."
        )


def _no_step(state: OptimizerState, waiting: list[str], count: int) -> str:
    if not any(kept.entries for kept in state.parameters.values()):
        return (
            f"{state.where}: has made no step yet, so its moments are not there and P is not "
            "known. Call optimizer.step() once, or load its state, before preconditioned(...)."
        )
    return (
        f"{state.where}: has made no step for {len(waiting)} of {count} parameters that the loss "
        f"depends on, such as {waiting[0]!r}, so P is not known there. Measure the loss that it "
        "minimises, or leave these out: landscape.hessian(..., parameters=[...])."
    )


def _by_parameter(
    H: SymmetricOperator, of: _OfParameters, numbers: Mapping[str, float]
) -> Float[Tensor, " l"]:
    """Build a vector from one number for each parameter."""
    pieces = [
        torch.full((tensor.numel(),), numbers[name], dtype=H.dtype)
        for name, tensor in of.params.items()
    ]
    return torch.cat(pieces).to(H.device)
