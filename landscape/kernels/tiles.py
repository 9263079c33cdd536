"""Moving rows of memory into and out of tiles, in Numba.

Shapes: a tile holds `lanes` rows (16 in float32, 8 in float64) and some steps of several quantities, stored as
tile[step, quantity, lane] so that one step of one quantity is one vector. `pitch` is the number of elements of a step.
"""

from landscape.kernels.lanes import compiled, lane_count, transpose


@compiled
def load_tile(source, start, length, rows, steps, tile, at, pitch):  # type: ignore[no-untyped-def]
    """Copy source[start + i * length + t] to lane i of tile[at + t * pitch], zero in lanes beyond `rows`."""
    lanes = lane_count(tile)
    done = 0
    if rows == lanes:
        for t in range(0, steps - lanes + 1, lanes):
            transpose(source, start + t, length, tile, at + t * pitch, pitch)
            done = t + lanes
    for i in range(lanes):
        for t in range(done, steps):
            tile[at + t * pitch + i] = (
                source[start + i * length + t] if i < rows else tile.dtype.type(0)
            )


@compiled
def store_tile(target, start, length, rows, steps, tile, at, pitch):  # type: ignore[no-untyped-def]
    """The reverse of `load_tile`; lanes beyond `rows` are dropped."""
    lanes = lane_count(tile)
    done = 0
    if rows == lanes:
        for t in range(0, steps - lanes + 1, lanes):
            transpose(tile, at + t * pitch, pitch, target, start + t, length)
            done = t + lanes
    for i in range(rows):
        for t in range(done, steps):
            target[start + i * length + t] = tile[at + t * pitch + i]
