"""The reasons why a checkpoint does not fit a model, and the remedies."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

_NUM_SHOWN = 3
# Tensors that the architecture alone determines, or that eval mode does not read. Some releases of
# libraries store them.
_CONSTANTS = re.compile(
    r"(.*\.)?(position_ids|num_batches_tracked|attn_mask|token_type_ids|relative_position_index"
    r"|relative_coords_table|inv_freq)"
)
_LOSS_WEIGHTS = re.compile(
    r"(.*\.)?(\w*(loss|criterion|entropy|objective)\w*|b?ce)\.(pos_)?weight", re.IGNORECASE
)
# Part of a name -> the technique that stores a weight in parts, and the function of torch.nn.utils
# that merges the parts.
_PARTS = {
    "parametrizations.": (
        "a parametrization, such as a norm",
        "parametrize.remove_parametrizations(module, 'weight')",
    ),
    "weight_mask": ("a pruned weight", "prune.remove(module, 'weight')"),
    "weight_g": ("a weight norm", "remove_weight_norm(module)"),
    "weight_orig": ("a spectral norm", "remove_spectral_norm(module)"),
}
_BLOCK = re.compile(r"(.*?(?:resblocks|blocks|layers|layer\d*|stages|h))\.(\d+)\.")


@dataclass(frozen=True)
class _Misfit:
    """Stored and expected shapes by name."""

    stored: dict[str, tuple[int, ...]]
    expected: dict[str, tuple[int, ...]]

    @property
    def missing(self) -> list[str]:
        """List names of the model that the file lacks."""
        return [name for name in self.expected if name not in self.stored]

    @property
    def surplus(self) -> list[str]:
        """List names of the file that the model lacks."""
        return [name for name in self.stored if name not in self.expected]

    @property
    def reshaped(self) -> list[str]:
        """List names in both whose shapes differ."""
        return [
            name for name, shape in self.stored.items() if self.expected.get(name, shape) != shape
        ]


def is_constant(name: str) -> bool:
    """Tell whether the architecture determines a tensor of this name."""
    return _CONSTANTS.fullmatch(name) is not None


def explain_misfit(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Explain why a checkpoint does not fit a model.

    The text lists the tensors and gives the first rule that explains all differences.
    """
    misfit = _Misfit(
        {name: tuple(tensor.shape) for name, tensor in state.items()},
        {name: tuple(tensor.shape) for name, tensor in expected.items()},
    )
    # First the rule for files that do not fit even without their prefix.
    rules = (
        _adapter,
        _prefix,
        _custom_text,
        _logit_bias,
        _classes,
        _picture,
        _context,
        _patch,
        _depth,
        _width,
    )
    reason = next(
        (said for rule in rules if (said := rule(misfit))),
        "Name the model that wrote this checkpoint.",
    )
    return (
        f"does not fit the model: {_faults(misfit)}. Nothing is loaded in part, and no position "
        f"embedding is resized. {reason}"
    )


def _faults(misfit: _Misfit) -> str:
    shapes = [
        f"{name!r} expected {misfit.expected[name]}, got {misfit.stored[name]}"
        for name in misfit.reshaped
    ]
    total = len(misfit.expected)
    faults = [
        f"{len(names)} {what} "
        f"({_shown(names if what.endswith('shape') else map(repr, names))}){_grouped(names, what)}"
        for names, what in (
            (shapes, f"of {total} tensors of another shape"),
            (misfit.missing, f"of {total} tensors missing"),
            (misfit.surplus, "tensors that the model does not have"),
        )
        if names
    ]
    return "; ".join(faults)


def _grouped(names: list[str], what: str) -> str:
    """Count the names by their first component; empty for a few names."""
    if len(names) <= _NUM_SHOWN or what.endswith("shape"):
        return ""
    counts = Counter(name.partition(".")[0] for name in names).most_common(_NUM_SHOWN)
    counted = [
        f"{count} of {len(names)} begin with {f'{first}.'!r}"
        for first, count in counts
        if count > 1
    ]
    return f": {', '.join(counted)}" if counted else ""


