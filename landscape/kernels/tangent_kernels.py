r"""Numba kernels of the directional derivatives of the selective scan and its gradient.

With L = <dy, y(theta)> as in selective_kernels.py, `tangent` is the product of the Hessian of L in
(theta, dy) with a direction: everything that a second derivative in either mode needs, in one run
forwards and one back. Each line applies the product rule to a line of selective_kernels.py.

A name that ends in _ is the derivative along the direction q of the one without; the rest is as in
selective_kernels.py.
"""

from landscape.kernels.lanes import compiled, exp2, lane_count, lane_sum, load, splat, store
from landscape.kernels.selective_kernels import (
    DDELTA,
    DECAY,
    DELTA,
    DX,
    DY,
    GRADIENT_QUANTITIES,
    KEPT,
    LOG2_E,
    SLOPE,
    U,
    X,
    fill,
    load_constants,
    prepare,
    store_sums,
)
from landscape.kernels.tiles import load_tile, store_tile

# Quantities of one step in a tile, after those of the gradient.
TANGENT_QUANTITIES = GRADIENT_QUANTITIES + 9
U_, DELTA_, SLOPE_, X_, Y_, DY_, DX_, DDELTA_, KEPT_ = range(
    GRADIENT_QUANTITIES, TANGENT_QUANTITIES
)


@compiled
def _prepare_tangent(p, q, start, sizes, rows, steps, tile, pitch, constants, zero):  # type: ignore[no-untyped-def]
    """Run `prepare` and its derivative along q.

    Also derive the skip connection's part of the derivative of y.
    """
    lanes = lane_count(tile)
    D, bias, D_, bias_ = constants
    prepare(p, start, sizes, rows, steps, tile, pitch, bias, zero, True)
    load_tile(q[0], start, sizes[2], rows, steps, tile, U_ * lanes, pitch)
    load_tile(q[1], start, sizes[2], rows, steps, tile, DELTA_ * lanes, pitch)
    for at in range(0, steps * pitch, pitch):
        u, u_ = load(tile, at + U * lanes), load(tile, at + U_ * lanes)
        slope = load(tile, at + SLOPE * lanes)
        s_ = load(tile, at + DELTA_ * lanes) + bias_
        delta_ = slope * s_
        store(tile, at + DELTA_ * lanes, delta_)
        # The slope of softplus is a logistic function, and is 1 where there is no softplus.
        # slope (1 - slope) s_, with slope s_ = delta_: the derivative of the logistic function is
        # its value times one minus its value.
        store(tile, at + SLOPE_ * lanes, delta_ - slope * delta_)
        store(tile, at + X_ * lanes, delta_ * u + load(tile, at + DELTA * lanes) * u_)
        store(tile, at + Y_ * lanes, D_ * u + D * u_)


@compiled
def _advance_tangent(tile, pitch, steps, A, A_, h, h_, p, q, at_time):  # type: ignore[no-untyped-def]
    """Run `_advance` and its derivative; keep what the backward run needs."""
    lanes = lane_count(tile)
    rate = A * LOG2_E
    for t in range(steps):
        at = t * pitch
        B, C, B_, C_ = p[3][at_time + t], p[4][at_time + t], q[3][at_time + t], q[4][at_time + t]
        delta, x = load(tile, at + DELTA * lanes), load(tile, at + X * lanes)
        decay = exp2(delta * rate)
        kept = decay * h
        # kept = e^(delta A) h, so its derivative is (delta_ A + delta A_) kept + e^(delta A) h_.
        kept_ = (load(tile, at + DELTA_ * lanes) * A + delta * A_) * kept + decay * h_
        h = kept + B * x
        # The derivative of B x. y_ is the derivative of C h, summed over states.
        h_ = kept_ + B_ * x + B * load(tile, at + X_ * lanes)
        store(tile, at + Y_ * lanes, load(tile, at + Y_ * lanes) + C_ * h + C * h_)
        store(tile, at + DECAY * lanes, decay)
        store(tile, at + KEPT * lanes, kept)
        store(tile, at + KEPT_ * lanes, kept_)
    return h, h_


