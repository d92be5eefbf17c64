"""Resolves the ``sharding`` argument, which says where each leaf goes.

The argument has several forms (one sharding for all, a prefix pytree of them, a callable). All of
them become one sharding per leaf, checked against the shapes, before anything is allocated.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from lazyinit import abstract_meshes, compat, errors, meshes, paths
from lazyinit.params import Thunk
from lazyinit.shard_by import ShardOnMesh

# Any: a prefix pytree of shardings has whatever containers the tree has.
ShardingLike: TypeAlias = (
    "Sharding | Callable[[str, Any], Sharding | None] | TreeSharding | Mesh | AbstractMesh | Any"
)


@runtime_checkable
class TreeSharding(Protocol):
    """A value that makes shardings from the whole tree, for example from its metadata boxes."""

    def prefix(self, tree: Any) -> Any:
        """Returns a prefix pytree of shardings for the tree (any pytree of thunks or arrays)."""
        ...


def resolve(
    sharding: ShardingLike,
    tree: Any,
    leaves: Sequence[tuple[str, Any]],
    selected: Sequence[bool],
    *,
    needs_devices: bool = True,
) -> list[Sharding | None]:
    """Returns one sharding per leaf; ``None`` if the leaf is not selected or nothing says where.

    Args:
      sharding: ``None``; a ``jax.sharding.Sharding`` for all; a prefix pytree of them; a callable
        ``(path, leaf) -> Sharding``; a ``TreeSharding``; or a mesh, or its axes as text, which
        stands for ``ShardOnMesh``.
      tree: the tree (any pytree).
      leaves: the paths and leaves of the tree.
      selected: which of the leaves to place; the others, and leaves that are no arrays, are
        neither resolved nor checked.
      needs_devices: whether a mesh without devices is refused.

    Raises:
      ShardingError: a sharding is of the wrong kind, the prefix pytree has none for a leaf, or the
        shards of a leaf would not be equal; all such leaves are named.
    """
    # A Python number among the leaves stays one: it is never placed.
    selected = [s and hasattr(x, "shape") for s, (_, x) in zip(selected, leaves, strict=True)]
    if isinstance(sharding, Mesh | AbstractMesh | str):
        sharding = ShardOnMesh(abstract_meshes.mesh_of(sharding))
    said: Any = sharding.prefix(tree) if isinstance(sharding, TreeSharding) else sharding
    found: list[Any]
    if said is None or isinstance(said, Sharding):
        found = [said] * len(leaves)
    elif callable(said):
        found = [
            said(path, leaf) if s and hasattr(leaf, "shape") else None
            for (path, leaf), s in zip(leaves, selected, strict=True)
        ]
    else:
        found = _from_prefix(said, leaves, selected)
    found = [
        _default(path, leaf, needs_devices) if one is None else one
        for (path, leaf), one in zip(leaves, found, strict=True)
    ]
    found = [one if s else None for one, s in zip(found, selected, strict=True)]
    problems = [
        problem
        for (path, leaf), one in zip(leaves, found, strict=True)
        if one is not None
        and hasattr(leaf, "shape")
        and (problem := _problem(path, leaf, one, needs_devices))
    ]
    if problems:
        raise errors.ShardingError(errors.listing(problems))
    return found


def _default(path: str, leaf: Any, needs_devices: bool) -> Sharding | None:
    """Returns where eager ``init`` would have put a thunk; ``None`` for an array, which stays."""
    if not isinstance(leaf, Thunk):
        return None
    try:
        return meshes.on_devices(leaf.sharding, path)
    except errors.ShardingError:
        if needs_devices:
            raise
        return leaf.sharding  # Its mesh has more devices than there are here.


def _from_prefix(
    prefix: Any, leaves: Sequence[tuple[str, Any]], selected: Sequence[bool]
) -> list[Sharding | None]:
    """Returns for each leaf its own entry in a prefix pytree, or the nearest one above it.

    Raises:
      ShardingError: a selected leaf has no entry, or an entry is for no leaf.
    """
    entries = dict(
        paths.leaves_with_paths(
            prefix, lambda x: x is None or isinstance(x, Sharding | PartitionSpec)
        )
    )
    found: list[Sharding | None] = []
    used = set()
    for (path, _), wanted in zip(leaves, selected, strict=True):
        keys = path.split("/")
        above = ["/".join(keys[:n]) for n in range(len(keys), -1, -1)]
        place = next((p for p in above if p in entries), None)
        used.add(place)
        if place is None and wanted:
            raise errors.ShardingError(
                f"{path}: the sharding pytree has no entry for this leaf nor for a tree above it. "
                "Add one (None leaves the leaf on the default device), or pass a callable."
            )
        found.append(entries[place] if wanted and place is not None else None)
    for place in entries:
        if place not in used:
            raise errors.ShardingError(paths.nothing_matches(place, [p for p, _ in leaves]))
    return found


def _problem(path: str, leaf: Any, sharding: Any, needs_devices: bool) -> str:
    """Returns why a leaf cannot have a sharding, and the way out; ``""`` if it can."""
    if not isinstance(sharding, Sharding):
        way_out = (
            "Put the mesh beside it: NamedSharding(mesh, spec)."
            if isinstance(sharding, PartitionSpec)
            else "Pass None, a Sharding, a prefix pytree, or a callable (path, leaf) -> Sharding."
        )
        return f"{path}: wanted a jax.sharding.Sharding, got {sharding!r}. {way_out}"
    shape = leaf.shape
    if isinstance(sharding, NamedSharding):
        if needs_devices and abstract_meshes.is_abstract(sharding):
            return f"{path}: wanted devices, got {sharding.mesh}. Pass a jax.sharding.Mesh."
        spec = sharding.spec
        if len(spec) > len(shape):
            return (
                f"{path}: {spec} names {len(spec)} dimensions, the leaf has {len(shape)} "
                f"(shape {shape}). Shorten the spec for this leaf."
            )
        for dim, axes in enumerate(spec):
            parts = meshes.count_of_parts(sharding.mesh, axes)
            if shape[dim] % parts:
                return (
                    f"{path}: dimension {dim} of shape {shape} is {shape[dim]}, which mesh axis "
                    f"{axes!r} of size {parts} does not divide. Leave this dimension whole, or use "
                    "a mesh that divides it."
                )
        return ""
    try:
        sharding.shard_shape(shape)
    except ValueError as error:
        return f"{path}: {sharding} does not fit shape {shape}: {error}"
    return ""


def describe(sharding: Sharding | None) -> str:
    """Returns short text for a sharding: ``default device``, ``replicated``, ``data, None``."""
    if sharding is None:
        return "default device"
    if isinstance(sharding, NamedSharding):
        return ", ".join(map(str, sharding.spec)) or "replicated"
    if sharding.num_devices == 1:
        return str(*sharding.device_set)
    return str(sharding)


def devices_in_order(sharding: Sharding) -> Sequence[Any]:
    """Returns the devices of a sharding in order; arrays of one program must agree in it."""
    if abstract_meshes.is_abstract(sharding):
        return abstract_meshes.devices_of(sharding)
    if isinstance(sharding, NamedSharding):
        devices: Any = sharding.mesh.devices
        return tuple(devices.flat)
    return tuple(sorted(sharding.device_set, key=lambda device: device.id))


def default_device() -> Any:
    """Returns the device (a ``jax.Device``) where JAX puts arrays without a sharding."""
    device = compat.setting("jax_default_device")
    return device if isinstance(device, jax.Device) else jax.local_devices(backend=device)[0]


def platform_of(placement: Sharding | None) -> str:
    """Returns the platform (``"cpu"``) of a sharding; ``None`` is the default device."""
    if abstract_meshes.is_abstract(placement):
        return abstract_meshes.platform_of(placement)
    if placement is not None:
        return next(iter(placement.device_set)).platform
    device = compat.setting("jax_default_device")
    return getattr(device, "platform", None) or device or jax.default_backend()


def constrained(array: Any, sharding: Sharding | None) -> Any:
    """Returns an array that is constrained to a sharding in the current trace."""
    if sharding is None:
        return array
    if isinstance(sharding, NamedSharding) and sharding.mesh.are_all_axes_explicit:
        if not jax.sharding.get_abstract_mesh().empty:
            return jax.sharding.reshard(array, sharding)
        # If no mesh is set, the types of arrays have no axes, so the compiler handles the axes.
        axis_types = (AxisType.Auto,) * len(sharding.mesh.axis_names)
        mesh = sharding.mesh.update(axis_types=axis_types)
        sharding = NamedSharding(mesh, sharding.spec, memory_kind=sharding.memory_kind)
    return jax.lax.with_sharding_constraint(array, sharding)
