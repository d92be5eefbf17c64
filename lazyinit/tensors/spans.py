"""Finds the runs of bytes that hold a slice of an array in C order.

Tensors that cannot be mapped (on a server, compressed, in pieces) are read run by run.
Runs with a small gap between them are read as one, as a second read would cost more than the gap.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lazyinit.sources import Index, Shape


@dataclass(frozen=True, slots=True)
class Span:
    """A run of bytes of an array, and the part of the slice that lies in it.

    Attributes:
      start: the first byte of the run, counted from the array's first.
      stop: the byte after its last.
      place: where in the slice its values go.
      shape: the shape of that part of the slice.
    """

    start: int
    stop: int
    place: Index
    shape: Shape


def strides(shape: Shape, itemsize: int) -> tuple[int, ...]:
    """Returns the strides, in bytes, of an array in C order.

    >>> strides((2, 3, 4), 2)
    (24, 8, 2)
    """
    steps = [itemsize]
    for size in reversed(shape[1:]):
        steps.append(steps[-1] * size)
    return tuple(reversed(steps))[: len(shape)] if shape else ()


def ranges(shape: Shape, index: Index) -> tuple[range, ...]:
    """Returns the positions along each axis that an index of slices with step 1 selects."""
    return tuple(range(*part.indices(size)) for part, size in zip(index, shape, strict=True))


def spans(shape: Shape, itemsize: int, index: Index, *, gap: int, limit: int) -> Iterator[Span]:
    """Yields the runs that hold a slice, in the order in which they lie.

    Args:
      shape: the shape of the whole array.
      itemsize: the bytes of one element.
      index: one slice with step 1 per axis.
      gap: wanted runs with at most this many bytes between them become one.
      limit: the most bytes of a run, unless one element has more.

    Example:
      >>> [(s.start, s.stop) for s in spans((4, 8), 1, (slice(1, 3), slice(2, 4)), gap=0, limit=99)]
      [(10, 12), (18, 20)]
      >>> [(s.start, s.stop) for s in spans((4, 8), 1, (slice(1, 3), slice(2, 4)), gap=6, limit=99)]
      [(10, 20)]
    """
    wanted = ranges(shape, index)
    if not all(wanted):
        return
    steps = strides(shape, itemsize)
    counts = [len(r) for r in wanted]
    # For each axis: the bytes that the slice spans along it and all later axes, and whether these
    # are read as one run.
    lengths, joined = [itemsize], [True]
    for count, step in zip(reversed(counts), reversed(steps), strict=True):
        joined.append(joined[-1] and (count == 1 or step - lengths[-1] <= gap))
        lengths.append((count - 1) * step + lengths[-1])
    lengths.reverse()
    joined.reverse()

    def cut(axis: int, start: int, place: Index) -> Iterator[Span]:
        rest = tuple(counts[axis:])
        if axis == len(counts) or (joined[axis] and lengths[axis] <= limit):
            whole = (*place, *(slice(0, count) for count in rest))
            yield Span(start, start + lengths[axis], whole, (*(1 for _ in place), *rest))
            return
        if joined[axis] and lengths[axis + 1] <= limit:
            rows = max(1, (limit - lengths[axis + 1]) // max(1, steps[axis]) + 1)
            for first in range(0, counts[axis], rows):
                count = min(rows, counts[axis] - first)
                at = start + first * steps[axis]
                inner = (slice(first, first + count), *(slice(0, n) for n in rest[1:]))
                shape = (*(1 for _ in place), count, *rest[1:])
                stop = at + (count - 1) * steps[axis] + lengths[axis + 1]
                yield Span(at, stop, (*place, *inner), shape)
            return
        for row in range(counts[axis]):
            yield from cut(axis + 1, start + row * steps[axis], (*place, slice(row, row + 1)))

    origin = sum(r.start * step for r, step in zip(wanted, steps, strict=True))
    yield from cut(0, origin, ())


def put(values: np.ndarray, whole: Shape, span: Span, data: bytes | memoryview) -> None:
    """Copies the bytes of a span to the part of the slice that lies in it.

    Args:
      values: the slice, to be written into.
      whole: the shape of the array that it is a slice of.
      span: one of ``spans``.
      data: the bytes of the span.
    """
    steps = strides(whole, values.dtype.itemsize)
    part = np.ndarray(span.shape, values.dtype, buffer=data, strides=steps)
    values[span.place] = part


def sizes(shape: Shape, index: Index) -> Shape:
    """Returns the shape of a slice.

    >>> sizes((4, 8), (slice(1, 3), slice(None)))
    (2, 8)
    """
    return tuple(len(r) for r in ranges(shape, index))
