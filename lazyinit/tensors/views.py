"""Views of one source: a part of it, its axes in another order, another shape.

Each maps an index back onto its source, so a view reads what is asked of it and no more. A reshape
is taken apart into groups of axes that hold the same elements before and after. In each group, a
block of the result consists of some runs of elements, and each run of a few blocks of the source.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lazyinit.sources import Index, Shape, Source
from lazyinit.tensors.base import OfOne, bounds, slices
from lazyinit.tensors.tiles import copy


@dataclass(frozen=True, slots=True, repr=False)
class BoxView(OfOne):
    """A ``Source``: a box of another, with its axes in any order; reading copies nothing.

    Attributes:
      source: what is read.
      box: for each axis of ``source``, the first place in the box and the one after the last.
      axes: for each axis here, which one of ``source`` it is, as ``numpy.transpose`` takes them.
        An axis of ``source`` may be left out if the box has one place along it.
    """

    source: Source
    box: tuple[tuple[int, int], ...]
    axes: tuple[int, ...]

    @property
    def shape(self) -> Shape:
        """The sizes of the box, in the order of the axes."""
        return tuple(stop - start for start, stop in (self.box[axis] for axis in self.axes))

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``: a view of what the source returns."""
        there = list(self.box)
        for axis, (first, last) in zip(self.axes, bounds(index, self.shape), strict=True):
            start, _ = self.box[axis]
            there[axis] = (start + first, start + last)
        gone = [axis for axis in range(len(there)) if axis not in self.axes]
        block = self.source.read(slices(there)).transpose(*gone, *self.axes)
        return block[(*(0 for _ in gone), ...)]

    def __repr__(self) -> str:
        cut = [
            f"{start or ''}:{stop if (start, stop) != whole else ''}"
            if axis in self.axes
            else str(start)
            for axis, ((start, stop), whole) in enumerate(
                zip(self.box, _whole(self.source), strict=True)
            )
        ]
        while cut and cut[-1] == ":":
            cut.pop()
        part = f"{self.source!r}[{', '.join(cut)}]" if cut else repr(self.source)
        kept = sorted(self.axes)
        order = tuple(kept.index(axis) for axis in self.axes)
        if order == tuple(range(len(order))):
            return part
        is_reversed = order == tuple(reversed(range(len(order))))
        return f"{part}.{'T' if is_reversed else f'transpose{order}'}"


def transposed(source: Source, axes: tuple[int, ...]) -> Source:
    """Returns a source with its axes in another order; as it is if they have that order.

    Args:
      source: what is read.
      axes: as for ``numpy.transpose``: axis ``i`` of the result is ``axes[i]`` of the source.
    """
    assert sorted(axes) == list(range(len(source.shape))), axes
    box = _whole(source)
    if isinstance(source, BoxView):
        source, box, axes = source.source, source.box, tuple(source.axes[axis] for axis in axes)
    is_all = box == _whole(source) and axes == tuple(range(len(source.shape)))
    return source if is_all else BoxView(source, box, axes)


def cut(source: Source, ends: Mapping[int, tuple[int, int]]) -> Source:
    """Returns a part of a source.

    Args:
      source: what is read.
      ends: by axis, the first place and the one after the last; axes that are not named stay whole.
    """
    box = tuple(ends.get(axis, whole) for axis, whole in enumerate(_whole(source)))
    return BoxView(source, box, tuple(range(len(box))))


def selected(source: Source, axis: int, place: int) -> Source:
    """Returns a source at one place along an axis, without that axis."""
    box = (*_whole(source)[:axis], (place, place + 1), *_whole(source)[axis + 1 :])
    return BoxView(source, box, tuple(n for n in range(len(box)) if n != axis))


def _whole(source: Source) -> tuple[tuple[int, int], ...]:
    return tuple((0, size) for size in source.shape)


