"""The series of a run's manifest: model, facts about the run, checkpoints."""

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from landscape.errors import ManifestError
from landscape.manifest.document import FILL_IN
from landscape.manifest.init.data import RunData, written_path
from landscape.manifest.init.epochs import Listing
from landscape.manifest.init.folders import Run
from landscape.manifest.init.lines import Line, missing, remark, scalar, setting
from landscape.manifest.run_files import RunFile, inside_checkpoint, run_files
from landscape.manifest.setting_error import shown
from landscape.manifest.settings import NAME, OPENMOJI
from landscape.manifest.trained import Disagreement, TrainedAs, joined

_NUM_NAMES = 4
_NUM_HINTS = 8
_MODEL_WORDS = ("model", "arch", "backbone", "encoder", "net", "variant")
_VERSION = re.compile(r"version_\d+")
# Arguments of a model that `landscape train` does not take, but can leave out since they have no
# tensors.
_NO_TENSORS = {"force_quick_gelu"}


@dataclass(frozen=True)
class RunFacts:
    """All known facts about a run.

    Attributes:
        files: Files that its program wrote beside and inside the checkpoints.
        trained: The model as it was trained, according to these files.
    """

    run: Run
    listing: Listing
    files: tuple[RunFile, ...]
    trained: TrainedAs

    @classmethod
    def of(cls, run: Run, listing: Listing) -> "RunFacts":
        """Read the run's files.

        Raises:
            ManifestError: If a file cannot be read, or two disagree.
        """
        last = listing.last
        # The folder of a checkpoint may have files of its own, as a hub's has.
        files = [*run_files(last.path), *inside_checkpoint(last.settings, last.path)]
        try:
            trained = joined(file.trained for file in files)
        except Disagreement as error:
            raise ManifestError(
                f"{run.folder}: the run's files disagree: {error}. The same tensors fit both, and "
                "their Hessians differ. Write the manifest by hand, with `run_files: ignore` and "
                "the right value."
            ) from error
        return cls(run, listing, tuple(files), trained)

    @cached_property
    def program(self) -> str:
        """Return the training program, as far as it is known."""
        layout = self.listing.last.layout
        return self.files[0].program if self.files else layout

    @cached_property
    def model(self) -> tuple[str, str] | None:
        """Return the model and the source of its name; None if unknown.

        A configuration file is given by its path.
        """
        for file in self.files:
            if file.config is not None:
                return str(file.path), file.path.name
            if file.model is not None:
                return file.model, file.path.name
        if self.listing.last.layout == "timm" and self.listing.last.name:
            return f"timm:{self.listing.last.name}", "arch in the file"
        return None

    @cached_property
    def objective(self) -> tuple[str, str] | None:
        """Return the objective and its source; None if it is not known."""
        loss = self.trained.get("loss")
        if loss is not None:
            kind = "cross_entropy" if loss == "cross_entropy" else "contrastive"
            return kind, f"{self.trained.source('loss')}: the loss is {loss}"
        if any(name.rpartition(".")[2] == "logit_scale" for name in self.listing.last.shapes):
            return "contrastive", "the checkpoint holds a logit_scale"
        if self.model is not None and self.model[0].startswith("timm:"):
            return "cross_entropy", "timm's models are classifiers"
        if self.trained.get("num_classes") is not None:
            return "cross_entropy", f"{self.trained.source('num_classes')}: num_classes"
        return None

    @cached_property
    def has_epoch_zero(self) -> bool:
        """Tell whether the initialisation is listed."""
        return self.listing.checkpoints[0].epoch == 0


def series_of_run(
    facts: RunFacts, data: RunData, *, name: str | None, output: Path
) -> tuple[list[Line], list[str]]:
    """Write the series.

    Returns:
        The lines, and points that the user should check.

    Raises:
        ManifestError: If the name is not allowed.
    """
    plain_name, label = _names(facts.run.folder, name)
    lines = [
        Line("series:"),
        Line(f"  - name: {scalar(plain_name)}", "names the group in the output"),
    ]
    lines.append(setting(4, "label", label, "for tables and figures"))
    said, remarks = _model(facts, output)
    lines += said
    lines += _as_trained(facts)
    lines += _weights(facts)
    lines += [*_checkpoints(facts, output), *_left_out(facts), *_epoch_zero(facts, data)]
    remarks += [*facts.listing.remarks, *facts.trained.doubts.values()]
    return lines, remarks


