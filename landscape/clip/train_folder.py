"""The folder of a training run: its contents, checks before resuming, new epochs.

Knows files, not training. An epoch counts as done once the manifest lists it. The manifest is
written last, so half-finished work of a killed run is simply done again.

    checkpoints/epoch_K.pt   as open_clip_train writes them, epoch 0 included
    checkpoints.yaml         the manifest: every checkpoint that is done, with its sha256
    settings.json            what the results depend on; a run continues only under the same
    open_clip_config.json    the architecture, where it came from a file; the manifest names it
    log.jsonl                one line per epoch
    train.log                the log of open_clip and open_clip_train
"""

import fcntl
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landscape.errors import CheckpointError, LandscapeError, ManifestError, StoreError
from landscape.files import read_regular, write_atomically
from landscape.manifest import (
    Checkpoint,
    CheckpointSeries,
    DataSettings,
    Manifest,
    extend_run_manifest,
)

# Settings take a few kB, and so does the log of a hundred epochs.
_LARGEST_FILE = 2**26


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A series of checkpoints with its manifest, settings and logs.

    Args:
        name: Name of the series.
        data: The protocol that the manifest gives for measuring the checkpoints.
        settings: Plain JSON values: everything that the weights depend on.
        architecture: Contents of open_clip_config.json; None for an architecture that `model`
            names.
    """

    path: Path
    name: str
    model: str
    label: str | None
    data: DataSettings
    settings: Mapping[str, Any]
    architecture: Mapping[str, Any] | None = None

    @property
    def config(self) -> Path:
        return self.path / "open_clip_config.json"

    @property
    def manifest(self) -> Path:
        return self.path / "checkpoints.yaml"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    def checkpoint(self, epoch: int) -> Path:
        return self.path / "checkpoints" / f"epoch_{epoch}.pt"

    def checkpoints_done(self) -> tuple[Checkpoint, ...]:
        """List the verified checkpoints that are there, from epoch 0 on.

        Nothing is changed.

        Raises:
            LandscapeError: If the folder belongs to something else, or was begun with other
                settings.
            CheckpointError: If a checkpoint is not the one that the manifest lists.
        """
        self._check_name()
        try:
            stored = json.loads(read_regular(self.path / "settings.json", largest=_LARGEST_FILE))
        except FileNotFoundError:
            self._check_empty()
            return ()
        except NotADirectoryError as error:
            raise _unwritable(self.path, error) from error
        except (OSError, ValueError, RecursionError) as error:
            raise StoreError(
                f"{self.path / 'settings.json'}: cannot be read ({error}), so nobody can tell "
                "whether this run may go on. Restore it, or train into another folder."
            ) from error
        done = self._verified() if self.manifest.exists() else ()
        self._check_settings(stored, anything_trained=len(done) > 1)
        return done

    def _check_name(self) -> None:
        try:
            label = self.label or self.name
            first = Checkpoint(epoch=0, path=self.checkpoint(0))
            CheckpointSeries(name=self.name, model=self.model, label=label, checkpoints=(first,))
        except ValueError as error:
            raise ManifestError(
                f"{self.path}: {error} The series is named after the folder unless a name is given."
            ) from None

    def _check_empty(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise StoreError(
                f"{self.path}: is a file, but a training run needs a folder. Choose another output."
            )
        if self.manifest.exists() or (self.path / "checkpoints").exists():
            raise StoreError(
                f"{self.path}: holds checkpoints but no settings.json, so another program wrote "
                "them, and they would be overwritten. Train into another folder."
            )

    def _verified(self) -> tuple[Checkpoint, ...]:
        series = Manifest.load(self.manifest).series[0]
        for expected, checkpoint in enumerate(series.checkpoints):
            if checkpoint.epoch != expected:
                raise CheckpointError(
                    f"{self.manifest}: epoch {expected} is missing before epoch "
                    f"{checkpoint.epoch}, so this is not a whole run. List it again, or train into "
                    "another folder."
                )
            checkpoint.verify()
        return series.checkpoints

    def _check_settings(self, stored: Any, *, anything_trained: bool) -> None:
        old, new = _flat(stored), _flat(json.loads(json.dumps(self.settings)))
        if not anything_trained:
            # The number of epochs shapes the schedule, and no step was taken yet.
            old["epochs"] = new["epochs"]
        for key in sorted(set(old) | set(new)):
            if old.get(key) != new.get(key):
                raise LandscapeError(
                    f"{self.path}: {key} was {old.get(key)!r} when this run began, now it is "
                    f"{new.get(key)!r}, so later epochs would not continue the earlier ones. Ask "
                    "for the old value, or train into another folder."
                )

    def prepare(self, *, num_bytes: int) -> None:
        """Prepare the folder for writing; refuse now what would fail after hours.

        Args:
            num_bytes: Approximate size of the coming checkpoints.

        Raises:
            StoreError: If the folder cannot be written, or the disk has less room than that.
        """
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            write_atomically(
                self.path / "settings.json", (json.dumps(self.settings, indent=1) + "\n").encode()
            )
            if self.architecture is not None:
                write_atomically(
                    self.config, (json.dumps(self.architecture, indent=1) + "\n").encode()
                )
            # What a killed run left behind; a run of an older landscape calls it .part.
            for pattern in (".epoch_*.pt.tmp", ".epoch_*.pt.*.part"):
                for leftover in (self.path / "checkpoints").glob(pattern):
                    leftover.unlink()
            free = shutil.disk_usage(self.path).free
        except OSError as error:
            raise _unwritable(self.path, error) from error
        if free < num_bytes:
            raise StoreError(
                f"{self.path}: the coming checkpoints take about {num_bytes / 1e9:.3g} GB, the "
                f"disk has {free / 1e9:.3g} left. Make room, or choose another output."
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against a second run; a killed run releases it.

        Raises:
            StoreError: If another run is at work there.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            stream = open(self.path / ".lock", "w")
        except OSError as error:
            raise _unwritable(self.path, error) from error
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(
                    f"{self.path}: another run trains into this folder. Wait for it, or choose "
                    "another."
                ) from None
            yield

    def add(self, epoch: int, save: Callable[[Path], str], entry: Mapping[str, Any]) -> None:
        """Store one epoch: checkpoint, line in the log, then manifest entry.

        The manifest entry is written last.

        Args:
            save: Writes the checkpoint to a path, whole or not at all, and returns its sha256.

        Raises:
            CheckpointError, StoreError: If it cannot be written; the epochs before stay as they
                are.
        """
        path = self.checkpoint(epoch)
        digest = save(path)
        try:
            lines = [*self._entries_before(epoch), {"epoch": epoch, **entry, "sha256": digest}]
            write_atomically(self.log, "".join(json.dumps(line) + "\n" for line in lines).encode())
            extend_run_manifest(
                self.manifest,
                name=self.name,
                model=self.model,
                label=self.label,
                config=None if self.architecture is None else self.config.absolute(),
                data=self.data,
                checkpoints=[Checkpoint(epoch=epoch, path=path.absolute(), sha256=digest)],
            )
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def losses(self) -> dict[int, float]:
        """Read the mean training loss of every epoch done, in nats.

        Epoch 0 has none.
        """
        return {
            entry["epoch"]: entry["loss"]
            for entry in self._entries_before(math.inf)
            if type(entry.get("loss")) is float
        }

    def _entries_before(self, epoch: float) -> list[dict[str, Any]]:
        try:
            entries = [
                json.loads(line)
                for line in read_regular(self.log, largest=_LARGEST_FILE).splitlines()
            ]
        # A log is for reading only: one that is lost or was edited must not stop a run.
        except (OSError, ValueError, RecursionError):
            return []
        entries = [
            entry
            for entry in entries
            if isinstance(entry, dict) and type(entry.get("epoch")) is int
        ]
        return [entry for entry in entries if entry["epoch"] < epoch]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings: {"recipe": {"lr": 1}} -> {"recipe.lr": 1}."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(_flat(item, f"{prefix}.{key}" if prefix else key))
    return flat


def _unwritable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"{path}: cannot be written ({error.strerror or error}), so no epoch could be kept. Choose "
        "another output."
    )
