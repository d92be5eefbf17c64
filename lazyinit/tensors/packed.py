"""Values of fewer than eight bits, of which bytes or words hold several, and back.

NumPy keeps each such value in a byte of its own, under a dtype of ``ml_dtypes``.
"""

import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from lazyinit.sources import Index, Shape, Source
from lazyinit.tensors.base import OfOne, bounds, slices
from lazyinit.tensors.mapped import give_back
from lazyinit.tensors.views import reshaped

FLOAT4 = np.dtype(ml_dtypes.float4_e2m1fn)
_BYTE = np.dtype("uint8")
SIGNED = {2: np.dtype(ml_dtypes.int2), 4: np.dtype(ml_dtypes.int4), 8: np.dtype("int8")}
UNSIGNED = {2: np.dtype(ml_dtypes.uint2), 4: np.dtype(ml_dtypes.uint4), 8: _BYTE}


@dataclass(frozen=True, slots=True, repr=False)
class Fields(OfOne):
    """A ``Source``: values of a few bits, of which each word of another holds several.

    Attributes:
      source: the words: integers of any width.
      bits: of each value; a word is some whole values.
      axis: along which values lie in words.
      size: values along that axis; what the last word has beyond is not read.
      cast: the dtype of the values.
      order: for each value of a word, how many values lie in lower bits; none: as they come.
      flip: bits that are turned over in each value. Where numbers are stored with half of their
        range added, turning the highest bit over makes two's complement of them.
    """

    source: Source
    bits: int
    axis: int
    size: int
    cast: np.dtype
    order: tuple[int, ...] = ()
    flip: int = 0

    @property
    def shape(self) -> Shape:
        """The shape, counted in values."""
        sizes = self.source.shape
        return (*sizes[: self.axis], self.size, *sizes[self.axis + 1 :])

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the values."""
        return self.cast

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``."""
        ends = list(bounds(index, self.shape))
        start, stop = ends[self.axis]
        width = self.source.dtype.itemsize
        count = 8 * width // self.bits
        first = start // count
        ends[self.axis] = (first, max(first, -(-stop // count)))
        held = self.source.read(slices(ends))
        words = held.view(f"u{width}")
        before, after = words.shape[: self.axis + 1], words.shape[self.axis + 1 :]
        values = np.empty((*before, count, *after), _BYTE)
        everywhere = (slice(None),) * len(before)
        for place, field in enumerate(self.order or range(count)):
            moved = words >> words.dtype.type(field * self.bits)
            values[(*everywhere, place)] = moved & words.dtype.type((1 << self.bits) - 1)
        give_back(held)
        if self.flip:
            values ^= np.uint8(self.flip)
        flat = values.view(self.cast).reshape(*before[:-1], before[-1] * count, *after)
        return flat[(*everywhere[:-1], slice(start - first * count, stop - first * count))]

    def __repr__(self) -> str:
        return f"{self.source!r}.view({self.cast})"


def nibbles(source: Source) -> Fields:
    """Returns the floats of four bits of which each byte of a source holds two, the first low."""
    return Fields(source, 4, len(source.shape) - 1, 2 * source.shape[-1], FLOAT4)


@dataclass(frozen=True, slots=True, repr=False)
class Packed(OfOne):
    """A ``Source``: the bytes in which floats of four bits lie in a file, flat, two in each.

    Attributes:
      source: of such floats; their number is even.
    """

    source: Source

    @property
    def shape(self) -> Shape:
        """The number of bytes."""
        return (math.prod(self.source.shape) // 2,)

    @property
    def dtype(self) -> np.dtype:
        """Bytes."""
        return _BYTE

    def read(self, index: Index) -> np.ndarray:
        """Returns the bytes at ``index``."""
        ((start, stop),) = bounds(index, self.shape)
        flat = reshaped(self.source, (2 * self.shape[0],))
        values = np.ascontiguousarray(flat.read((slice(2 * start, 2 * stop),))).view(_BYTE)
        return (values[::2] & 15) | (values[1::2] << 4)
