"""Host memory that JAX on CPU takes as it is, without a copy.

The first touch of a page costs as much as the copy of what goes there, and less by far where
pages are large. NumPy asks for large pages from 4 MiB on, so small arrays are cut out of blocks.
Memory goes back to the system when the last array of its block is gone.
"""

import math
import threading
from typing import Any

import jax.numpy as jnp
import numpy as np

_ALIGNMENT = 64  # Bytes, as XLA wants it.
BLOCK = 2**24  # Bytes; what one small array that outlives its neighbors can keep at most.


class Blocks:
    """Cuts arrays out of blocks, for any thread."""

    def __init__(self) -> None:
        """Starts with no block."""
        self._lock = threading.Lock()
        self._rest = np.empty(0, np.uint8)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Returns an array whose values are not set."""
        size = math.prod(shape) * jnp.dtype(dtype).itemsize
        taken = -(-size // _ALIGNMENT) * _ALIGNMENT
        if taken > BLOCK // 2:
            return _view(_aligned(np.empty(size + _ALIGNMENT, np.uint8)), size, shape, dtype)
        with self._lock:
            if taken > self._rest.size:
                self._rest = _aligned(np.empty(BLOCK + _ALIGNMENT, np.uint8))
            space, self._rest = self._rest[:taken], self._rest[taken:]
        return _view(space, size, shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Returns an array of zeros, which takes memory as it is read or written to."""
        size = math.prod(shape) * jnp.dtype(dtype).itemsize
        return _view(_aligned(np.zeros(size + _ALIGNMENT, np.uint8)), size, shape, dtype)


def _aligned(space: np.ndarray) -> np.ndarray:
    return space[-space.ctypes.data % _ALIGNMENT :]


def _view(space: np.ndarray, size: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    return space[:size].view(dtype).reshape(shape)
