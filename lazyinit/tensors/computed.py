"""Sources whose values are computed from those of another: scaled and shifted, or interpolated."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lazyinit.sources import Index, Shape, Source
from lazyinit.tensors.as_dtype import cast, told
from lazyinit.tensors.base import OfOne, bounds, slices
from lazyinit.tensors.casting import may_overflow
from lazyinit.tensors.mapped import give_back


@dataclass(frozen=True, slots=True, repr=False)
class Affine(OfOne):
    """A ``Source``: each value of another, times a factor, plus a shift; or the inverse of that.

    Results are computed in float32 (float64 for such values), and have that dtype. The inverse is
    rounded once, to the dtype of the values.

    Attributes:
      source: a source of floats.
      factor: what each value is multiplied by.
      shift: what is added to the product.
      inverted: whether the shift is subtracted first, and the difference divided by the factor.
    """

    source: Source
    factor: float = 1
    shift: float = 0
    inverted: bool = False

    @property
    def shape(self) -> Shape:
        """The shape, which stays as it is."""
        return self.source.shape

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the results."""
        return self.source.dtype if self.inverted else _wide(self.source.dtype)

    @property
    def may_refuse(self) -> bool:
        """Whether a result may be one that its dtype cannot hold."""
        return may_overflow(_wide(self.dtype), self.dtype)

    def read(self, index: Index) -> np.ndarray:
        """Returns the results at ``index``."""
        values = self.source.read(index)
        made = values.astype(_wide(values.dtype))
        give_back(values)
        with np.errstate(over="ignore", invalid="ignore"):
            # A shift of 0 would make 0.0 of -0.0.
            if self.inverted:
                made = made - self.shift if self.shift else made
                made = made / self.factor if self.factor != 1 else made
            else:
                made = made * self.factor if self.factor != 1 else made
                made = made + self.shift if self.shift else made
        if made.dtype == self.dtype:
            return made
        with told(self):
            return cast(made, self.dtype)

    def __repr__(self) -> str:
        signs = (" - ", " / ") if self.inverted else (" + ", " * ")
        shift = f"{signs[0]}{self.shift:g}" if self.shift else ""
        factor = f"{signs[1]}{self.factor:g}" if self.factor != 1 else ""
        return f"({self.source!r}{shift + factor if self.inverted else factor + shift})"


def _wide(dtype: np.dtype) -> np.dtype:
    return dtype if dtype.itemsize > 4 else np.dtype(np.float32)


@dataclass(frozen=True, slots=True, repr=False)
class Interpolated(OfOne):
    """A ``Source``: another, with two neighboring axes, a grid, resized to another grid.

    Any read reads the whole grid, but along the other axes only what is asked for. Results are
    computed in float64, in one order for every index, and rounded once to the dtype of the values.

    Attributes:
      source: a source of floats.
      axis: the first axis of the grid; the next is its second.
      to: the sizes of the new grid.
      method: a key of ``METHODS``.
    """

    source: Source
    axis: int
    to: tuple[int, int]
    method: str

    @property
    def shape(self) -> Shape:
        """The shape, with the new grid in place of the old."""
        shape = self.source.shape
        return (*shape[: self.axis], *self.to, *shape[self.axis + 2 :])

    @property
    def may_refuse(self) -> bool:
        """Whether a result may be one that the dtype cannot hold, as some exceed all values."""
        return may_overflow(np.dtype(np.float64), self.dtype)

    def read(self, index: Index) -> np.ndarray:
        """Returns the interpolated values at ``index``."""
        ends = bounds(index, self.shape)
        axes = (self.axis + 1, self.axis)  # The last first, as PyTorch does.
        there = list(ends)
        for axis in axes:
            there[axis] = (0, self.source.shape[axis])
        made = self.source.read(slices(there)).astype(np.float64)
        for axis in axes:
            taps = taps_of(self.source.shape[axis], self.shape[axis], self.method)
            places, weights = (each[slice(*ends[axis])] for each in taps)
            made = _summed(made, axis, places, weights)
        with told(self):
            return cast(made, self.dtype)

    def __repr__(self) -> str:
        return f"interpolated({self.source!r}, to={self.to})"


def _summed(values: np.ndarray, axis: int, places: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns, for each ``i``, the sum of the values at ``places[i]`` times ``weights[i]``."""
    along = (-1,) + (1,) * (values.ndim - 1 - axis)
    shape = (*values.shape[:axis], len(places), *values.shape[axis + 1 :])
    total = np.zeros(shape, values.dtype)
    for place, weight in zip(places.T, weights.T, strict=True):
        total += values.take(place, axis) * weight.reshape(along)
    return total


@functools.lru_cache(maxsize=64)
def taps_of(size: int, to: int, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the places of which each new place is a weighted sum, and their weights.

    Args:
      size: the size of an axis.
      to: its new size.
      method: a key of ``METHODS``.

    Returns:
      ``int64[to, n]`` and ``float64[to, n]``; each row of the weights adds up to 1.
    """
    at = (np.arange(to) + 0.5) * (size / to) - 0.5
    kernel, reach, is_blurred, is_clamped = METHODS[method]
    width = max(size / to, 1.0) if is_blurred else 1.0  # To shrink, it covers more places.
    first = np.floor(at - reach * width).astype(int)[:, None]
    places = first + np.arange(int(2 * np.ceil(reach * width)) + 2)
    weights = kernel(np.abs(places - at[:, None]) / width)
    if not is_clamped:
        weights = np.where((places >= 0) & (places < size), weights, 0)
    weights /= weights.sum(axis=1, keepdims=True)
    return places.clip(0, size - 1), weights


def _cubic(a: float) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the cubic kernel of Keys (1981), for distances from 0 on."""

    def kernel(x: np.ndarray) -> np.ndarray:
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        return np.where(x <= 1, near, np.where(x < 2, far, 0.0))

    return kernel


def _linear(x: np.ndarray) -> np.ndarray:
    return np.maximum(0.0, 1 - x)


# The kernel and how far it reaches; whether it is widened where a grid shrinks; whether places
# beyond the edge have the value at the edge, or no weight.
METHODS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int, bool, bool]] = {
    "torch bicubic": (_cubic(-0.75), 2, False, True),
    "torch bilinear": (_linear, 1, False, True),
    "jax cubic": (_cubic(-0.5), 2, True, False),
    "jax linear": (_linear, 1, True, False),
}
