"""Tensors whose values lie in several places, flat, one piece after another."""

import bisect
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lazyinit.checkpoint.mapped import MappedTensor
from lazyinit.checkpoint.spans import put, sizes, spans
from lazyinit.params import Extent, Index, Shape

_BLOCK = 2**20  # Bytes; what crosses from one piece to the next is copied once more, so far.


@dataclass(frozen=True, slots=True, repr=False)
class PiecedTensor:
    """A ``Source``: an array that was cut, flat, into pieces of one dtype.

    Attributes:
      name: what the file calls it.
      shape: of the whole.
      pieces: each with one dimension, in order.
    """

    name: str
    shape: Shape
    pieces: tuple[MappedTensor, ...]

    @property
    def dtype(self) -> np.dtype:
        """That of every piece."""
        return self.pieces[0].dtype

    @property
    def names(self) -> tuple[str, ...]:
        """The tensor's name, alone."""
        return (self.name,)

    @property
    def origin(self) -> str:
        """The path of the file."""
        return self.pieces[0].origin

    @property
    def extents(self) -> tuple[Extent, ...]:
        """The run of bytes of each piece."""
        return tuple(extent for piece in self.pieces for extent in piece.extents)

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``, a copy.

        Raises:
          CheckpointError: the file has changed since it was opened.
        """
        values = np.empty(sizes(self.shape, index), self.dtype)
        # The pieces are mapped: what lies between wanted runs is passed over, not read.
        gap = sum(piece.nbytes for piece in self.pieces)
        for span in spans(self.shape, self.dtype.itemsize, index, gap=gap, limit=_BLOCK):
            put(values, self.shape, span, self._bytes(span.start, span.stop))
        return values

    def _bytes(self, start: int, stop: int) -> memoryview:
        ends = list(itertools.accumulate(piece.nbytes for piece in self.pieces))
        parts: list[np.ndarray] = []
        for place in range(bisect.bisect_right(ends, start), len(ends)):
            begin = ends[place] - self.pieces[place].nbytes
            if begin >= stop:
                break
            within = slice(
                (max(start, begin) - begin) // self.dtype.itemsize,
                (min(stop, ends[place]) - begin) // self.dtype.itemsize,
            )
            parts.append(self.pieces[place].read((within,)).view(np.uint8))
        return (parts[0] if len(parts) == 1 else np.concatenate(parts)).data

    def stream(self, limit: int) -> Iterator[np.ndarray]:
        """Yields the values in order, flat, as those of its pieces."""
        return itertools.chain.from_iterable(piece.stream(limit) for piece in self.pieces)

    def check(self) -> None:
        """Raises ``CheckpointError`` if the file is gone or has changed since it was opened."""
        self.pieces[0].check()

    def __repr__(self) -> str:
        return f"{os.path.basename(self.origin)}:{self.name}"
