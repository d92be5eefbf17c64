"""What scales are made of where a file does not hold them as they are: read in part, as all is.

A table's entries for codes, a product with another number or a quotient by one, and the scales of
groups in an order of their own. Each is computed in float32, as the libraries that wrote them do.
"""

from dataclasses import dataclass

import numpy as np

from lazyinit.sources import Index, Shape, Source
from lazyinit.tensors.base import Derived, OfOne, bounds, slices
from lazyinit.tensors.memory import HeldTensor

_FLOAT32 = np.dtype("float32")


class _Float32(OfOne):
    """A base for sources of float32 that have the shape of the first that they read."""

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
    """A ``Source``: for each code of another, what a table says that it stands for.

    Attributes:
      source: codes, each in a byte.
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
    """A ``Source``: another, plus a number.

    Attributes:
      source: of floats.
      by: what is added.
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
    """A ``Source``: another, divided by the one number that a tensor holds.

    Attributes:
      source: of floats.
      number: of one element.
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
        with np.errstate(all="ignore"):  # A file may hold a zero: then there is no number.
            return self.source.read(index).astype(_FLOAT32) / number.astype(_FLOAT32).reshape(())

    def __repr__(self) -> str:
        return f"({self.source!r} / {self.number!r})"


@dataclass(frozen=True, slots=True, repr=False)
class Taken(Derived):
    """A ``Source``: places of another along an axis, in any order, as ``numpy.take`` has it.

    Attributes:
      source: what is read, from the first place that is wanted to the last.
      axis: along which places are taken.
      places: an array of them, one axis; all of them are there.
    """

    source: Source
    axis: int
    places: HeldTensor

    @property
    def reads(self) -> tuple[Source, Source]:
        """What places are taken of, and the places."""
        return (self.source, self.places)

    @property
    def shape(self) -> Shape:
        """As many along the axis as there are places."""
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
    """A ``Source``: a flat source as rows, of which those that are wanted are read whole.

    For scales, which are few: they are not read by one run of elements for each row.

    Attributes:
      source: flat.
      shape: rows, and places in each; two axes.
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
