"""Stored leaves for CPU devices: a file is read piece by piece into the buffers of the shards.

A thread reads a piece once, and copies it into the buffers of all shards that have a part of it.
Then it gives the pages of the memory map back. So memory beside the array is one piece for each
thread, whatever the size of the leaf. A transposed piece is copied in tiles that fit a cache.

The buffers are our own. JAX on CPU would take an aligned piece of the memory map as it is, and the
array would then change, or fault, with the file.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from lazyinit.checkpoint.mapped import give_back
from lazyinit.make.limits import PIECE
from lazyinit.make.shards import Blocks, Bounds, Shards, index_of, size_of
from lazyinit.make.ways import Read
from lazyinit.params import Index, Source

_TILE = 256  # Elements along each side of what is copied at once, if the order of axes changes.


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of a source along one axis: a thread reads it at once.

    Attributes:
      source: what to read.
      axis: the axis along which the source is cut: neighbors on it lie farthest apart in the file.
      start: where the piece starts on it.
      stop: where it ends.
    """

    source: Source
    axis: int
    start: int
    stop: int

    def read_into(self, buffers: Mapping[Bounds, np.ndarray]) -> None:
        """Copies the piece to where it belongs in each buffer, cast to its dtype. On any thread.

        Args:
          buffers: by the part of the source that each holds; no two parts overlap.
        """
        parts = {at: part for at in buffers if (part := self._of(at)) is not None}
        if not parts:
            return
        around = tuple(
            (min(start for start, _ in bounds), max(stop for _, stop in bounds))
            for bounds in zip(*parts.values(), strict=True)
        )
        # The parts are read at once if nothing lies between them, and else one by one.
        size = size_of(around)
        is_one = sum(map(size_of, parts.values())) == size
        if is_one and size * self.source.dtype.itemsize <= PIECE:
            values = self.source.read(index_of(around))
            for at, part in parts.items():
                _copy_tiles(self._place(buffers[at], at, part), values[_within(part, around)])
            give_back(values)
            return
        read = []
        for at, part in parts.items():
            read.append(values := self.source.read(index_of(part)))
            _copy_tiles(self._place(buffers[at], at, part), values)
        for values in read:  # Not before the last is copied: shards share pages.
            give_back(values)

    def _of(self, at: Bounds) -> Bounds | None:
        if not at:
            return at
        start, stop = max(self.start, at[self.axis][0]), min(self.stop, at[self.axis][1])
        if start >= stop:
            return None
        return (*at[: self.axis], (start, stop), *at[self.axis + 1 :])

    def _place(self, buffer: np.ndarray, at: Bounds, part: Bounds) -> np.ndarray:
        return buffer[(*_within(part, at), ...)]


def prepare_reading(way: Read, reading: ThreadPoolExecutor, blocks: Blocks) -> Callable[[], Shards]:
    """Returns what begins to fill the shards of a stored leaf.

    Args:
      way: what to read.
      reading: threads that read.
      blocks: the memory that the shards are cut out of.
    """
    (job,) = way.jobs
    shards = Shards(job.path, job.leaf.shape, job.dtype, job.sharding, blocks)

    def start() -> Shards:
        buffers = shards.allocate()
        cut = cut_up(job.leaf.source)
        shards.tasks = [reading.submit(piece.read_into, buffers) for piece in cut]
        return shards

    return start


def cut_up(source: Source) -> Sequence[Piece]:
    """Cuts a source into pieces, of ``PIECE`` bytes at most if a row has no more."""
    axis = _slowest(source)
    length = source.shape[axis] if source.shape else 1
    row = max(1, math.prod(source.shape) // max(length, 1) * source.dtype.itemsize)
    step = max(1, PIECE // row)
    return [
        Piece(source, axis, start, min(start + step, length)) for start in range(0, length, step)
    ]


def _within(bounds: Bounds, around: Bounds) -> Index:
    """Returns what selects a part, in an array that is itself a part of the whole."""
    return tuple(
        slice(start - first, stop - first)
        for (start, stop), (first, _) in zip(bounds, around, strict=True)
    )


def _slowest(source: Any) -> int:
    """Returns the axis along which neighbors lie farthest from each other in the file."""
    axes = getattr(source, "axes", None)
    return axes.index(min(axes)) if isinstance(axes, tuple) and axes else 0


def _copy_tiles(to: np.ndarray, values: np.ndarray) -> None:
    if values.ndim < 2 or values.flags.c_contiguous or values.strides[-1] == values.itemsize:
        np.copyto(to, values, casting="unsafe")
        return
    fast = int(np.argmin(np.abs(values.strides)))
    for first in range(0, values.shape[fast], _TILE):
        for second in range(0, values.shape[-1], _TILE):
            place: list[Any] = [slice(None)] * values.ndim
            place[fast] = slice(first, first + _TILE)
            place[-1] = slice(second, second + _TILE)
            np.copyto(to[tuple(place)], values[tuple(place)], casting="unsafe")
