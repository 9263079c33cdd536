"""Two Gram-Schmidt passes in three sweeps over a basis, as a Numba kernel for a CPU.

The subtraction of the first pass and the inner products of the second share a sweep, a stretch of columns at a time that stays
in the cache. Sums are in float64, numbers of float32 are converted in registers, and each stretch of w is rounded once a pass.
Imported only where a basis is long enough. Shapes: n = length of a row, m = number of rows.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic
from torch import Tensor

# Numbers of w at a time. With as many of each of 22 rows they take 200 KB in float32; lengths of 512 to 4096 were within 10 %.
_STRETCH = 2048
# Sums may be vectorised, and a multiplication fused with an addition; nothing else is relaxed, so NaN and infinity survive.
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "reassoc"},
}


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile with Numba, cached on disk where there is a place for it."""
    try:
        return njit(function, cache=True, **_OPTIONS)
    except RuntimeError:  # neither the package's folder nor the user's cache folder is writable
        return njit(function, **_OPTIONS)


@intrinsic
def _pointer(typing: Any, address: types.Integer, like: Any) -> Any:
    """The address as a pointer to numbers of the array's dtype."""
    kind = types.CPointer(like.dtype)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.inttoptr(args[0], context.get_value_type(kind))

    return kind(types.uint64, like), generate


@njit(**_OPTIONS)
def _load(w, first, x, count):  # type: ignore[no-untyped-def]
    for i in range(count):
        x[i] = w[first + i]


@njit(**_OPTIONS)
def _round(x, count, w, first):  # type: ignore[no-untyped-def]
    """Write x into w, and what that leaves of it back into x."""
    for i in range(count):
        w[first + i] = x[i]
        x[i] = w[first + i]


@njit(**_OPTIONS)
def _add_inner(rows, first, x, count, w, sums):  # type: ignore[no-untyped-def]
    for j in range(rows.size):
        row = carray(_pointer(rows[j], w), first + count)[first:]
        total = 0.0
        for i in range(count):
            total += np.float64(row[i]) * x[i]
        sums[j] += total


@njit(**_OPTIONS)
def _subtract(rows, first, x, count, w, factors):  # type: ignore[no-untyped-def]
    for j in range(rows.size):
        row = carray(_pointer(rows[j], w), first + count)[first:]
        factor = factors[j]
        for i in range(count):
            x[i] -= factor * np.float64(row[i])


@_compiled
def _two_passes(rows, w, x, first_pass, second_pass):  # type: ignore[no-untyped-def]
    """Orthogonalise w in place; add the components that each pass removed, and return the squared norm of what is left.

    `rows` are the addresses of m rows of w's length and dtype, x the float64 memory of a stretch.
    """
    for first in range(0, w.size, x.size):
        count = min(x.size, w.size - first)
        _load(w, first, x, count)
        _add_inner(rows, first, x, count, w, first_pass)
    for first in range(0, w.size, x.size):
        count = min(x.size, w.size - first)
        _load(w, first, x, count)
        _subtract(rows, first, x, count, w, first_pass)
        _round(x, count, w, first)
        _add_inner(rows, first, x, count, w, second_pass)
    square = 0.0
    for first in range(0, w.size, x.size):
        count = min(x.size, w.size - first)
        _load(w, first, x, count)
        _subtract(rows, first, x, count, w, second_pass)
        _round(x, count, w, first)
        for i in range(count):
            square += x[i] * x[i]
    return square


def orthogonalise(
    rows: Sequence[Float[Tensor, " n"]], w: Float[Tensor, " n"]
) -> tuple[Float[np.ndarray, " m"], float]:
    """Remove from w, in place, its components along orthonormal rows, by two passes.

    Args:
        rows: On the CPU, each contiguous, of w's length and dtype: float32 or float64.
        w: Contiguous.

    Returns:
        The components that were removed, and the norm of what is left.

    Source: Giraud, Langou & Rozloznik, The loss of orthogonality in the Gram-Schmidt process (2005).
    """
    assert w.is_contiguous() and w.dtype in (torch.float32, torch.float64)
    assert all(
        row.is_contiguous() and row.dtype == w.dtype and row.shape == w.shape for row in rows
    )
    addresses = np.array([row.data_ptr() for row in rows], dtype=np.uint64)
    first_pass, second_pass = np.zeros(len(rows)), np.zeros(len(rows))
    square = _two_passes(addresses, w.detach().numpy(), np.empty(_STRETCH), first_pass, second_pass)
    return first_pass + second_pass, math.sqrt(square)
