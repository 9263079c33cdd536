"""Blocks of tokens of a text: the fixed batches on which curvature is measured.

Shapes: b = blocks of a batch, l = tokens of a block.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from landscape.clip.seeding import draw_without_replacement
from landscape.errors import DataError, first_line
from landscape.language.model import import_transformers
from landscape.manifest import DataSettings

# Between documents where the tokenizer has no token for the end of one.
_NOTHING: tuple[int, ...] = ()
_MIN_BYTES = 256
# Files of a tokenizer, one of which a folder has.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
)

Tokenize = Callable[[str], Sequence[int]]


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenBatches:
    """The fixed batches of one measurement; made by `token_batches`.

    Attributes:
        tokens: All tokens of the text, in its order.
        indices: Indices of blocks, in the order of the draw; block i is tokens i * block_size and
            following.
        notes: Notes on the text, a sentence each.
    """

    tokens: np.ndarray
    indices: tuple[int, ...]
    block_size: int
    batch_size: int
    seed: int
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.indices) // self.batch_size

    def __iter__(self) -> Iterator[dict[str, Int64[Tensor, "b l"]]]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> dict[str, Int64[Tensor, "b l"]]:
        """Return batch i: "tokens" (b, l).

        Raises:
            IndexError: If there is no batch i.
        """
        return {"tokens": torch.from_numpy(self._blocks(i))}

    def _blocks(self, i: int) -> np.ndarray:
        position = range(len(self))[i]
        chosen = self.indices[position * self.batch_size : (position + 1) * self.batch_size]
        size = self.block_size
        return np.stack(
            [self.tokens[index * size : (index + 1) * size] for index in chosen]
        ).astype(np.int64)

    def digest(self, i: int) -> str:
        """Compute the sha256 of the tokens of batch i.

        It is that of the line "tokens b l", then the tokens row by row, 8 bytes each, the lowest
        first.
        """
        blocks = self._blocks(i)
        header = f"tokens {blocks.shape[0]} {blocks.shape[1]}\n".encode()
        return hashlib.sha256(header + blocks.astype("<i8").tobytes()).hexdigest()

    @cached_property
    def protocol_digest(self) -> str:
        """Compute the sha256 of all settings and batches.

        It is that of one JSON line with sorted keys: the settings of the whole measurement, and the
        digests of the batches in order.
        """
        protocol = {
            "num_samples": len(self.indices),
            "batch_size": self.batch_size,
            "seed": self.seed,
        }
        batches = [self.digest(i) for i in range(len(self))]
        return hashlib.sha256(
            json.dumps(protocol | {"batches": batches}, sort_keys=True).encode()
        ).hexdigest()


def token_batches(
    tokens: np.ndarray, settings: DataSettings, *, notes: tuple[str, ...] = ()
) -> TokenBatches:
    """Cut tokens into blocks, and draw those for the measurement.

    Which blocks, in which order, depends on the number of blocks and the seed alone; more samples
    only add batches at the end. A last block that is not full is left out.

    Raises:
        DataError: If there are too few blocks.
    """
    assert settings.block_size is not None, "manifests of text have a block size"
    available = len(tokens) // settings.block_size
    if available < settings.num_samples:
        raise DataError(
            f"{settings.source}: its {len(tokens)} tokens make {available} blocks of "
            f"{settings.block_size}, but {settings.num_samples} are drawn without replacement. "
            "Lower num_samples or block_size, or take a longer text."
        )
    indices = tuple(draw_without_replacement(available, settings.num_samples, seed=settings.seed))
    return TokenBatches(
        tokens=tokens,
        indices=indices,
        block_size=settings.block_size,
        batch_size=settings.batch_size,
        seed=settings.seed,
        notes=notes,
    )


def read_tokens(
    settings: DataSettings, tokenizers: Sequence[Path]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read all tokens of a manifest's source, with notes on them.

    A text file is one document; a .jsonl file has a document a line, under "text". After each
    document comes the tokenizer's token for its end, where it has one; no other special token is
    added. A .npy file holds tokens, which need no tokenizer.

    Args:
        tokenizers: Folders in which the model's tokenizer may be, the likeliest first.

    Raises:
        DataError: If the file or the tokenizer cannot be read, or there is no text.
    """
    path = Path(settings.source)
    if path.suffix == ".npy":
        return _read_array(path), (f"{path.name}: tokens as they are; no tokenizer was read.",)
    documents = _documents(path)
    if not any(documents):
        raise DataError(
            f"{path}: holds no text, so there is nothing to predict. Check data.source."
        )
    if settings.tokenizer == "bytes":
        pieces = [
            np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) for text in documents
        ]
        return np.concatenate(pieces), (f"{path.name}: a token is a byte of UTF-8.",)
    folders = tokenizers if settings.tokenizer == "model" else [Path(settings.tokenizer)]
    tokenizer = _tokenizer(folders)
    end = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
    tokens: list[int] = []
    for text in documents:
        tokens += [*tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], *end]
    after = f"token {end[0]} ends each of" if end else "nothing stands between"
    return np.asarray(tokens, dtype=np.int64), (
        f"{path.name}: {after} its documents ({len(documents)}).",
    )


