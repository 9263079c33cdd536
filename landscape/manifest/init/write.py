"""Writing of the manifest of a training run, checked, whole or not at all."""

import os
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from landscape.errors import ManifestError
from landscape.files import write_atomically
from landscape.manifest.init.data import RunData, data_of_run
from landscape.manifest.init.epochs import Listing, list_checkpoints
from landscape.manifest.init.folders import find_run
from landscape.manifest.init.lines import (
    Line,
    Text,
    missing,
    plain,
    remark,
    render,
    setting,
    stand_ins,
)
from landscape.manifest.init.series import RunFacts, series_of_run
from landscape.manifest.manifest import Manifest
from landscape.manifest.reading import read_manifest

_NUM_SHOWN = 6
_COLUMNS, _MARGIN = 80, 12


@dataclass(frozen=True, kw_only=True)
class InitReport:
    """Result of `init_manifest`: facts about a run, and its manifest.

    Attributes:
        output: The manifest; the run's own where it has one.
        written: Whether it was written now.
        description: Description of the run: a word and a text for each line.
        remarks: Points that the user should check.
        wanted: Line numbers of the manifest, and what is to be filled in there.
    """

    output: Path
    written: bool
    description: tuple[tuple[str, str], ...]
    remarks: tuple[str, ...] = ()
    wanted: tuple[tuple[int, str], ...] = ()

    def summary(self) -> str:
        """Format the report for a terminal of 80 columns."""
        rows = [*self.description, *(("look at", text) for text in self.remarks)]
        lines = [
            line
            for key, text in rows
            for line in _wrapped(text, first=f"{key:<{_MARGIN}}", rest=" " * _MARGIN)
        ]
        command = f"  landscape spectra {shlex.quote(str(self.output))} -o spectra.h5 --dry-run"
        if not self.written:
            return "\n".join(
                (
                    *lines,
                    f"{self.output} is this run's manifest already; nothing was written. Next:",
                    command,
                )
            )
        if not self.wanted:
            return "\n".join((*lines, f"{self.output} is written. Next:", command))
        lines.append(f"{self.output} is written, and lacks what the run does not say:")
        for number, text in self.wanted[:_NUM_SHOWN]:
            lines += _wrapped(text, first=f"  line {number:<5}", rest=" " * _MARGIN)
        if len(self.wanted) > _NUM_SHOWN:
            lines.append(f"  and {len(self.wanted) - _NUM_SHOWN} more lines marked FILL_IN")
        return "\n".join((*lines, f"Fill in {_numbers(self.wanted)}, then:", command))


