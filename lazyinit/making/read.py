"""A stored leaf -> an array: each device its own part of the file, copied once, piece by piece.

A piece is read into the buffers of all shards that have a part of it, and then its pages of the
memory map are given back. So memory beyond the array is a piece per thread, whatever the size of
the leaf. A transposed piece is copied in tiles that fit a cache.
"""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from lazyinit import compat
from lazyinit import sharding as shardings
from lazyinit.checkpoint.mapped import give_back
from lazyinit.making.buffers import Blocks
from lazyinit.making.limits import PIECE
from lazyinit.making.shards import Bounds, Shards
from lazyinit.params import StoredParam

_TILE = 256  # Elements along each side of what is copied at once where the order changes.


class Reader:
    """Reads one leaf, on whatever thread; made on the thread whose JAX settings hold."""

    def __init__(
        self, leaf: StoredParam, sharding: Sharding | None, dtype: Any, blocks: Blocks
    ) -> None:
        """Takes the leaf, where it goes (``None``: the default device), its dtype there, memory."""
        self._blocks = blocks
        self._leaf, self._sharding, self._dtype = leaf, sharding, dtype
        self._x64 = compat.setting("jax_enable_x64")
        self._device = compat.setting("jax_default_device")

    def __call__(self) -> jax.Array:
        """Reads and returns the array."""
        # Settings belong to threads.
        with compat.enable_x64(self._x64), jax.default_device(self._device):
            if self._sharding is None or shardings.platform_of(self._sharding) == "cpu":
                array = self._by_pieces()
            else:  # One shard at a time: it is gone from the host before the next is read.
                array = jax.make_array_from_callback(self._leaf.shape, self._sharding, self._read)
            return jax.block_until_ready(array)

    def _by_pieces(self) -> jax.Array:
        # Buffers of our own: JAX would take an aligned piece of the memory map as it is, and the
        # array would change, or fault, with the file.
        leaf = self._leaf
        shards = Shards(leaf.path, leaf.shape, self._dtype, self._sharding, self._blocks)
        buffers = shards.allocate()
        axis = _slowest(leaf.source)
        length = leaf.shape[axis] if leaf.shape else 1
        row = max(1, math.prod(leaf.shape) // max(length, 1) * leaf.source.dtype.itemsize)
        step = max(1, PIECE // row)
        for start in range(0, length, step):
            read = [
                self._copy(at, buffer, axis, (start, min(start + step, length)))
                for at, buffer in buffers.items()
            ]
            for values in read:
                if values is not None:
                    give_back(values)
        return shards.array()

    def _copy(
        self, at: Bounds, buffer: np.ndarray, axis: int, rows: tuple[int, int]
    ) -> np.ndarray | None:
        """Copies what a shard has of a piece; returns what was read."""
        if not at:
            index, place = (), ()
        else:
            start, stop = max(rows[0], at[axis][0]), min(rows[1], at[axis][1])
            if start >= stop:
                return None
            index = tuple(slice(*bounds) for bounds in at)
            index = (*index[:axis], slice(start, stop), *index[axis + 1 :])
            place = (slice(None),) * axis + (slice(start - at[axis][0], stop - at[axis][0]),)
        values = self._leaf.source.read(index)
        _copy_tiles(buffer[(*place, ...)], values)
        return values

    def _read(self, index: Any) -> np.ndarray:
        values = self._leaf.source.read(index)
        buffer = self._blocks.empty(values.shape, self._dtype)
        _copy_tiles(buffer, values)
        give_back(values)
        return buffer


def _slowest(source: Any) -> int:
    """Returns the axis along which neighbors lie farthest from each other in the file."""
    axes = getattr(source, "axes", None)
    return axes.index(0) if isinstance(axes, tuple) and axes else 0


def _copy_tiles(to: np.ndarray, values: np.ndarray) -> None:
    if values.ndim < 2 or values.flags.c_contiguous or values.strides[-1] == values.itemsize:
        np.copyto(to, values, casting="unsafe")
        return
    fast = int(np.argmin(np.abs(values.strides)))
    for first in range(0, values.shape[fast], _TILE):
        for second in range(0, values.shape[-1], _TILE):
            place: list[Any] = [slice(None)] * values.ndim
            place[fast] = slice(first, first + _TILE)
            place[-1] = slice(second, second + _TILE)
            np.copyto(to[tuple(place)], values[tuple(place)], casting="unsafe")
