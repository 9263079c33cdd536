"""Parts of a manifest: settings of data and Hessian, checkpoints, series.

Every rule about a single setting is here, so that a file and Python refuse the same values.
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
from landscape.manifest.samples import unit_of_samples
from landscape.manifest.setting_error import SettingError, shown
from landscape.manifest.trained import TrainedAs
from landscape.suggestions import did_you_mean

OPENMOJI = "openmoji"
SPLITS = ("train", "held_out", "all")
CAUSAL_LM = "causal_lm"
OBJECTIVES = ("contrastive", "cross_entropy", CAUSAL_LM)
TOWERS = ("all", "image", "text")
METHODS = ("lanczos", "power", "pyhessian")
WHICH = ("LM", "LA", "SA")
DTYPES = ("float32", "float64")
PRECONDITIONERS = ("none", "adam")
QUOTING = ("minimal", "none")
ON_BAD_PICTURE = ("fail", "skip")

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
SHA256 = re.compile(r"[0-9a-f]{64}")


def _refuse(key: str, value: object, reason: str) -> NoReturn:
    raise SettingError(key, f"{key} is {shown(value)}, but {reason}")


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        listed = ", ".join(choices)
        _refuse(key, value, f"it must be one of {listed}.{did_you_mean(value, choices)}")


def _check_count(key: str, value: int, least: int, reason: str, *, most: int = MAX_INTEGER) -> None:
    if value < least:
        _refuse(key, value, reason)
    if value > most:
        _refuse(key, value, f"it must be at most {most}.")


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The image-text pairs, or blocks of text, on which curvature is measured.

    They are the same for every checkpoint and model.

    Args:
        source: "openmoji", the absolute path of a CSV/TSV file, or an absolute path pattern of
            webdataset shards.
        num_samples: Pairs drawn once from `seed`. 3000 in Park & Kim, arXiv 2202.06709, and in
            arXiv 2404.19394.
        batch_size: Pairs per batch, each batch one empirical risk; 15 in both papers. Must divide
            `num_samples`.
        split: "train", "held_out" or "all".
        image_size: Pixels of a side; None leaves it to the model, which openmoji does not allow.
        seed: Seed of the draw, and of the augmentation.
        augmentation: "none", or the name of a training recipe whose augmentation is applied under
            `seed`.
        separator: Character between the columns of a CSV/TSV; the default is open_clip's.
        image_key: Column of the picture's path; the default is open_clip's.
        caption_key: Column of the caption, by default open_clip's "title"; in shards, the key of a
            caption in a JSON member, by default "caption".
        encoding: Python's name of the encoding of a CSV/TSV; a byte order mark in the file takes
            precedence.
        quoting: "minimal": a field of a CSV/TSV may stand in double quotation marks; "none": each
            mark is a character.
        on_bad_picture: "fail" the batch of a picture that cannot be read, or "skip" the picture for
            the next pair that was not drawn.
        block_size: For text, the number of tokens of a block, of which all but the first are
            predicted; the samples are then blocks.
        tokenizer: For text, "model" for that of each series, "bytes" for a token per byte, or the
            absolute path of a folder.

    Raises:
        ValueError: If a value is invalid.
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
    block_size: int | None = None
    tokenizer: str = "model"

    def __post_init__(self) -> None:
        if not self.source.strip() or "\0" in self.source:
            pictures = "openmoji, the path of a CSV/TSV file, or a path pattern of tar shards"
            text = "the path of a text, .jsonl or .npy file"
            _refuse(
                "source",
                self.source,
                f"it must be {pictures if self.block_size is None else text}.",
            )
        _check_choice("split", self.split, SPLITS)
        if self.image_size is None and self.source == OPENMOJI:
            sentence = (
                "image_size is missing, but openmoji pictures are drawn at a size; add "
                "`image_size: 64`."
            )
            raise SettingError("image_size", sentence)
        if self.image_size is not None:
            _check_count(
                "image_size", self.image_size, 1, "a picture has at least one pixel.", most=MAX_SIDE
            )
        sample, samples = unit_of_samples(self.block_size)
        _check_count("batch_size", self.batch_size, 1, f"a batch holds at least one {sample}.")
        reason = f"one batch alone takes batch_size = {self.batch_size} {samples}."
        _check_count("num_samples", self.num_samples, self.batch_size, reason)
        if self.num_samples % self.batch_size:
            nearest = self.num_samples - self.num_samples % self.batch_size
            _refuse(
                "num_samples",
                self.num_samples,
                f"it must be a multiple of batch_size = {self.batch_size}; try {nearest}.",
            )
        if self.num_batches > MAX_BATCHES:
            many = f"{self.num_batches} batches of {self.batch_size} {samples}"
            reason = f"that makes {many}, and at most {MAX_BATCHES} are measured."
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
        if self.block_size is not None:
            _check_count(
                "block_size",
                self.block_size,
                2,
                "the second token of a block is the first that is predicted.",
            )
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
            # Some codecs convert bytes to bytes.
            "a".encode(name)
            if name == "utf-8":
                # Every spelling of the default becomes the same.
                object.__setattr__(self, "encoding", name)
        except (LookupError, ValueError):
            _refuse(
                "encoding",
                self.encoding,
                "it must be one that Python knows, such as utf-8, latin-1, cp1252 or utf-16.",
            )

    @property
    def in_shards(self) -> bool:
        """Tell whether the source is a pattern of tar shards."""
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
    """The eigenvalues to compute, their Hessian, and the method.

    Args:
        objective: "contrastive" (the CLIP loss), "cross_entropy" (a classifier) or "causal_lm" (the
            next token).
        parameters: "all", "image", "text", or a tuple of glob patterns over parameter names.
        weight_decay: Adds 0.5 * weight_decay * |theta|^2 over the selected parameters.
        method: "lanczos", "power" (as PyHessian publishes it) or "pyhessian" (that package itself).
        k: Eigenvalues per batch; 5 in arXiv 2202.06709.
        which: "LM" largest by magnitude, "LA" largest, "SA" smallest; the power methods compute LM
            only.
        tol: Relative residual |Hv - lambda v| / |lambda| under which a pair counts as converged;
            for the power methods their stopping rule, a relative change.
        max_matvecs: Limit of Hessian-vector products per batch, for lanczos.
        seed: Seed of the starting vectors.
        dtype: "float32" or "float64".
        preconditioner: "none" for the Hessian H itself, or "adam" for P^-1/2 H P^-1/2 with P from
            the state of Adam or AdamW that each checkpoint holds; see landscape.stability.

    Raises:
        ValueError: If a value is invalid.
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
    preconditioner: str = "none"

    def __post_init__(self) -> None:
        for key, choices in {
            "objective": OBJECTIVES,
            "method": METHODS,
            "which": WHICH,
            "dtype": DTYPES,
        }.items():
            _check_choice(key, getattr(self, key), choices)
        self._check_preconditioner()
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
            reason = (
                f"method {self.method} finds the largest by magnitude only; use which: LM or "
                "method: lanczos."
            )
            _refuse("which", self.which, reason)

    def _check_preconditioner(self) -> None:
        _check_choice("preconditioner", self.preconditioner, PRECONDITIONERS)
        if self.preconditioner == "none":
            return
        if self.method == "pyhessian":
            reason = (
                "method pyhessian measures the Hessian itself; use method: lanczos or "
                "preconditioner: none."
            )
            _refuse("preconditioner", self.preconditioner, reason)
        if self.objective == CAUSAL_LM:
            reason = (
                "the state of the optimizer is read from files of open_clip_train and `landscape "
                "train` alone; use preconditioner: none, or in Python landscape.preconditioned(H, "
                "optimizer)."
            )
            _refuse("preconditioner", self.preconditioner, reason)

    def _check_parameters(self) -> None:
        if isinstance(self.parameters, str):
            if self.parameters not in TOWERS:
                reason = (
                    "it must be all, image, text, or a list of patterns such as "
                    f'["{self.parameters}"].'
                )
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
    """The weights of a model after an epoch.

    Args:
        epoch: Finished epochs; 0 is the initialisation.
        path: Absolute path.
        sha256: Expected digest of the file, in lower-case hex; None if not known.
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
        """Digest the file or folder and compare with the manifest's digest.

        Returns:
            The SHA-256 digest, in hex.

        Raises:
            CheckpointError: If the file cannot be read or is another one.
        """
        digest = digest_of_checkpoint(self.path)
        if self.sha256 is not None and digest != self.sha256:
            raise CheckpointError(
                f"{self.path}: wrong sha256 (expected {self.sha256}, got {digest}). The weights "
                "are not the ones that the manifest lists; restore the file, or correct the "
                "manifest if the new one is meant."
            )
        return digest


@dataclass(frozen=True, kw_only=True)
class CheckpointSeries:
    """An architecture along its training, in order of epochs.

    Args:
        name: Letters, digits, `.`, `_`, `-`; names an HDF5 group and files.
        model: An open_clip model name, one of this project's configurations, "timm:NAME", or the
            name of `config`.
        label: Label for tables and figures.
        config: Absolute path of a configuration (JSON) of open_clip, or of transformers for a
            language model, which then is the architecture; None for that of `model`.
        trained: What is known of the model as it was trained.
        reads_runs: Whether the run's files, and what its checkpoints hold about the run, are taken
            into account.
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
    """Return the keys of a manifest's section: the fields of its dataclass."""
    return tuple(field.name for field in fields(settings))
