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
TILE = 2**16  # Elements of a tile whose runs are short: for fewer, Python takes too long.
_READ = 2**12  # Bytes of a run of the source, once cast: a whole page at a time.
_WRITTEN = 2**8  # Elements of a run of the destination: their cache lines all fit in the L1 cache.
_PLACE = 8  # Bytes that each element takes, for a while, in a cast by table.
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
    is_cast = to.dtype != values.dtype
    by_table = is_cast and is_by_table(values.dtype)
    is_checked = is_cast and not overflow and may_overflow(values.dtype, to.dtype)
    if not (is_moved or by_table or is_checked):
        cast_into(to, values, overflow=overflow)
        return
    tile = _tile(to.shape, order, _PLACE if by_table else to.itemsize)
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


def _tile(shape: Shape, order: Sequence[int], size: int) -> Shape:
    """Returns how many elements a tile has along each axis: 1 MiB in all, or ``TILE``, at most.

    If axes change order, it first becomes long enough for a run of ``_READ`` bytes of the source,
    then for one of ``_WRITTEN`` elements of the destination. What is still small grows further.

    Args:
      shape: the shape of both arrays; runs in the destination lie along the last axis.
      order: the axes; runs in the source lie along the first of them.
      size: the bytes of an element, once cast or meanwhile.
    """
    tile, last = [1] * len(shape), len(shape) - 1

    def grow(axis: int, count: int) -> None:
        """Makes a tile longer along an axis, until it has so many elements in all."""
        others = math.prod(tile) // tile[axis]
        tile[axis] = max(tile[axis], min(shape[axis], count // others))

    if order[0] != last:
        for axis in itertools.takewhile(last.__ne__, order):
            grow(axis, _READ // size)
        grow(last, math.prod(tile) * _WRITTEN)
    for axis in order:
        grow(axis, TILE)
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
