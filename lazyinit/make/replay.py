"""Leaves that are run equation by equation: replayed on a device, or inlined in a trace.

*Replay* runs a work eagerly, at its own shape, on one device. That is what eager ``init`` does,
on any version of JAX and on any kind of device, so its bits are right by construction. The device
holds the whole leaf, and up to ``limits.TEMPORARIES`` times as much beside it, while the leaf is
made. Then the leaf is cut, and each device gets its shard.

Within a ``jit`` or a ``vmap`` that traces the keys, nothing can be run yet. The leaf is *inlined*:
its equations become part of the caller's trace.
"""

import contextlib
import ctypes
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lazyinit import compat, errors, meshes
from lazyinit.make.executable import encode_key
from lazyinit.make.shards import Blocks, Shards, index_of
from lazyinit.make.ways import Computed, Inlined, Job
from lazyinit.program.small_values import SmallValues

_OFTEN = 2**24  # After so many bytes of leaves, freed memory is given back to the system.


class _Freed:
    """Gives memory that replays have freed back to the system, now and then.

    Of the blocks that XLA and LAPACK free, glibc keeps up to 64 MiB for each thread, and all those
    that lie between blocks in use. Giving them back takes time that only large leaves are worth.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._nbytes = 0

    def count(self, nbytes: int) -> None:
        """Counts the bytes of leaves that were made."""
        with self._lock:
            self._nbytes += nbytes
            is_enough = self._nbytes >= _OFTEN
            if is_enough:
                self._nbytes = 0
        if is_enough:
            with contextlib.suppress(OSError, AttributeError, TypeError):  # Without glibc.
                ctypes.CDLL(None).malloc_trim(0)


_freed = _Freed()


def prepare_replay(
    way: Computed, small: SmallValues, blocks: Blocks
) -> Callable[[], list[jax.Array]]:
    """Returns what makes the arrays of a way's jobs, on a thread with no trace and no mesh.

    Args:
      way: what to make; it need not be ``Replayed``.
      small: its keys and scalars.
      blocks: the memory that shards on CPU are cut out of.
    """
    # The thread that replays has settings of its own, so the caller's are read now.
    device = _device_of(way.jobs[0]) or compat.setting("jax_default_device")
    needed = compat.mesh_of(way.work.origins)  # A shard_map needs one.
    mesh = None if needed is None else meshes.concrete(needed, way.jobs[0].path)

    def run() -> list[jax.Array]:
        with way.settings(), jax.default_device(device), meshes.under(mesh):
            keys = {value: encode_key(path) for value, path in way.own_keys.items()}
            inputs = [
                keys[v][0].decode(*keys[v][1]) if v in keys else small[v] for v in way.work.inputs
            ]
            made = way.work.run(inputs, barrier=False)
        with compat.enable_x64(True), jax.default_device(device):
            # A leaf that is a constant may be a NumPy array.
            placed = [
                jax.block_until_ready(_placed(job, jnp.asarray(array), blocks))
                for job, array in zip(way.jobs, made, strict=True)
            ]
        del inputs, made
        _freed.count(sum(job.leaf.nbytes for job in way.jobs))
        return placed

    return run


def inline(way: Inlined, small: SmallValues) -> list[Any]:
    """Returns the leaves as tracers of the trace that the caller is in."""
    with compat.enable_x64(way.work.program.x64):
        keys = {value: path.key() for value, path in way.own_keys.items()}
        inputs = [keys[v] if v in keys else small[v] for v in way.work.inputs]
        made = way.work.run(inputs, barrier=False)
        return [job.move(jnp.asarray(array)) for array, job in zip(made, way.jobs, strict=True)]


def _device_of(job: Job) -> Any | None:
    """Returns the device to replay on: the first one of this process that gets a shard."""
    if job.sharding is None:
        return None
    devices = sorted(job.sharding.addressable_devices, key=lambda d: d.id)
    return devices[0] if devices else None


def _placed(job: Job, whole: jax.Array, blocks: Blocks) -> jax.Array:
    is_key = jnp.issubdtype(whole.dtype, jax.dtypes.prng_key)
    if job.sharding is None or job.sharding.num_devices == 1 or is_key or whole.weak_type:
        return job.move(whole)
    # jax.device_put would compare the whole leaf between processes, if there are several.
    host = np.asarray(whole if whole.dtype == job.dtype else whole.astype(job.dtype))
    shards = Shards(job.path, job.leaf.shape, job.dtype, job.sharding, blocks)
    for at, buffer in shards.allocate().items():
        buffer[...] = host[index_of(at)]
    return shards.array()


def check_equal(job: Job, array: jax.Array, want: jax.Array) -> None:
    """Checks that a leaf that was made has the bits of its replay.

    Args:
      job: what was asked for.
      array: what was made, on any devices.
      want: its replay, whole, on one device of this process.

    Raises:
      BitsError: some element, of those that this process holds, has other bits.
    """
    if n := _count_unequal(array, want):
        raise errors.BitsError(
            f"{job.path}: wanted the bits of its replay, got {n} of {array.size} elements that "
            "differ. Please report it, with what `lazyinit check` prints."
        )


def _count_unequal(array: jax.Array, want: jax.Array | np.ndarray) -> int:
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array, want = jax.random.key_data(array), jax.random.key_data(want)
    want = np.asarray(want)
    parts = {str(s.index): (s.index, s.data) for s in array.addressable_shards}
    return sum(_unequal(np.asarray(data), want[index]) for index, data in parts.values())


def _unequal(a: np.ndarray, b: np.ndarray) -> int:
    if a.size == 0:
        return 0
    # Bytes are compared, so that a NaN equals itself and 0.0 differs from -0.0.
    first, second = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
    return int((first != second).reshape(a.size, -1).any(1).sum())
