"""Reads stored leaves for CPU devices, piece by piece, into the buffers of the shards.

A thread reads a piece once, and copies it into the buffers of all shards that have a part of it.
Then it gives the pages of the memory map back. So the memory beside the array is one piece for each
thread, whatever the size of the leaf. A transposed piece is copied in tiles that fit a cache.

The buffers are our own. JAX on CPU would take an aligned piece of the memory map itself as the
array, which would then change, or fault, with the file.
"""

import contextlib
import itertools
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from lazyinit.derived import DerivedParam
from lazyinit.make.limits import PIECE
from lazyinit.make.shards import Blocks, Bounds, Shards, size_of
from lazyinit.make.ways import Read
from lazyinit.params import OverlapParam, StoredParam
from lazyinit.sources import Index, Shape, Source
from lazyinit.tensors.as_dtype import may_refuse, told
from lazyinit.tensors.key_data import KeyData
from lazyinit.tensors.mapped import give_back
from lazyinit.tensors.pieces import indices
from lazyinit.tensors.regions import chunk_of, is_read_anywhere, joined_parts, order_of
from lazyinit.tensors.tiles import copy


@dataclass(frozen=True, slots=True)
class Piece:
    """A block of a leaf that lies together in a file, so that a thread reads it at once.

    Attributes:
      source: the tensor to read from.
      begins: where the source begins in the leaf, along each axis.
      block: the part of the leaf to read.
      path: of the leaf, for messages.
      is_of_chunks: whether it consists of whole chunks, which would have to be decoded again for
        each part that is read alone.
    """

    source: Source
    begins: tuple[int, ...]
    block: Bounds
    path: str
    is_of_chunks: bool = False

    def read_into(self, buffers: Mapping[Bounds, np.ndarray]) -> None:
        """Copies the piece to where it belongs in each buffer, cast to its dtype, on any thread.

        Args:
          buffers: arrays by the part of the leaf that each holds; no two parts overlap.

        Raises:
          CastError: the dtype of the buffers cannot hold a value, and the user did not allow that.
        """
        with told(self.source, self.path):
            self._read_into(buffers)

    def _read_into(self, buffers: Mapping[Bounds, np.ndarray]) -> None:
        parts = {at: part for at in buffers if (part := self._of(at)) is not None}
        if not parts:
            return
        around = tuple(
            (min(start for start, _ in bounds), max(stop for _, stop in bounds))
            for bounds in zip(*parts.values(), strict=True)
        )
        # The parts are read together if nothing lies between them, and otherwise one by one.
        nbytes = size_of(around) * self.source.dtype.itemsize
        is_one = sum(map(size_of, parts.values())) == size_of(around)
        if self.is_of_chunks or (is_one and nbytes <= PIECE):
            with _decoding.of(nbytes):
                values = self._read(around)
                for at, part in parts.items():
                    copy(_place(buffers[at], at, part), values[(*_within(part, around), ...)])
                give_back(values)
            return
        read = []
        for at, part in parts.items():
            read.append(values := self._read(part))
            copy(_place(buffers[at], at, part), values)
        for values in read:  # Given back after the last copy, because shards share pages.
            give_back(values)

    def _of(self, at: Bounds) -> Bounds | None:
        part = tuple(
            (max(start, first), min(stop, last))
            for (start, stop), (first, last) in zip(self.block, at, strict=True)
        )
        return part if all(start < stop for start, stop in part) else None

    def _read(self, part: Bounds) -> np.ndarray:
        there = zip(part, self.begins, strict=True)
        return self.source.read(tuple(slice(a - first, b - first) for (a, b), first in there))


class _Decoding:
    """Lets threads read large pieces of chunks, no more at a time than there is room for.

    Each is decoded into an array of its own. One that is larger than all the room is read alone.
    """

    def __init__(self) -> None:
        self._nbytes = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def of(self, nbytes: int) -> Iterator[None]:
        """Waits until there is room for so many bytes. There always is for ``PIECE``."""
        if nbytes <= PIECE:
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._nbytes or self._nbytes + nbytes <= _room())
            self._nbytes += nbytes
        try:
            yield
        finally:
            with self._changed:
                self._nbytes -= nbytes
                self._changed.notify_all()


_decoding = _Decoding()


def _room() -> int:
    return PIECE * (os.cpu_count() or 1)


def decoded_bytes(source: Source) -> int:
    """Returns the most bytes that large chunks of a source take while they are read; 0 without."""
    sizes = [
        math.prod(chunk_of(part)) * part.dtype.itemsize
        for _, part in joined_parts(source)
        if chunk_of(part)
    ]
    largest = max(sizes, default=0)
    return max(largest, _room()) if largest > PIECE else 0


