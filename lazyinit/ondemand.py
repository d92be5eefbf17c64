"""Thunks as sources: a leaf is made when it is read, and let go when the next one is."""

from dataclasses import dataclass

import numpy as np

from lazyinit._materialize import materialize
from lazyinit.params import Extent, Index, Shape, Thunk
from lazyinit.writing.arrays import DeviceArray


class Maker:
    """Makes leaves, and holds the last one that was asked for."""

    def __init__(self) -> None:
        """Holds nothing yet."""
        self._held: list[tuple[Thunk, DeviceArray]] = []

    def make(self, path: str, leaf: Thunk) -> DeviceArray:
        """Returns the array of a leaf, on the default device."""
        if not self._held or self._held[0][0] is not leaf:
            self._held.clear()  # Before the next one is made.
            self._held.append((leaf, DeviceArray(path, materialize({path: leaf})[path])))
        return self._held[0][1]


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class OnDemand:
    """A ``Source``: a leaf that is made when it is read.

    Attributes:
      path: of the leaf.
      leaf: a thunk of any kind.
      maker: what makes it; one for all leaves that are read one after the other.
    """

    path: str
    leaf: Thunk
    maker: Maker

    @property
    def shape(self) -> Shape:
        """The leaf's shape."""
        return self.leaf.shape

    @property
    def dtype(self) -> np.dtype:
        """The leaf's dtype."""
        return self.leaf.dtype

    @property
    def names(self) -> tuple[str, ...]:
        """The path, alone."""
        return (self.path,)

    @property
    def origin(self) -> str:
        """A word for the tree."""
        return "the tree"

    @property
    def extents(self) -> tuple[Extent, ...]:
        """None: it lies in no file."""
        return ()

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``, of the leaf once made."""
        return self.maker.make(self.path, self.leaf).read(index)

    def check(self) -> None:
        """Does nothing: making it says what is wrong."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OnDemand) and other.leaf is self.leaf

    def __hash__(self) -> int:
        return id(self.leaf)

    def __repr__(self) -> str:
        return f"the tree:{self.path}"
