"""Unpacks values of fewer than eight bits from bytes or words, and packs them into bytes.

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
    """A ``Source``: values of a few bits each, several of which lie in each word of another.

    Attributes:
      source: the words, which are integers of any width.
      bits: how many bits a value has; a word holds a whole number of values.
      axis: the axis along which values are packed into words.
      size: how many values there are along that axis; the last word may have room for more.
      cast: the dtype of the values.
      order: for each value of a word, how many values lie in lower bits; if it is empty, the first
        value lies in the lowest bits.
      flip: the bits to flip in each value. Numbers that are stored with half of their range added
        become two's complement once their highest bit is flipped.
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
    """Returns the four-bit floats of a source of bytes: two in each, the first in its low bits."""
    return Fields(source, 4, len(source.shape) - 1, 2 * source.shape[-1], FLOAT4)


@dataclass(frozen=True, slots=True, repr=False)
class Packed(OfOne):
    """A ``Source``: the bytes, flat, that a file has for four-bit floats, two to a byte.

    Attributes:
      source: a source of four-bit floats, of which there is an even number.
    """

    source: Source

    @property
    def shape(self) -> Shape:
        """The number of bytes."""
        return (math.prod(self.source.shape) // 2,)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of bytes, uint8."""
        return _BYTE

    def read(self, index: Index) -> np.ndarray:
        """Returns the bytes at ``index``."""
        ((start, stop),) = bounds(index, self.shape)
        flat = reshaped(self.source, (2 * self.shape[0],))
        values = np.ascontiguousarray(flat.read((slice(2 * start, 2 * stop),))).view(_BYTE)
        return (values[::2] & 15) | (values[1::2] << 4)
