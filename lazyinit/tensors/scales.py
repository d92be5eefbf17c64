"""Sources of scales that a file does not hold as they are.

Such scales are entries of a table, sums with a number, quotients by a number, or scales of groups
in another order. Each is computed in float32, as the libraries that wrote them do.
"""

from dataclasses import dataclass

import numpy as np

from lazyinit.sources import Index, Shape, Source
from lazyinit.tensors.base import Derived, OfOne, bounds, slices
from lazyinit.tensors.memory import HeldTensor

_FLOAT32 = np.dtype("float32")


class _Float32(OfOne):
    """A base for sources of float32 that have the shape of the first source that they read."""

    __slots__ = ()

    @property
    def shape(self) -> Shape:
        """The shape of the first source that it reads."""
        return self.reads[0].shape

    @property
    def dtype(self) -> np.dtype:
        """Always float32."""
        return _FLOAT32


@dataclass(frozen=True, slots=True, repr=False)
class Coded(_Float32):
    """A ``Source``: for each code of another source, the entry that a table has for it.

    Attributes:
      source: the codes, each in a byte.
      table: an entry for each code.
    """

    source: Source
    table: tuple[float, ...]

    def read(self, index: Index) -> np.ndarray:
        """Returns the entries for the codes at ``index``."""
        codes = self.source.read(index).view(np.uint8)
        return np.asarray(np.take(np.array(self.table, _FLOAT32), codes))

    def __repr__(self) -> str:
        return f"table[{self.source!r}]"


@dataclass(frozen=True, slots=True, repr=False)
class Raised(_Float32):
    """A ``Source``: the values of another, plus a number.

    Attributes:
      source: a source of floats.
      by: the number to add.
    """

    source: Source
    by: float

    def read(self, index: Index) -> np.ndarray:
        """Returns the sums at ``index``."""
        return self.source.read(index).astype(_FLOAT32) + np.float32(self.by)

    def __repr__(self) -> str:
        return f"({self.source!r} + {self.by})"


@dataclass(frozen=True, slots=True, repr=False)
class Divided(_Float32):
    """A ``Source``: the values of another, divided by the one number that a tensor holds.

    Attributes:
      source: a source of floats.
      number: a source of one element.
    """

    source: Source
    number: Source

    @property
    def reads(self) -> tuple[Source, Source]:
        """The floats, and the number."""
        return (self.source, self.number)

    def read(self, index: Index) -> np.ndarray:
        """Returns the quotients at ``index``."""
        number = self.number.read((slice(None),) * len(self.number.shape))
        with np.errstate(all="ignore"):  # A file may hold a zero.
            return self.source.read(index).astype(_FLOAT32) / number.astype(_FLOAT32).reshape(())

    def __repr__(self) -> str:
        return f"({self.source!r} / {self.number!r})"


@dataclass(frozen=True, slots=True, repr=False)
class Taken(Derived):
    """A ``Source``: places of another along an axis, in any order, as ``numpy.take`` has it.

    Attributes:
      source: the source, which is read from the first place that is wanted to the last.
      axis: the axis along which places are taken.
      places: the places, int[n]; the source has all of them.
    """

    source: Source
    axis: int
    places: HeldTensor

    @property
    def reads(self) -> tuple[Source, Source]:
        """The source, and the places."""
        return (self.source, self.places)

    @property
    def shape(self) -> Shape:
        """The shape of the source, with as many elements along the axis as there are places."""
        sizes = self.source.shape
        return (*sizes[: self.axis], *self.places.shape, *sizes[self.axis + 1 :])

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``."""
        ends = list(bounds(index, self.shape))
        wanted = np.asarray(self.places.read((slice(*ends[self.axis]),)))
        low = int(wanted.min(initial=self.source.shape[self.axis]))
        ends[self.axis] = (min(low, int(wanted.max(initial=0))), int(wanted.max(initial=-1)) + 1)
        held = self.source.read(slices(ends))
        return np.asarray(np.take(held, wanted - ends[self.axis][0], self.axis))

    def __repr__(self) -> str:
        return f"{self.source!r}.take({self.places!r}, {self.axis})"


@dataclass(frozen=True, slots=True, repr=False)
class Rows(OfOne):
    """A ``Source``: a flat source cut into rows; a row is always read whole.

    It is meant for scales: as they are few, one read of whole rows costs less than one for each.

    Attributes:
      source: a source with one axis.
      shape: the number of rows, and of elements in a row.
    """

    source: Source
    shape: Shape

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``."""
        (start, stop), columns = bounds(index, self.shape)
        width = self.shape[1]
        held = self.source.read((slice(start * width, stop * width),))
        return held.reshape(stop - start, width)[:, slice(*columns)]

    def __repr__(self) -> str:
        return f"{self.source!r}.reshape{self.shape}"
