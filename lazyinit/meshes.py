"""Puts recorded placements on the devices that this process has, and pickles placements.

A recording may be made under a mesh without devices, be pickled, or be used in a process that has
other devices. So it keeps the names, sizes and types of the mesh's axes, and no devices.
"""

import contextlib
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import (
    AbstractMesh,
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)

from lazyinit import compat, errors

R = TypeVar("R")


def concrete(mesh: AbstractMesh, path: str) -> Mesh:
    """Returns a mesh of devices for a recorded mesh, which has none.

    That is the mesh which is set around the call, if it has the same axes; if not, a new mesh of
    this process's devices.

    Args:
      mesh: the mesh that was set while a leaf was recorded.
      path: the path of the leaf, for messages.

    Raises:
      ShardingError: no mesh with these axes is set, and this process has too few devices for one.
    """
    is_set = compat.mesh_around()
    if is_set is not None and _is_like(is_set, mesh):
        return is_set
    devices = jax.local_devices()
    if mesh.size > len(devices):
        raise errors.ShardingError(
            f"{path}: wanted a mesh like the one that it was recorded under, {dict(mesh.shape)}, "
            f"got {'none' if is_set is None else dict(is_set.shape)}, and only {len(devices)} "
            "devices to make such a mesh of. Call materialize within jax.set_mesh(mesh), or say "
            "where the leaf goes: sharding=..."
        )
    grid = np.array(devices[: mesh.size]).reshape(mesh.axis_sizes)
    return Mesh(grid, mesh.axis_names, axis_types=mesh.axis_types)


def _is_like(mesh: Mesh, wanted: AbstractMesh) -> bool:
    """Tells whether a mesh has the axes of another; the devices may differ."""
    found = (mesh.axis_names, mesh.axis_sizes, mesh.axis_types)
    return found == (wanted.axis_names, wanted.axis_sizes, wanted.axis_types)


def on_devices(sharding: Sharding | None, path: str) -> Sharding | None:
    """Returns a recorded placement on the devices of this process.

    Args:
      sharding: the placement; ``None`` is the default device.
      path: the path of the leaf, for messages.

    Raises:
      ShardingError: this process has too few devices for the mesh of the placement.
    """
    if not isinstance(sharding, NamedSharding) or isinstance(sharding.mesh, Mesh):
        return sharding
    mesh = concrete(sharding.mesh, path)
    return NamedSharding(mesh, sharding.spec, memory_kind=sharding.memory_kind)


def on_one_device(constant: Any) -> Any:
    """Copies a constant that is replicated over several devices to one; returns others unchanged.

    A value that is computed from the copy is then on one device, too.
    """
    if (
        not isinstance(constant, jax.Array)
        or compat.is_tracer(constant)
        or jnp.issubdtype(constant.dtype, jax.dtypes.prng_key)
        or len(constant.sharding.device_set) == 1
        or not constant.is_fully_replicated
    ):
        return constant
    return jax.device_put(np.asarray(constant.addressable_data(0)))


def count_of_parts(mesh: Any, axes: Any) -> int:
    """Returns the number of parts into which axes of a mesh cut a dimension of an array.

    Args:
      mesh: the mesh.
      axes: a part of a ``PartitionSpec``: the name of an axis, several of them, or ``None``.
    """
    if axes is None or axes is PartitionSpec.UNCONSTRAINED:
        return 1
    names = axes if isinstance(axes, tuple) else (axes,)
    return math.prod(mesh.shape[name] for name in names)


def under(mesh: Mesh | None) -> AbstractContextManager[Any]:
    """Returns a context in which ``mesh`` is set, or none is. It cannot be used within a trace."""
    if mesh is not None:
        return jax.set_mesh(mesh)
    if compat.mesh_around() is None:
        return contextlib.nullcontext()
    return jax.set_mesh(Mesh(np.empty((), object), ()))


def outside(run: Callable[[], R]) -> R:
    """Calls a function under no mesh and in no trace, and returns its result.

    JAX does not allow a function to leave a mesh within a trace. But meshes and traces belong to
    one thread, so the function is called in another thread.
    """
    if compat.mesh_around() is None and jax.sharding.get_abstract_mesh().empty:
        return run()
    device, x64 = compat.setting("jax_default_device"), bool(compat.setting("jax_enable_x64"))

    def in_thread() -> R:
        with jax.default_device(device), compat.enable_x64(x64):
            return run()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(in_thread).result()


def to_pickle(sharding: Sharding | None) -> Any:
    """Returns a placement as a value that can be pickled.

    ``None`` stands for the default device, which is also all that is kept of a placement of another
    class than ``NamedSharding`` and ``SingleDeviceSharding``.
    """
    match sharding:
        case NamedSharding(mesh=Mesh() as mesh):
            grid: Any = mesh.devices
            devices = [_named(d) for d in grid.flat]
            return devices, mesh.abstract_mesh, sharding.spec, sharding.memory_kind
        case NamedSharding(mesh=mesh):
            return [], mesh, sharding.spec, sharding.memory_kind
        case SingleDeviceSharding():
            (device,) = sharding.device_set
            return [_named(device)], None, None, sharding.memory_kind
        case _:
            return None


def from_pickle(value: Any) -> Sharding | None:
    """Returns the placement that ``to_pickle`` wrote.

    If this process lacks its devices, a mesh comes back without devices, and a single device comes
    back as ``None``, the default device.
    """
    if value is None:
        return None
    named, mesh, spec, kind = value
    known = {_named(d): d for platform, _ in named[:1] for d in _devices(platform)}
    devices = [known.get(name) for name in named]
    if mesh is None:
        return None if None in devices else SingleDeviceSharding(devices[0], memory_kind=kind)
    if devices and None not in devices:
        grid = np.array(devices).reshape(mesh.axis_sizes)
        mesh = Mesh(grid, mesh.axis_names, axis_types=mesh.axis_types)
    return NamedSharding(mesh, spec, memory_kind=kind)


def _named(device: Any) -> tuple[str, int]:
    return device.platform, device.id


def _devices(platform: str) -> list[Any]:
    try:
        return jax.devices(platform)
    except RuntimeError:  # No device of this kind here.
        return []
