"""Numbers that a file holds among its headers, as values and not as an array's bytes."""

from dataclasses import dataclass

import numpy as np

from lazyinit.checkpoint.headers import damaged
from lazyinit.checkpoint.mapped import File, InFile
from lazyinit.params import Index, Shape


@dataclass(frozen=True, slots=True, repr=False)
class InlineNumber(InFile):
    """A ``Source``: one number, read when the file was opened.

    Attributes:
      file: the file that holds it.
      name: what the file calls it.
      dtype: NumPy's for such a Python number.
      data: its bytes.
    """

    file: File
    name: str
    dtype: np.dtype
    data: bytes

    @classmethod
    def of(cls, file: File, name: str, number: complex) -> "InlineNumber":
        """Returns the source of a Python number (``int``, ``float``, ``bool``, ``complex``).

        Raises:
          CheckpointError: an integer that takes more than 64 bits.
        """
        value = np.asarray(number)
        if value.dtype.hasobject:
            wanted = "an integer of at most 64 bits"
            raise damaged(file.path, name, wanted, f"one of {int(number.real).bit_length()}")
        return cls(file, name, value.dtype, value.tobytes())

    @property
    def shape(self) -> Shape:
        """That of a scalar."""
        return ()

    def read(self, index: Index) -> np.ndarray:
        """Returns the number, as an array with no dimensions."""
        self.check()
        return np.frombuffer(self.data, self.dtype).reshape(())[(*index, ...)]
