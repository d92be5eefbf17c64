"""Leaves that are computed from other leaves, and what any leaf is made of.

A ``LazyParam`` is a program whose input is a key. A ``DerivedParam`` is a program whose inputs are
other leaves, too: what a function computes of a thunk, or a moving average of a parameter that a
checkpoint has.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from lazyinit import errors, meshes
from lazyinit.keys import RngPath
from lazyinit.params import (
    NO_KEY,
    LazyParam,
    OverlapParam,
    StoredParam,
    Thunk,
    label,
    pickling_problem,
)
from lazyinit.sources import Shape, Source, describe


@dataclass(frozen=True, slots=True, repr=False)
class DerivedParam(Thunk):
    """A parameter that is computed from other leaves, once these are made. A pytree leaf.

    Attributes:
      shape: the shape that the array will have.
      dtype: the dtype that it will have.
      init_fn: maps a key and the arrays of the inputs to the value, eagerly:
        ``init_fn(rng_path.key(), *arrays)``.
      inputs: the leaves that it is computed from, of any kind of thunk.
      rng_path: the root keys that it depends on, besides its inputs.
      weak_type: whether the array will be weakly typed, as JAX calls it.
      sharding: where the array goes if nothing else is asked for; ``None`` is the default device.
      path: where in the tree it was recorded; only messages use it.

    Example:
      >>> import jax, numpy as np, lazyinit as li
      >>> shape = jax.ShapeDtypeStruct((2, 3), "float32")
      >>> tree, _ = li.fill({"w": shape}, {"w": np.full((2, 3), 2, "float32")})
      >>> half = li.lazy(lambda tree: {"w": tree["w"] / 2})(tree)
      >>> half["w"]
      DerivedParam(float32[2,3], true_divide of w)
      >>> float(li.materialize(half)["w"][0, 0])
      1.0
    """

    shape: Shape
    dtype: np.dtype
    init_fn: Callable[..., Any] = field(hash=False)  # Any: arrays, and a key.
    inputs: tuple[Thunk, ...]
    rng_path: RngPath = NO_KEY
    weak_type: bool = field(default=False, kw_only=True)
    sharding: Sharding | None = field(default=None, kw_only=True)
    path: str = field(default="", kw_only=True, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        if problem := pickling_problem(self.init_fn, self.rng_path):
            raise errors.PicklingError(
                f"{self.path or 'a leaf'}: wanted a function that can be pickled, got "
                f"{label(self.init_fn)}: {problem}. Pickle the tree once this leaf is materialized."
            )
        fields = (self.shape, self.dtype, self.init_fn, self.inputs, self.rng_path)
        return _derived_param, (*fields, self.weak_type, meshes.to_pickle(self.sharding), self.path)

    def __repr__(self) -> str:
        return f"DerivedParam({describe(self.shape, self.dtype)}, {self.made_by})"

    @property
    def made_by(self) -> str:
        """The function that computes the leaf, and its inputs, as text: ``div of w``."""
        names = [leaf.path or describe(leaf.shape, leaf.dtype) for leaf in self.inputs]
        shown = names if len(names) < 4 else [names[0], "...", names[-1]]
        return f"{label(self.init_fn)} of {', '.join(shown)}"


def _derived_param(*fields: Any) -> DerivedParam:
    *positional, weak_type, pickled, path = fields
    sharding = meshes.from_pickle(pickled)
    return DerivedParam(*positional, weak_type=weak_type, sharding=sharding, path=path)


def origins(leaf: object) -> tuple[tuple[Source, ...], tuple[LazyParam, ...]]:
    """Returns the sources that a leaf is read from, and the thunks that initialize it.

    A ``StoredParam`` has one source, a ``LazyParam`` is its own only thunk, and an ``OverlapParam``
    has one of each. A ``DerivedParam`` has those of all its inputs, each once. A leaf that is no
    thunk has none.
    """
    match leaf:
        case StoredParam():
            return (leaf.source,), ()
        case LazyParam():
            return (), (leaf,)
        case OverlapParam():
            return (leaf.stored,), (leaf.rest,)
        case DerivedParam():
            parts = [origins(p) for p in with_inputs(leaf) if not isinstance(p, DerivedParam)]
            sources = {id(source): source for found, _ in parts for source in found}
            lazy = {id(made): made for _, found in parts for made in found}
            return tuple(sources.values()), tuple(lazy.values())
        case _:
            return (), ()


def with_inputs(leaf: Thunk) -> Iterator[Thunk]:
    """Yields a leaf and all that it is computed from, inputs of inputs too, each once."""
    seen: set[int] = set()
    stack = [leaf]
    while stack:
        part = stack.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        if isinstance(part, DerivedParam):
            stack += reversed(part.inputs)


def struct_of(leaf: Thunk) -> jax.ShapeDtypeStruct:
    """Returns what a trace needs to know of a thunk: its shape, dtype, weak type and sharding."""
    weak_type = bool(getattr(leaf, "weak_type", False))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding, weak_type=weak_type)