def _names(folder: Path, name: str | None) -> tuple[str, str]:
    """Return name and label of the series."""
    if name is not None:
        if not NAME.fullmatch(name):
            reason = (
                "it names groups and files: 1 to 100 of A-Z a-z 0-9 . _ -, not starting with a dot"
            )
            raise ManifestError(f"--name: {name!r} is not allowed; {reason}.")
        return name, name
    place = Path(os.path.abspath(folder))
    parts = [place.name]
    if _VERSION.fullmatch(place.name):
        # lightning_logs/version_0 does not describe the run.
        above = place.parent.parent if place.parent.name == "lightning_logs" else place.parent
        parts.insert(0, above.name)
    label = (
        " ".join(
            "".join(c if c.isprintable() else " " for c in "_".join(filter(None, parts))).split()
        )[:200]
        or "run"
    )
    plain_name = re.sub(r"[^A-Za-z0-9._-]+", "_", label).lstrip(".")[:100]
    return (plain_name if plain_name.strip("_") else "run"), label


def _model(facts: RunFacts, output: Path) -> tuple[list[Line], list[str]]:
    if facts.model is None:
        wanted = (
            "the model that these weights are of: an open_clip name, timm:NAME, or an open_clip "
            "configuration (.json)"
        )
        return [*_hints(facts), missing(4, "model", wanted, stand_in="ViT-B-32")], []
    model, source = facts.model
    if os.path.isabs(model) and model.endswith(".json"):
        return [
            setting(
                4,
                "model",
                f"local-dir:{written_path(Path(model).parent, output)}",
                f"described by its {source}",
            )
        ], []
    line = setting(4, "model", model, source)
    if (
        model.startswith(("timm:", "local-dir:", "hf-hub:"))
        or model.replace("/", "-") in _known_models()
    ):
        return [line], []
    doubt = (
        f"{model} is no name that open_clip has here; if it is a configuration of your own, add "
        "config: ITS_FILE.json"
    )
    return [line, *remark(4, f"{doubt}.")], [doubt]


def _known_models() -> set[str]:
    """List the names of open_clip's and this project's configurations.

    They come from their files: importing open_clip would import torch.
    """
    folders = [Path(__file__).parents[2] / "clip" / "configs"]
    spec = find_spec("open_clip")
    if spec is not None:
        folders += [
            Path(place) / "model_configs" for place in spec.submodule_search_locations or ()
        ]
    return {path.stem for folder in folders for path in folder.glob("*.json")}


def _hints(facts: RunFacts) -> list[Line]:
    """Write what the files contain that may help to find the model."""
    last = facts.listing.last
    names = [f"{name} {list(shape)}" for name, shape in islice(last.shapes.items(), _NUM_NAMES)]
    more = ", ..." if len(last.shapes) > _NUM_NAMES else ""
    text = f"{last.path.name} holds {len(last.shapes)} tensors: {', '.join(names)}{more}"
    lines = remark(4, text, hanging=2)
    said = [f"{key}: {value}" for file in facts.files for key, value in _model_words(file.values)]
    if last.name:
        said.append(f"name: {last.name}")
    if said:
        source = facts.files[0].path.name if facts.files else last.path.name
        lines += remark(
            4, f"{source} says {', '.join(dict.fromkeys(said[:_NUM_HINTS]))}", hanging=2
        )
    return lines


