"""Host memory that JAX on CPU takes as it is, without a copy."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

_ALIGNMENT = 64  # Bytes, as XLA wants it.


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Returns an array whose values are not set."""
    return _aligned(np.empty, shape, dtype)


def aligned_zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Returns an array of zeros, which takes memory as it is read or written to."""
    return _aligned(np.zeros, shape, dtype)


def _aligned(make: Any, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    size = math.prod(shape) * jnp.dtype(dtype).itemsize
    space = make(size + _ALIGNMENT, np.uint8)
    offset = -space.ctypes.data % _ALIGNMENT
    return space[offset : offset + size].view(dtype).reshape(shape)