def _prefix(misfit: _Misfit) -> str | None:
    """Explain a prefix before every name, where other tensors stand beside them."""
    if any(name in misfit.stored for name in misfit.expected):
        return None
    wanted = {name: shape for name, shape in misfit.expected.items() if not is_constant(name)}
    first = min(wanted, key=len, default="")
    prefixes = sorted(
        {name.removesuffix(first) for name in misfit.stored if name.endswith(f".{first}")}
    )
    whole = [
        prefix
        for prefix in prefixes
        if all(misfit.stored.get(f"{prefix}{name}") == wanted[name] for name in wanted)
    ]
    if len(whole) > 1:
        return (
            f"The names under {' and under '.join(map(repr, whole))} hold this model each, and "
            "nothing says which of them is meant. Save the tensors under the right one alone, that "
            "prefix removed."
        )
    if whole:
        return _beside(misfit, whole[0])
    if not prefixes:
        return None
    counts = {prefix: sum(name.startswith(prefix) for name in misfit.stored) for prefix in prefixes}
    prefix = max(prefixes, key=counts.__getitem__)
    return (
        f"{counts[prefix]} of {len(misfit.stored)} names begin with {prefix!r}, as Lightning "
        "writes the attribute that holds the model, and do not fit without it either. Name the "
        "model that this attribute holds."
    )


def _beside(misfit: _Misfit, prefix: str) -> str:
    """Explain the tensors beside the only prefix that holds the model.

    They are most likely the class weights of a loss.
    """
    inside = [name for name in misfit.stored if name.startswith(prefix)]
    others = [name for name in misfit.stored if not name.startswith(prefix)]
    weighted = [
        name for name in others if _LOSS_WEIGHTS.fullmatch(name) and len(misfit.stored[name]) == 1
    ]
    if weighted:
        why = (
            f"{'it says' if len(others) == 1 else f'{weighted[0]!r} says'} that the run's loss "
            "weighs the classes, and landscape's losses do not. To measure the unweighted loss of "
            "the same weights, save"
        )
    else:
        why = "this may change the loss. If it does not, save"
    return (
        f"{len(inside)} of {len(misfit.stored)} names begin with {prefix!r} and hold this model; "
        f"beside them {'stands' if len(others) == 1 else 'stand'} {_shown(map(repr, others))}: "
        f"{why} the tensors under {prefix!r} alone, that prefix removed."
    )


def _adapter(misfit: _Misfit) -> str | None:
    if any(".lora_" in name for name in misfit.surplus):
        return (
            "These are LoRA adapters. Merge them first, with peft's model.merge_and_unload(), and "
            "save its state_dict()."
        )
    parts = next((parts for parts in _PARTS if any(parts in name for name in misfit.surplus)), None)
    if parts is None:
        return None
    what, remove = _PARTS[parts]
    return (
        f"The weights are stored in the parts of {what}. Remove it from each such module, with "
        f"torch.nn.utils.{remove}, then save the state_dict()."
    )


def _custom_text(misfit: _Misfit) -> str | None:
    """Explain a text tower whose names begin with "text.".

    open_clip keeps the text tower there or at the top.
    """
    if misfit.missing and {f"text.{name}" for name in misfit.missing} == set(misfit.surplus):
        return (
            "The names of its text tower begin with 'text.': "
            "say model_args: {force_custom_text: true}."
        )
    return None


def _logit_bias(misfit: _Misfit) -> str | None:
    if misfit.surplus == ["logit_bias"] and not misfit.missing:
        return "Only the sigmoid loss has a 'logit_bias': say loss: siglip."
    if misfit.missing == ["logit_bias"] and not misfit.surplus:
        return (
            "Only the sigmoid loss has a 'logit_bias', so this run had another: do not say loss: "
            "siglip."
        )
    return None


def _classes(misfit: _Misfit) -> str | None:
    """Explain another number of rows in the last layer, and nothing else."""
    names = misfit.reshaped
    if (
        not names
        or misfit.missing
        or misfit.surplus
        or len({name.rpartition(".")[0] for name in names}) > 2
    ):
        return None
    pairs = {(misfit.stored[name][:1], misfit.expected[name][:1]) for name in names}
    same_rest = all(misfit.stored[name][1:] == misfit.expected[name][1:] for name in names)
    last = list(misfit.expected)[-1].rpartition(".")[0]
    is_head = any(
        name.rpartition(".")[0] == last or re.search(r"(^|\.)(head|fc|classifier)\b", name)
        for name in names
    )
    if len(pairs) != 1 or not same_rest or not is_head or any("embed" in name for name in names):
        return None
    [(stored, expected)] = pairs
    return (
        f"The checkpoint has {stored[0]} classes, the model {expected[0]}: say num_classes: "
        f"{stored[0]}."
        if stored
        else None
    )


