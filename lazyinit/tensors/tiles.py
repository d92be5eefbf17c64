"""Copies between arrays whose axes lie in another order in memory, tile by tile.

NumPy copies such arrays one element at a time, each out of another cache line, and waits for memory
most of the time. Here a tile of the source is first copied, in runs as it lies there, to a place
that a core's cache holds. From there it goes to where it belongs, and its axes change order.

The result has the bits of ``numpy.copyto``.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from lazyinit.sources import Index, Shape
from lazyinit.tensors.casting import cast_into, is_by_table, may_overflow

# Measured on elements of 2 and of 4 bytes, and on casts between them.
TILE = 2**17  # Elements.
_READ = 2**9  # Elements in a run of the source: shorter ones end before the memory has caught up.
_WRITTEN = 2**9  # Elements in a run of the destination.
_SHORT = 2**7  # Bytes: shorter runs of the source are not copied first.
_SMALL = 2**15  # Bytes: an array that is smaller is in the cache as it is.
_SKEW = 2**6  # Bytes of a cache line: added between rows that would share a few cache sets.


def copy(to: np.ndarray, values: np.ndarray, *, overflow: bool = False) -> None:
    """Copies values into an array of the same shape, cast to its dtype. It is safe in any thread.

    Args:
      to: the array to write to.
      values: the values to copy; they share no memory with ``to``.
      overflow: whether a value that the dtype cannot hold may wrap or become infinite.

    Raises:
      Overflow: a value would, and may not. What ``to`` then holds is of no use.
    """
    assert to.shape == values.shape, (to.shape, values.shape)
    size = max(to.itemsize, values.itemsize)
    if to.size * size <= _SMALL:
        cast_into(to, values, overflow=overflow)
        return
    to, values = _with_few_axes(to, values)
    order = _nearest_first(values)
    is_moved = order[0] != to.ndim - 1
    # A cast by table takes temporary memory for all that it casts at once. Values that are checked
    # after the cast should still be in the cache.
    is_checked = not overflow and may_overflow(values.dtype, to.dtype)
    in_tiles = to.dtype != values.dtype and (is_checked or is_by_table(values.dtype))
    if not is_moved and not in_tiles:
        cast_into(to, values, overflow=overflow)
        return
    tile = _tile(to.shape, order)
    if not is_moved or _run(values, order, tile) < _SHORT:
        for index in _indices(to.shape, tile):
            cast_into(to[index], values[index], overflow=overflow)
        return
    steps, room = _steps(tile, order, to.itemsize)
    place = np.empty(room, np.uint8)
    for index in _indices(to.shape, tile):
        part = to[index]
        staged = np.ndarray(part.shape, to.dtype, place, strides=steps)
        cast_into(staged, values[index], overflow=overflow)
        cast_into(part, staged)


def _with_few_axes(to: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns views of both arrays with axes in the memory order of ``to``, merged if possible.

    Along the last axis, neighbors are nearest in ``to``.
    """
    order = sorted(
        (axis for axis, size in enumerate(to.shape) if size > 1), key=lambda a: -abs(to.strides[a])
    )
    ones = [axis for axis, size in enumerate(to.shape) if size == 1]
    shape: list[int] = []
    steps = (0, 0)
    for axis in order:
        size, found = to.shape[axis], (to.strides[axis], values.strides[axis])
        if shape and steps == (size * found[0], size * found[1]):
            shape[-1] *= size
        else:
            shape.append(size)
        steps = found
    # No copies: what is merged lies evenly in both.
    return (
        to.transpose(*ones, *order).reshape(shape),
        values.transpose(*ones, *order).reshape(shape),
    )


def _nearest_first(values: np.ndarray) -> list[int]:
    """Returns the axes, first the one along which neighbors are nearest in memory."""
    steps = [abs(step) for step in values.strides]
    # An axis along which one value is repeated comes last, as it is no run of memory.
    return sorted(range(values.ndim), key=lambda a: (not steps[a], steps[a], -a))


def _tile(shape: Shape, order: Sequence[int]) -> Shape:
    """Returns how many elements a tile has along each axis; ``TILE`` in all, at most.

    It first becomes long enough for a run of ``_READ`` elements of the source, then for one of
    ``_WRITTEN`` of the destination, then as large as it may be.

    Args:
      shape: the shape of both arrays; runs in the destination lie along the last axis.
      order: the axes; runs in the source lie along the first of them.
    """
    tile, last = [1] * len(shape), len(shape) - 1

    def grow(axis: int, count: int) -> None:
        others = math.prod(tile) // tile[axis]
        tile[axis] = max(tile[axis], min(shape[axis], count, TILE // others))

    run = 1
    for axis in order:
        if axis == last or run >= _READ:
            break
        grow(axis, -(-_READ // run))
        run *= tile[axis]
    grow(last, _WRITTEN)
    for axis in order:
        grow(axis, shape[axis])
    return tuple(tile)


def _run(values: np.ndarray, order: Sequence[int], tile: Shape) -> int:
    """Returns how many bytes of a tile lie in one run in the source."""
    run = values.itemsize
    for axis in order:
        if values.strides[axis] != run:
            break
        run *= tile[axis]
        if tile[axis] != values.shape[axis]:
            break
    return run


def _steps(tile: Shape, order: Sequence[int], size: int) -> tuple[tuple[int, ...], int]:
    """Returns the strides of a tile's copy, with axes in the source's order, and its bytes."""
    steps, step = [0] * len(tile), size
    for axis in order:
        if axis == len(tile) - 1 and step % (2 * _SKEW) == 0:
            step += _SKEW
        steps[axis] = step
        step *= tile[axis]
    return tuple(steps), step


def _indices(shape: Shape, tile: Shape) -> Iterator[Index]:
    cuts = (
        [slice(start, min(start + step, size)) for start in range(0, size, step)]
        for size, step in zip(shape, tile, strict=True)
    )
    return itertools.product(*cuts)
