r"""Numba kernels of the selective scan: its value, and its gradient.

theta = (u, s, A, B, C, D, bias) with delta = softplus(s + bias) or s + bias; `forward` is y(theta),
`gradient` is the gradient of L = <dy, y(theta)> in theta. With x_t = delta_t u_t and a_t =
exp(delta_t A), for each channel and state,

    h_t = a_t h_{t-1} + B_t x_t,    y_t = sum over states of C_t h_t + D u_t,
    g_t = C_t dy_t + a_{t+1} g_{t+1}    (the adjoint of h_t, from the end to the start),
    dB_t = g_t x_t,    dC_t = dy_t h_t,    dx_t = B_t g_t,    d log a_t = g_t a_t h_{t-1},

and log a_t = delta_t A gives the parts A d log a_t of d delta_t, and delta_t d log a_t of dA.

No state is kept in memory between calls: each kernel runs the recurrence again, `lanes` channels at
a time, in tiles of some steps that fit a second-level cache. Where there are several tiles, an
additional pass over all but the last leaves the state at the start of each tile. From there the
tile is run again before it is run backwards.

Shapes: r = batch times groups, d = channels of a group, n = states per channel, l = length. u, s,
dy (r, d, l); A (r, d, n); B, C (r, n, l); D, bias (r, d). Inside a kernel all arrays are flat; p is
theta and dy, in this order, `sizes` = (channels, states, length, parts of a group's channels that
are separate tasks, steps of a tile, softplus). Quantities of a tile are vectors over channels.
"""

import math

from landscape.kernels.lanes import (
    compiled,
    exp2,
    lane_count,
    lane_sum,
    load,
    log1p_unit,
    splat,
    store,
    where_less,
)
from landscape.kernels.tiles import load_tile, store_tile

# Quantities of a step in a tile. The forward kernel needs the first five; the backward kernels
# store dy in the place of y. KEPT is a_t h_{t-1}, the part of the previous state that is kept.
U, DELTA, SLOPE, X, Y, DX, DDELTA, DECAY, KEPT = range(9)
DY = Y
FORWARD_QUANTITIES, GRADIENT_QUANTITIES = 5, 9
LOG2_E = math.log2(math.e)
# Beyond this, torch's softplus returns its argument.
_SOFTPLUS_THRESHOLD = 20.0


@compiled
def _softplus(s, zero):  # type: ignore[no-untyped-def]
    """Compute softplus(s), and e^(-|s|)."""
    # softplus(s) = max(s, 0) + log(1 + e^(-|s|)), which cannot overflow.
    # zero - s is -s: Lanes have no unary minus. e is at most 1, as `log1p_unit` needs.
    e = exp2(where_less(s, 0.0, s, zero - s) * LOG2_E)
    return where_less(s, _SOFTPLUS_THRESHOLD, log1p_unit(e) + where_less(s, 0.0, zero, s), s), e


@compiled
def _slope_of_softplus(s, e, zero):  # type: ignore[no-untyped-def]
    # The logistic function of s from e = e^(-|s|): e / (1 + e) for s < 0, 1 / (1 + e) otherwise.
    # Both forms avoid e^|s|, which would overflow.
    unity = zero + 1.0
    inverse = unity / (unity + e)
    return where_less(s, _SOFTPLUS_THRESHOLD, where_less(s, 0.0, e * inverse, inverse), unity)


@compiled
def prepare(p, start, sizes, rows, steps, tile, pitch, bias, zero, with_slope):  # type: ignore[no-untyped-def]
    """Load u and s of a tile; derive delta, x and the slope.

    x = delta u. The slope d delta / d s is derived only if asked for.
    """
    lanes = lane_count(tile)
    load_tile(p[0], start, sizes[2], rows, steps, tile, U * lanes, pitch)
    load_tile(p[1], start, sizes[2], rows, steps, tile, DELTA * lanes, pitch)
    for at in range(0, steps * pitch, pitch):
        s = load(tile, at + DELTA * lanes) + bias
        delta, slope = s, zero + 1.0
        if sizes[5]:
            delta, e = _softplus(s, zero)
            if with_slope:
                slope = _slope_of_softplus(s, e, zero)
        store(tile, at + DELTA * lanes, delta)
        store(tile, at + SLOPE * lanes, slope)
        store(tile, at + X * lanes, delta * load(tile, at + U * lanes))


@compiled
def load_constants(p, channel, rows, states, tile, at, zero):  # type: ignore[no-untyped-def]
    """Load A of a block into tile[at:], and return D and bias.

    A is stored by states. The start of the tile is overwritten.
    """
    lanes = lane_count(tile)
    for vector in range(2):
        for i in range(lanes):
            tile[vector * lanes + i] = (
                p[5 + vector][channel + i] if i < rows else tile.dtype.type(0)
            )
    D, bias = load(tile, 0), load(tile, lanes)
    load_tile(p[2], channel * states, states, rows, states, tile, at, lanes)
    return D, bias


