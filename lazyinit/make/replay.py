"""Replay: a work run equation by equation, eagerly, at its own shape, on one device.

That is what eager ``init`` does, on any version of JAX and any kind of device, so its bits are
right by construction. It takes the whole leaf on that device, and up to ``limits.TEMPORARIES``
times as much beside it, while the leaf is made; then it is cut, and each device gets its shard.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lazyinit import compat, meshes
from lazyinit.make.buffers import Blocks
from lazyinit.make.shards import Bounds, Shards
from lazyinit.make.units import Job, Unit


def replaying(
    unit: Unit, inputs: Callable[[], Sequence[Any]], blocks: Blocks
) -> Callable[[], list[jax.Array]]:
    """Returns what makes the arrays of a unit's jobs, on a thread with no trace and no mesh.

    Args:
      unit: what to make.
      inputs: gives the inputs of its work, under the settings of the replay.
      blocks: the memory that shards on CPU are cut into.
    """
    # Settings belong to threads.
    device = _device_of(unit) or compat.setting("jax_default_device")
    program = unit.work.program
    needed = compat.mesh_of(unit.work.origins)  # By a shard_map, say.
    mesh = None if needed is None else meshes.concrete(needed, unit.jobs[0].path)

    def replay() -> list[jax.Array]:
        with (
            compat.enable_x64(program.x64),
            jax.disable_jit(False),
            jax.default_device(device),
            meshes.under(mesh),
        ):
            made = unit.work.run(inputs(), barrier=False)
        with compat.enable_x64(True), jax.default_device(device):
            # A constant may be NumPy's.
            return [
                jax.block_until_ready(_placed(job, jnp.asarray(array), blocks))
                for job, array in zip(unit.jobs, made, strict=True)
            ]

    return replay


def _device_of(unit: Unit) -> Any | None:
    """Returns the device to replay on: one of this process's, of those that get a shard."""
    sharding = unit.jobs[0].sharding
    if sharding is None:
        return None
    devices = sorted(sharding.addressable_devices, key=lambda d: d.id)
    return devices[0] if devices else None


def _placed(job: Job, whole: jax.Array, blocks: Blocks) -> jax.Array:
    is_key = jnp.issubdtype(whole.dtype, jax.dtypes.prng_key)
    if job.sharding is None or job.sharding.num_devices == 1 or is_key or whole.weak_type:
        return job.moved(whole)
    # Not jax.device_put: for devices of several processes it would compare the whole leaf.
    host = np.asarray(whole if whole.dtype == job.dtype else whole.astype(job.dtype))
    shards = Shards(job.path, job.leaf.shape, job.dtype, job.sharding, blocks)
    for at, buffer in shards.allocate().items():
        buffer[...] = host[_index(at)]
    return shards.array()


def _index(bounds: Bounds) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in bounds)


def differing(array: jax.Array, want: jax.Array | np.ndarray) -> int:
    """Returns how many elements, of those that this process holds, have other bits than wanted.

    Args:
      array: on any devices.
      want: the same, whole, on one device of this process.
    """
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array, want = jax.random.key_data(array), jax.random.key_data(want)
    want = np.asarray(want)
    parts = {str(s.index): (s.index, s.data) for s in array.addressable_shards}
    return sum(_unequal(np.asarray(data), want[index]) for index, data in parts.values())


def _unequal(a: np.ndarray, b: np.ndarray) -> int:
    if a.size == 0:
        return 0
    # By bytes: a NaN is equal to itself, and zeros of two signs differ.
    first, second = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
    return int((first != second).reshape(a.size, -1).any(1).sum())
