"""What a manifest is made of: the settings of data and Hessian, checkpoints and their series.

Every rule about a single setting lives here, so that a wrong one is refused alike from a file and from Python.
"""

import codecs
import math
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NoReturn

from landscape.containers.folders import digest_of_checkpoint
from landscape.errors import CheckpointError
from landscape.limits import (
    MAX_BATCHES,
    MAX_EIGENVALUES,
    MAX_EPOCH,
    MAX_INTEGER,
    MAX_MATVECS,
    MAX_SIDE,
    MAX_WEIGHT_DECAY,
)
from landscape.manifest.setting_error import SettingError, shown
from landscape.manifest.trained import TrainedAs

OPENMOJI = "openmoji"
SPLITS = ("train", "held_out", "all")
OBJECTIVES = ("contrastive", "cross_entropy")
TOWERS = ("all", "image", "text")
METHODS = ("lanczos", "power", "pyhessian")
WHICH = ("LM", "LA", "SA")
DTYPES = ("float32", "float64")
QUOTING = ("minimal", "none")
ON_BAD_PICTURE = ("fail", "skip")

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
SHA256 = re.compile(r"[0-9a-f]{64}")


def _refuse(key: str, value: object, reason: str) -> NoReturn:
    raise SettingError(key, f"{key} is {shown(value)}, but {reason}")


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        _refuse(key, value, f"it must be one of {', '.join(choices)}.")