@compiled
def fill(tile, first, last, value):  # type: ignore[no-untyped-def]
    for at in range(first, last):
        tile[at] = value


@compiled
def _advance(tile, pitch, steps, A, h, B, C, at_time, with_output):  # type: ignore[no-untyped-def]
    """Run a state through a tile.

    Its part of y is added to the tile if asked for.
    """
    lanes = lane_count(tile)
    # e^(delta A) = 2^(delta A log2 e), with the constant factor taken out of the loop.
    rate = A * LOG2_E
    for t in range(steps):
        at = t * pitch
        # Time is the inner loop, so A and h stay in registers. Only the multiplication and addition
        # wait for the previous step; exp2 of later steps can be computed before. B and C are one
        # number for all channels of the row.
        h = exp2(load(tile, at + DELTA * lanes) * rate) * h + B[at_time + t] * load(
            tile, at + X * lanes
        )
        if with_output:
            store(tile, at + Y * lanes, load(tile, at + Y * lanes) + C[at_time + t] * h)
    return h


@compiled
def forward(first, last, tile, p, y, sizes):  # type: ignore[no-untyped-def]
    channels, states, length, parts, tile_steps, _ = sizes
    lanes = lane_count(tile)
    zero = splat(tile.dtype.type(0))
    pitch = FORWARD_QUANTITIES * lanes
    at_A = pitch * tile_steps
    at_h = at_A + states * lanes
    blocks = (channels + lanes - 1) // lanes
    for task in range(first, last):
        row, part = task // parts, task % parts
        for block in range(blocks * part // parts, blocks * (part + 1) // parts):
            rows, channel = min(lanes, channels - block * lanes), row * channels + block * lanes
            D, bias = load_constants(p, channel, rows, states, tile, at_A, zero)
            fill(tile, at_h, at_h + states * lanes, tile.dtype.type(0))
            # Time is outside and states are inside: u and s are transposed, and softplus is
            # computed, once for all states.
            for done in range(0, length, tile_steps):
                steps = min(tile_steps, length - done)
                prepare(
                    p, channel * length + done, sizes, rows, steps, tile, pitch, bias, zero, False
                )
                for at in range(0, steps * pitch, pitch):
                    store(tile, at + Y * lanes, D * load(tile, at + U * lanes))
                for i in range(states):
                    A, h = load(tile, at_A + i * lanes), load(tile, at_h + i * lanes)
                    h = _advance(
                        tile,
                        pitch,
                        steps,
                        A,
                        h,
                        p[3],
                        p[4],
                        (row * states + i) * length + done,
                        True,
                    )
                    store(tile, at_h + i * lanes, h)
                store_tile(y, channel * length + done, length, rows, steps, tile, Y * lanes, pitch)


@compiled
def _state_starts(p, channel, row, sizes, rows, tile, pitch, at_A, at_starts, bias, zero):  # type: ignore[no-untyped-def]
    """Compute the states at the start of every tile.

    They are stored in tile[at_starts:] as (tile, state, lane).
    """
    lanes = lane_count(tile)
    states, length, tile_steps = sizes[1], sizes[2], sizes[4]
    fill(tile, at_starts, at_starts + states * lanes, tile.dtype.type(0))
    # states * tiles vectors are kept instead of states * length. The last tile is left out: nothing
    # starts after it.
    for done in range(0, length - tile_steps, tile_steps):
        prepare(p, channel * length + done, sizes, rows, tile_steps, tile, pitch, bias, zero, False)
        at = at_starts + done // tile_steps * states * lanes
        for i in range(states):
            A, h = load(tile, at_A + i * lanes), load(tile, at + i * lanes)
            h = _advance(
                tile, pitch, tile_steps, A, h, p[3], p[4], (row * states + i) * length + done, False
            )
            store(tile, at + (states + i) * lanes, h)


@compiled
def _gradient_of_state(tile, pitch, steps, A, h, carry, p, at_time, out, at_out, zero):  # type: ignore[no-untyped-def]
    """Run a state through a tile and back.

    Returns:
        The adjoint state before the tile, and dA.
    """
    lanes = lane_count(tile)
    rate = A * LOG2_E
    for t in range(steps):
        at = t * pitch
        decay = exp2(load(tile, at + DELTA * lanes) * rate)
        kept = decay * h
        h = kept + p[3][at_time + t] * load(tile, at + X * lanes)
        store(tile, at + DECAY * lanes, decay)
        # h_t itself is not kept: it is kept_t + B_t x_t, from quantities that are in the tile.
        store(tile, at + KEPT * lanes, kept)
    dA = zero
    for t in range(steps - 1, -1, -1):
        at = t * pitch
        B, x = p[3][at_time + t], load(tile, at + X * lanes)
        dy, kept = load(tile, at + DY * lanes), load(tile, at + KEPT * lanes)
        # carry is a_{t+1} g_{t+1}.
        g = p[4][at_time + t] * dy + carry
        out[3][at_out + t] += lane_sum(g * x)
        out[4][at_out + t] += lane_sum(dy * (kept + B * x))
        # h_t = e^(log a_t) h_{t-1} + ..., so dh_t / d log a_t = a_t h_{t-1} = kept_t. log a_t =
        # delta_t A then needs a factor A for delta and delta for A. dx and d delta are sums over
        # states, collected in the tile.
        dlog = g * kept
        store(tile, at + DX * lanes, load(tile, at + DX * lanes) + B * g)
        store(tile, at + DDELTA * lanes, load(tile, at + DDELTA * lanes) + A * dlog)
        dA = dA + load(tile, at + DELTA * lanes) * dlog
        carry = load(tile, at + DECAY * lanes) * g
    return carry, dA


@compiled
def _gradient_block(p, out, task, row, block, sizes, tile, zero):  # type: ignore[no-untyped-def]
    channels, states, length, _, tile_steps, _ = sizes
    lanes = lane_count(tile)
    pitch = GRADIENT_QUANTITIES * lanes
    at_A = pitch * tile_steps
    at_carry, at_dA, at_starts = (
        at_A + states * lanes,
        at_A + 2 * states * lanes,
        at_A + 3 * states * lanes,
    )
    rows, channel = min(lanes, channels - block * lanes), row * channels + block * lanes
    D, bias = load_constants(p, channel, rows, states, tile, at_A, zero)
    fill(tile, at_carry, at_starts, tile.dtype.type(0))
    _state_starts(p, channel, row, sizes, rows, tile, pitch, at_A, at_starts, bias, zero)
    dD, dbias = zero, zero
    # From the last tile to the first, since the adjoint of a tile's last state comes from the next
    # tile.
    for k in range((length - 1) // tile_steps, -1, -1):
        done = k * tile_steps
        steps, start = min(tile_steps, length - done), channel * length + done
        prepare(p, start, sizes, rows, steps, tile, pitch, bias, zero, True)
        load_tile(p[7], start, length, rows, steps, tile, DY * lanes, pitch)
        for at in range(0, steps * pitch, pitch):
            store(tile, at + DX * lanes, zero)
            store(tile, at + DDELTA * lanes, zero)
        for i in range(states):
            A, carry = load(tile, at_A + i * lanes), load(tile, at_carry + i * lanes)
            h = load(tile, at_starts + (k * states + i) * lanes)
            at_time, at_out = (
                (row * states + i) * length + done,
                (task * states + i) * length + done,
            )
            carry, dA = _gradient_of_state(
                tile, pitch, steps, A, h, carry, p, at_time, out, at_out, zero
            )
            store(tile, at_carry + i * lanes, carry)
            store(tile, at_dA + i * lanes, load(tile, at_dA + i * lanes) + dA)
        for at in range(0, steps * pitch, pitch):
            u, dx, dy = (
                load(tile, at + U * lanes),
                load(tile, at + DX * lanes),
                load(tile, at + DY * lanes),
            )
            # x = delta u adds u dx to d delta, and gives delta dx to u, where y's skip connection
            # adds D dy. bias is added to every s_t, so its gradient is the sum of all ds_t. du and
            # ds take the places of dx and d delta, which are no longer needed.
            ds = (load(tile, at + DDELTA * lanes) + u * dx) * load(tile, at + SLOPE * lanes)
            dD, dbias = dD + dy * u, dbias + ds
            store(tile, at + DX * lanes, load(tile, at + DELTA * lanes) * dx + D * dy)
            store(tile, at + DDELTA * lanes, ds)
        store_tile(out[0], start, length, rows, steps, tile, DX * lanes, pitch)
        store_tile(out[1], start, length, rows, steps, tile, DDELTA * lanes, pitch)
    store_sums(out, channel, rows, states, tile, at_dA, dD, dbias)


@compiled
def store_sums(out, channel, rows, states, tile, at_dA, dD, dbias):  # type: ignore[no-untyped-def]
    """Write the gradients that have one number per channel (and state).

    The start of the tile is overwritten.
    """
    lanes = lane_count(tile)
    store_tile(out[2], channel * states, states, rows, states, tile, at_dA, lanes)
    store(tile, 0, dD)
    store(tile, lanes, dbias)
    for vector in range(2):
        for i in range(rows):
            out[5 + vector][channel + i] = tile[vector * lanes + i]


@compiled
def gradient(first, last, tile, p, out, sizes):  # type: ignore[no-untyped-def]
    channels, states, length, parts, _, _ = sizes
    lanes = lane_count(tile)
    zero = splat(tile.dtype.type(0))
    blocks = (channels + lanes - 1) // lanes
    for task in range(first, last):
        row, part = task // parts, task % parts
        # The blocks of a task add to one sum for dB and dC, so it must start from zero.
        for summed in (out[3], out[4]):
            fill(summed, task * states * length, (task + 1) * states * length, tile.dtype.type(0))
        for block in range(blocks * part // parts, blocks * (part + 1) // parts):
            _gradient_block(p, out, task, row, block, sizes, tile, zero)
