"""Classes as points on the sphere of a text tower, cached on disk.

Without the cache, a thousand classes with 80 prompts take minutes on a CPU.

Shapes: c = classes, d = width of the common space.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from landscape.datasets import Classes
from landscape.errors import DataError
from landscape.files import cache_dir, write_atomically

# Prompts that a text tower encodes at a time.
_PROMPTS_AT_ONCE = 256
# Part of the names of cached files: raise it when the same prompts would give another point.
_FORMAT = 1


def class_features(
    encode: Callable[[Sequence[str]], Float[Tensor, "p d"]], classes: Classes
) -> Float[Tensor, "c d"]:
    """Compute the direction of each class from its prompts.

    It is the mean of its normalised prompts, normalised. Prompts are all synonyms of a class in all
    templates, pooled in one mean.

    Args:
        encode: Prompts -> points, of any length.

    Source: Radford et al. 2021 (arXiv 2103.00020), section 3.1.4; pooled synonyms as in SLIP (arXiv
    2112.12750).

    Raises:
        DataError: If the prompts of a class cancel, or give something that is not finite.
    """
    prompts = [classes.prompts(index) for index in range(len(classes.names))]
    flat = [prompt for of_class in prompts for prompt in of_class]
    points = torch.cat(
        [encode(flat[i : i + _PROMPTS_AT_ONCE]) for i in range(0, len(flat), _PROMPTS_AT_ONCE)]
    )
    directions = F.normalize(points.double(), dim=1)
    means = torch.stack(
        [part.mean(dim=0) for part in directions.split([len(of_class) for of_class in prompts])]
    )
    lengths = means.norm(dim=1)
    for index in torch.nonzero(~(lengths > 0)).flatten().tolist():
        raise DataError(
            f"class {classes.names[index][0]!r}: its prompts have no direction in the model's "
            "space (the text tower gave zero or something that is not finite), so no picture can "
            "be compared with it. Check the checkpoint."
        )
    return (means / lengths[:, None]).float()


def cached_class_features(
    encode: Callable[[Sequence[str]], Float[Tensor, "p d"]], classes: Classes, *, model_digest: str
) -> Float[Tensor, "c d"]:
    """Return `class_features` from the cache of this machine, or compute them.

    Args:
        model_digest: Digest of the weights and all else that the text tower depends on.
    """
    path = _place(model_digest, classes)
    with suppress(OSError, ValueError, EOFError):
        stored = np.load(path, allow_pickle=False)
        fits = stored.dtype == np.float32 and stored.ndim == 2 and len(stored) == len(classes.names)
        if fits and np.isfinite(stored).all():
            return torch.from_numpy(stored)
    features = class_features(encode, classes)
    # A cache that cannot be written costs only time.
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _npy(features.cpu().numpy()))
    return features


def _place(model_digest: str, classes: Classes) -> Path:
    key = json.dumps([_FORMAT, model_digest, classes.digest, torch.__version__])
    return cache_dir() / "classes" / f"{hashlib.sha256(key.encode()).hexdigest()}.npy"


def _npy(array: np.ndarray) -> bytes:
    import io

    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()
