"""Stored leaves that several processes hold: each reads a part, and the devices pass it on.

A leaf that is replicated over several processes is read as a *spread*: it is cut further, along the
mesh axes over which it is replicated, so that each process reads bytes that no other reads. One
program then gathers it over the network between the devices. The memory for this is that of one
spread, which is smaller than its leaf: a spread is freed as soon as its leaf is there.

Bits travel as unsigned integers. XLA may convert the values of a short floating-point type on their
way through a collective, which could change the bits of a NaN.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from lazyinit import compat, errors, meshes
from lazyinit import sharding as shardings
from lazyinit.make.ways import Job
from lazyinit.params import StoredParam
from lazyinit.sources import Shape
from lazyinit.tensors.key_data import KeyData
from lazyinit.tensors.regions import order_of

LEAST = 2**18  # Bytes of a shard. All processes read a smaller one, rather than wait for others.
_SETTING = "jax_cpu_collectives_implementation"
_NETWORKS = ("gloo", "mpi", "megascale")


def spreads_of(jobs: Sequence[Job]) -> list[tuple[Job, Job]]:
    """Returns the jobs whose leaves are read as spreads, each with the job that reads it."""
    return [(job, read) for job in jobs if (read := spread_of(job)) is not None]


def spread_of(job: Job, devices: Sequence[Any] | None = None) -> Job | None:
    """Returns the job that reads a leaf as a spread; ``None`` if all processes read what they hold.

    They do so for a leaf that is small, that goes to another kind of memory than the devices' own,
    or that has no dimension to cut further, into as many parts as there are copies.

    Args:
      job: a leaf and where it goes.
      devices: the devices of the sharding, in the order of its mesh; ``None`` for the mesh's own.

    Returns:
      A job with the same places. Its sharding cuts the leaf further, and its shape may have a few
      more rows, which are not read.
    """
    leaf, placement = job.leaf, job.sharding
    is_plain = isinstance(leaf, StoredParam) and not isinstance(leaf.source, KeyData)
    if not is_plain or not isinstance(placement, NamedSharding):
        return None
    if placement.memory_kind is not None and _is_elsewhere(placement):
        return None
    if _bits(job.dtype) % 8:  # Compiled programs pack such elements, and host buffers do not.
        return None
    if math.prod(placement.shard_shape(leaf.shape)) * job.dtype.itemsize < LEAST:
        return None
    mesh, spec = placement.mesh, tuple(placement.spec)
    if devices is None:
        devices = shardings.devices_in_order(placement)
    used = {name for axes in spec for name in _names(axes)}
    processes = tuple(device.process_index for device in devices)
    axes = tuple(axis for axis in _crossing(mesh, processes) if axis not in used)
    found = _cut(leaf, spec, mesh, axes) if axes else None
    if found is None:
        return None
    cut, shape = found
    there = NamedSharding(_auto(mesh), PartitionSpec(*cut))
    return Job(job.path, replace(leaf, shape=shape), there, job.dtype, places=job.places)


def _cut(
    leaf: StoredParam, spec: tuple[Any, ...], mesh: Any, axes: tuple[str, ...]
) -> tuple[list[Any], Shape] | None:
    """Returns a spec that cuts a leaf further, and the shape of the spread."""
    shape = list(leaf.shape)
    full = [*spec, *[None] * (len(shape) - len(spec))]
    parts = meshes.count_of_parts(mesh, axes)
    # The dimension that is outermost in the file comes first, so that a part lies together there.
    order = order_of(leaf.source)
    order = (*order, *(d for d in range(len(shape)) if d not in order))
    for d in order:
        if shape[d] // meshes.count_of_parts(mesh, full[d]) % parts == 0:
            full[d] = (*_names(full[d]), *axes)
            return full, leaf.shape
    whole = [d for d in order if not _names(full[d]) and shape[d] >= parts]
    if not whole:
        return None
    longest = max(whole, key=lambda d: shape[d])
    shape[longest] = -(-shape[longest] // parts) * parts
    full[longest] = axes
    return full, tuple(shape)


def gathered(
    made: Iterable[tuple[Job, jax.Array]],
    spreads: Sequence[tuple[Job, Job]],
    meet: Callable[[], None],
) -> Iterator[tuple[Job, jax.Array]]:
    """Yields the arrays that are made, and at the end each leaf that was read as a spread.

    All processes gather the same leaves in the same order.

    Args:
      made: the arrays of all jobs, spreads among them.
      spreads: the jobs that were asked for, each with the job that reads its spread.
      meet: waits until all processes have read. It raises if one of them failed, because the others
        would wait for that one in the collective.
    """
    reads = {id(read) for _, read in spreads}
    parts: dict[int, jax.Array] = {}
    with ThreadPoolExecutor(1) as compiling:  # Compiles while other threads read.
        programs: dict[Any, Future[Any]] = {}  # Leaves that are alike share a program.
        for job, read in spreads:
            if (alike := _alike(job, read)) not in programs:
                programs[alike] = compiling.submit(_compile, *alike)
        for job, array in made:
            if id(job) in reads:
                parts[id(job)] = array
            else:
                yield job, array
    meet()
    for job, read in spreads:
        program = programs[_alike(job, read)].result()
        yield job, meshes.outside(functools.partial(_gather, job, parts.pop(id(read)), program))


def _gather(job: Job, spread: jax.Array, program: Any) -> jax.Array:
    words = _as_dtype(spread, spread.sharding, _bits_of(job.dtype))
    with compat.enable_x64(True), jax.disable_jit(False):
        whole = program(words).block_until_ready()
    words.delete()
    spread.delete()
    # The array gets the job's own sharding, whose mesh may have Explicit axes.
    assert job.sharding is not None
    return _as_dtype(whole, job.sharding, job.dtype)


_Alike: TypeAlias = tuple[Shape, NamedSharding, Shape, NamedSharding, Any]


def _alike(job: Job, read: Job) -> _Alike:
    """Returns what a program depends on: the shapes and shardings of a spread and of its leaf."""
    before, after = read.sharding, job.sharding
    assert isinstance(before, NamedSharding)
    assert isinstance(after, NamedSharding)
    target = NamedSharding(_auto(after.mesh), after.spec)
    return read.leaf.shape, before, job.leaf.shape, target, _bits_of(job.dtype)


def _compile(
    before: Shape, spread: NamedSharding, shape: Shape, target: NamedSharding, dtype: Any
) -> Any:
    def gather(words: Any) -> Any:
        whole = jax.lax.with_sharding_constraint(words, target)
        return jax.lax.slice(whole, (0,) * len(shape), shape)

    with compat.enable_x64(True):  # Settings belong to threads.
        words = jax.ShapeDtypeStruct(before, dtype, sharding=spread)
        return jax.jit(gather, out_shardings=target).lower(words).compile()


def _as_dtype(array: jax.Array, sharding: Sharding, dtype: Any) -> jax.Array:
    """Returns the bits of an array as another dtype of the same size, in an equal sharding.

    The program that gathers must not do this, because XLA may convert values on their way there.
    """
    places = sharding.addressable_devices_indices_map(array.shape)
    parts = {shard.device: shard.data for shard in array.addressable_shards}
    with compat.enable_x64(True), jax.ensure_compile_time_eval(), jax.disable_jit(False):
        made = [_viewed(parts[device], device, dtype) for device in places]
        return jax.make_array_from_single_device_arrays(array.shape, sharding, made, dtype=dtype)


def _viewed(part: jax.Array, device: Any, dtype: Any) -> jax.Array:
    if part.dtype == dtype:
        return part
    if device.platform == "cpu":  # JAX takes the same memory, and compiles nothing.
        return jax.device_put(np.asarray(part).view(dtype), device)
    return jax.lax.bitcast_convert_type(part, dtype)


def check_network(spreads: Sequence[tuple[Job, Job]]) -> None:
    """Checks that devices of several processes can reach each other.

    Raises:
      HostsError: they are CPU devices, and JAX is set to use no network between them.
    """
    if network() in _NETWORKS:
        return
    for job, _ in spreads:
        if shardings.platform_of(job.sharding) == "cpu":
            raise errors.HostsError(
                f"{job.path}: broadcast=True wants a network between the CPU devices of several "
                f"processes, got {_SETTING}={network()!r}. Set it to 'gloo' before "
                "jax.distributed.initialize, or leave broadcast out: then every process reads "
                "what it holds."
            )


def network() -> str | None:
    """Returns the network between CPU devices of several processes; ``None`` if there is none."""
    return compat.setting(_SETTING)


def _names(axes: Any) -> tuple[str, ...]:
    if axes is None or axes is PartitionSpec.UNCONSTRAINED:
        return ()
    return axes if isinstance(axes, tuple) else (axes,)


@functools.lru_cache(maxsize=64)
def _crossing(mesh: Any, processes: tuple[int, ...]) -> tuple[str, ...]:
    """Returns the axes of a mesh along which neighbors belong to different processes."""
    grid = np.array(processes).reshape(mesh.axis_sizes)
    return tuple(name for n, name in enumerate(mesh.axis_names) if np.diff(grid, axis=n).any())


@functools.lru_cache(maxsize=64)
def _auto(mesh: Any) -> Any:
    return mesh.update(axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def _is_elsewhere(placement: NamedSharding) -> bool:
    if not isinstance(placement.mesh, Mesh):
        return True
    devices: Any = placement.mesh.devices
    return placement.memory_kind != devices.flat[0].default_memory().kind


def _bits_of(dtype: Any) -> Any:
    """Returns the unsigned integer dtype of a floating-point dtype's size; other dtypes as is."""
    return np.dtype(f"uint{_bits(dtype)}") if jnp.issubdtype(dtype, jnp.floating) else dtype


def _bits(dtype: Any) -> int:
    """Returns how many bits an element has."""
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.finfo(dtype).bits
    return jnp.iinfo(dtype).bits if jnp.issubdtype(dtype, jnp.integer) else 8 * dtype.itemsize
