"""The table of checkpoint layouts: writers, places of weights, epoch numbers.

Each rule was measured on files of the package that it names (experiments/containers), or read in
its source.
"""

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from landscape.containers.averages import averaged, with_average_inside, with_twins
from landscape.containers.plain import is_tensors, plain, whole_number
from landscape.containers.stand_ins import Inert, Stub
from landscape.containers.whole_modules import is_module, state_of_module
from landscape.errors import CheckpointError

State = dict[str, Stub]
Counts = Literal["finished", "last", "unknown"]

# A file that has two of these, without a rule that says which is meant, is refused.
ONLINE_KEYS = (
    "state_dict",
    "model",
    "module",
    "net",
    "model_state_dict",
    "model_state",
    "network",
    "weights",
    "params",
)
EMA_KEYS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "ema_model",
    "model_ema_state_dict",
    "params_ema",
)
_STEP_KEYS = ("global_step", "iteration", "iter", "step", "global_steps")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The layout of one trainer's checkpoints. Entries are dotted paths into the file.

    Attributes:
        layout: Name of the trainer.
        writer: The trainer as the subject of a sentence; the layout's name if empty.
        signs: Entries that must all be there, and none of them False.
        absent: Entries that must not be there.
        online, ema: Places of the trained and the averaged weights: the first entry that holds
            tensors.
        epoch: Entry with the epoch number.
        counts: "finished" epochs; "last" for the index, from 0, of the epoch that was finished
            last; "unknown".
        name: Entry that names the run or the architecture.
        settings: Entries with the settings of the run.
        notes: Notes on every such file that holds both copies.
        finished: Computes the finished epochs from further entries, None for a file that was saved
            within an epoch.
    """

    layout: str
    signs: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    online: tuple[str, ...] = ONLINE_KEYS
    ema: tuple[str, ...] = EMA_KEYS
    epoch: str = "epoch"
    counts: Counts = "finished"
    name: str = "name"
    settings: tuple[str, ...] = ("args", "config", "hyper_parameters")
    notes: tuple[str, ...] = ()
    finished: Callable[[dict[str, Any]], int | None] | None = None
    writer: str = ""

    def matches(self, stored: dict[str, Any]) -> bool:
        """Tell whether a file has the signs of this rule."""
        values = [entry(stored, sign) for sign in self.signs]
        there = not any(value is None or value is False for value in values)
        return there and all(entry(stored, sign) is None for sign in self.absent)


def entry(stored: Any, path: str) -> Any:
    """Return the value at a dotted path, None where there is none.

    "prefix*" matches the first key that begins with it.
    """
    value = stored
    for part in path.split("."):
        if isinstance(value, Inert):
            value = value.entries or value.state
        if isinstance(value, (list, tuple)):
            value = _pairs_as_dict(value)
        if not isinstance(value, dict):
            return None
        if part.endswith("*"):
            part = next(
                (key for key in value if type(key) is str and key.startswith(part[:-1])), part
            )
        value = value.get(part)
    return value


def _pairs_as_dict(value: list[Any] | tuple[Any, ...]) -> dict[Any, Any] | None:
    """Convert a list of (name, value), as composer writes its algorithms."""
    pairs = [
        item
        for item in value
        if isinstance(item, (list, tuple)) and len(item) == 2 and type(item[0]) is str
    ]
    return {name: item for name, item in pairs} if pairs and len(pairs) == len(value) else None


def _finished_of_lightning(stored: dict[str, Any]) -> int | None:
    """Count finished epochs by the counters of Lightning's loops.

    Its `epoch` alone is not enough: k means k + 1 finished epochs in files of ModelCheckpoint, k in
    what `trainer.save_checkpoint` writes after `fit`, and neither within an epoch.
    """
    loop = entry(stored, "loops.fit_loop")
    started, processed = (
        whole_number(entry(loop, f"epoch_progress.current.{name}"))
        for name in ("started", "processed")
    )
    # The name of this entry has a dot in it.
    batches = loop.get("epoch_loop.batch_progress") if isinstance(loop, dict) else None
    if started is None or processed is None:
        epoch, steps = whole_number(stored.get("epoch")), whole_number(stored.get("global_step"))
        return epoch if epoch is None or (epoch == 0 and steps == 0) else epoch + 1
    if started > processed and entry(batches, "is_last_batch") is not True:
        return None
    return max(started, processed)


def _finished_of_composer(stored: dict[str, Any]) -> int | None:
    """Count finished epochs; None if batches of a further epoch were done."""
    timestamp = entry(stored, "state.timestamp.Timestamp") or entry(stored, "state.timestamp")
    return (
        None
        if whole_number(entry(timestamp, "batch_in_epoch"))
        else whole_number(entry(timestamp, "epoch"))
    )


_LIGHTNING = ("pytorch-lightning_version", "state_dict")
_TIMM_NOTE = (
    "Both copies are in the file: {taken} weights were taken. timm's own load_checkpoint and "
    "create_model(checkpoint_path=...) take the averaged weights."
)
# Files of these trainers have the same signs.
_DEIT = "a training script of the DeiT family (DeiT, torchvision's references, MAE)"
RULES = (
    Rule(layout="landscape", signs=("landscape_version", "state_dict")),
    Rule(
        layout="lightning",
        signs=(*_LIGHTNING, "current_model_state"),
        online=("current_model_state",),
        ema=("state_dict",),
        counts="last",
        settings=("hyper_parameters", "datamodule_hyper_parameters"),
        notes=(
            "Lightning averaged the weights: its 'state_dict' is the average, "
            "'current_model_state' what was trained.",
        ),
        finished=_finished_of_lightning,
    ),
    Rule(
        layout="lightning",
        signs=_LIGHTNING,
        online=("state_dict",),
        ema=("callbacks.StochasticWeightAveraging*.average_model_state",),
        counts="last",
        settings=("hyper_parameters", "datamodule_hyper_parameters"),
        finished=_finished_of_lightning,
    ),
    Rule(
        layout="mmengine",
        signs=("state_dict", "meta", "ema_state_dict"),
        online=("ema_state_dict",),
        ema=("state_dict",),
        epoch="meta.epoch",
        name="meta.experiment_name",
        settings=("meta.cfg",),
        notes=(
            "MMEngine's EMAHook swaps the copies: 'state_dict' is the average, 'ema_state_dict' "
            "what was trained.",
        ),
    ),
    Rule(
        layout="mmengine",
        signs=("state_dict", "meta"),
        online=("state_dict",),
        ema=(),
        epoch="meta.epoch",
        name="meta.experiment_name",
        settings=("meta.cfg", "meta.config"),
    ),
    Rule(
        layout="composer",
        signs=("state.model", "state.algorithms.EMA.ema_weights_active"),
        online=("state.algorithms.EMA.ema_model",),
        ema=("state.model",),
        epoch="state.timestamp.Timestamp.epoch",
        name="state.run_name",
        settings=(),
        notes=(
            "composer's EMA swaps the copies: 'model' is the average, 'ema_model' what was "
            "trained.",
        ),
        finished=_finished_of_composer,
    ),
    Rule(
        layout="composer",
        signs=("state.model", "state.algorithms.EMA.ema_model"),
        online=("state.model",),
        ema=("state.algorithms.EMA.ema_model",),
        epoch="state.timestamp.Timestamp.epoch",
        name="state.run_name",
        settings=(),
        finished=_finished_of_composer,
    ),
    Rule(
        layout="composer",
        signs=("state.model",),
        online=("state.model",),
        ema=(),
        epoch="state.timestamp.Timestamp.epoch",
        name="state.run_name",
        settings=(),
        finished=_finished_of_composer,
    ),
    Rule(
        layout="timm",
        signs=("arch", "version", "state_dict"),
        counts="last",
        name="arch",
        notes=(_TIMM_NOTE,),
    ),
    Rule(
        layout="timm",
        signs=("arch", "state_dict_ema", "state_dict"),
        counts="last",
        name="arch",
        notes=(_TIMM_NOTE,),
    ),
    Rule(layout="open_clip", signs=("name", "state_dict", "epoch")),
    Rule(layout="slip", signs=("args", "state_dict", "best_acc*")),
    # The imagenet script of pytorch/examples stores epoch + 1. Others with an `arch` count either
    # way.
    Rule(layout="imagenet example", signs=("arch", "state_dict", "best_acc1"), name="arch"),
    Rule(layout="training run", signs=("arch", "state_dict"), counts="unknown", name="arch"),
    Rule(
        layout="detectron2", signs=("model", "iteration"), counts="unknown", epoch="", settings=()
    ),
    Rule(layout="swin", signs=("model", "config", "epoch"), counts="last"),
    Rule(layout="DeiT family", signs=("model", "args", "epoch"), counts="last", writer=_DEIT),
    Rule(
        layout="DeiT family", signs=("model", "lr_scheduler", "epoch"), counts="last", writer=_DEIT
    ),
    Rule(layout="DeiT family", signs=("model", "model_ema", "epoch"), counts="last", writer=_DEIT),
    Rule(layout="pytorch-cifar", signs=("net", "acc", "epoch"), counts="last"),
    Rule(
        layout="deepspeed",
        signs=("module", "ds_*"),
        online=("module",),
        counts="unknown",
        settings=("ds_config",),
    ),
    Rule(layout="fastai", signs=("model", "opt"), absent=("epoch",), settings=()),
)
_UNKNOWN = Rule(layout="training run", counts="unknown")
_BARE = "state dict"


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The contents of a checkpoint, by the rule that fits it.

    Attributes:
        layout: The library that wrote it, "training run" if unknown, "state dict" if it is weights
            alone.
        epoch: Number of finished epochs, 0 for the initialisation; None where the file does not
            say.
        stored_epoch: The number in the file.
        copies: "online" and "ema", each tensors by name; wrappers' prefixes are still there.
        settings: The run's settings that the file stores, plain values under the file's own keys.
        notes: What was chosen and converted.
    """

    layout: str
    epoch: int | None
    stored_epoch: int | float | None
    name: str | None
    copies: dict[str, State]
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def available(self) -> tuple[str, ...]:
        """List the copies that are there."""
        return tuple(copy for copy in ("online", "ema") if copy in self.copies)