def prepare_reading(way: Read, reading: ThreadPoolExecutor, blocks: Blocks) -> Callable[[], Shards]:
    """Returns a function that begins to fill the shards of a stored leaf.

    Args:
      way: what to read.
      reading: threads that read.
      blocks: the memory that the shards are cut out of.
    """
    (job,) = way.jobs
    shards = Shards(job.path, job.leaf.shape, job.dtype, job.sharding, blocks)

    def start() -> Shards:
        buffers = shards.allocate()
        cut = cut_up(job.leaf.source, job.path)
        shards.tasks = [reading.submit(piece.read_into, buffers) for piece in cut]
        return shards

    return start


def check_values(leaves: Iterable[tuple[str, Any]]) -> None:
    """Reads the tensors that a cast may refuse, for callers that must not stop half-way.

    Args:
      leaves: thunks of any kind, by path. Most of them are not read, as their casts cannot fail.

    Raises:
      CastError: a leaf's dtype cannot hold a value. Only the first such leaf is named.
    """
    stored = [each for path, leaf in leaves for each in _stored(path, leaf)]
    pieces = [
        (piece, dtype)
        for path, source, dtype in stored
        if may_refuse(source, dtype)
        for piece in cut_up(source, path)
    ]
    if pieces:
        with ThreadPoolExecutor(os.cpu_count()) as reading:
            for _ in reading.map(_try, pieces):
                pass


def _stored(path: str, leaf: Any) -> Iterator[tuple[str, Source, np.dtype]]:
    match leaf:
        case StoredParam(source=source, dtype=dtype) if not isinstance(source, KeyData):
            yield path, source, dtype
        case OverlapParam(stored=source, dtype=dtype):
            yield path, source, dtype
        case DerivedParam(inputs=inputs):
            for part in inputs:
                yield from _stored(path, part)


def _try(each: tuple[Piece, np.dtype]) -> None:
    piece, dtype = each
    sizes = [stop - start for start, stop in piece.block]
    piece.read_into({piece.block: np.empty(sizes, dtype)})


def cut_up(source: Source, path: str) -> Sequence[Piece]:
    """Cuts the source of a leaf into pieces, of at most ``PIECE`` bytes where that is possible."""
    return [
        piece for begins, part in joined_parts(source) for piece in _cut_part(part, begins, path)
    ]


def _cut_part(source: Source, begins: tuple[int, ...], path: str) -> Iterator[Piece]:
    order, size = order_of(source), source.dtype.itemsize
    if chunk := chunk_of(source):
        for block in _whole_chunks(source.shape, chunk, order, PIECE // size):
            there = tuple((a + n, b + n) for (a, b), n in zip(block, begins, strict=True))
            yield Piece(source, begins, there, path, is_of_chunks=True)
        return
    shape = tuple(source.shape[axis] for axis in order)
    row = math.prod(shape[1:]) * size
    limit = PIECE if is_read_anywhere(source) else max(PIECE, row)
    for index in indices(shape, size, limit):
        ends = {axis: (part.start, part.stop) for axis, part in zip(order, index, strict=True)}
        block = ((ends[axis], first) for axis, first in enumerate(begins))
        there = tuple((a + first, b + first) for (a, b), first in block)
        yield Piece(source, begins, there, path)


def _whole_chunks(shape: Shape, chunk: Shape, order: Sequence[int], limit: int) -> Iterator[Bounds]:
    """Cuts an array into blocks of whole chunks: one, or several that are small.

    Args:
      shape: the shape of the array.
      chunk: the shape of a chunk.
      order: the axes, last the one along which neighbors lie nearest.
      limit: how many elements several chunks may have together.
    """
    sides = [max(side, 1) for side in chunk]
    for axis in reversed(order):
        count = max(limit // math.prod(sides), 1)
        sides[axis] = min(sides[axis] * count, max(shape[axis], 1))
    cuts = (
        [(start, min(start + side, size)) for start in range(0, size, side)]
        for side, size in zip(sides, shape, strict=True)
    )
    return itertools.product(*cuts)


def _within(bounds: Bounds, around: Bounds) -> Index:
    """Returns the index that selects one part of a leaf, in an array that holds a larger part."""
    return tuple(
        slice(start - first, stop - first)
        for (start, stop), (first, _) in zip(bounds, around, strict=True)
    )


def _place(buffer: np.ndarray, at: Bounds, part: Bounds) -> np.ndarray:
    return buffer[(*_within(part, at), ...)]
