"""Sources of arrays in memory: of a caller's tree, of numbers in a file's header, of constants."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import jax
import numpy as np

from lazyinit import errors
from lazyinit.params import Thunk
from lazyinit.paths import name_string
from lazyinit.sources import Index, Shape, Source
from lazyinit.tensors.base import Checkpoint, Derived, Tensor
from lazyinit.tensors.headers import damaged
from lazyinit.tensors.held import Ranges, ranges, shards_of, within
from lazyinit.tensors.mapped import File
from lazyinit.tensors.torch_arrays import as_array, is_torch_tensor

_ORIGIN = "the mapping"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class HeldTensor(Tensor):
    """A ``Source``: an array in memory, under a name. Two are equal if name and array are the same.

    Attributes:
      name: its path in the mapping, or its name in the file.
      array: an array of NumPy or JAX.
      origin: a word for the caller's mapping, or the file that it was read from.
      header: the file, if this is a number among the headers of a file; else empty. Such a number
        cannot be read once the file has changed, and equals another of the same file and value.
    """

    name: str
    array: np.ndarray | jax.Array
    # A frozen field, which is read as the property is.
    origin: str = _ORIGIN  # pyright: ignore[reportIncompatibleMethodOverride]
    header: tuple[File, ...] = ()

    @property
    def shape(self) -> Shape:
        """The array's shape."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        """The array's dtype."""
        return self.array.dtype

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``: a view where one buffer in host memory has them all.

        Raises:
          CheckpointError: part of the array lies on devices of another process.
        """
        self.check()
        if isinstance(self.array, np.ndarray):
            return self.array[(*index, ...)]
        return self._read_shards(self.array, index)

    def _read_shards(self, array: jax.Array, index: Index) -> np.ndarray:
        # Indexing the array as a whole would run a program on all its devices, which a mesh
        # with explicit axes refuses.
        wanted = ranges(index, array.shape)
        parts: dict[Ranges, np.ndarray] = {}
        for part, held, shard in shards_of(array, wanted):
            if part not in parts:
                parts[part] = np.asarray(shard.data)[(*within(part, held), ...)]
        if wanted in parts:
            return parts[wanted]
        if sum(part.size for part in parts.values()) < math.prod(map(len, wanted)):
            raise errors.CheckpointError(
                f"{self.origin}: tensor {self.name!r}: wanted an array that this process holds in "
                "full, got one of which a part lies on devices of another process. Pass arrays "
                "that every process holds in full, or a file."
            )
        values = np.empty([len(r) for r in wanted], array.dtype)
        for part, data in parts.items():
            values[within(part, wanted)] = data
        return values

    def check(self) -> None:
        """Checks that the file of a number is unchanged; an array in memory is always there."""
        for file in self.header:
            file.check()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HeldTensor) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[Any, ...]:  # Any: bytes, a dtype, files.
        if self.header:
            return self.name, self.header, self.dtype, np.asarray(self.array).tobytes()
        return self.name, id(self.array)


def number(file: File, name: str, value: complex) -> HeldTensor:
    """Returns the source of a Python number that stands among the headers of a file.

    Raises:
      CheckpointError: the number is an integer of more than 64 bits.
    """
    array = np.asarray(value)
    if array.dtype.hasobject:
        wanted = "an integer of at most 64 bits"
        raise damaged(file.path, name, wanted, f"one of {int(value.real).bit_length()}")
    array.flags.writeable = False
    return HeldTensor(name, array, file.path, (file,))


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Filled(Tensor):
    """A ``Source``: a constant, which is one value or an array, broadcast to the shape of a leaf.

    Attributes:
      value: an array whose shape can be broadcast to ``shape``.
      shape: the shape of the leaf.
    """

    value: np.ndarray
    shape: Shape

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the value."""
        return self.value.dtype

    @property
    def names(self) -> tuple[str, ...]:
        """Empty, as it is made from no tensor."""
        return ()

    @property
    def origin(self) -> str:
        """The words ``a constant``, for messages."""
        return "a constant"

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``, as a view of the constant."""
        return np.broadcast_to(self.value, self.shape)[(*index, ...)]

    def check(self) -> None:
        """Does nothing, as there is no file."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Filled) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[Any, ...]:  # Any: bytes, shapes, a dtype.
        return self.value.tobytes(), self.value.shape, self.value.dtype, self.shape

    def __repr__(self) -> str:
        return f"constant {self.value.tolist()!r:.40}"


def open_tree(tree: Mapping[Any, Any]) -> Checkpoint:
    """Makes a checkpoint of the arrays in a mapping, nested or flat, without copying them.

    The ``value`` of a Flax metadata box has the name of the box. A leaf may also be a source of
    another checkpoint: a mapping can so give its tensors other names.

    Raises:
      CheckpointError: a leaf is neither an array nor a source, or two leaves share a path.
    """
    tensors: dict[str, Source] = {}
    for name, array in _named(tree):
        if name in tensors:
            raise errors.CheckpointError(
                f"{_ORIGIN}: two arrays are called {name!r}. Rename one of them."
            )
        is_held = isinstance(array, jax.Array | np.ndarray)
        tensors[name] = HeldTensor(name, array) if is_held else array
    return Checkpoint(_ORIGIN, tensors)


def _named(
    node: Any, above: tuple[Any, ...] = ()
) -> Iterator[tuple[str, np.ndarray | jax.Array | Source]]:  # Any: JAX's key paths are untyped.
    if isinstance(node, Mapping):
        # Not left to JAX, which takes an unregistered mapping for a leaf, and sorts keys.
        children = [((jax.tree_util.DictKey(key),), child) for key, child in node.items()]
    elif isinstance(node, Tensor | Derived):
        yield name_string(above), cast("Source", node)  # Those are bases of sources alone.
        return
    elif is_torch_tensor(node):
        yield name_string(above), as_array(_ORIGIN, name_string(above), node)
        return
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


def nested(tensors: Mapping[str, Source]) -> dict[str, Any]:
    """Nests tensors in dicts by the ``/`` in their names; ``open_tree`` does the reverse.

    Raises:
      SaveError: a tensor has a name that is also a folder of other names, as ``a`` beside ``a/b``.
    """
    tree: dict[str, Any] = {}
    for name, source in tensors.items():
        *above, last = name.split("/")
        node = tree
        for key in above:
            node = node.setdefault(key, {}) if isinstance(node, dict) else node
        if not isinstance(node, dict) or last in node:
            raise errors.SaveError(
                f"{name}: wanted a place of its own in the tree, but another tensor is at the same "
                "place, below it or above it. Give this tensor another name in rules."
            )
        node[last] = source
    return tree
