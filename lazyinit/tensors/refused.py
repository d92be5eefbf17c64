"""A tensor that a checkpoint names and that cannot be read: it is refused alone."""

from dataclasses import dataclass

import numpy as np

from lazyinit import errors
from lazyinit.sources import Index, Shape
from lazyinit.tensors.base import Tensor
from lazyinit.tensors.mapped import File

NO_DTYPE = np.dtype(object)


@dataclass(frozen=True, slots=True, repr=False)
class RefusedTensor(Tensor):
    """A ``Source`` that cannot be read. ``fill`` refuses a leaf that it would make.

    Attributes:
      file: the file that it lies in.
      name: what the file calls it.
      problem: what was wanted and got, and the way out: a sentence or two.
      shape: as far as the file tells.
      dtype: as stored; that of Python objects if NumPy has no such dtype.
    """

    file: File
    name: str
    problem: str
    shape: Shape = ()
    dtype: np.dtype = NO_DTYPE

    def read(self, index: Index) -> np.ndarray:
        """Raises a ``CheckpointError`` that says why."""
        raise errors.CheckpointError(f"{self.file.path}: tensor {self.name!r}: {self.problem}")
