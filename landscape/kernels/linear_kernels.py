r"""Numba kernels of the linear recurrence: value, gradient, derivative of the gradient.

Each is one pass over memory, row by row in the order of addresses, so that the processor's
prefetching works. The kernels wait for memory, not for arithmetic. Rows are short, so the latency
of one is hidden behind the next.

An index counts elements of a flat, C-contiguous array. `step` leads to the next time, which is at
the previous address when time runs backwards. Both are unsigned and wrap around: Numba tests every
index of signed type for being negative.
"""

import numpy as np

from landscape.kernels.lanes import compiled


@compiled
def _start(first, last, length, descending):  # type: ignore[no-untyped-def]
    """Return the index visited first in rows `first` to `last`, and the step."""
    if descending:
        return np.uint64(last * length - 1), np.uint64(-1)
    return np.uint64(first * length), np.uint64(1)


@compiled
def scan(first, last, _, a, b, h, length, reverse):  # type: ignore[no-untyped-def]
    """Run h_t = a_t h_{t-1} + b_t."""
    at, step = _start(first, last, length, reverse)
    for _ in range(first, last):
        # Each row starts from h_{-1} = 0; `at` goes on into the next row.
        state = a.dtype.type(0)
        for _ in range(length):
            state = a[at] * state + b[at]
            h[at] = state
            at += step


@compiled
def gradient(first, last, _, a, h, dh, da, db, length, reverse):  # type: ignore[no-untyped-def]
    """Compute the gradient of a scan, from its end to its start.

    db_t = g_t = dh_t + a_{t+1} g_{t+1} and da_t = g_t h_{t-1}.
    """
    at, step = _start(first, last, length, not reverse)
    for _ in range(first, last):
        # carry is a_{t+1} g_{t+1}, zero after the last step. Time runs against that of the scan, so
        # `at + step` is t - 1.
        carry = a.dtype.type(0)
        for _ in range(length - 1):
            # Everything is read before anything is written: the compiler must assume that arrays
            # overlap.
            g, decay, state = dh[at] + carry, a[at], h[at + step]
            db[at] = g
            da[at] = g * state
            carry = decay * g
            at += step
        # The scan's first step is apart: `at + step` would be in another row. h_{-1} = 0 makes da_0
        # = 0.
        db[at] = dh[at] + carry
        da[at] = a.dtype.type(0)
        at += step


@compiled
def product(first, last, _, a, h, g, va, vb, ua, uh, ud, length, reverse):  # type: ignore[no-untyped-def]
    """Differentiate <va, da> + <vb, db> in a, h and dh.

    da and db are those of `gradient`. The derivatives are (k_{t-1} g_t, va_{t+1} g_{t+1}, k_t) with
    k_t = a_t k_{t-1} + vb_t + va_t h_{t-1}.
    """
    at, step = _start(first, last, length, reverse)
    for _ in range(first, last):
        # k_{-1} and h_{-1} are zero, so k_0 = vb_0, and ua_0 = k_{-1} g_0 = 0.
        k = vb[at]
        ua[at] = a.dtype.type(0)
        ud[at] = k
        for _ in range(length - 1):
            # Everything is read first, as in `gradient`.
            before, at = at, at + step
            adjoint, v = g[at], va[at]
            following = vb[at] + v * h[before] + a[at] * k
            ua[at] = k * adjoint
            uh[before] = v * adjoint
            ud[at] = following
            k = following
        # No later step uses the last state in da, so its derivative is zero.
        uh[at] = a.dtype.type(0)
        at += step
