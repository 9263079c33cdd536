"""Repeated curvature measurements of a model in training.

Each starts from results of the last: its eigenvectors, its choice of HVP strategy, its check of
HVPs.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from landscape.curvature.audits.spot_check_result import EarlierCheck
from landscape.curvature.hvp.choice import HvpChoice
from landscape.curvature.objective import Batch, Objective, Params, select_parameters
from landscape.curvature.operators.hessian import HessianOperator
from landscape.errors import ObjectiveError, first_line
from landscape.linalg.lanczos import Which, eigsh
from landscape.linalg.operator import SymmetricOperator, seeded
from landscape.monitor.along_update import along_update
from landscape.monitor.measurement import Spectrum, Threshold, UpdateSharpness
from landscape.monitor.optimizers import has_units, is_adaptive, preconditioned, threshold_of
from landscape.monitor.untouched import untouched, unwrapped

# Length of the random vector that is added to the last eigenvectors, whose sum has length 1. The
# search for missed eigenvalues takes most products, and needs a random start. With a shorter random
# vector, rounding in float32 keeps the search from excluding enough. With this one, the component
# along the last eigenvectors is still many times that of a random vector.
_NOISE = 30.0
# Measurements from one check of the HVPs against differences of gradients to the next. A check
# costs about two gradients.
_CHECK_EVERY = 10


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The results of one measurement; attributes as in `Measurement`."""

    loss: float
    hessian: Spectrum
    preconditioned: Spectrum | None
    threshold: Threshold | None
    along_update: UpdateSharpness | None
    failure: str


