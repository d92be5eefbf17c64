"""Layout changes: sources made of other sources, each mapping an index back onto what it reads.

A change is a plain value that maps a source to a source, so that rules can hold it, print it
and, since it says all that it does, be read backwards.
"""

from dataclasses import dataclass

import numpy as np

from lazyinit import errors
from lazyinit.params import Extent, Index, Shape, Source


@dataclass(frozen=True, slots=True, repr=False)
class Transposed:
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
    def shape(self) -> Shape:
        """The shape after the change."""
        return tuple(self.source.shape[axis] for axis in self.axes)

    @property
    def dtype(self) -> np.dtype:
        """The dtype as stored."""
        return self.source.dtype

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tensors that it reads."""
        return self.source.names

    @property
    def origin(self) -> str:
        """Where they lie."""
        return self.source.origin

    @property
    def extents(self) -> tuple[Extent, ...]:
        """Where in files they lie."""
        return self.source.extents

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``, counted after the change."""
        there = dict(zip(self.axes, index, strict=True))
        block = self.source.read(tuple(there[axis] for axis in range(len(there))))
        return block.transpose(self.axes)

    def check(self) -> None:
        """Raises ``CheckpointError`` if what it reads is gone or has changed."""
        self.source.check()

    def __repr__(self) -> str:
        is_reversed = self.axes == tuple(reversed(range(len(self.axes))))
        return f"{self.source!r}.{'T' if is_reversed else f'transpose{self.axes}'}"


@dataclass(frozen=True, slots=True, repr=False)
class Transpose:
    """Reorders axes by name: ``Transpose("o i ... -> ... i o")`` for tensors of any rank.

    A tensor with fewer axes than are named, or with more where there is no ``...``, stays as
    it is: if that is wrong, its shape will not fit the leaf.

    Attributes:
      order: axis names before and after ``->``; ``...`` stands for the axes that are not named.

    Raises:
      FillError: the two sides do not name the same axes once each.

    Example:
      >>> Transpose("o i ... -> ... i o").axes(4)
      (2, 3, 1, 0)
    """

    order: str

    def __post_init__(self) -> None:
        before, arrow, after = (side.split() for side in self.order.partition("->"))
        if not arrow or sorted(before) != sorted(after) or len(set(before)) != len(before):
            raise errors.FillError(
                f"Transpose({self.order!r}): wanted the same axes once each before and after '->', "
                "as in 'o i ... -> ... i o'."
            )

    def axes(self, ndim: int) -> tuple[int, ...]:
        """Returns the axes, as ``numpy.transpose`` takes them, for a tensor of ``ndim`` axes."""
        before, _, after = (side.split() for side in self.order.partition("->"))
        unnamed = ndim - len(before) + before.count("...")
        if unnamed < 0 or (unnamed > 0 and "..." not in before):
            return tuple(range(ndim))
        place: dict[str, range] = {}
        axis = 0
        for name in before:
            width = unnamed if name == "..." else 1
            place[name] = range(axis, axis + width)
            axis += width
        return tuple(axis for name in after for axis in place[name])

    def __call__(self, source: Source) -> Source:
        """Returns the source with its axes reordered; itself if that changes nothing."""
        axes = self.axes(len(source.shape))
        return source if axes == tuple(range(len(axes))) else Transposed(source, axes)

    def __repr__(self) -> str:
        return f"Transpose({self.order!r})"
