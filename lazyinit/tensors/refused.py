"""A tensor that a checkpoint lists but that cannot be read, while its others can."""

from dataclasses import dataclass

import numpy as np

from lazyinit import errors
from lazyinit.sources import Index, Shape
from lazyinit.tensors.base import Tensor
from lazyinit.tensors.mapped import File

NO_DTYPE = np.dtype(object)


@dataclass(frozen=True, slots=True, repr=False)
class RefusedTensor(Tensor):
    """A ``Source`` that cannot be read; ``fill`` raises an error for a leaf that needs it.

    Attributes:
      file: the file that it lies in.
      name: its name in the file.
      problem: what was wanted and got, and the way out: a sentence or two.
      shape: as far as the file tells.
      dtype: as stored; ``object`` if NumPy has no such dtype.
    """

    file: File
    name: str
    problem: str
    shape: Shape = ()
    dtype: np.dtype = NO_DTYPE

    def read(self, index: Index) -> np.ndarray:
        """Raises a ``CheckpointError`` that says why."""
        raise errors.CheckpointError(f"{self.file.path}: tensor {self.name!r}: {self.problem}")
