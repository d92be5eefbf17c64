"""Arrays in memory, read as if they lay in a checkpoint: trees of them, and what was read whole."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from lazyinit import errors
from lazyinit.checkpoint.protocol import Checkpoint
from lazyinit.params import Extent, Index, Shape, Thunk
from lazyinit.paths import name_string

_ORIGIN = "the mapping"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class HeldTensor:
    """A ``Source``: an array that the caller holds, under a name. Equal if the array is the same.

    Attributes:
      name: its path in the mapping.
      array: numpy or JAX.
      origin: a word for the caller's mapping, or the file that was read whole.
    """

    name: str
    array: np.ndarray | jax.Array
    origin: str = _ORIGIN

    @property
    def shape(self) -> Shape:
        """The array's shape."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        """The array's dtype."""
        return self.array.dtype

    @property
    def names(self) -> tuple[str, ...]:
        """The tensor's name, alone."""
        return (self.name,)

    @property
    def extents(self) -> tuple[Extent, ...]:
        """None: it lies in no file."""
        return ()

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``: a view where one buffer in host memory has them all.

        Raises:
          CheckpointError: part of it lies on devices of another process.
        """
        if isinstance(self.array, np.ndarray):
            return self.array[(*index, ...)]
        return self._read_shards(self.array, index)

    def _read_shards(self, array: jax.Array, index: Index) -> np.ndarray:
        # Indexing the array as a whole would run a program on all its devices, which a mesh
        # with explicit axes refuses.
        wanted = _ranges(index, array.shape)
        parts: dict[tuple[range, ...], np.ndarray] = {}
        for shard in array.addressable_shards:
            held = _ranges(shard.index, array.shape)
            part = tuple(
                range(max(w.start, h.start), min(w.stop, h.stop))
                for w, h in zip(wanted, held, strict=True)
            )
            if all(part) and part not in parts:
                parts[part] = _at(np.asarray(shard.data), part, held)
        if wanted in parts:
            return parts[wanted]
        if sum(part.size for part in parts.values()) < math.prod(map(len, wanted)):
            raise errors.CheckpointError(
                f"{self.origin}: tensor {self.name!r}: part of it lies on devices of another "
                "process. Pass arrays that every process holds in full, or a file."
            )
        values = np.empty([len(r) for r in wanted], array.dtype)
        for part, data in parts.items():
            _at(values, part, wanted)[...] = data
        return values

    def check(self) -> None:
        """Does nothing: what the caller holds cannot be gone."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HeldTensor) and (other.name, id(other.array)) == (
            self.name,
            id(self.array),
        )

    def __hash__(self) -> int:
        return hash((self.name, id(self.array)))

    def __repr__(self) -> str:
        return f"{os.path.basename(self.origin)}:{self.name}"


def _ranges(index: Index, shape: Shape) -> tuple[range, ...]:
    return tuple(range(*part.indices(size)) for part, size in zip(index, shape, strict=True))


def _at(array: np.ndarray, part: Sequence[range], held: Sequence[range]) -> np.ndarray:
    """Returns a view of ``part`` of an array that holds ``held``; both count from one origin."""
    local = (slice(p.start - h.start, p.stop - h.start) for p, h in zip(part, held, strict=True))
    return array[(*local, ...)]


def open_tree(tree: Mapping[Any, Any]) -> Checkpoint:
    """Names the arrays of a mapping, nested or flat, by their paths; copies nothing.

    The ``value`` of a Flax metadata box goes by the name of the box.

    Raises:
      CheckpointError: a leaf is no array, or two leaves share a path.
    """
    tensors: dict[str, HeldTensor] = {}
    for name, array in _named(tree):
        if name in tensors:
            raise errors.CheckpointError(
                f"{_ORIGIN}: two arrays are called {name!r}. Rename one of them."
            )
        tensors[name] = HeldTensor(name, array)
    return Checkpoint(_ORIGIN, tensors)


def _named(
    node: Any, above: tuple[Any, ...] = ()
) -> Iterator[tuple[str, np.ndarray | jax.Array]]:  # Any: the untyped entries of JAX key paths.
    if isinstance(node, Mapping):
        # Not left to JAX, which takes an unregistered mapping for a leaf, and sorts keys.
        children = [((jax.tree_util.DictKey(key),), child) for key, child in node.items()]
    elif isinstance(node, jax.Array | np.ndarray | np.generic | bool | int | float | complex):
        yield name_string(above), node if isinstance(node, jax.Array) else np.asarray(node)
        return
    else:
        children = jax.tree_util.tree_leaves_with_path(node)
        if isinstance(node, Thunk) or any(leaf is node for _, leaf in children):
            raise errors.CheckpointError(
                f"{_ORIGIN}: tensor {name_string(above)!r}: wanted an array, got "
                f"{type(node).__name__}. Pass arrays only; materialize what is lazy first."
            )
    for key_path, child in children:
        yield from _named(child, (*above, *key_path))