class Meter:
    """A meter of the curvature of one batch's loss.

    It measures at the current weights of a model. Arguments and errors: see `SharpnessMonitor`.

    Attributes:
        model: The model without wrappers.
        has_measured: Whether a measurement was completed.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Batch], Tensor] | Objective,
        batch: Batch,
        *,
        k: int,
        which: Which,
        tol: float,
        parameters: str | Sequence[str],
        weight_decay: float,
        optimizer: torch.optim.Optimizer | None,
        update_sharpness: bool,
        eval_mode: bool,
        hvp: str,
        max_memory: int | None,
        max_matvecs: int | None,
        seed: int,
    ) -> None:
        self.model = unwrapped(model)
        self.has_measured = False
        self._objective = _objective_of(self.model, loss, weight_decay)
        self._batch, self._parameters, self._optimizer, self._eval_mode = (
            batch,
            parameters,
            optimizer,
            eval_mode,
        )
        self._which, self._tol, self._k, self._max_matvecs = which, tol, k, max_matvecs
        self._hvp, self._max_memory = hvp, max_memory
        self._update_sharpness = update_sharpness
        params = select_parameters(self.model, parameters)
        self._names = tuple(params)
        self._num_params = sum(tensor.numel() for tensor in params.values())
        if not 1 <= k <= self._num_params:
            raise ValueError(
                f"k must be between 1 and the number of parameters {self._num_params:,}, got {k}."
            )
        if which not in ("LM", "LA", "SA"):
            raise ValueError(f"which must be 'LM', 'LA' or 'SA', got {which!r}.")
        if not 0 < tol < 1:
            raise ValueError(f"tol must be a relative residual between 0 and 1, got {tol}.")
        if optimizer is None and update_sharpness:
            raise ValueError(
                "update_sharpness: is measured along the step of an optimizer, and there is none. "
                "Give optimizer=... too."
            )
        if optimizer is not None:
            _check_optimizer(optimizer, self.model, tuple(params))
            # An optimizer without a known threshold is refused now.
            threshold_of(optimizer, self._objective.weight_decay)
        # All measurements draw from one generator, so that no draw was used by an earlier one: the
        # statement about missed eigenvalues requires that.
        self._generator = seeded(seed)
        self._count = 0
        self._choice: HvpChoice | None = None
        self._check: EarlierCheck | None = None
        self._starts: dict[str, Tensor] = {}

    def settings(self) -> dict[str, Any]:
        """Return what is measured, as JSON values.

        It is the same for all measurements of one record.
        """
        # Named only where it is measured, so that records of before can be continued.
        added = {"update_sharpness": True} if self._update_sharpness else {}
        return added | {
            "k": self._k,
            "which": self._which,
            "tol": self._tol,
            "parameters": self._parameters
            if isinstance(self._parameters, str)
            else list(self._parameters),
            "num_params": self._num_params,
            "weight_decay": self._objective.weight_decay,
            "eval_mode": self._eval_mode,
            "optimizer": None if self._optimizer is None else type(self._optimizer).__name__,
            "batch_sha256": digest_of(self._batch),
        }

    def measure(self) -> Reading:
        """Measure now.

        After the first measurement, what fails along the update is a `failure` beside the spectra.

        Raises:
            ObjectiveError, NumericalError, MemoryLimitError: If the loss has no Hessian that could
                be trusted or computed here.
        """
        with untouched(self.model, eval_mode=self._eval_mode):
            H = HessianOperator(
                self._objective,
                self._selected(),
                self._batch,
                hvp=self._choice or self._hvp,
                max_memory=self._max_memory,
                check=True
                if self._check is None or self._count % _CHECK_EVERY == 0
                else self._check,
            )
            hessian = self._solve(H, "hessian")
            self._choice, self._check = H.choice, H.check_made
            self._count += 1
            scaled, threshold = None, None
            if self._optimizer is not None:
                decay = self._objective.weight_decay
                threshold = threshold_of(self._optimizer, decay)
                if is_adaptive(self._optimizer, decay) and has_units(self._optimizer):
                    scaled = self._solve(preconditioned(H, self._optimizer), "preconditioned")
            along, failure = self._along_update(H)
            self.has_measured = True
            return Reading(
                loss=H.loss,
                hessian=hessian,
                preconditioned=scaled,
                threshold=threshold,
                along_update=along,
                failure=failure,
            )

    def _selected(self) -> Params:
        """Select the parameters again, and refuse others than at first.

        Raises:
            ObjectiveError: If some were frozen or released since.
        """
        params = select_parameters(self.model, self._parameters)
        changed = sorted({*params} ^ {*self._names})
        if changed:
            raise ObjectiveError(
                f"{changed[0]}: was {'released' if changed[0] in params else 'frozen'} since the "
                f"monitor was made, as {len(changed)} of the parameters were, so the matrix is "
                "another one and its eigenvalues do not go on from those before. Make a new "
                "monitor, with a record of its own."
            )
        return params

    def _along_update(self, H: HessianOperator) -> tuple[UpdateSharpness | None, str]:
        """Measure along the update; also return why that failed, or ""."""
        if self._optimizer is None or not self._update_sharpness:
            return None, ""
        try:
            return along_update(H, self._objective, self._batch, self._optimizer, self.model), ""
        except Exception as error:
            # The loss and the optimizer are the user's and may raise anything.
            if not self.has_measured:
                raise
            return None, f"along the update: {first_line(error)}"

    def _solve(self, operator: SymmetricOperator, name: str) -> Spectrum:
        start = self._starts.get(name)
        eigenpairs = eigsh(
            operator,
            self._k,
            self._which,
            tol=self._tol,
            max_matvecs=self._max_matvecs,
            generator=self._generator,
            start=start if start is not None and len(start) == operator.n else None,
            noise=_NOISE,
        )
        assert eigenpairs.vectors is not None
        self._starts[name] = eigenpairs.vectors
        return Spectrum.of(eigenpairs)


def _objective_of(model: nn.Module, loss: Any, weight_decay: float) -> Objective:
    if not isinstance(loss, Objective):
        return Objective.from_closure(model, loss, weight_decay=weight_decay)
    if weight_decay:
        raise ValueError(
            "weight_decay: is part of an Objective, so give it to that: Objective(..., "
            "weight_decay=...)."
        )
    if loss.module is not None and unwrapped(loss.module) is not model:
        raise ValueError(
            "loss: is an Objective of another model than the one that is to be measured. Give its "
            "own model."
        )
    return loss


def _check_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, measured: Sequence[str]
) -> None:
    """Refuse an optimizer that does not train all measured parameters.

    Raises:
        ObjectiveError: If it does not, or is no optimizer.
    """
    if not hasattr(optimizer, "param_groups"):
        raise ObjectiveError(
            f"optimizer: must be one torch.optim.Optimizer, got {type(optimizer).__name__}. Pass "
            "the one that trains the model; where several share it, as Muon and AdamW, a monitor "
            "for each, with parameters=... that it trains."
        )
    moved = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
    own = dict(model.named_parameters())
    kind = type(optimizer).__name__
    if not any(id(tensor) in moved for tensor in own.values()):
        raise ObjectiveError(
            f"optimizer ({kind}): holds no parameter of this {type(model).__name__}, so its "
            "threshold says nothing of it. Pass the optimizer that trains this model."
        )
    for name in measured:
        if id(own[name]) not in moved:
            raise ObjectiveError(
                f"optimizer ({kind}): does not hold {name}, which is measured, so its threshold is "
                "not of that matrix. Select with parameters=... what it trains, or freeze the rest."
            )


def digest_of(batch: Batch) -> str:
    """Compute the SHA-256 of the tensors and the nesting of a batch.

    Of other leaves, plain values count, and else only their types.
    """
    leaves, spec = tree_flatten(batch)
    digest = hashlib.sha256(str(spec).encode())
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            plain = (
                repr(leaf)
                if isinstance(leaf, bool | int | float | str | None)
                else type(leaf).__name__
            )
            digest.update(plain.encode())
            continue
        digest.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
        if leaf.layout == torch.strided and not leaf.is_quantized:
            numbers = leaf.detach().resolve_conj().resolve_neg().reshape(-1).contiguous().cpu()
            digest.update(numbers.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
