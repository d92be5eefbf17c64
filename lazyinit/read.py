"""A stored leaf -> an array: each device its own part of the file, copied once."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from lazyinit import compat
from lazyinit.buffers import aligned_empty
from lazyinit.params import StoredParam


class Reader:
    """Reads one leaf, on whatever thread; made on the thread whose JAX settings hold."""

    def __init__(self, leaf: StoredParam, sharding: Sharding | None, dtype: Any) -> None:
        """Takes the leaf, where it goes (``None``: the default device), and its dtype there."""
        self._leaf, self._sharding, self._dtype = leaf, sharding, dtype
        self._x64 = compat.setting("jax_enable_x64")
        self._device = compat.setting("jax_default_device")

    def __call__(self) -> jax.Array:
        """Reads and returns the array."""
        # Settings belong to threads.
        with compat.enable_x64(self._x64), jax.default_device(self._device):
            if self._sharding is None:
                array = jax.device_put(self._read(tuple(slice(0, n) for n in self._leaf.shape)))
            else:
                array = jax.make_array_from_callback(self._leaf.shape, self._sharding, self._read)
            return jax.block_until_ready(array)

    def _read(self, index: Any) -> np.ndarray:
        # A buffer of our own: JAX would take an aligned piece of the memory map as it is, and the
        # array would change, or fault, with the file.
        values = self._leaf.source.read(index)
        buffer = aligned_empty(values.shape, self._dtype)
        np.copyto(buffer, values, casting="unsafe")
        return buffer
