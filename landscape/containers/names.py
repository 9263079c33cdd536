"""Names of tensors without the prefixes of a model's wrappers."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from landscape.errors import CheckpointError

Value = TypeVar("Value")


def without_wrappers(path: Path, state: Mapping[str, Value]) -> dict[str, Value]:
    """Remove the prefixes of DistributedDataParallel (module.) and torch.compile (_orig_mod.).

    Raises:
        CheckpointError: If two names become one.
    """
    plain = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
    while plain and all(key.startswith("module.") for key in plain):
        plain = {key.removeprefix("module."): value for key, value in plain.items()}
    if len(plain) < len(state):
        raise CheckpointError(
            f"{path}: holds some tensors twice, with and without '_orig_mod.' in their names. Save "
            "the state_dict of one model."
        )
    return plain