def interpret(path: Path, stored: Any, *, metadata: dict[str, Any] | None = None) -> Contents:
    """Find weights, epoch and settings in what a file holds.

    Raises:
        CheckpointError: If there are no weights in it, or several without a rule that says which
            are meant.
    """
    settings = {"metadata": plain(metadata)} if metadata else {}
    if is_module(stored):
        note = (
            f"The file holds a whole pickled model ({stored.name}): its tensors were read, its "
            "class was not imported."
        )
        return _bare(state_of_module(path, stored), settings, (note,))
    if not isinstance(stored, dict) or not all(isinstance(key, str) for key in stored):
        raise CheckpointError(
            f"{path}: holds a {kind_of_entries(stored)}, but a checkpoint is a dict by name. Save "
            "model.state_dict() instead."
        )
    if is_tensors(stored):
        return _bare(stored, settings, ())
    rule = next((rule for rule in RULES if rule.matches(stored)), _UNKNOWN)
    copies, said = with_average_inside(_copies(path, rule, stored))
    epoch, stored_epoch, notes = _epoch(rule, stored)
    both = said or (rule.notes if len(copies) == 2 else ())
    entries = {key: entry(stored, key) for key in rule.settings}
    settings |= {
        key.rpartition(".")[2]: plain(value) for key, value in entries.items() if value is not None
    }
    name = entry(stored, rule.name)
    return Contents(
        layout=rule.layout,
        epoch=epoch,
        stored_epoch=stored_epoch,
        name=name if type(name) is str else None,
        copies=copies,
        settings=settings,
        notes=(*both, *notes),
    )