def _model_words(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield short texts under keys that may name a model, also nested."""
    for key, value in values.items() if isinstance(values, dict) else ():
        if isinstance(value, dict):
            yield from _model_words(value, f"{prefix}{key}.")
        elif (
            isinstance(value, str)
            and value
            and any(word in str(key).lower() for word in _MODEL_WORDS)
        ):
            yield f"{prefix}{key}", shown(value)[1:-1]


def _as_trained(facts: RunFacts) -> list[Line]:
    """Write what the run's files state about the model.

    The manifest need not repeat it, since these files are read too.
    """
    trained = facts.trained
    stated = [
        f"{key}: {shown(value)} ({trained.source(key)})" for key, value in trained.changes().items()
    ]
    lines = (
        remark(4, "As trained, read from the run's own files, need not be repeated here:")
        if stated
        else []
    )
    for text in stated:
        lines += remark(4, f"- {text}", hanging=2)
    for text in trained.notes:
        lines += remark(4, text)
    for key, why in trained.doubts.items():
        lines += remark(4, f"Not known, to be stated here: {why}. [{key}]")
    return lines


def _weights(facts: RunFacts) -> list[Line]:
    available = facts.listing.last.available
    if available == ("ema",):
        return [setting(4, "weights", "ema", "the checkpoints hold averaged weights alone")]
    if len(available) == 2:
        return [
            Line(
                "    # weights: ema",
                "the averaged copy; without this line the online one, which was trained",
            )
        ]
    return []


def _checkpoints(facts: RunFacts, output: Path) -> list[Line]:
    stated = all(
        checkpoint.epoch is not None and not checkpoint.hint
        for checkpoint in facts.listing.checkpoints
    )
    said = "as the files say" if stated else "0 is the initialisation"
    lines = [Line("    checkpoints:", f"finished epochs, {said}")]
    for number, checkpoint in enumerate(facts.listing.checkpoints):
        path = scalar(written_path(checkpoint.path, output))
        if checkpoint.epoch is not None:
            lines.append(
                Line(f"      - {{epoch: {checkpoint.epoch}, path: {path}}}", checkpoint.hint)
            )
            continue
        wanted = f"epochs finished when {checkpoint.path.name} was written"
        lines.append(
            Line(
                f"      - {{epoch: {FILL_IN}, path: {path}}}", checkpoint.hint, wanted, str(number)
            )
        )
    return lines


def _left_out(facts: RunFacts) -> list[Line]:
    if not facts.listing.left_out:
        return []
    lines = remark(4, "Left out:")
    for path, why in facts.listing.left_out:
        lines += remark(4, f"- {path.name}: {why}", hanging=2)
    return lines


def _epoch_zero(facts: RunFacts, data: RunData) -> list[Line]:
    """Explain how to get a missing initialisation, where that is possible."""
    if facts.has_epoch_zero or facts.listing.checkpoints[0].epoch is None:
        return []
    lines = remark(
        4, "Epoch 0, the initialisation, was not kept; sharpness is reported relative to it."
    )
    command = _command_for_epoch_zero(facts, data)
    if command is not None:
        lines += remark(4, "This command writes it from the run's own seed:")
        lines.append(Line(f"    #   {command}"))
        lines += remark(
            4,
            "Then list it first, as {epoch: 0, path: init/checkpoints/epoch_0.pt}, with "
            "epoch_zero: required.",
        )
    elif facts.trained.get("pretrained") is not None:
        tag = facts.trained.get("pretrained")
        lines += remark(
            4, f"Training began from the weights {tag}: save them to list them as epoch 0."
        )
    else:
        lines += remark(4, "Save the weights before the first step, and list them as epoch 0.")
    return lines


def _command_for_epoch_zero(facts: RunFacts, data: RunData) -> str | None:
    """Build the command that writes the initialisation again; None if impossible.

    It is possible for runs of open_clip_train whose model `landscape train` builds in the same way.
    """
    params = next((file for file in facts.files if file.program == "open_clip_train"), None)
    if params is None or params.model is None or params.model not in _known_models():
        return None
    trained = facts.trained
    others = set(trained.section("model_args")) - _NO_TENSORS
    reduced = str(params.values.get("precision", "")).startswith("pure_")
    seed = params.values.get("seed", 0)
    if (
        others
        or reduced
        or trained.get("loss") == "siglip"
        or trained.get("pretrained")
        or type(seed) is not int
    ):
        return None
    source = data.source
    words: Sequence[str] = [
        "landscape",
        "train",
        "--model",
        params.model,
        "--epochs",
        "0",
        "--seed",
        str(seed),
        "-o",
        "init",
    ]
    if source is not None and source != OPENMOJI and data.is_plain:
        # The recipe's batch may be larger than a small table. No training step is made.
        words = [*words, "--data", source, *(("--batch-size", "2") if data.is_small else ())]
    return shlex.join(words)
