"""Reads sources in order, piece by piece, so that writers hold one bounded piece at a time."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import numpy as np

from lazyinit.sources import Index, Shape, Source
from lazyinit.tensors.as_dtype import AsDtype
from lazyinit.tensors.base import Tensor
from lazyinit.tensors.mapped import release
from lazyinit.tensors.tiles import copy

PIECE = 16 * 2**20  # Bytes in one piece.
Read: TypeAlias = Callable[[Source], Iterable[np.ndarray]]
"""How the values of a source are read: in order, piece by piece, as ``pieces`` does."""

_TOUCHED = 2 * PIECE  # Bytes of a file that one reading may touch, and so make resident.
# Elements in one reading of a larger tensor: each element could lie on pages of its own, and the
# system maps sixteen pages around one that is touched.
_BLOCK = 2**15


def nbytes(source: Source) -> int:
    """Returns the bytes of all of a source's values."""
    return math.prod(source.shape) * source.dtype.itemsize


def pieces(source: Source, limit: int = PIECE) -> Iterator[np.ndarray]:
    """Yields the values of a source in order (the last axis fastest), in bounded memory.

    Each piece is contiguous, of at most ``limit`` bytes (or of one element), and valid until the
    next is asked for. Memory that a reading maps of a file is freed after it.

    Raises:
      CheckpointError: a file that it reads is gone, has changed or is cut short.
    """
    if isinstance(source, AsDtype):
        for piece in pieces(source.source, limit):
            yield source.of(piece)
    elif isinstance(source, Tensor) and source.is_streamed:
        yield from source.stream(limit)
    else:
        for index in indices(source.shape, source.dtype.itemsize, max(limit, _slab(source))):
            yield _gathered(source, index)


def _slab(source: Source) -> int:
    """Returns the bytes of a row of chunks; 0 if a source has no chunks, or they are too large.

    A chunk is always read whole, so smaller pieces would read it again and again.
    """
    rows = next(iter(getattr(source, "chunk", ())), 0)
    size = rows * math.prod(source.shape[1:]) * source.dtype.itemsize
    return size if size <= 4 * PIECE else 0


def indices(shape: Shape, itemsize: int, limit: int) -> Iterator[Index]:
    """Yields indices that cut an array into runs of at most ``limit`` bytes, in order.

    >>> [tuple((s.start, s.stop) for s in i) for i in indices((2, 3), 4, 8)]
    [((0, 1), (0, 2)), ((0, 1), (2, 3)), ((1, 2), (0, 2)), ((1, 2), (2, 3))]
    """
    if 0 in shape:
        return
    axis = next(
        (n for n in range(len(shape)) if _run(shape, n + 1, itemsize) <= limit),
        max(len(shape) - 1, 0),
    )
    # Each index has one place on the axes before this one, a part along it, and all axes after it.
    for before in itertools.product(*map(range, shape[:axis])):
        ones = tuple(slice(n, n + 1) for n in before)
        if not shape:
            yield ()
            return
        step = max(limit // _run(shape, axis + 1, itemsize), 1)
        for start in range(0, shape[axis], step):
            along = slice(start, min(start + step, shape[axis]))
            yield (*ones, along, *(slice(0, n) for n in shape[axis + 1 :]))


def _run(shape: Shape, axis: int, itemsize: int) -> int:
    return math.prod(shape[axis:]) * itemsize


def _gathered(source: Source, index: Index) -> np.ndarray:
    extents = [extent for extent in source.extents if "://" not in extent.file]  # Mapped ones.
    if sum(e.stop - e.start for e in extents) <= _TOUCHED:
        read = source.read(index)
        if not extents and read.flags.c_contiguous:
            return read
        values = np.empty(read.shape, read.dtype)
        copy(values, read)
        release(extents)
        return values
    values = np.empty([part.stop - part.start for part in index], source.dtype)
    for block in _blocks(values.shape):
        there = tuple(
            slice(part.start + local.start, part.start + local.stop)
            for part, local in zip(index, block, strict=True)
        )
        values[block] = source.read(there)
        release(extents)
    return values


def _blocks(shape: Shape) -> Iterator[Index]:
    """Cuts an array into blocks whose sides are as equal as can be: each touches few pages."""
    sides = list(shape)
    while math.prod(sides) > _BLOCK:
        widest = sides.index(max(sides))
        sides[widest] = -(-sides[widest] // 2)
    cuts = (
        [slice(start, min(start + side, size)) for start in range(0, size, side)]
        for side, size in zip(sides, shape, strict=True)
    )
    return itertools.product(*cuts)


class Flow:
    """The bytes of a source, which can be taken in portions of any size."""

    def __init__(self, stream: Iterable[np.ndarray]) -> None:
        """Takes the pieces of a source, as ``pieces`` yields them."""
        self._stream, self._held = iter(stream), memoryview(b"")

    def take(self, size: int) -> Iterator[memoryview]:
        """Yields the next bytes, ``size`` in all (fewer where the source ends), part by part."""
        while size:
            if not self._held:
                piece = next(self._stream, None)
                if piece is None:
                    return
                self._held = as_bytes(piece)
                continue
            part, self._held = self._held[:size], self._held[size:]
            size -= len(part)
            yield part


def as_bytes(piece: np.ndarray) -> memoryview:
    """Returns the bytes of a piece, in order."""
    return np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
