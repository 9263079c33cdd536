"""Rows of memory moved into and out of tiles, in Numba.

Shapes: a tile holds `lanes` rows (16 in float32, 8 in float64) and some steps of several
quantities, stored as tile[step, quantity, lane] so that one step of one quantity is one vector.
`pitch` is the number of elements of a step.
"""

from landscape.kernels.lanes import compiled, lane_count, transpose


@compiled
def load_tile(source, start, length, rows, steps, tile, at, pitch):  # type: ignore[no-untyped-def]
    """Copy rows of memory to the lanes of a tile.

    source[start + i * length + t] goes to lane i of tile[at + t * pitch]. Lanes beyond `rows`
    become zero.
    """
    lanes = lane_count(tile)
    done = 0
    # A transposition reads all lanes. With fewer rows it would read the rows of another block, or
    # memory beyond the array; these rows, and the last steps % lanes steps, are copied one by one.
    if rows == lanes:
        for t in range(0, steps - lanes + 1, lanes):
            transpose(source, start + t, length, tile, at + t * pitch, pitch)
            done = t + lanes
    for i in range(lanes):
        for t in range(done, steps):
            # Zeros in u, dy and A make the unused lanes add nothing to sums over lanes.
            tile[at + t * pitch + i] = (
                source[start + i * length + t] if i < rows else tile.dtype.type(0)
            )


@compiled
def store_tile(target, start, length, rows, steps, tile, at, pitch):  # type: ignore[no-untyped-def]
    """Copy a tile back to memory, the reverse of `load_tile`.

    Lanes beyond `rows` are left out.
    """
    lanes = lane_count(tile)
    done = 0
    if rows == lanes:
        for t in range(0, steps - lanes + 1, lanes):
            transpose(tile, at + t * pitch, pitch, target, start + t, length)
            done = t + lanes
    for i in range(rows):
        for t in range(done, steps):
            target[start + i * length + t] = tile[at + t * pitch + i]
