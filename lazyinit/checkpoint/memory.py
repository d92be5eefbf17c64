"""Trees of arrays in memory, read as if they were checkpoints."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from lazyinit import errors
from lazyinit.checkpoint.protocol import Checkpoint
from lazyinit.params import Index, Shape, Thunk
from lazyinit.paths import name_string

_ORIGIN = "the mapping"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class HeldTensor:
    """A ``Source``: an array that the caller holds, under a name. Equal if the array is the same.

    Attributes:
      name: its path in the mapping.
      array: numpy or JAX.
    """

    name: str
    array: np.ndarray | jax.Array

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
    def origin(self) -> str:
        """A word for the caller's mapping."""
        return _ORIGIN

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``: a view if numpy, a copy of that slice if JAX."""
        return np.asarray(self.array[(*index, ...)])

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
        return f"{_ORIGIN}:{self.name}"


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


def _named(node: Any, above: str = "") -> Iterator[tuple[str, np.ndarray | jax.Array]]:
    if isinstance(node, Mapping):
        # Not left to JAX, which takes an unregistered mapping for a leaf, and sorts keys.
        children = [(str(key), child) for key, child in node.items()]
    elif isinstance(node, jax.Array | np.ndarray | np.generic | bool | int | float | complex):
        yield above, node if isinstance(node, jax.Array) else np.asarray(node)
        return
    else:
        flat = jax.tree_util.tree_leaves_with_path(node)
        children = [(name_string(key_path), leaf) for key_path, leaf in flat]
        if isinstance(node, Thunk) or any(leaf is node for _, leaf in children):
            raise errors.CheckpointError(
                f"{_ORIGIN}: tensor {above!r}: wanted an array, got {type(node).__name__}. "
                "Pass arrays only; materialize what is lazy first."
            )
    for key, child in children:
        yield from _named(child, "/".join(filter(None, (above, key))))