def _documents(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Check data.source.") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is no text in UTF-8 (byte {error.start}). Convert it, or take another file."
        ) from error
    if path.suffix.lower() != ".jsonl":
        return [text]
    documents = []
    # Not splitlines, which cuts at characters that JSON may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            documents.append(_document(path, number, line))
    return documents


def _document(path: Path, number: int, line: str) -> str:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = f"is not JSON ({first_line(error)}). A .jsonl file has an object a line."
        raise DataError(f"{path}, line {number}: {reason}") from error
    text = entry.get("text") if isinstance(entry, dict) else None
    if not isinstance(text, str):
        raise DataError(
            f'{path}, line {number}: has no text under "text". Rename the field that holds it.'
        )
    return text


def _read_array(path: Path) -> np.ndarray:
    try:
        tokens: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path}: is no array of NumPy ({first_line(error)}). Write it with numpy.save."
        ) from error
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise DataError(
            f"{path}: holds {tokens.dtype} of shape {tokens.shape}, but tokens are whole numbers "
            "in one row. Save ids.reshape(-1)."
        )
    return np.asarray(tokens)


def _tokenizer(folders: Sequence[Path]) -> Any:
    """Load the tokenizer of the first folder that has one.

    No code of the folder is run.

    Raises:
        DataError: If none has.
    """
    for folder in folders:
        if any((folder / name).is_file() for name in _TOKENIZER_FILES):
            try:
                return import_transformers().AutoTokenizer.from_pretrained(
                    str(folder), trust_remote_code=False
                )
            # Whatever the tokenizer's own readers raise.
            except Exception as error:
                reason = " ".join(str(error).split())[:300]
                raise DataError(
                    f"{folder}: its tokenizer cannot be read ({reason}). Save it there again."
                ) from error
    looked = ", ".join(dict.fromkeys(str(folder) for folder in folders))
    raise DataError(
        f"{looked}: there is no tokenizer (tokenizer.json, ...), so the text has no tokens. Name "
        "the folder of one with `tokenizer: FOLDER`, say `tokenizer: bytes` for a model of bytes, "
        "or give tokens as a .npy file."
    )


def check_tokens(
    batches: TokenBatches,
    *,
    vocabulary: int,
    context: int | None,
    settings: DataSettings,
    model: str,
) -> None:
    """Refuse unknown tokens, and blocks longer than a model can read.

    Args:
        context: The most tokens of a block; None where the model has no such limit.

    Raises:
        DataError: If so.
    """
    if context is not None and batches.block_size > context:
        raise DataError(
            f"data.block_size is {batches.block_size}, but {model} reads at most {context} tokens. "
            "Lower block_size."
        )
    if (
        settings.tokenizer == "bytes"
        and not settings.source.endswith(".npy")
        and vocabulary < _MIN_BYTES
    ):
        raise DataError(
            f"tokenizer is bytes, but {model} has a vocabulary of {vocabulary}, and there are "
            f"{_MIN_BYTES} bytes. Name its own tokenizer."
        )
    for index in range(len(batches)):
        blocks = batches[index]["tokens"]
        least, largest = int(blocks.min()), int(blocks.max())
        if least < 0 or largest >= vocabulary:
            wrong = least if least < 0 else largest
            raise DataError(
                f"{settings.source}: holds the token {wrong}, but {model} has tokens 0 to "
                f"{vocabulary - 1}, so another tokenizer made it. Name that of the model."
            )