@dataclass(frozen=True, slots=True, repr=False)
class Reshaped(OfOne):
    """A ``Source`` with the same elements, in the same order, under another shape.

    Attributes:
      source: what is read.
      shape: the shape after the change.
    """

    source: Source
    shape: Shape

    def __post_init__(self) -> None:
        assert math.prod(self.shape) == math.prod(self.source.shape), (self.shape, self.source)

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at an ``index`` of the new shape."""
        block = bounds(index, self.shape)
        shape = tuple(stop - start for start, stop in block)
        if not math.prod(shape):
            return np.empty(shape, self.dtype)
        pieces = []
        for here, there in groups(self.shape, self.source.shape):
            wanted = [block[axis] for axis in here]
            sizes = [self.shape[axis] for axis in here]
            pieces.append(list(_run_blocks(wanted, sizes, [self.source.shape[a] for a in there])))
        return self._gathered(pieces, shape)

    def _gathered(self, pieces: Sequence[Sequence["_Block"]], shape: Shape) -> np.ndarray:
        if all(len(group) == 1 for group in pieces):
            ends = [ends for (piece,) in pieces for ends in piece.block]
            return self.source.read(slices(ends)).reshape(shape)
        values = np.empty([group[-1].stop for group in pieces], self.dtype)
        for chosen in itertools.product(*pieces):
            read = self.source.read(slices([ends for piece in chosen for ends in piece.block]))
            there = slices([(piece.start, piece.stop) for piece in chosen])
            copy(values[there], read.reshape([piece.stop - piece.start for piece in chosen]))
        return values.reshape(shape)

    def __repr__(self) -> str:
        return f"{self.source!r}.reshape{self.shape}"


def reshaped(source: Source, shape: Shape) -> Source:
    """Returns the source under another shape; undoes an earlier reshape where it can."""
    if isinstance(source, Reshaped):
        source = source.source
    return source if shape == source.shape else Reshaped(source, shape)


@dataclass(frozen=True, slots=True)
class _Block:
    """A block of the source, and the flat start and stop of its elements in the wanted block."""

    start: int
    stop: int
    block: tuple[tuple[int, int], ...]


def groups(one: Shape, other: Shape) -> Iterator[tuple[range, range]]:
    """Yields the smallest groups of axes, one of each shape, that hold the same elements."""
    i = j = 0
    while i < len(one) or j < len(other):
        begin = i, j
        count, i = (one[i], i + 1) if i < len(one) else (1, i)
        rest, j = (other[j], j + 1) if j < len(other) else (1, j)
        while count != rest:
            if count < rest:
                count, i = count * one[i], i + 1
            else:
                rest, j = rest * other[j], j + 1
        yield range(begin[0], i), range(begin[1], j)


def _run_blocks(
    block: Sequence[tuple[int, int]], sizes: Sequence[int], there: Sequence[int]
) -> Iterator[_Block]:
    place = 0
    for start, stop in _runs(block, sizes):
        for part in _blocks(start, stop, there):
            count = math.prod(end - begin for begin, end in part)
            yield _Block(place, place + count, tuple(part))
            place += count


def _runs(block: Sequence[tuple[int, int]], sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields the flat start and stop of each run of elements that a block consists of."""
    inner = len(sizes)
    while inner and block[inner - 1] == (0, sizes[inner - 1]):
        inner -= 1
    width = math.prod(sizes[inner:])
    if not inner:
        yield 0, width
        return
    begin, end = block[inner - 1]
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(inner - 1)]
    for outer in itertools.product(*(range(*ends) for ends in block[: inner - 1])):
        base = sum(place * stride for place, stride in zip(outer, strides, strict=True))
        yield base + begin * width, base + end * width


def _blocks(start: int, stop: int, sizes: Sequence[int]) -> Iterator[list[tuple[int, int]]]:
    """Yields, in order, the blocks that a run of elements is in an array of these sizes."""
    if start >= stop:
        return
    if not sizes:
        yield []
        return
    inner = math.prod(sizes[1:])
    first, last = start // inner, (stop - 1) // inner
    if first == last:
        for rest in _blocks(start - first * inner, stop - first * inner, sizes[1:]):
            yield [(first, first + 1), *rest]
        return
    whole = (-(-start // inner), stop // inner)
    if start % inner:
        for rest in _blocks(start - first * inner, inner, sizes[1:]):
            yield [(first, first + 1), *rest]
    if whole[0] < whole[1]:
        yield [whole, *((0, size) for size in sizes[1:])]
    if stop % inner:
        for rest in _blocks(0, stop - last * inner, sizes[1:]):
            yield [(last, last + 1), *rest]