def _patches(shapes: dict[str, tuple[int, ...]]) -> tuple[str, int] | None:
    """Find the patch embedding of an image tower and its patch size."""
    for name, shape in shapes.items():
        if (
            len(shape) == 4
            and shape[2] == shape[3]
            and re.search(r"(visual\.conv1|patch_embed\.proj)\.weight$", name)
        ):
            return name, shape[2]
    return None


def _picture(misfit: _Misfit) -> str | None:
    """Explain a position embedding of another grid.

    It means another picture size at the same patch size.
    """
    patches = _patches(misfit.stored)
    if patches is None or misfit.missing or misfit.surplus or len(misfit.reshaped) != 1:
        return None
    [name] = misfit.reshaped
    if not re.search(r"(visual\.positional_embedding|pos_embed)$", name):
        return None
    tokens, wanted = misfit.stored[name][-2], misfit.expected[name][-2]
    # The number of tokens beside the grid (a class token, or none) is the same in both.
    for extra in range(6):
        grid, grid_wanted = math.isqrt(max(tokens - extra, 0)), math.isqrt(max(wanted - extra, 0))
        if grid * grid == tokens - extra and grid_wanted * grid_wanted == wanted - extra and grid:
            side = grid * patches[1]
            key = "force_image_size" if name.startswith("visual.") else "img_size"
            return (
                f"Its position embedding is that of {side} x {side} pixels at patch {patches[1]}: "
                f"say model_args: {{{key}: {side}}}."
            )
    return None


def _context(misfit: _Misfit) -> str | None:
    names = misfit.reshaped
    texts = ("positional_embedding", "text.positional_embedding")
    if misfit.missing or misfit.surplus or len(names) != 1 or names[0] not in texts:
        return None
    length = misfit.stored[names[0]][0]
    if misfit.stored[names[0]][1:] != misfit.expected[names[0]][1:]:
        return None
    return f"Its texts have {length} tokens: say model_args: {{force_context_length: {length}}}."


def _patch(misfit: _Misfit) -> str | None:
    stored, expected = _patches(misfit.stored), _patches(misfit.expected)
    if stored is None or expected is None or stored[1] == expected[1]:
        return None
    return (
        f"Its patches are {stored[1]} pixels wide, the model's {expected[1]}: name the model with "
        f"these patches, or give {_given(misfit)}."
    )


def _depths(shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """Count the blocks under each name that numbers them."""
    depths: dict[str, int] = {}
    for name in shapes:
        for match in re.finditer(_BLOCK, name):
            depths[match[1]] = max(depths.get(match[1], 0), int(match[2]) + 1)
    return depths


def _depth(misfit: _Misfit) -> str | None:
    stored, expected = _depths(misfit.stored), _depths(misfit.expected)
    other = {
        key: (stored[key], expected[key])
        for key in stored
        if key in expected and stored[key] != expected[key]
    }
    inside = all(
        any(name.startswith(f"{key}.") for key in other)
        for name in (*misfit.missing, *misfit.surplus)
    )
    if not other or not inside:
        return None
    said = ", ".join(
        f"{count} blocks under {key!r} (the model {wanted})"
        for key, (count, wanted) in other.items()
    )
    return f"The checkpoint has {said}: name the model of that depth, or give {_given(misfit)}."


def _width(misfit: _Misfit) -> str | None:
    if misfit.missing or misfit.surplus or not misfit.reshaped:
        return None
    return (
        f"All names fit, {len(misfit.reshaped)} shapes do not: the same kind of model in another "
        f"size. Name the model of that size, or give {_given(misfit)}."
    )


def _given(misfit: _Misfit) -> str:
    """Return the manifest key that describes a model without a known name."""
    is_clip = any(name.startswith("visual.") for name in misfit.expected)
    return "its configuration with config:" if is_clip else "its arguments with model_args:"


def _shown(items: Iterable[str]) -> str:
    shown = list(items)
    return ", ".join(shown[:_NUM_SHOWN]) + (", ..." if len(shown) > _NUM_SHOWN else "")
