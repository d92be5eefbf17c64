"""One tensor with its axes in another order, or its values in another dtype."""

from dataclasses import dataclass

import numpy as np

from lazyinit.params import Index, Shape, Source
from lazyinit.sources.changed import Changed


@dataclass(frozen=True, slots=True, repr=False)
class Transposed(Changed):
    """A ``Source`` with its axes in another order; reading gives a view of the same bytes.

    Attributes:
      source: what is read.
      axes: as ``numpy.transpose`` takes them: axis ``i`` here is ``axes[i]`` there.
    """

    source: Source
    axes: tuple[int, ...]

    def __post_init__(self) -> None:
        assert sorted(self.axes) == list(range(len(self.source.shape))), self.axes

    @property
    def reads(self) -> tuple[Source]:
        """What it reads."""
        return (self.source,)

    @property
    def shape(self) -> Shape:
        """The shape after the change."""
        return tuple(self.source.shape[axis] for axis in self.axes)

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``, counted after the change."""
        there = dict(zip(self.axes, index, strict=True))
        block = self.source.read(tuple(there[axis] for axis in range(len(there))))
        return block.transpose(self.axes)

    def __repr__(self) -> str:
        is_reversed = self.axes == tuple(reversed(range(len(self.axes))))
        return f"{self.source!r}.{'T' if is_reversed else f'transpose{self.axes}'}"


def transposed(source: Source, axes: tuple[int, ...]) -> Source:
    """Returns the source with its axes reordered: itself, or what it is made of, if that does."""
    if isinstance(source, Transposed):
        source, axes = source.source, tuple(source.axes[axis] for axis in axes)
    return source if axes == tuple(range(len(axes))) else Transposed(source, axes)


@dataclass(frozen=True, slots=True, repr=False)
class AsDtype(Changed):
    """A ``Source`` with its values in another dtype.

    Attributes:
      source: what is read.
      cast: the dtype of the values.
    """

    source: Source
    cast: np.dtype

    @property
    def reads(self) -> tuple[Source]:
        """What it reads."""
        return (self.source,)

    @property
    def shape(self) -> Shape:
        """The shape, which stays as it is."""
        return self.source.shape

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the values."""
        return self.cast

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``, cast."""
        return cast(self.source.read(index), self.cast)

    def __repr__(self) -> str:
        return f"{self.source!r}.astype({self.cast})"


def cast(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Returns values in another dtype; what is too large for it is infinite, as on a device."""
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(dtype)
