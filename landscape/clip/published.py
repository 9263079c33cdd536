"""Published CLIP-Mamba checkpoints as state dicts of open_clip models.

Their trainer kept a second copy of most weights, an exponential moving average ("EMA twin"), under
the same name with `_e` after its first component: `visual.norm1.weight` and
`visual_e.norm1.weight`. The names become

    published                       open_clip, with a timm tower and timm_proj "linear"
    visual.*                        visual.trunk.*
    image_projection (c, e)         visual.head.proj.weight (e, c), transposed
    transformer.*, token_embedding.weight, positional_embedding, ln_final.*, text_projection,
    logit_scale                     the same

The ViT checkpoints of SLIP (Mu et al. 2021, arXiv 2112.12750), which are in the paper's tables,
have the same layout without the twins.

Shapes: c = width of the image tower, e = width of the joint space.
"""

import warnings
from collections.abc import Mapping

from torch import Tensor

from landscape.errors import CheckpointError

# The trainer averages parameters, not buffers, and the twin never runs in train mode.
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_WITHOUT_TWIN = "logit_scale"


def is_published(state_dict: Mapping[str, Tensor]) -> bool:
    """Tell whether the names are those of a published checkpoint.

    DistributedDataParallel's prefix may be there or not.
    """
    return "image_projection" in _without_module(state_dict)


def published_state_dict(
    state_dict: Mapping[str, Tensor], *, weights: str = "online"
) -> dict[str, Tensor]:
    """Rename a published checkpoint's entries to those of our open_clip model.

    Args:
        state_dict: The file's "state_dict" as stored, `module.` prefixes included or not; not
            changed.
        weights: "online", the weights that were trained, or "ema", their moving averages. The
            temperature has no average: it is the online one in both cases. Simba's batch-norm
            statistics have none either: in the EMA twin they are still those of the initialisation.
            "ema" takes the online ones and warns.

    Raises:
        ValueError: If `weights` is neither of the two.
        CheckpointError: If the layout is not the published one, or "ema" is asked for and an
            average is missing.
    """
    if weights not in ("online", "ema"):
        raise ValueError(f"weights must be 'online' or 'ema', got {weights!r}.")
    entries = _without_module(state_dict)
    if "image_projection" not in entries:
        first_parts = ", ".join(sorted({name.split(".")[0] for name in entries})) or "nothing"
        raise CheckpointError(
            f"published state dict - expected an entry 'image_projection', got {first_parts} - "
            "only the layout of the "
            "CLIP-Mamba and SLIP checkpoints can be renamed - pass the 'state_dict' of such a file."
        )
    online = {name: value for name, value in entries.items() if not _is_twin(name)}
    chosen = online if weights == "online" else {name: _average(entries, name) for name in online}
    if weights == "ema" and any(name.endswith(_STATISTICS) for name in chosen):
        warnings.warn(
            "The EMA twin's batch-norm statistics were never updated in training; the online ones "
            "are loaded with the averaged weights.",
            stacklevel=2,
        )
    return dict(_rename(name, value) for name, value in chosen.items())


def _without_module(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("module.", ""): value for name, value in state_dict.items()}


def _is_twin(name: str) -> bool:
    return name.split(".")[0].endswith("_e")


def _average(entries: Mapping[str, Tensor], name: str) -> Tensor:
    if name == _WITHOUT_TWIN or name.endswith(_STATISTICS):
        return entries[name]
    first, dot, rest = name.partition(".")
    twin = f"{first}_e{dot}{rest}"
    if twin not in entries:
        raise CheckpointError(
            f"published state dict - weights='ema' needs {twin!r}, which is not there - this "
            "checkpoint has no moving average of it - use weights='online'."
        )
    return entries[twin]


def _rename(name: str, value: Tensor) -> tuple[str, Tensor]:
    if name == "image_projection":
        return "visual.head.proj.weight", value.T.contiguous()
    if name.startswith("visual."):
        return f"visual.trunk.{name.removeprefix('visual.')}", value
    return name, value
