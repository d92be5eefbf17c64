"""The builder ``shard_auto`` chooses axes from shapes and metadata, and no more than needed.

A mesh comes in, with the bytes that each of its devices may hold, and a tree. Rules go out, which
people can print, keep and edit. What a model's own metadata says is kept. Beyond that each large
leaf is cut along its largest dimensions, until the whole tree fits: first over axes with names of
tensor parallelism, then over axes with other names, then over those of data parallelism.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from lazyinit import errors, meshes, paths, sizes
from lazyinit.abstract_meshes import MeshLike, mesh_of
from lazyinit.params import placement_of
from lazyinit.patterns import escape, glob
from lazyinit.shard_by import ShardByMetadata, ShardByRules, is_box

_Axes: TypeAlias = tuple[str, ...]
_Spec: TypeAlias = tuple[_Axes, ...]  # For each dimension the axes that cut it.

_TENSOR = frozenset(["model", "mp", "tensor", "tensor_parallel", "tp"])
_DATA = frozenset(["batch", "data", "data_parallel", "dp", "replica"])


@dataclass(frozen=True, slots=True)
class ShardAuto:
    """A ``TreeSharding`` that cuts leaves over as few axes of a mesh as are needed to fit.

    Attributes:
      mesh: the devices, or a mesh without any.
      hbm: bytes that the leaves may take on each device; 0 to cut over all axes.
      min_size: leaves with fewer elements are replicated, unless metadata says otherwise.
    """

    mesh: Mesh | AbstractMesh
    hbm: int
    min_size: int

    def prefix(self, tree: Any) -> ShardByRules:
        """Returns the rules for a tree, which map each path to its sharding."""
        return self.rules(tree)

    def rules(self, tree: Any) -> ShardByRules:
        """Returns the rules that are chosen for a tree (any pytree of thunks or arrays).

        Raises:
          ShardingError: the tree does not fit even if it is cut over all axes.
        """
        leaves = {p: x for p, x in paths.leaves_with_paths(tree) if hasattr(x, "shape")}
        kept = dict(self._kept(tree))
        order = sorted(self.mesh.axis_names, key=_rank)
        specs: dict[str, _Spec] = {}
        for count in range(len(order) + 1) if self.hbm else [len(order)]:
            specs = {p: self._spec(x, kept.get(p, ()), order[:count]) for p, x in leaves.items()}
            if self._nbytes(leaves, specs) <= self.hbm:
                break
        if self.hbm and (needed := self._nbytes(leaves, specs)) > self.hbm:
            each = {p: self._nbytes({p: x}, specs) for p, x in leaves.items()}
            most = max(each, key=lambda path: each[path])
            raise errors.ShardingError(
                f"{most}: wanted at most {self.hbm:,} bytes of leaves on each device, got "
                f"{needed:,}, although leaves are cut over all axes of {dict(self.mesh.shape)}. "
                f"This leaf takes the most of them, {each[most]:,}. Take a larger mesh, or one "
                f"whose axes divide the leaf's shape {leaves[most].shape}, or allow more: hbm=..."
            )
        return ShardByRules(self.mesh, _as_rules(specs))

    def _kept(self, tree: Any) -> Iterator[tuple[str, _Spec]]:
        """Yields each path with the axes that a recording under a mesh, or metadata, names."""
        metadata = ShardByMetadata(self.mesh, ())
        named = iter(paths.leaves_with_paths(tree))
        for node in jax.tree.leaves(tree, is_leaf=is_box):
            for leaf in jax.tree.leaves(node):
                path, _ = next(named)
                found: Any = placement_of(leaf)
                if not isinstance(found, NamedSharding):
                    found = metadata.said(node) if is_box(node) else None
                spec = found.spec if isinstance(found, NamedSharding) else found
                yield path, tuple(map(self._known, spec or ()))

    def _known(self, axes: Any) -> _Axes:
        """Returns the axes of one dimension without those that the mesh lacks."""
        names = axes if isinstance(axes, tuple) else (axes,)
        return tuple(name for name in names if name in self.mesh.shape)

    def _spec(self, leaf: Any, kept: _Spec, axes: Sequence[str]) -> _Spec:
        """Returns, for each dimension of a leaf, the mesh axes that cut it.

        Args:
          leaf: anything with a shape.
          kept: the axes that metadata or the recording gave to its dimensions; all of them stay.
          axes: further axes to cut with, in this order. Each cuts one dimension that it divides
            evenly: the largest among those that are not cut yet; if all of those are cut, the
            one whose parts are largest. Axes that ``kept`` has, or that divide no dimension, are
            left out. So are all of them if the leaf has fewer than ``min_size`` elements.
        """
        spec = list(kept[: len(leaf.shape)]) + [()] * (len(leaf.shape) - len(kept))
        if math.prod(leaf.shape) < self.min_size:
            return tuple(spec)
        taken = {axis for dimension in spec for axis in dimension}
        for axis in (axis for axis in axes if axis not in taken):
            parts = self.mesh.shape[axis]
            left = [n // self._parts(cut) for n, cut in zip(leaf.shape, spec, strict=True)]
            # Of equal dimensions the last is cut, as it is in kernels whose outputs are larger.
            fits = [d for d, n in enumerate(left) if n % parts == 0 and n >= parts > 1]
            whole = [d for d in fits if not spec[d]] or fits
            if whole:
                widest = max(whole, key=lambda d: (left[d], d))
                spec[widest] = (*spec[widest], axis)
        return tuple(spec)

    def _parts(self, axes: _Axes) -> int:
        return meshes.count_of_parts(self.mesh, axes)

    def _nbytes(self, leaves: Mapping[str, Any], specs: Mapping[str, _Spec]) -> int:
        """Returns the bytes of leaves on each device; a leaf at two paths counts once."""
        found: dict[Any, int] = {}
        for path, leaf in leaves.items():
            spec = specs[path]
            shape = [-(-n // self._parts(axes)) for n, axes in zip(leaf.shape, spec, strict=True)]
            found[id(leaf), spec] = math.prod(shape) * leaf.dtype.itemsize
        return sum(found.values())


def shard_auto(mesh: MeshLike, hbm: int | str | None = None, *, min_size: int = 1024) -> ShardAuto:
    """Chooses, from shapes and metadata, how to cut a tree so that it fits.

    Placements of a recording under a mesh, and axes of the mesh that Flax's metadata names, are
    kept. Beyond them each leaf is cut along its largest dimensions that divide evenly, over one
    axis of the mesh after the other. Axes with names of tensor parallelism (``model``, ``tensor``,
    ``tp``) come first, and those of data parallelism (``data``, ``dp``, ``batch``) come last. With
    ``hbm``, no more axes are taken than needed, since each costs communication.

    Args:
      mesh: the devices, or a mesh without any, as for ``shard_by_rules``.
      hbm: the memory that the leaves may take on each device, in bytes, or as text such as
        ``"16GiB"``; ``None`` to cut over all axes. Leave room beside it for activations and for an
        optimizer's state, which ``lazyinit.plan`` counts.
      min_size: elements; smaller leaves are replicated.

    Returns:
      A value for ``sharding``. Its ``rules(tree)`` prints what it chooses, as rules to keep, to
      edit and to pass to ``shard_by_rules``. When it is used, it raises a ``ShardingError`` if the
      tree does not fit even if it is cut over all axes.

    Raises:
      ShardingError: ``mesh`` is no mesh, or ``hbm`` is no size.

    Example:
      >>> import jax, lazyinit as li
      >>> tree = {n: {"up": jax.ShapeDtypeStruct((64, 256), "float32")} for n in ("l_0", "l_1")}
      >>> print(li.shard_auto("data=2,model=4").rules(tree))
      {
       "l_*/up": ["data", "model"]
      }
      >>> print(li.shard_auto("data=2,model=4", hbm="40KB").rules(tree))
      {
       "l_*/up": [null, "model"]
      }
    """
    limit = 0 if hbm is None else sizes.bytes_of(hbm, "hbm", errors.ShardingError)
    return ShardAuto(mesh_of(mesh), limit, min_size)


def _rank(axis: str) -> int:
    """Returns the turn of an axis: 0 for tensor parallelism, 1 for others, 2 for data."""
    return 0 if axis in _TENSOR else 2 if axis in _DATA else 1


def _as_rules(specs: Mapping[str, _Spec]) -> tuple[tuple[str, PartitionSpec], ...]:
    """Returns rules that give these specs, one for all leaves that differ only in numbers.

    Leaves that no rule selects are replicated. So a replicated leaf needs a rule of its own only if
    another rule would select it.
    """
    alike: dict[str, dict[str, _Spec]] = {}
    for path, spec in specs.items():
        alike.setdefault(_without_numbers(path), {})[path] = spec
    general = {
        pattern: next(iter(some.values()))
        for pattern, some in alike.items()
        if len(set(some.values())) == 1
    }
    rules = [(pattern, _public(spec)) for pattern, spec in general.items() if any(spec)]
    exact = []
    for path, spec in specs.items():
        found = (chosen for pattern, chosen in rules if glob(pattern).selects(path))
        chosen = next(found, PartitionSpec())
        if chosen != _public(spec):
            exact.append((escape(path), _public(spec)))
    return (*exact, *rules)


def _without_numbers(path: str) -> str:
    """Returns a glob for a path, with ``*`` for each number at the end of a key."""
    return "/".join(re.sub(r"(?<![0-9])[0-9]+$", "*", key) for key in escape(path).split("/"))


def _public(spec: _Spec) -> PartitionSpec:
    """Returns a spec in JAX's form, without the last dimensions if nothing cuts them."""
    parts = [axes if len(axes) > 1 else next(iter(axes), None) for axes in spec]
    while parts and parts[-1] is None:
        parts.pop()
    return PartitionSpec(*parts)
