"""Sorts the arguments of an initialization into PRNG keys, mere shapes, and arrays with values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lazyinit import compat, paths
from lazyinit.derived import struct_of
from lazyinit.keys import AnyKey, Key
from lazyinit.params import Thunk


@dataclass(frozen=True, slots=True)
class Inputs:
    """The arguments of an initialization, sorted into keys, mere shapes and values.

    Attributes:
      leaves: every leaf of ``(args, kwargs)``, in JAX's order.
      arguments: ``(args, kwargs)``.
      keys: the PRNG keys, by the name of the argument, or by the stream of an ``nnx.Rngs``.
      key_places: the positions of the keys among the leaves.
      shapes: the name and shape of each leaf that has no value.
      shape_places: the positions of these among the leaves.
    """

    leaves: Sequence[Any]
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    keys: Mapping[str, AnyKey]
    key_places: Sequence[int]
    shapes: Sequence[tuple[str, jax.ShapeDtypeStruct]]
    shape_places: Sequence[int]

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any], *, raw_keys: bool) -> "Inputs":
        """Sorts arguments, which are any pytrees.

        Args:
          args: the positional arguments.
          kwargs: the keyword arguments.
          raw_keys: whether an array of the shape and dtype of a raw key is taken for a key.
        """
        flat = jax.tree_util.tree_leaves_with_path((args, kwargs))
        names = [paths.path_string(p).partition("/")[2] for p, _ in flat]
        leaves = [x for _, x in flat]
        keys = [n for n, x in enumerate(leaves) if _is_key(x, raw_keys)]
        streams = [names[n].removesuffix("/key/value") for n in keys]
        ends = [name.rpartition("/")[2] for name in streams]
        if raw_keys and len(set(ends)) == len(ends):  # Most often the streams of an nnx.Rngs.
            streams = ends
        shapes = [n for n, x in enumerate(leaves) if isinstance(x, jax.ShapeDtypeStruct | Thunk)]
        return cls(
            leaves,
            (args, kwargs),
            dict(zip(streams, (Key.of(leaves[n]) for n in keys), strict=True)),
            keys,
            [(f"argument {names[n]}", _shape_of(leaves[n])) for n in shapes],
            shapes,
        )

    def join(
        self, keys: Mapping[str, Any], stand_ins: Sequence[Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns ``(args, kwargs)`` with traced keys, and with stand-ins in place of the shapes.

        Arrays that have values stay as they are, so that Python code may look at them.
        """
        if not self.key_places and not self.shape_places:
            return self.arguments
        leaves = list(self.leaves)
        for place, name in zip(self.key_places, self.keys, strict=True):
            leaves[place] = keys[name]
        for place, stand_in in zip(self.shape_places, stand_ins, strict=True):
            leaves[place] = stand_in
        return paths.replace_leaves(self.arguments, leaves)

    def passed_on(self) -> Sequence[Any]:
        """Returns for each shape the thunk that was passed there, or the shape itself."""
        return [self.leaves[place] for place in self.shape_places]


def _shape_of(x: jax.ShapeDtypeStruct | Thunk) -> jax.ShapeDtypeStruct:
    return struct_of(x) if isinstance(x, Thunk) else jax.ShapeDtypeStruct(x.shape, x.dtype)


def _is_key(x: Any, raw_keys: bool) -> bool:
    if not isinstance(x, jax.Array | np.ndarray):
        return False
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key) or (raw_keys and compat.is_one_key(x))