def _check_count(key: str, value: int, least: int, reason: str, *, most: int = MAX_INTEGER) -> None:
    if value < least:
        _refuse(key, value, reason)
    if value > most:
        _refuse(key, value, f"it must be at most {most}.")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which image-text pairs the curvature is measured on; the same for every checkpoint and every architecture.

    Args:
        source: "openmoji", the absolute path of a CSV/TSV file, or an absolute path pattern of webdataset shards.
        num_samples: Pairs drawn once from `seed`. 3000 in Park & Kim, arXiv 2202.06709, and in arXiv 2404.19394.
        batch_size: Pairs per batch, each batch one empirical risk; 15 in both papers. Must divide `num_samples`.
        split: "train", "held_out" or "all".
        image_size: Pixels of a side; None leaves it to the model, which openmoji does not allow.
        seed: Of the draw, and of the augmentation.
        augmentation: "none", or the name of a training recipe whose augmentation is applied under `seed`.
        separator: Between the columns of a CSV/TSV; the default is open_clip's.
        image_key: Column of the picture's path; the default is open_clip's.
        caption_key: Column of the caption, by default open_clip's "title"; in shards, the key of a caption in a JSON
            member, by default "caption".
        encoding: Python's name of the encoding of a CSV/TSV; a byte order mark in the file goes before it.
        quoting: "minimal": a field of a CSV/TSV may stand in double quotation marks; "none": each mark is a character.
        on_bad_picture: "fail" the batch of a picture that cannot be read, or "skip" the picture for the next pair that
            was not drawn.

    Raises:
        ValueError: If a value cannot be meant.
    """

    source: str
    num_samples: int
    batch_size: int
    split: str = "train"
    image_size: int | None = None
    seed: int = 0
    augmentation: str = "none"
    separator: str = "\t"
    image_key: str = "filepath"
    # "" becomes the default of the source.
    caption_key: str = ""
    encoding: str = "utf-8"
    quoting: str = "minimal"
    on_bad_picture: str = "fail"

    def __post_init__(self) -> None:
        if not self.source.strip() or "\0" in self.source:
            _refuse(
                "source",
                self.source,
                "it must be openmoji, the path of a CSV/TSV file, or a path pattern of tar shards.",
            )
        _check_choice("split", self.split, SPLITS)
        if self.image_size is None and self.source == OPENMOJI:
            sentence = "image_size is missing, but openmoji pictures are drawn at a size; add `image_size: 64`."
            raise SettingError("image_size", sentence)
        if self.image_size is not None:
            _check_count(
                "image_size", self.image_size, 1, "a picture has at least one pixel.", most=MAX_SIDE
            )
        _check_count("batch_size", self.batch_size, 1, "a batch holds at least one pair.")
        reason = f"one batch alone takes batch_size = {self.batch_size} pairs."
        _check_count("num_samples", self.num_samples, self.batch_size, reason)
        if self.num_samples % self.batch_size:
            nearest = self.num_samples - self.num_samples % self.batch_size
            _refuse(
                "num_samples",
                self.num_samples,
                f"it must be a multiple of batch_size = {self.batch_size}; try {nearest}.",
            )
        if self.num_batches > MAX_BATCHES:
            reason = f"that makes {self.num_batches} batches of {self.batch_size} pairs, and at most {MAX_BATCHES} are measured."
            _refuse("num_samples", self.num_samples, reason)
        _check_count("seed", self.seed, 0, "a seed is an integer from 0 to 2^63 - 1.")
        if not NAME.fullmatch(self.augmentation):
            _refuse(
                "augmentation",
                self.augmentation,
                "it must be none or the name of a training recipe.",
            )
        _check_choice("quoting", self.quoting, QUOTING)
        _check_choice("on_bad_picture", self.on_bad_picture, ON_BAD_PICTURE)
        self._check_columns()

    def _check_columns(self) -> None:
        if not self.caption_key:
            object.__setattr__(self, "caption_key", self.default_caption_key)
        if len(self.separator) != 1 or self.separator in '"\r\n\0':
            _refuse(
                "separator", self.separator, 'it must be a single character, such as "\\t" or ",".'
            )
        if not self.image_key:
            _refuse("image_key", self.image_key, "it must name a column of the CSV/TSV file.")
        try:
            name = codecs.lookup(self.encoding).name
            # Some codecs are between bytes and bytes.
            "a".encode(name)
            if name == "utf-8":
                # However it is written, it is the default.
                object.__setattr__(self, "encoding", name)
        except (LookupError, ValueError):
            _refuse(
                "encoding",
                self.encoding,
                "it must be one that Python knows, such as utf-8, latin-1, cp1252 or utf-16.",
            )

    @property
    def in_shards(self) -> bool:
        """Whether the source is a pattern of tar shards."""
        return ".tar" in Path(self.source).name.lower() and not self.source.lower().endswith(
            (".csv", ".tsv")
        )

    @property
    def default_caption_key(self) -> str:
        return "caption" if self.in_shards else "title"

    @property
    def num_batches(self) -> int:
        return self.num_samples // self.batch_size


@dataclass(frozen=True, kw_only=True)
class HessianSettings:
    """Which eigenvalues of which Hessian, and how they are found.

    Args:
        objective: "contrastive" (the CLIP loss) or "cross_entropy" (a classifier).
        parameters: "all", "image", "text", or a tuple of glob patterns over parameter names.
        weight_decay: Adds 0.5 * weight_decay * |theta|^2 over the selected parameters.
        method: "lanczos", "power" (as PyHessian publishes it) or "pyhessian" (that package itself).
        k: Eigenvalues per batch; 5 in arXiv 2202.06709.
        which: "LM" largest by magnitude, "LA" largest, "SA" smallest; the power methods find LM only.
        tol: Relative residual |Hv - lambda v| / |lambda| under which a pair counts as converged; for the power
            methods their stopping rule, a relative change.
        max_matvecs: Limit of Hessian-vector products per batch, for lanczos.
        seed: Of the starting vectors.
        dtype: "float32" or "float64".

    Raises:
        ValueError: If a value cannot be meant.
    """

    objective: str
    parameters: str | tuple[str, ...] = "all"
    weight_decay: float = 0.0
    method: str = "lanczos"
    k: int = 5
    which: str = "LM"
    tol: float = 1e-3
    max_matvecs: int = 300
    seed: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for key, choices in {
            "objective": OBJECTIVES,
            "method": METHODS,
            "which": WHICH,
            "dtype": DTYPES,
        }.items():
            _check_choice(key, getattr(self, key), choices)
        self._check_parameters()
        if not 0 <= self.weight_decay <= MAX_WEIGHT_DECAY:
            reason = f"it must be a number from 0 to {MAX_WEIGHT_DECAY:.0e}; 0.1 and 0.2 are usual."
            _refuse("weight_decay", self.weight_decay, reason)
        _check_count(
            "k", self.k, 1, "at least one eigenvalue must be asked for.", most=MAX_EIGENVALUES
        )
        if not (math.isfinite(self.tol) and 0 < self.tol < 1):
            _refuse(
                "tol",
                self.tol,
                "a relative residual to reach lies between 0 and 1; 0.001 is usual.",
            )
        reason = f"k = {self.k} eigenvalues take at least as many products."
        _check_count("max_matvecs", self.max_matvecs, self.k, reason, most=MAX_MATVECS)
        _check_count("seed", self.seed, 0, "a seed is an integer from 0 to 2^63 - 1.")
        if self.method != "lanczos" and self.which != "LM":
            reason = f"method {self.method} finds the largest by magnitude only; use which: LM or method: lanczos."
            _refuse("which", self.which, reason)

    def _check_parameters(self) -> None:
        if isinstance(self.parameters, str):
            if self.parameters not in TOWERS:
                reason = f'it must be all, image, text, or a list of patterns such as ["{self.parameters}"].'
                _refuse("parameters", self.parameters, reason)
        elif not 1 <= len(self.parameters) <= 100 or not all(
            1 <= len(pattern) <= 200 for pattern in self.parameters
        ):
            _refuse(
                "parameters",
                self.parameters,
                "a list holds 1 to 100 patterns of 1 to 200 characters each.",
            )


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The weights of a model after one epoch.

    Args:
        epoch: 0 is the initialisation.
        path: Absolute.
        sha256: What the file must digest to, in lower-case hex; None if nobody said.
    """

    epoch: int
    path: Path
    sha256: str | None = None

    def __post_init__(self) -> None:
        _check_count(
            "epoch", self.epoch, 0, "epochs count from 0, the initialisation.", most=MAX_EPOCH
        )
        if self.sha256 is not None and not SHA256.fullmatch(self.sha256):
            _refuse(
                "sha256",
                self.sha256,
                "a SHA-256 digest has 64 hexadecimal digits; take it from `sha256sum`.",
            )

    def verify(self) -> str:
        """Digest the file, or the files of a folder, and compare with what the manifest says.

        Returns:
            The SHA-256 digest, in hex.

        Raises:
            CheckpointError: If the file cannot be read or is another one.
        """
        found = digest_of_checkpoint(self.path)
        if self.sha256 is not None and found != self.sha256:
            raise CheckpointError(
                f"{self.path}: wrong sha256 (expected {self.sha256}, got {found}). The weights are not the ones that the "
                "manifest lists; restore the file, or correct the manifest if the new one is meant."
            )
        return found