def _bare(state: State, settings: dict[str, Any], notes: tuple[str, ...]) -> Contents:
    """Describe a file of weights alone.

    The weights of torch's AveragedModel come with a counter, which marks them as averaged.
    """
    copy = "ema" if "n_averaged" in state else "online"
    copies, said = with_average_inside(with_twins({copy: averaged(state)}))
    return Contents(
        layout=_BARE,
        epoch=None,
        stored_epoch=None,
        name=None,
        copies=copies,
        settings=settings,
        notes=(*said, *notes),
    )


def _state_at(path: Path, stored: dict[str, Any], key: str) -> State | None:
    value = entry(stored, key)
    if is_module(value):
        return state_of_module(path, value)
    if isinstance(value, dict) and "named_parameters_dict" in value:
        # composer's copy; its counters of batch norm are plain numbers.
        parts = (value["named_parameters_dict"], value.get("named_buffers_dict"))
        value = {
            name: item
            for part in parts
            if isinstance(part, dict)
            for name, item in part.items()
            if isinstance(item, Stub)
        }
    return averaged(value) if is_tensors(value) else None


def _copies(path: Path, rule: Rule, stored: dict[str, Any]) -> dict[str, State]:
    """Find the state dicts of a file, by copy."""
    online = {key: state for key in rule.online if (state := _state_at(path, stored, key))}
    ema = {key: state for key in rule.ema if (state := _state_at(path, stored, key))}
    if not online and not ema:
        online = {
            key: state
            for key, value in stored.items()
            if (is_tensors(value) or is_module(value)) and (state := _state_at(path, stored, key))
        }
    if len(online) > 1 and rule.online == ONLINE_KEYS:
        raise _several(path, online)
    if not online and not ema:
        raise _no_weights(path, stored)
    copies = {"online": next(iter(online.values()), None), "ema": next(iter(ema.values()), None)}
    return with_twins({copy: state for copy, state in copies.items() if state is not None})


