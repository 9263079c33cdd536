"""The optimizer of a checkpoint, whose preconditioner is measured with the Hessian."""

import math
from typing import TYPE_CHECKING, Any

from landscape import clip, stability
from landscape.errors import CheckpointError
from landscape.manifest import Checkpoint

if TYPE_CHECKING:
    from landscape.clip.loaded_series import LoadedSeries
    from landscape.linalg import SymmetricOperator


def refuse_averaged(loaded: "LoadedSeries", checkpoint: Checkpoint) -> None:
    """Refuse averaged weights, to which no state of an optimizer belongs.

    Raises:
        CheckpointError: If these are measured.
    """
    if loaded.trained.get("weights", "online") == "ema":
        raise CheckpointError(
            f"{checkpoint.path}: its averaged weights are measured, but the state of the optimizer "
            "is that of the trained ones. Say `weights: online` for the series, or "
            "`preconditioner: none`."
        )


def optimizer_of(loaded: "LoadedSeries", checkpoint: Checkpoint) -> "stability.OptimizerState":
    """Read the state of Adam or AdamW in a checkpoint.

    Raises:
        CheckpointError: If it holds none that is known to belong to the measured weights.
    """
    refuse_averaged(loaded, checkpoint)
    return clip.read_adam_state(checkpoint.path, loaded.model, expected_sha256=checkpoint.sha256)


def check_optimizer(
    loaded: "LoadedSeries", operator: "SymmetricOperator", checkpoint: Checkpoint
) -> None:
    """Refuse a checkpoint whose optimizer gives no preconditioner of a Hessian.

    Args:
        operator: The Hessian of a batch at any checkpoint of the series.

    Raises:
        CheckpointError: As in `optimizer_of`; or if its state of a parameter that the loss depends
            on is missing or not finite.
    """
    state = optimizer_of(loaded, checkpoint)
    try:
        stability.PreconditionedHessian(operator, state)
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def preconditioner_facts(state: "stability.OptimizerState") -> dict[str, Any]:
    """Return the stored facts on the preconditioner, as JSON values.

    They include the threshold with which eigenvalues are compared.
    """
    facts: dict[str, Any] = {"optimizer": state.kind, "learning_rate": state.learning_rate}
    try:
        threshold = stability.threshold_of(state)
    except ValueError as error:
        return {"preconditioner": facts | {"no_threshold": str(error)}}
    # A learning rate of 0 has an infinite threshold, and JSON has no infinity.
    value = threshold.value if math.isfinite(threshold.value) else None
    return {
        "preconditioner": facts
        | {"threshold": value, "formula": threshold.formula, "source": threshold.source}
    }
