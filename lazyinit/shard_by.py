"""Builders of what to pass as ``sharding``: by rules, by size, by the metadata of variables.

Each returns a frozen value that maps a path and a leaf, or the whole tree, to shardings on one
mesh. The axes that it names are checked against the mesh at once.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lazyinit import errors
from lazyinit.patterns import glob
from lazyinit.sharding import parts_of


@dataclass(frozen=True, slots=True)
class ShardByRules:
    """A sharding callable: the first pattern that matches a path gives its spec.

    Attributes:
      mesh: the devices.
      rules: globs as ``materialize`` takes them, and a spec for each.
    """

    mesh: Mesh
    rules: tuple[tuple[str, PartitionSpec], ...]

    def __call__(self, path: str, leaf: Any) -> NamedSharding:
        """Returns the sharding of one leaf, which is replicated if no rule fits."""
        spec = next((s for text, s in self.rules if glob(text).selects(path)), None)
        return NamedSharding(self.mesh, PartitionSpec() if spec is None else spec)

    def unused(self, known: Sequence[str]) -> list[str]:
        """Returns the patterns that match none of the paths."""
        return [text for text, _ in self.rules if not any(map(glob(text).selects, known))]


def shard_by_rules(
    mesh: Mesh, rules: Sequence[tuple[str, PartitionSpec]] | Mapping[str, PartitionSpec]
) -> ShardByRules:
    """Shards by path: the first pattern that matches a leaf gives its spec.

    Args:
      mesh: the devices.
      rules: ``(pattern, spec)`` pairs, or a mapping; a pattern is a glob as in ``materialize``.
        What no pattern matches is replicated.

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
    pairs = _pairs(rules)
    for pattern, spec in pairs:
        for axes in spec:
            _check_axes(mesh, axes, f"{pattern}: {spec}")
    return ShardByRules(mesh, pairs)


@dataclass(frozen=True, slots=True)
class ShardFsdp:
    """A sharding callable: the largest dimension that divides evenly is cut over the axis.

    Attributes:
      mesh: the devices.
      axis: the mesh axis, or several, to cut over.
      min_size: leaves with fewer elements are replicated.
    """

    mesh: Mesh
    axis: str | tuple[str, ...]
    min_size: int

    def __call__(self, path: str, leaf: Any) -> NamedSharding:
        """Returns the sharding of one leaf (any object with a shape)."""
        shape = getattr(leaf, "shape", ())
        parts = parts_of(self.mesh, self.axis)
        dims = [d for d, n in enumerate(shape) if n % parts == 0]
        if math.prod(shape) < self.min_size or not dims:
            return NamedSharding(self.mesh, PartitionSpec())
        widest = max(dims, key=lambda d: shape[d])
        return NamedSharding(self.mesh, PartitionSpec(*[None] * widest, self.axis))


def shard_fsdp(mesh: Mesh, axis: str | tuple[str, ...], min_size: int = 1024) -> ShardFsdp:
    """Shards every large leaf over one mesh axis, along its largest dimension that divides evenly.

    Args:
      mesh: the devices.
      axis: the mesh axis, or a tuple of several, to cut over.
      min_size: elements; smaller leaves are replicated, as are those that no dimension divides.

    Returns:
      A value for ``sharding``.

    Raises:
      ShardingError: the mesh has no such axis.
    """
    axis = axis if isinstance(axis, str) else tuple(axis)
    _check_axes(mesh, axis, "shard_fsdp")
    return ShardFsdp(mesh, axis, min_size)


@dataclass(frozen=True, slots=True)
class ShardByMetadata:
    """A ``TreeSharding`` that reads the specs in Flax's metadata boxes and variables.

    Attributes:
      mesh: the devices.
      logical_rules: pairs of a logical axis name and the mesh axes that it goes to.
    """

    mesh: Mesh
    logical_rules: tuple[tuple[str, Any], ...]

    def prefix(self, tree: Any) -> Any:
        """Returns a sharding for each box and for each leaf outside of one, which is replicated."""
        from flax import nnx
        from flax.core import meta
        from flax.linen import spmd

        def spec(node: Any) -> Any:
            if isinstance(node, nnx.Variable):
                return nnx.get_partition_spec(node).get_raw_value() or PartitionSpec()
            return meta.get_partition_spec(node)

        specs = jax.tree.map(
            spec, tree, is_leaf=lambda x: isinstance(x, nnx.Variable | meta.AxisMetadata)
        )
        if self.logical_rules:
            specs = spmd.logical_to_mesh(specs, self.logical_rules)

        def placed(spec: PartitionSpec) -> NamedSharding:
            for axes in spec:
                _check_axes(self.mesh, axes, f"shard_by_metadata: {spec}")
            return NamedSharding(self.mesh, spec)

        return jax.tree.map(placed, specs, is_leaf=lambda x: isinstance(x, PartitionSpec))


def shard_by_metadata(
    mesh: Mesh, logical_rules: Sequence[tuple[str, Any]] | Mapping[str, Any] = ()
) -> ShardByMetadata:
    """Shards by what the model itself says: in ``nn.Partitioned``, or in an NNX ``Variable``.

    Args:
      mesh: the devices.
      logical_rules: for ``nn.with_logical_partitioning``: which mesh axis (or axes, or ``None``)
        each logical name goes to, as ``nn.logical_to_mesh`` takes them.

    Returns:
      A value for ``sharding``. Leaves without a box are replicated.
    """
    return ShardByMetadata(mesh, _pairs(logical_rules))


def _pairs(rules: Sequence[tuple[str, Any]] | Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    if isinstance(rules, Mapping):
        return tuple(rules.items())
    return tuple((one, other) for one, other in rules)


def _check_axes(mesh: Mesh, axes: Any, where: str) -> None:
    names = axes if isinstance(axes, tuple) else (axes,)
    for name in names:
        if isinstance(name, str) and name not in mesh.shape:
            raise errors.ShardingError(
                f"{where}: the mesh has no axis {name!r}, only {tuple(mesh.shape)}"
                f"{errors.nearest(name, list(mesh.shape))}"
            )
