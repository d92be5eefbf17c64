"""Sources: arrays that can be read in part. A ``StoredParam`` is read from one.

The readers of formats make sources. Rules wrap a source in another one, which turns an index into
its own array into an index into the source below. This file has only the interface.
"""

from dataclasses import dataclass
from functools import cache
from typing import Protocol, TypeAlias

import numpy as np

Shape: TypeAlias = tuple[int, ...]
Index: TypeAlias = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of bytes in a file that are the values of one tensor, in order and not compressed.

    Attributes:
      file: the path or address of the file.
      start: the position of the first byte in the file.
      stop: the position after the last byte.
    """

    file: str
    start: int
    stop: int


class Source(Protocol):
    """An array that can be read in part: a tensor in a file, or a layout change of others.

    A law for every implementation: ``read(index)`` equals ``read(everything)[index]``.
    """

    @property
    def shape(self) -> Shape:
        """The shape after any layout change."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """The dtype as stored; bfloat16 and others that NumPy lacks are those of ``ml_dtypes``."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """The names in the checkpoint of the tensors that it reads."""
        ...

    @property
    def origin(self) -> str:
        """The file that holds the tensors, or a word for another place, for people to read."""
        ...

    @property
    def extents(self) -> tuple[Extent, ...]:
        """Where in files the bytes of the tensors are; empty if they are in chunks or in memory."""
        ...

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index`` (one slice with step 1 per dimension).

        The result may be a view of a memory map: it costs no memory until it is copied.
        """
        ...

    def check(self) -> None:
        """Raises ``CheckpointError`` if what it reads is gone or has changed."""
        ...


_name_of_dtype = cache(str)  # NumPy takes 5 us for a name, and a tree has few dtypes.


def describe(shape: Shape, dtype: np.dtype | str) -> str:
    """Returns ``float32[768,2]`` for a shape and a dtype."""
    return f"{_name_of_dtype(dtype)}[{','.join(map(str, shape))}]"
