"""The optimizer's state in a checkpoint, by parameter name."""

from collections.abc import Iterable
from pathlib import Path

from torch import nn

from landscape.clip.checkpoint_state import contents_of, read_with_digest
from landscape.clip.stored_tensors import StoredTensors
from landscape.containers.names import without_wrappers
from landscape.errors import CheckpointError
from landscape.stability import OptimizerState
from landscape.stability.stored_state import adam_state_of


def read_adam_state(
    path: Path, model: nn.Module, *, expected_sha256: str | None = None
) -> OptimizerState:
    """Read the state of Adam or AdamW in a checkpoint.

    The checkpoint is of open_clip_train or of this project's trainer.

    Args:
        path: The checkpoint.
        model: The model that was trained, all of its parameters free.
        expected_sha256: Expected digest of the file; None if not stated.

    Raises:
        CheckpointError: If the file cannot be read, holds no such state, or one whose numbers
            cannot be matched with the parameters of the model: by the order of the weights in the
            file, the sizes of the groups and the shapes.
    """
    file = read_with_digest(path, expected_sha256)[1]
    contents = contents_of(path, file, "online")
    if not isinstance(file.stored, dict) or "optimizer" not in file.stored:
        raise CheckpointError(
            f"{path}: holds weights without the state of the optimizer, so its preconditioner is "
            "not known. Take a checkpoint that training could go on from, or say `preconditioner: "
            "none`."
        )
    named = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    _check_order(path, named, without_wrappers(path, contents.copies["online"]))
    try:
        return adam_state_of(
            StoredTensors().tree(file.stored["optimizer"]), named, where=f"{path}: optimizer"
        )
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def _check_order(path: Path, named: Iterable[str], stored: Iterable[str]) -> None:
    """Refuse weights that were renamed or reordered after training.

    The numbers in the optimizer's state follow the order of the model that was trained.
    """
    own = list(named)
    wanted = set(own)
    if [name for name in stored if name in wanted] != own:
        raise CheckpointError(
            f"{path}: its weights have other names, or stand in another order, than those of the "
            "model, and the numbers of the optimizer follow that order, so which is which is open. "
            "Say `preconditioner: none`."
        )
