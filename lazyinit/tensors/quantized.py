"""Turns quantized values into numbers: values, less their zero points, times their scales.

Reading an index reads the values at that index, and the scales of the blocks that these lie in; no
others. A product is computed in float32, in which every product of a value of eight
bits or fewer and a scale of sixteen bits or fewer is exact, and is rounded once, to ``cast``.

Formats: https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf
(E8M0: a power of two with a bias of 127).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from lazyinit.sources import Index, Shape, Source
from lazyinit.tensors.as_dtype import told
from lazyinit.tensors.base import Derived, bounds, slices
from lazyinit.tensors.casting import cast_into, may_overflow
from lazyinit.tensors.joined import Joined
from lazyinit.tensors.mapped import give_back
from lazyinit.tensors.pieces import indices
from lazyinit.tensors.views import BoxView, Reshaped

_BYTE = np.dtype("uint8")
_EXPONENT = np.dtype(ml_dtypes.float8_e8m0fnu)
_TOGETHER = (
    2**16
)  # Values that are computed at a time: all that is made of them stays in the cache.


@dataclass(frozen=True, slots=True, repr=False)
class Scaled(Derived):
    """A ``Source``: values, each times the scale of the block that it lies in.

    Attributes:
      source: the values: integers, or floats of eight bits or fewer.
      scales: the scales, with as many axes as the values; ``uint8`` are exponents (E8M0).
      block: how many values along each axis share a scale; the last block may have fewer.
      cast: the dtype of the products.
      zeros: the zero points to subtract first, integers, one for each block; at most one source.
    """

    source: Source
    scales: Source
    block: Shape
    cast: np.dtype
    zeros: tuple[Source, ...] = ()

    def __post_init__(self) -> None:
        is_empty = 0 in self.source.shape
        counts = blocks_of(self.source.shape, self.block)
        assert is_empty or all(each.shape == counts for each in (self.scales, *self.zeros)), self

    @property
    def reads(self) -> tuple[Source, ...]:
        """The values, the scales and the zero points."""
        return (self.source, self.scales, *self.zeros)

    @property
    def shape(self) -> Shape:
        """The shape of the values."""
        return self.source.shape

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the products."""
        return self.cast

    @property
    def may_refuse(self) -> bool:
        """Whether a product may be one that the dtype cannot hold."""
        return may_overflow(np.dtype("float32"), self.cast)

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``, times their scales."""
        ends = bounds(index, self.shape)
        made = np.empty([stop - start for start, stop in ends], self.cast)
        if not made.size:
            return made
        values = self.source.read(slices(ends))
        with told(self), np.errstate(over="ignore", invalid="ignore"):
            for part in indices(made.shape, 1, _TOGETHER):
                here = [(a + p.start, a + p.stop) for (a, _), p in zip(ends, part, strict=True)]
                blocks = _covering(here, self.block)
                product = _as_float32(values[(*part, ...)])
                for zeros in self.zeros:
                    held = _as_float32(zeros.read(blocks))
                    _apply(np.subtract, product, held, here, self.block)
                held = _as_float32(_as_numbers(self.scales.read(blocks)))
                _apply(np.multiply, product, held, here, self.block)
                cast_into(made[(*part, ...)], product)
        give_back(values)
        return made

    def __repr__(self) -> str:
        values = " - ".join(map(repr, (self.source, *self.zeros)))
        return f"({f'({values})' if self.zeros else values} * {self.scales!r})"


def blocks_of(shape: Shape, block: Shape) -> Shape:
    """Returns how many blocks there are along each axis.

    >>> blocks_of((576, 7168), (128, 128))
    (5, 56)
    """
    return tuple(-(-size // each) for size, each in zip(shape, block, strict=True))


def sharing(shape: Shape, scales: Shape, block: Shape = ()) -> Shape | None:
    """Returns how many values share a scale along each axis; ``None`` if shapes do not fit.

    Args:
      shape: the shape of the values.
      scales: the shape of the scales, with as many axes.
      block: how many share a scale along the last axes, if that is known. If not, each axis must
        have one scale for all places, or one for each.

    >>> sharing((4, 6), (4, 1)), sharing((4, 6), (4, 3), (2,)), sharing((4, 6), (4, 3))
    ((1, 6), (1, 2), None)
    """
    if len(scales) != len(shape) or len(block) > len(shape):
        return None
    if block:
        whole = (1,) * (len(shape) - len(block)) + block
        return whole if blocks_of(shape, whole) == scales else None
    each = [
        1 if size == count else max(size, 1) if count == 1 else 0
        for size, count in zip(shape, scales, strict=True)
    ]
    return tuple(each) if all(each) else None


def kept_as(source: Source, dtype: Any) -> Source:  # Any: JAX's own dtypes, too.
    """Returns quantized values without scales if they have this dtype, else the source."""
    if dtype is None or dtype == source.dtype or getattr(dtype, "itemsize", 2) > 1:
        return source  # No values of more than eight bits are quantized.
    match source:
        case Scaled(source=values):
            kept = kept_as(values, dtype)
            return kept if kept.dtype == dtype else source
        case BoxView(source=inner) | Reshaped(source=inner):
            return replace(source, source=kept_as(inner, dtype))
        case Joined(parts=parts):
            kept = tuple(kept_as(part, dtype) for part in parts)
            is_kept = all(part.dtype == dtype for part in kept)
            return replace(source, parts=kept) if is_kept else source
    return source


def _apply(
    operation: np.ufunc,
    values: np.ndarray,
    scales: np.ndarray,
    ends: Sequence[tuple[int, int]],
    block: Shape,
) -> None:
    """Multiplies values by the scales of their blocks, or subtracts zero points, in place.

    Args:
      operation: ``numpy.multiply`` or ``numpy.subtract``.
      values: the values between the ends.
      scales: the scales or zero points of the blocks that have a part there.
      ends: the start and the stop along each axis.
      block: how many values along each axis share a scale.
    """
    axis = next((n for n, size in enumerate(block) if size > 1 and scales.shape[n] > 1), None)
    if axis is None:
        operation(values, scales, out=values)
        return
    (start, stop), size = ends[axis], block[axis]
    first = start // size
    if axis == len(block) - 1:
        begin = start - first * size
        spread = np.repeat(scales, size, axis)[..., begin : begin + stop - start]
        operation(values, spread, out=values)
        return
    # Band by band: scales that are repeated along the last axis alone stay in the cache.
    for place in range(scales.shape[axis]):
        low, high = max(start, (first + place) * size), min(stop, (first + place + 1) * size)
        before = (slice(None),) * axis
        here = (*ends[:axis], (low, high), *ends[axis + 1 :])
        band = values[(*before, slice(low - start, high - start))]
        _apply(operation, band, scales[(*before, slice(place, place + 1))], here, block)


def _covering(ends: Sequence[tuple[int, int]], block: Shape) -> Index:
    """Returns which blocks have a part between the ends."""
    along = zip(ends, block, strict=True)
    return tuple(slice(start // size, -(-stop // size)) for (start, stop), size in along)


def _as_numbers(scales: np.ndarray) -> np.ndarray:
    """Returns scales as what they stand for: bytes are exponents."""
    return scales.view(_EXPONENT) if scales.dtype == _BYTE else scales


def _as_float32(values: np.ndarray) -> np.ndarray:
    """Returns a copy of values as float32."""
    if values.dtype.itemsize > 1:
        return values.astype(np.float32)
    # Looked up in a table: three times as fast as ml_dtypes casts one by one.
    return np.asarray(np.take(_table(values.dtype), values.view(_BYTE), mode="clip"))


@functools.cache
def _table(dtype: np.dtype) -> np.ndarray:
    return np.arange(256, dtype=_BYTE).view(dtype).astype(np.float32)