@dataclass(frozen=True, kw_only=True)
class CheckpointSeries:
    """One architecture along its training, in order of epochs.

    Args:
        name: Letters, digits, `.`, `_`, `-`; names an HDF5 group and files.
        model: An open_clip model name, one of this project's configurations, "timm:NAME", or the name of `config`.
        label: For tables and figures.
        config: Absolute path of an open_clip configuration (JSON), which then is the architecture; None for that of `model`.
        trained: What is known of the model as it was trained.
        reads_runs: Whether files of the run count, and what its checkpoints hold about it.
    """

    name: str
    model: str
    label: str
    checkpoints: tuple[Checkpoint, ...]
    config: Path | None = None
    trained: TrainedAs = field(default_factory=TrainedAs)
    reads_runs: bool = True

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            reason = (
                "it names groups and files: 1 to 100 of A-Z a-z 0-9 . _ -, not starting with a dot."
            )
            _refuse("name", self.name, reason)
        for key in ("model", "label"):
            value = getattr(self, key)
            if not value.strip() or not value.isprintable() or len(value) > 200:
                _refuse(key, value, "it must be one line of 1 to 200 printable characters.")
        if not self.checkpoints:
            raise SettingError(
                "checkpoints",
                f"series {self.name!r} is empty, but it needs at least one checkpoint.",
            )
        epochs = [checkpoint.epoch for checkpoint in self.checkpoints]
        if len(set(epochs)) != len(epochs):
            twice = next(epoch for epoch in epochs if epochs.count(epoch) > 1)
            raise SettingError(
                "checkpoints",
                f"series {self.name!r} lists epoch {twice} twice, but an epoch has one checkpoint.",
            )
        object.__setattr__(
            self,
            "checkpoints",
            tuple(sorted(self.checkpoints, key=lambda checkpoint: checkpoint.epoch)),
        )

    @property
    def epochs(self) -> tuple[int, ...]:
        return tuple(checkpoint.epoch for checkpoint in self.checkpoints)


def setting_names(settings: type) -> tuple[str, ...]:
    """The keys of a section of the manifest: the fields of its dataclass."""
    return tuple(field.name for field in fields(settings))
