"""Draws pictures with treescope: the values of an array, and the parts into which it is cut."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import treescope
from jax.sharding import NamedSharding, Sharding
from treescope import ndarray_adapters as adapters

from lazyinit import abstract_meshes, compat

_CELLS = 1_000  # The most elements in a picture; treescope leaves out those in the middle.
_DEVICES = 64  # More cannot be told apart in a picture.


def of_values(leaf: Any) -> str:
    """Returns HTML with the values of an array on the host or on one device; ``""`` for others.

    An array on several devices is not drawn, since that would move data between them.
    """
    is_here = isinstance(leaf, np.ndarray) or (
        isinstance(leaf, jax.Array)
        and not compat.is_tracer(leaf)
        and not leaf.is_deleted()
        and len(leaf.sharding.device_set) == 1
    )
    if not is_here or not leaf.size or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return ""
    is_real = leaf.dtype == bool or any(
        jnp.issubdtype(leaf.dtype, kind) for kind in (jnp.floating, jnp.integer)
    )
    if not is_real:
        return ""
    return treescope.render_array(leaf, truncate=True, maximum_size=_CELLS)._repr_html_()


def of_sharding(shape: tuple[int, ...], sharding: Sharding | None) -> str:
    """Returns HTML with the part of an array that each device gets; ``""`` if it is not cut.

    The sharding may be on a mesh without devices.
    """
    if sharding is None or not 1 < sharding.num_devices <= _DEVICES or not shape:
        return ""
    if sharding.is_fully_replicated:
        return ""
    return treescope.render_array_sharding(_Placed(shape, sharding))._repr_html_()


class _Placed:
    """Stands in for an array: treescope asks it for its axes and its sharding, never for values."""

    def __init__(self, shape: tuple[int, ...], sharding: Sharding) -> None:
        self.shape, self.sharding = shape, sharding

    def __treescope_ndarray_adapter__(self) -> "_Adapter":
        return _Adapter()


class _Adapter(adapters.NDArrayAdapter[_Placed]):
    def get_axis_info_for_array_data(self, array: _Placed) -> tuple[adapters.AxisInfo, ...]:
        return tuple(
            adapters.PositionalAxisInfo(axis, size) for axis, size in enumerate(array.shape)
        )

    def get_sharding_info_for_array_data(self, array: _Placed) -> adapters.ShardingInfo:
        return adapters.ShardingInfo(
            shard_shape=array.sharding.shard_shape(array.shape),
            device_index_to_shard_slices=dict(_slices(array.shape, array.sharding)),
            device_type=_platform(array.sharding).upper(),
        )

    def get_array_data_with_truncation(self, array: _Placed, *_: Any, **__: Any) -> Any:
        raise NotImplementedError  # treescope does not ask for it when it draws a sharding.

    def get_array_summary(self, array: _Placed, fast: bool) -> str:
        raise NotImplementedError  # Likewise.


def _platform(sharding: Sharding) -> str:
    if abstract_meshes.is_abstract(sharding):
        return abstract_meshes.platform_of(sharding)
    return next(iter(sharding.device_set)).platform


def _slices(shape: tuple[int, ...], sharding: Any) -> Mapping[int, tuple[slice, ...]]:
    """Returns the part of an array that each device has, by the number of the device."""
    if not abstract_meshes.is_abstract(sharding):
        return {d.id: index for d, index in sharding.devices_indices_map(shape).items()}
    assert isinstance(sharding, NamedSharding)  # All other shardings have devices.
    mesh, spec = sharding.mesh, [*sharding.spec, *[None] * len(shape)]
    shard = sharding.shard_shape(shape)
    found = {}
    for number, at in enumerate(np.ndindex(*mesh.axis_sizes)):
        place = dict(zip(mesh.axis_names, at, strict=True))
        found[number] = tuple(
            _slice(place, dict(mesh.shape), axes, part, whole)
            for axes, part, whole in zip(spec, shard, shape, strict=False)
        )
    return found


def _slice(
    place: Mapping[str, int], sizes: Mapping[str, int], axes: Any, part: int, whole: int
) -> slice:
    """Returns the part of one dimension that the device at a place in the mesh has."""
    if part == whole:
        return slice(None)
    nth = 0
    for name in (axes,) if isinstance(axes, str) else axes:
        nth = nth * sizes[name] + place[name]
    return slice(nth * part, (nth + 1) * part)
