"""Says what training holds beside the parameters: optimizer state, gradients and a copy.

The optimizer's ``init`` is traced on the parameters, so that its state is known and not guessed. An
array of the state lies as a parameter does if its path ends with the path of that parameter, and
the two have the same shape: a momentum, for example. All other arrays, such as a count of steps,
are replicated.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from lazyinit import errors, meshes
from lazyinit import paths as tree_paths
from lazyinit.params import placement_of

Dtype: TypeAlias = Any  # What jnp.dtype takes.


@dataclass(frozen=True, slots=True)
class Held:
    """An array that training holds.

    Attributes:
      action: what the array is for: ``"optimizer"``, ``"gradients"`` or ``"copy"``.
      path: the path of the array, in the optimizer's state or in the tree.
      struct: its shape and dtype.
      placement: where it lies.
    """

    action: Any
    path: str
    struct: jax.ShapeDtypeStruct
    placement: Sharding | None


@dataclass(frozen=True, slots=True)
class Trained:
    """The leaves that are trained, as the arrays that they will be.

    Attributes:
      tree: what the optimizer's ``init`` gets: a ``jax.ShapeDtypeStruct`` for each leaf that is
        trained, and ``None`` for each other leaf.
      at: the path of ``tree`` in the whole tree; ``""`` if it is the whole tree.
      leaves: for each leaf that is trained, its struct and where its array lies, by its path in
        ``tree``.
    """

    tree: Any
    at: str
    leaves: Mapping[str, tuple[jax.ShapeDtypeStruct, Sharding | None]]

    @classmethod
    def of(
        cls,
        tree: Any,
        trainable: tree_paths.Paths,
        selected: Sequence[bool],
        placements: Sequence[Sharding | None],
        dtypes: Sequence[Any],
    ) -> "Trained":
        """Finds the leaves that are trained; only floating-point leaves are.

        Args:
          tree: any pytree.
          trainable: which leaves are trained. ``None`` selects the variables of type ``nnx.Param``
            in a tree with variables of Flax NNX, the collection ``params`` in a tree that has one,
            and all leaves of any other tree.
          selected: for each leaf whether it is made; the others are not trained, either.
          placements: where each leaf goes.
          dtypes: the dtype that each leaf will have.

        Raises:
          PathError: ``trainable`` selects nothing.
        """
        chosen = tree_paths.select(_usual(tree) if trainable is None else trainable, tree)
        leaves = tree_paths.leaves_with_paths(tree)
        structs, found = [], {}
        everything = zip(leaves, chosen, selected, placements, dtypes, strict=True)
        for (path, leaf), is_chosen, is_selected, placement, dtype in everything:
            if not (is_chosen and is_selected and _is_float(dtype)):
                structs.append(None)
                continue
            structs.append(jax.ShapeDtypeStruct(leaf.shape, dtype))
            found[path] = structs[-1], placement_of(leaf) if placement is None else placement
        shaped, at = tree_paths.replace_leaves(tree, structs), ""
        if _has_params(tree) and all(path.startswith("params/") for path in found):
            shaped, at = shaped["params"], "params"
        return cls(shaped, at, {path[len(at) + bool(at) :]: held for path, held in found.items()})

    def held(self, optimizer: Any, gradients: Dtype | bool, copy: Dtype | None) -> Iterator[Held]:
        """Yields the arrays that training holds beside the leaves.

        Args:
          optimizer: as for ``plan``.
          gradients: as for ``plan``.
          copy: as for ``plan``.

        Raises:
          PlanError: the optimizer has no ``init``, or its ``init`` fails on these leaves; or
            ``gradients`` or ``copy`` is not a dtype.
        """
        if optimizer is not None:
            yield from self._state(optimizer)
        for word, dtype in (("gradients", gradients), ("copy", copy)):
            if dtype is None or dtype is False:
                continue
            for path, (struct, placement) in self.leaves.items():
                cast = struct.dtype if dtype is True else _dtype(word, dtype)
                shaped = jax.ShapeDtypeStruct(struct.shape, cast)
                yield Held(word, "/".join(filter(None, (self.at, path))), shaped, placement)

    def _state(self, optimizer: Any) -> Iterator[Held]:
        init = getattr(optimizer, "init", None)
        if init is None:
            raise errors.PlanError(
                f"optimizer: wanted an object with an init function, such as optax.adamw(1e-3), "
                f"got {optimizer!r:.80}."
            )
        try:
            state = meshes.outside(lambda: jax.eval_shape(init, self.tree))
        except Exception as error:  # Whatever somebody else's init raises.
            raise errors.PlanError(
                f"optimizer: its init failed on the {len(self.leaves)} leaves that are trained: "
                f"{str(error).rstrip('.')}. If other leaves are trained, say which: trainable=..."
            ) from error
        elsewhere = _replicated(placement for _, placement in self.leaves.values())
        for path, struct in tree_paths.leaves_with_paths(state):
            mirrored = self._mirrored(path)
            is_alike = mirrored is not None and mirrored[0].shape == struct.shape
            placement = mirrored[1] if mirrored and is_alike else elsewhere
            yield Held("optimizer", path, struct, placement)

    def _mirrored(self, path: str) -> tuple[jax.ShapeDtypeStruct, Sharding | None] | None:
        """Returns the parameter with the longest path that a path in the state ends with."""
        keys = path.split("/")
        ends = ("/".join(keys[n:]) for n in range(len(keys) + 1))
        return next((self.leaves[end] for end in ends if end in self.leaves), None)


def _usual(tree: Any) -> tree_paths.Paths:
    """Returns which leaves of a tree are trained if nobody says so, as ``Trained.of`` has it."""
    nodes = jax.tree.leaves(tree, is_leaf=tree_paths.is_variable)
    if any(map(tree_paths.is_variable, nodes)):
        return sys.modules["flax.nnx"].Param
    return "params" if _has_params(tree) else None


def _has_params(tree: Any) -> bool:
    return isinstance(tree, Mapping) and "params" in tree


def _is_float(dtype: Any) -> bool:
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


def _dtype(word: str, dtype: Dtype) -> Any:
    try:
        return jnp.dtype(dtype)
    except TypeError as error:
        raise errors.PlanError(
            f"{word}: wanted a dtype such as 'bfloat16', got {dtype!r:.80}."
        ) from error


def _replicated(placements: Iterable[Sharding | None]) -> Sharding | None:
    """Returns a placement that replicates over the first mesh among these; ``None`` without one."""
    named = (place for place in placements if isinstance(place, NamedSharding))
    first = next(named, None)
    return None if first is None else NamedSharding(first.mesh, PartitionSpec())