@compiled
def _tangent_of_state(tile, pitch, steps, A, A_, carry, carry_, p, q, at_time, out, at_out, zero):  # type: ignore[no-untyped-def]
    """Run the backward half of `_gradient_of_state` and its derivative.

    Returns:
        The adjoint state before the tile, its derivative, and the derivative of the sum for A.
    """
    lanes = lane_count(tile)
    dA_ = zero
    for t in range(steps - 1, -1, -1):
        at = t * pitch
        B, C, B_, C_ = p[3][at_time + t], p[4][at_time + t], q[3][at_time + t], q[4][at_time + t]
        x, x_ = load(tile, at + X * lanes), load(tile, at + X_ * lanes)
        dy, dy_ = load(tile, at + DY * lanes), load(tile, at + DY_ * lanes)
        delta, delta_ = load(tile, at + DELTA * lanes), load(tile, at + DELTA_ * lanes)
        kept, kept_ = load(tile, at + KEPT * lanes), load(tile, at + KEPT_ * lanes)
        # g_ includes the direction's dy_, since H is the Hessian in (theta, dy). carry_ is the
        # derivative of a_{t+1} g_{t+1}.
        g, g_ = C * dy + carry, C_ * dy + C * dy_ + carry_
        out[3][at_out + t] += lane_sum(g_ * x + g * x_)
        # dC = dy h with h = kept + B x, as in `_gradient_of_state`.
        out[4][at_out + t] += lane_sum(dy_ * (kept + B * x) + dy * (kept_ + B_ * x + B * x_))
        dlog, dlog_ = g * kept, g_ * kept + g * kept_
        # dx and d delta are needed too: the product rule in `_tangent_finish` multiplies them by
        # derivatives of delta, u and the slope. Only their derivatives are written out.
        store(tile, at + DX * lanes, load(tile, at + DX * lanes) + B * g)
        store(tile, at + DX_ * lanes, load(tile, at + DX_ * lanes) + B_ * g + B * g_)
        store(tile, at + DDELTA * lanes, load(tile, at + DDELTA * lanes) + A * dlog)
        store(tile, at + DDELTA_ * lanes, load(tile, at + DDELTA_ * lanes) + A_ * dlog + A * dlog_)
        dA_ = dA_ + delta_ * dlog + delta * dlog_
        decay = load(tile, at + DECAY * lanes)
        carry = decay * g
        # The derivative of e^(delta A) g.
        carry_ = decay * ((delta_ * A + delta * A_) * g + g_)
    return carry, carry_, dA_


@compiled
def _push_tiles(  # type: ignore[no-untyped-def]
    p, q, out, channel, row, sizes, rows, tile, pitch, at_A, at_starts, constants, zero, last
):
    """Compute states and their derivatives at the starts of the tiles.

    The tiles are 0 to `last`. Also compute the derivative of y in the tiles before `last`.
    """
    lanes = lane_count(tile)
    states, length, tile_steps = sizes[1], sizes[2], sizes[4]
    fill(tile, at_starts, at_starts + 2 * states * lanes, tile.dtype.type(0))
    # A start is (h, h_) for each state; that of tile k + 1 follows that of tile k. The last tile is
    # left out if a backward run follows, which runs it from its start anyway.
    for k in range(last):
        done = k * tile_steps
        steps, start = min(tile_steps, length - done), channel * length + done
        _prepare_tangent(p, q, start, sizes, rows, steps, tile, pitch, constants, zero)
        for i in range(states):
            at, at_time = (
                at_starts + 2 * (k * states + i) * lanes,
                (row * states + i) * length + done,
            )
            A, A_ = load(tile, at_A + i * lanes), load(tile, at_A + (states + i) * lanes)
            h, h_ = load(tile, at), load(tile, at + lanes)
            h, h_ = _advance_tangent(tile, pitch, steps, A, A_, h, h_, p, q, at_time)
            store(tile, at + 2 * states * lanes, h)
            store(tile, at + (2 * states + 1) * lanes, h_)
        store_tile(out[7], start, length, rows, steps, tile, Y_ * lanes, pitch)


@compiled
def _tangent_back(p, q, out, row, task, k, sizes, tile, pitch, at_A, at_starts, zero):  # type: ignore[no-untyped-def]
    """Run all states of tile k forward from its start, and back."""
    lanes = lane_count(tile)
    states, length, tile_steps = sizes[1], sizes[2], sizes[4]
    done = k * tile_steps
    steps = min(tile_steps, length - done)
    at_carry, at_dA_ = at_A + 2 * states * lanes, at_A + 4 * states * lanes
    for i in range(states):
        at, at_time = at_starts + 2 * (k * states + i) * lanes, (row * states + i) * length + done
        at_out = (task * states + i) * length + done
        A, A_ = load(tile, at_A + i * lanes), load(tile, at_A + (states + i) * lanes)
        _advance_tangent(
            tile, pitch, steps, A, A_, load(tile, at), load(tile, at + lanes), p, q, at_time
        )
        carry, carry_ = (
            load(tile, at_carry + 2 * i * lanes),
            load(tile, at_carry + (2 * i + 1) * lanes),
        )
        carry, carry_, dA_ = _tangent_of_state(
            tile, pitch, steps, A, A_, carry, carry_, p, q, at_time, out, at_out, zero
        )
        store(tile, at_carry + 2 * i * lanes, carry)
        store(tile, at_carry + (2 * i + 1) * lanes, carry_)
        store(tile, at_dA_ + i * lanes, load(tile, at_dA_ + i * lanes) + dA_)


