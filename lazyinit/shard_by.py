"""Builders of values for ``sharding``: by rules, by size, by the metadata of variables.

Each returns a frozen value that maps a path and a leaf, or the whole tree, to shardings. A builder
that names axes of a mesh checks at once that the mesh has them.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from lazyinit import compat, errors, meshes, paths, spec_text
from lazyinit.abstract_meshes import MeshLike, mesh_of
from lazyinit.params import placement_of
from lazyinit.patterns import glob


@dataclass(frozen=True, slots=True)
class ShardByRules:
    """A sharding callable: the first pattern that matches a path gives its spec.

    Attributes:
      mesh: the devices.
      rules: globs as ``materialize`` takes them, and a spec for each.
    """

    mesh: Mesh | AbstractMesh
    rules: tuple[tuple[str, PartitionSpec], ...]

    def __call__(self, path: str, leaf: Any) -> NamedSharding:
        """Returns the sharding of one leaf, which is replicated if no rule fits."""
        spec = next((s for text, s in self.rules if glob(text).selects(path)), None)
        return NamedSharding(self.mesh, PartitionSpec() if spec is None else spec)

    def __str__(self) -> str:
        return spec_text.written(self.rules)

    def unused(self, known: Sequence[str]) -> list[str]:
        """Returns the patterns that match none of the paths."""
        return [text for text, _ in self.rules if not any(map(glob(text).selects, known))]


def shard_by_rules(
    mesh: MeshLike, rules: Sequence[tuple[str, PartitionSpec]] | Mapping[str, PartitionSpec]
) -> ShardByRules:
    """Shards by path: the first pattern that matches a leaf gives its spec.

    Args:
      mesh: the devices, or for ``plan`` and ``abstract`` an ``AbstractMesh`` or text such as
        ``"data=4,model=8"``: a mesh without devices.
      rules: ``(pattern, spec)`` pairs, or a mapping; a pattern is a glob as in ``materialize``.
        Leaves that no pattern matches are replicated.

    Returns:
      A value for ``sharding``.

    Raises:
      ShardingError: a spec names an axis that the mesh lacks.

    Example:
      >>> import jax, lazyinit as li
      >>> from jax.sharding import PartitionSpec as P
      >>> mesh = jax.make_mesh((1,), ("model",))
      >>> shard = li.shard_by_rules(mesh, [("**/kernel", P(None, "model"))])
      >>> shard("params/head/kernel", None).spec
      P(None, 'model')
    """
    pairs, mesh = _pairs(rules), mesh_of(mesh)
    for pattern, spec in pairs:
        for axes in spec:
            _check_axes(mesh, axes, f"{pattern}: {spec}")
    return ShardByRules(mesh, pairs)


@dataclass(frozen=True, slots=True)
class ShardFsdp:
    """A sharding callable: each leaf is cut along its largest dimension that divides evenly.

    Attributes:
      mesh: the devices.
      axis: the mesh axis, or several, to cut over.
      min_size: leaves with fewer elements are replicated.
    """

    mesh: Mesh | AbstractMesh
    axis: str | tuple[str, ...]
    min_size: int

    def __call__(self, path: str, leaf: Any) -> NamedSharding:
        """Returns the sharding of one leaf (any object with a shape)."""
        shape = getattr(leaf, "shape", ())
        parts = meshes.count_of_parts(self.mesh, self.axis)
        dims = [d for d, n in enumerate(shape) if n % parts == 0]
        if math.prod(shape) < self.min_size or not dims:
            return NamedSharding(self.mesh, PartitionSpec())
        widest = max(dims, key=lambda d: shape[d])
        return NamedSharding(self.mesh, PartitionSpec(*[None] * widest, self.axis))


def shard_fsdp(mesh: MeshLike, axis: str | tuple[str, ...], min_size: int = 1024) -> ShardFsdp:
    """Shards every large leaf over one mesh axis, along its largest dimension that divides evenly.

    Args:
      mesh: the devices, or a mesh without any, as for ``shard_by_rules``.
      axis: the mesh axis, or a tuple of several, to cut over.
      min_size: elements; smaller leaves are replicated, as are those that no dimension divides.

    Returns:
      A value for ``sharding``.

    Raises:
      ShardingError: the mesh has no such axis.
    """
    axis = axis if isinstance(axis, str) else tuple(axis)
    mesh = mesh_of(mesh)
    _check_axes(mesh, axis, "shard_fsdp")
    return ShardFsdp(mesh, axis, min_size)


@dataclass(frozen=True, slots=True)
class ShardByMetadata:
    """A ``TreeSharding`` that reads the specs in Flax's metadata boxes and variables.

    Attributes:
      mesh: the devices; ``None`` for each variable's own mesh, or the one that is set.
      logical_rules: pairs of a logical axis name and the mesh axes that it goes to.
    """

    mesh: Mesh | AbstractMesh | None
    logical_rules: tuple[tuple[str, Any], ...]

    def prefix(self, tree: Any) -> Any:
        """Returns a sharding for each box and for each leaf outside of one, which is replicated."""
        return jax.tree_util.tree_map_with_path(self.sharding, tree, is_leaf=is_box)

    def sharding(self, keys: Any, node: Any) -> NamedSharding:
        """Returns the sharding of a box, or of a leaf outside of one, at a JAX key path."""
        path = paths.path_string(keys)
        try:
            said = self.said(node)
        except (TypeError, ValueError) as error:
            raise errors.ShardingError(
                f"{path}: wanted metadata that says where the leaf goes, got some that Flax cannot "
                f"read: {error}"
            ) from error
        spec, own = (said.spec, said.mesh) if isinstance(said, NamedSharding) else (said, None)
        spec = PartitionSpec() if spec is None else spec
        mesh = self.mesh or own or getattr(node, "mesh", None) or compat.mesh_around()
        if mesh is None:
            raise errors.ShardingError(
                f"{path}: wanted a mesh, got none: the leaf's metadata has no mesh, and no mesh is "
                "set. Call shard_by_metadata(mesh), or set a mesh with jax.set_mesh."
            )
        if isinstance(mesh, AbstractMesh) and mesh is not self.mesh:
            mesh = meshes.concrete(mesh, path)
        for axes in spec:
            _check_axes(mesh, axes, f"{path}: shard_by_metadata: {spec}")
        try:
            return NamedSharding(mesh, spec)
        except Exception as error:  # JAX's error for one axis in two dimensions is private.
            raise errors.ShardingError(f"{path}: {spec} does not fit its mesh: {error}") from error

    def said(self, node: Any) -> Any:
        """Returns the spec of a box or a variable, as Flax reads it; ``None`` if it has none."""
        from flax import nnx
        from flax.core import meta
        from flax.core import spmd as core_spmd
        from flax.linen import spmd

        around = core_spmd.get_logical_axis_rules()
        if isinstance(node, nnx.Variable):
            said = node.get_metadata().get("out_sharding")
            if isinstance(said, NamedSharding):
                return said
            with core_spmd.logical_axis_rules(self.logical_rules or around):
                return nnx.get_partition_spec(node).get_raw_value()
        said = meta.get_partition_spec(node)
        rules = self.logical_rules or getattr(node, "rules", None) or around
        if not rules or said is None:
            return said
        if isinstance(node, spmd.LogicallyPartitioned):
            return spmd.logical_to_mesh_axes(tuple(said), rules)
        return PartitionSpec(*core_spmd.from_sharding_rules(tuple(said), tuple(rules)))


def shard_by_metadata(
    mesh: MeshLike | None = None, logical_rules: Sequence[tuple[str, Any]] | Mapping[str, Any] = ()
) -> ShardByMetadata:
    """Shards by the model's own metadata, in ``nn.Partitioned`` or in an NNX ``Variable``.

    Args:
      mesh: the devices, or a mesh without any, as for ``shard_by_rules``; ``None`` for the mesh in
        each variable's own metadata, or else the one that is set.
      logical_rules: which mesh axis (or axes, or ``None``) each logical name goes to, in the form
        that Flax takes. Without it, a variable's own rules and those of ``nn.logical_axis_rules``
        hold. A name without a rule is taken for a mesh axis; but in a box of
        ``nn.with_logical_partitioning`` it stands for no axis, as in ``nn.logical_to_mesh``.

    Returns:
      A value for ``sharding``. It replicates leaves without metadata. When it is used, it raises a
      ``ShardingError`` that names the leaf, if there is no mesh or the mesh lacks an axis.
    """
    return ShardByMetadata(None if mesh is None else mesh_of(mesh), _pairs(logical_rules))


def is_box(node: Any) -> bool:
    """Tells whether a node is a variable or a metadata box of Flax, without importing Flax."""
    meta = sys.modules.get("flax.core.meta")
    return paths.is_variable(node) or (meta is not None and isinstance(node, meta.AxisMetadata))


@dataclass(frozen=True, slots=True)
class ShardOnMesh:
    """A ``TreeSharding`` on one mesh; a mesh that is passed as ``sharding`` becomes one.

    A leaf that was recorded under a mesh is cut as the recording says, and any other leaf as its
    metadata says. A leaf for which neither says anything is replicated.

    Attributes:
      mesh: the devices, or a mesh without any.
    """

    mesh: Mesh | AbstractMesh

    def prefix(self, tree: Any) -> Any:
        """Returns a sharding for each box and for each leaf outside of one."""
        metadata = ShardByMetadata(self.mesh, ())

        def sharding(keys: Any, node: Any) -> NamedSharding:
            recorded = next(map(placement_of, jax.tree.leaves(node)), None)
            if isinstance(recorded, NamedSharding):
                for axes in recorded.spec:
                    _check_axes(self.mesh, axes, f"{paths.path_string(keys)}: {recorded.spec}")
                return NamedSharding(self.mesh, recorded.spec, memory_kind=recorded.memory_kind)
            if is_box(node):
                return metadata.sharding(keys, node)
            return NamedSharding(self.mesh, PartitionSpec())

        return jax.tree_util.tree_map_with_path(sharding, tree, is_leaf=is_box)


def _pairs(rules: Sequence[tuple[str, Any]] | Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    if isinstance(rules, Mapping):
        return tuple(rules.items())
    return tuple((one, other) for one, other in rules)


def _check_axes(mesh: Mesh | AbstractMesh, axes: Any, where: str) -> None:
    names = axes if isinstance(axes, tuple) else (axes,)
    for name in names:
        if isinstance(name, str) and name not in mesh.shape:
            raise errors.ShardingError(
                f"{where}: the mesh has no axis {name!r}, only {tuple(mesh.shape)}"
                f"{errors.nearest(name, list(mesh.shape))}"
            )
