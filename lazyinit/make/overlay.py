"""Writes the part of a leaf that a checkpoint holds over an array that was made.

For example, a table of 50,064 rows is made, and the 50,000 rows of the checkpoint are written over
its first rows. Each device writes its own part over its own shard.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from lazyinit import compat
from lazyinit.meshes import under
from lazyinit.sources import Index, Source
from lazyinit.tensors.tiles import copy


def overlay(array: jax.Array, stored: Source, sharding: Sharding | None) -> jax.Array:
    """Writes a source over the corner of an array at index 0 of each dimension.

    Each shard is changed in place, so the array that was given cannot be used afterwards. The host
    holds the stored part of one shard at a time, and nothing of the array.

    Args:
      array: an array on any mesh; or a tracer, inside of ``jax.jit``.
      stored: a tensor of as many dimensions; it is cast to the array's dtype.
      sharding: the one that was asked for; ``None`` leaves the array uncommitted where it is.

    Returns:
      The array, under the same sharding.

    Raises:
      Overflow: the array's dtype cannot hold a value.
    """
    dtype = array.dtype
    everything = tuple(slice(0, n) for n in stored.shape)
    # Arrays of 64-bit elements keep their dtype, whether the caller has jax_enable_x64 or not.
    with compat.enable_x64(True), jax.disable_jit(False):
        if compat.is_tracer(array):
            return _write_over(array, _read(stored, everything, dtype))
        # Each shard is handled as an array of its own, outside of the caller's trace and mesh.
        with jax.ensure_compile_time_eval(), under(None):
            if sharding is None:
                return _update(array, jax.device_put(_read(stored, everything, dtype)))
            sharding, shape = array.sharding, array.shape
            shards = array.addressable_shards
            parts = [_overlay_shard(shard, shape, stored, dtype) for shard in shards]
            return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def _overlay_shard(shard: Any, shape: tuple[int, ...], stored: Source, dtype: Any) -> jax.Array:
    bounds = [part.indices(size)[:2] for part, size in zip(shard.index, shape, strict=True)]
    # The corner begins at index 0, so its part of a shard begins where the shard does.
    index = tuple(
        slice(start, min(stop, size))
        for (start, stop), size in zip(bounds, stored.shape, strict=True)
    )
    if math.prod(max(part.stop - part.start, 0) for part in index) == 0:
        return shard.data
    return _update(shard.data, jax.device_put(_read(stored, index, dtype), shard.device))


def _read(stored: Source, index: Index, dtype: Any) -> np.ndarray:
    # This copies: JAX on CPU would take an aligned piece of a memory map itself as the array.
    read = stored.read(index)
    values = np.empty(read.shape, dtype)
    copy(values, read)
    return values


def _write_over(array: jax.Array, corner: jax.Array | np.ndarray) -> jax.Array:
    return jax.lax.dynamic_update_slice(array, corner, tuple(map(jnp.int32, (0,) * array.ndim)))


_update = jax.jit(_write_over, donate_argnums=0)