@compiled
def _tangent_finish(tile, pitch, steps, D, D_, dD_, dbias_):  # type: ignore[no-untyped-def]
    """Turn derivatives of dx and d delta into those of du and ds.

    Returns:
        The derivatives of the sums for D and bias.
    """
    lanes = lane_count(tile)
    for at in range(0, steps * pitch, pitch):
        u, u_ = load(tile, at + U * lanes), load(tile, at + U_ * lanes)
        dx, dx_ = load(tile, at + DX * lanes), load(tile, at + DX_ * lanes)
        dy, dy_ = load(tile, at + DY * lanes), load(tile, at + DY_ * lanes)
        # ddelta = (sum over states of A dlog) + u dx, ds = slope ddelta, du = delta dx + D dy.
        ddelta = load(tile, at + DDELTA * lanes) + u * dx
        ddelta_ = load(tile, at + DDELTA_ * lanes) + u_ * dx + u * dx_
        ds_ = load(tile, at + SLOPE_ * lanes) * ddelta + load(tile, at + SLOPE * lanes) * ddelta_
        du_ = (
            load(tile, at + DELTA_ * lanes) * dx
            + load(tile, at + DELTA * lanes) * dx_
            + D_ * dy
            + D * dy_
        )
        store(tile, at + DX_ * lanes, du_)
        store(tile, at + DDELTA_ * lanes, ds_)
        dD_, dbias_ = dD_ + dy_ * u + dy * u_, dbias_ + ds_
    return dD_, dbias_


@compiled
def _tangent_block(p, q, out, task, row, block, sizes, tile, zero, backward):  # type: ignore[no-untyped-def]
    channels, states, length, _, tile_steps, _ = sizes
    lanes = lane_count(tile)
    pitch = TANGENT_QUANTITIES * lanes
    at_A = pitch * tile_steps
    at_carry, at_dA_, at_starts = (
        at_A + 2 * states * lanes,
        at_A + 4 * states * lanes,
        at_A + 5 * states * lanes,
    )
    rows, channel = min(lanes, channels - block * lanes), row * channels + block * lanes
    D_, bias_ = load_constants(q, channel, rows, states, tile, at_A + states * lanes, zero)
    D, bias = load_constants(p, channel, rows, states, tile, at_A, zero)
    num_tiles = (length + tile_steps - 1) // tile_steps
    fill(tile, at_carry, at_starts, tile.dtype.type(0))
    constants = (D, bias, D_, bias_)
    last = num_tiles - 1 if backward else num_tiles
    _push_tiles(
        p, q, out, channel, row, sizes, rows, tile, pitch, at_A, at_starts, constants, zero, last
    )
    if not backward:
        return
    dD_, dbias_ = zero, zero
    for k in range(num_tiles - 1, -1, -1):
        done = k * tile_steps
        steps, start = min(tile_steps, length - done), channel * length + done
        _prepare_tangent(p, q, start, sizes, rows, steps, tile, pitch, constants, zero)
        load_tile(p[7], start, length, rows, steps, tile, DY * lanes, pitch)
        for at in range(0, steps * pitch, pitch):
            # Sums over states start from zero, and so does dy_, which is not loaded where it is
            # None. y_ was set to the skip connection's part by `_prepare_tangent`.
            for quantity in (DX, DX_, DDELTA, DDELTA_, DY_):
                store(tile, at + quantity * lanes, zero)
        if q[7].size > 0:
            load_tile(q[7], start, length, rows, steps, tile, DY_ * lanes, pitch)
        _tangent_back(p, q, out, row, task, k, sizes, tile, pitch, at_A, at_starts, zero)
        dD_, dbias_ = _tangent_finish(tile, pitch, steps, D, D_, dD_, dbias_)
        store_tile(out[0], start, length, rows, steps, tile, DX_ * lanes, pitch)
        store_tile(out[1], start, length, rows, steps, tile, DDELTA_ * lanes, pitch)
        store_tile(out[7], start, length, rows, steps, tile, Y_ * lanes, pitch)
    store_sums(out, channel, rows, states, tile, at_dA_, dD_, dbias_)


@compiled
def tangent(first, last, tile, p, q, out, sizes, backward):  # type: ignore[no-untyped-def]
    channels, states, length, parts, _, _ = sizes
    lanes = lane_count(tile)
    zero = splat(tile.dtype.type(0))
    blocks = (channels + lanes - 1) // lanes
    for task in range(first, last):
        row, part = task // parts, task % parts
        if backward:
            for summed in (out[3], out[4]):
                fill(
                    summed, task * states * length, (task + 1) * states * length, tile.dtype.type(0)
                )
        for block in range(blocks * part // parts, blocks * (part + 1) // parts):
            _tangent_block(p, q, out, task, row, block, sizes, tile, zero, backward)
