r"""Numba kernels of the linear recurrence: its value, its gradient, and the derivative of its gradient.

Each is one pass over memory, row by row in the order of addresses, so that the processor's prefetching follows; that, not
arithmetic, is what they wait for. Rows are short, so the latency of one is hidden behind the next.

An index counts elements of a flat, C-contiguous array, and `step` leads to the next time, which is the address before when
time runs backwards. Both are unsigned and wrap around: Numba looks for negative indices of signed type in every access.
"""

import numpy as np

from landscape.kernels.lanes import compiled


@compiled
def _start(first, last, length, descending):  # type: ignore[no-untyped-def]
    """The index of the first element that is visited in rows `first` to `last`, and the step to the next one."""
    if descending:
        return np.uint64(last * length - 1), np.uint64(-1)
    return np.uint64(first * length), np.uint64(1)


@compiled
def scan(first, last, _, a, b, h, length, reverse):  # type: ignore[no-untyped-def]
    """h_t = a_t h_{t-1} + b_t."""
    at, step = _start(first, last, length, reverse)
    for _ in range(first, last):
        state = a.dtype.type(0)
        for _ in range(length):
            state = a[at] * state + b[at]
            h[at] = state
            at += step


@compiled
def gradient(first, last, _, a, h, dh, da, db, length, reverse):  # type: ignore[no-untyped-def]
    """db_t = g_t = dh_t + a_{t+1} g_{t+1} and da_t = g_t h_{t-1} of a scan: from its end to its start."""
    at, step = _start(first, last, length, not reverse)
    for _ in range(first, last):
        carry = a.dtype.type(0)
        for _ in range(length - 1):
            # All is read before anything is written: the compiler must assume that arrays overlap.
            g, decay, state = dh[at] + carry, a[at], h[at + step]
            db[at] = g
            da[at] = g * state
            carry = decay * g
            at += step
        db[at] = dh[at] + carry
        da[at] = a.dtype.type(0)
        at += step


@compiled
def product(first, last, _, a, h, g, va, vb, ua, uh, ud, length, reverse):  # type: ignore[no-untyped-def]
    """The derivatives of <va, da> + <vb, db>, as `gradient` has them, in a, h and dh: (k_{t-1} g_t, va_{t+1} g_{t+1}, k_t).

    k_t = a_t k_{t-1} + vb_t + va_t h_{t-1}.
    """
    at, step = _start(first, last, length, reverse)
    for _ in range(first, last):
        k = vb[at]
        ua[at] = a.dtype.type(0)
        ud[at] = k
        for _ in range(length - 1):
            # All is read first, as in `gradient`.
            before, at = at, at + step
            adjoint, v = g[at], va[at]
            following = vb[at] + v * h[before] + a[at] * k
            ua[at] = k * adjoint
            uh[before] = v * adjoint
            ud[at] = following
            k = following
        uh[at] = a.dtype.type(0)
        at += step
