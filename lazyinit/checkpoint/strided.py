"""Tensors that lie in files as views: transposed, repeated or cut out of a larger storage."""

from dataclasses import dataclass

import numpy as np

from lazyinit.checkpoint.mapped import File, InFile, MappedTensor
from lazyinit.params import Extent, Index, Shape


@dataclass(frozen=True, slots=True, repr=False)
class StridedTensor(InFile):
    """A ``Source``: a tensor of a file with steps of its own; reading gives a view of the map.

    Attributes:
      file: the file that it lies in.
      name: what the file calls it.
      shape: as stored; no axis is empty.
      dtype: as stored.
      offset: where its first element is, bytes from the start of the file.
      steps: along each axis, bytes; zero where one row stands for all.
    """

    file: File
    name: str
    shape: Shape
    dtype: np.dtype
    offset: int
    steps: tuple[int, ...]

    @property
    def extents(self) -> tuple[Extent, ...]:
        """The run of bytes from its first element to its last."""
        return self._run.extents

    @property
    def _run(self) -> MappedTensor:
        last = sum((size - 1) * step for size, step in zip(self.shape, self.steps, strict=True))
        length = last + self.dtype.itemsize
        return MappedTensor(self.file, self.name, (length,), np.dtype(np.uint8), self.offset)

    def read(self, index: Index) -> np.ndarray:
        """Returns a read-only view of the values at ``index``.

        Raises:
          CheckpointError: the file has changed since it was opened.
        """
        run = self._run.read((slice(None),))
        whole = np.ndarray(self.shape, self.dtype, buffer=run, strides=self.steps)
        return whole[(*index, ...)]