def _several(path: Path, states: dict[str, State]) -> CheckpointError:
    listed = ", ".join(f"{key!r} with {len(state)} tensors" for key, state in states.items())
    program = (
        "from pathlib import Path; from landscape.clip.checkpoint import read_checkpoint, "
        f"write_checkpoint; stored = read_checkpoint(Path({str(path)!r})); "
        f"write_checkpoint(Path({str(path.with_suffix('.weights.pt'))!r}), "
        f"stored[{next(iter(states))!r}])"
    )
    return CheckpointError(
        f"{path}: holds several sets of weights ({listed}), and nothing says which is the model. "
        f"Write the right one to a file of its own: python -c {shlex.quote(program)}"
    )


def _no_weights(path: Path, stored: dict[str, Any]) -> CheckpointError:
    shown = ", ".join([repr(key) for key in stored][:3]) + (", ..." if len(stored) > 3 else "")
    mixed = [
        f"{key}[{name!r}] is a {_kind_of(item)}"
        for key, value in [("the file", stored), *stored.items()]
        if isinstance(value, dict) and any(isinstance(item, Stub) for item in value.values())
        for name, item in value.items()
        if not isinstance(item, Stub)
    ]
    reason = f"; {mixed[0]}, not plain numbers" if mixed else ""
    return CheckpointError(
        f"{path}: no weights found among its entries ({shown}){reason}; expected 'state_dict', "
        "'model', or the tensors themselves by name. Save {'epoch': ..., 'state_dict': "
        "model.state_dict()}."
    )


def kind_of_entries(value: Any) -> str:
    """Describe what a file holds in place of a dict by name."""
    if not isinstance(value, dict):
        return _kind_of(value)
    numbers = all(type(key) in (int, float) for key in value)
    return f"dict whose keys are {'numbers' if numbers else 'not all names'}"


def _kind_of(value: Any) -> str:
    return value.name if isinstance(value, Inert) else type(value).__name__


def _epoch(rule: Rule, stored: dict[str, Any]) -> tuple[int | None, int | float | None, list[str]]:
    """Return finished epochs, the stored number, and notes on them."""
    value = entry(stored, rule.epoch)
    number = whole_number(value)
    if number is None:
        fraction = value if type(value) is float else None
        lies_within = (
            f"The file says epoch {fraction}, which is no whole number, so it lies within an epoch."
        )
        return None, fraction, [lies_within] if fraction else []
    if rule.finished is not None:
        finished = rule.finished(stored)
        if finished is None:
            said = (
                f"The file says epoch {number} and was saved within an epoch, so no number of "
                "finished epochs fits."
            )
        else:
            said = (
                f"The file says epoch {number}; by {rule.layout}'s counters that is after "
                f"{_epochs(finished)}."
            )
        return finished, number, [said] if finished != number else []
    if rule.counts == "unknown":
        said = (
            f"The file says epoch {number}, but not whether that counts finished epochs or starts "
            "at 0; it is not compared."
        )
        return None, number, [said]
    if rule.counts == "last":
        writer = rule.writer or rule.layout
        said = (
            f"{writer[:1].upper() if rule.writer else writer[:1]}{writer[1:]} counts epochs from "
            "0: "
        )
        said += f"its epoch {number} is {_epochs(number + 1)}."
        return number + 1, number, [said]
    if number == 0 and (steps := _steps(stored)):
        return (
            None,
            0,
            [f"The file says epoch 0 after {steps} steps, so it is not the initialisation."],
        )
    return number, number, []


def _epochs(number: int) -> str:
    return f"{number} finished epoch{'' if number == 1 else 's'}"


def _steps(stored: dict[str, Any]) -> int:
    """Return the number of steps that an entry counts; else 0."""
    values: Iterator[Any] = (
        entry(stored, f"{where}{key}") for where in ("", "meta.") for key in _STEP_KEYS
    )
    return max((whole_number(value) or 0 for value in values), default=0)
