"""What sources share that read other sources, and the bounds of an index."""

from collections.abc import Sequence

import numpy as np

from lazyinit.params import Extent, Index, Shape, Source


class Changed:
    """What sources share that read other sources: names, places, checks."""

    __slots__ = ()

    @property
    def reads(self) -> Sequence[Source]:
        """The sources that it reads."""
        raise NotImplementedError

    @property
    def dtype(self) -> np.dtype:
        """The dtype as stored."""
        return self.reads[0].dtype

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tensors that it reads."""
        return tuple(dict.fromkeys(name for part in self.reads for name in part.names))

    @property
    def origin(self) -> str:
        """Where they lie."""
        return ", ".join(dict.fromkeys(part.origin for part in self.reads))

    @property
    def extents(self) -> tuple[Extent, ...]:
        """Where in files they lie."""
        return tuple(extent for part in self.reads for extent in part.extents)

    def check(self) -> None:
        """Raises ``CheckpointError`` if what it reads is gone or has changed."""
        for part in self.reads:
            part.check()


def bounds(index: Index, shape: Shape) -> tuple[tuple[int, int], ...]:
    """Returns the first place and the one after the last, for each axis of an index."""
    ends = (part.indices(size) for part, size in zip(index, shape, strict=True))
    return tuple((start, max(start, stop)) for start, stop, _ in ends)


def slices(ends: Sequence[tuple[int, int]]) -> Index:
    """Returns the index that has these bounds."""
    return tuple(slice(start, stop) for start, stop in ends)