def _wrapped(text: str, *, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        plain(text),
        width=_COLUMNS,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def init_manifest(
    folder: Path,
    output: Path,
    *,
    data: str | None = None,
    name: str | None = None,
    counts: str | None = None,
    force: bool = False,
) -> InitReport:
    """Write a manifest for `landscape spectra` from the files of a run.

    Args:
        folder: Folder of the run, as its training program left it.
        data: The pairs to measure on, instead of the run's own: "openmoji", a CSV/TSV file or a
            pattern of tar shards.
        name: Name of the series; by default the folder's.
        counts: Meaning of an epoch number where the file does not state it; see `list_checkpoints`.
        force: Replace an existing manifest.

    Raises:
        ManifestError: If the folder holds no run or several, the output exists already or cannot be
            written, or a file of the run cannot be read; nothing is written then.
    """
    run = find_run(folder)
    if run.manifest is not None:
        rows = (
            ("run", f"{run.folder}: trained by `landscape train`, which keeps a manifest of it"),
        )
        return InitReport(output=run.manifest, written=False, description=rows)
    _check_output(output, force=force)
    facts = RunFacts.of(run, list_checkpoints(run.checkpoints, counts=counts))
    objective = facts.objective[0] if facts.objective is not None else None
    pairs = data_of_run(run.folder, facts.files, data, objective=objective, output=output)
    series, remarks = series_of_run(facts, pairs, name=name, output=output)
    lines = [
        *_header(folder, output),
        *_top(facts),
        *pairs.lines,
        Line(),
        *_hessian(facts),
        Line(),
        *series,
    ]
    text = render(lines)
    _put_in_place(output, text, lines)
    return InitReport(
        output=output,
        written=True,
        description=_found(facts, pairs),
        remarks=tuple(remarks),
        wanted=text.wanted,
    )


def _check_output(output: Path, *, force: bool) -> None:
    if output.is_dir():
        raise ManifestError(
            f"{output}: is a folder; name the manifest's file, such as "
            f"{output / 'checkpoints.yaml'}."
        )
    if os.path.lexists(output) and not force:
        advice = "say --force to replace it, or give another name with -o"
        raise ManifestError(f"{output}: is there already, and may have been edited; {advice}.")
    if not output.parent.is_dir():
        raise ManifestError(
            f"{output}: there is no folder {output.parent}; make it first, or give another name "
            "with -o."
        )


def _header(folder: Path, output: Path) -> list[Line]:
    command = f"landscape spectra {shlex.quote(output.name)} -o spectra.h5 --dry-run"
    return [
        *remark(
            0,
            f"Written by `landscape init {shlex.quote(str(folder))}` from what the run says of "
            "itself.",
        ),
        *remark(0, f"See what measuring it takes: {command}"),
        *remark(0, "Relative paths are relative to this file."),
        Line(),
    ]


def _top(facts: RunFacts) -> list[Line]:
    if facts.has_epoch_zero:
        return [
            setting(0, "version", 1),
            setting(0, "epoch_zero", "required", "the series starts at the initialisation"),
            Line(),
        ]
    why = "the series may start later than the initialisation, epoch 0"
    return [setting(0, "version", 1), setting(0, "epoch_zero", "optional", why), Line()]


def _hessian(facts: RunFacts) -> list[Line]:
    wanted = "contrastive (CLIP) or cross_entropy (a classifier)"
    if facts.objective is None:
        first = missing(
            2, "objective", f"hessian: {wanted}", stand_in="contrastive", comment=wanted
        )
    else:
        first = setting(2, "objective", *facts.objective)
    return [
        Line("hessian:"),
        first,
        setting(
            2, "parameters", "all", 'all, image, text, or a list of patterns such as ["visual.*"]'
        ),
        setting(2, "k", 5, "eigenvalues per batch, the largest by magnitude; 5 as published"),
    ]


def _put_in_place(output: Path, text: Text, lines: Sequence[Line]) -> None:
    """Check a manifest beside its place, then move it there.

    Raises:
        ManifestError: If it cannot be read back or written.
    """
    trial = output.with_name(f".{output.name}.check")
    try:
        try:
            trial.write_text(
                render(stand_ins(lines)).text if text.wanted else text.text, encoding="utf-8"
            )
            if text.wanted:
                read_manifest(Path(os.path.abspath(trial)), files_exist=False)
            else:
                Manifest.load(trial)
        finally:
            trial.unlink(missing_ok=True)
        write_atomically(output, text.text.encode())
    except ManifestError as error:
        raise ManifestError(
            str(error).replace(os.path.abspath(trial), str(output)).replace(str(trial), str(output))
        ) from None
    except OSError as error:
        reason = error.strerror or error
        raise ManifestError(
            f"{output}: cannot be written ({reason}). Check the folder, or give another -o."
        ) from error


def _found(facts: RunFacts, pairs: RunData) -> tuple[tuple[str, str], ...]:
    model = (
        "to fill in" if facts.model is None else f"{Path(facts.model[0]).name} ({facts.model[1]})"
    )
    trained = facts.trained
    changes = [key.rpartition(".")[2] for key in trained.changes() if key not in ("pretrained",)]
    return (
        ("run", f"{facts.run.folder}, {facts.program}"),
        ("model", model + (f", with its {', '.join(changes)}" if changes else "")),
        ("epochs", _epochs(facts.listing)),
        ("data", pairs.shown),
    )


def _epochs(listing: Listing) -> str:
    epochs = [
        checkpoint.epoch for checkpoint in listing.checkpoints if checkpoint.epoch is not None
    ]
    out = f"; {len(listing.left_out)} left out, see the file" if listing.left_out else ""
    count = f"{len(listing.checkpoints)} checkpoint{'s' if len(listing.checkpoints) != 1 else ''}"
    if not epochs:
        return f"to fill in, {count}{out}"
    reach = f"{epochs[0]} to {epochs[-1]}" if len(epochs) > 1 else f"{epochs[0]}"
    return f"{reach}, {count}{out}"


def _numbers(wanted: Sequence[tuple[int, str]]) -> str:
    numbers = [str(line) for line, _ in wanted]
    if len(numbers) == 1:
        return f"line {numbers[0]}"
    if len(numbers) > _NUM_SHOWN:
        return f"{len(numbers)} lines"
    return f"lines {', '.join(numbers[:-1])} and {numbers[-1]}"
