"""Lists the leaves of a tree, with the names that a checkpoint may have for each.

A tree comes in, and a ``Place`` for each leaf goes out. A checkpoint may hang below a subtree
(``at``), and may know nothing of Linen's collections, so one leaf has several possible names.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from lazyinit import paths
from lazyinit.patterns import slashed
from lazyinit.rules.rule import Rule
from lazyinit.sources import Shape


@dataclass(frozen=True, slots=True)
class Place:
    """Where a leaf is, and the names that it may have. An ``at`` is ``""`` for the whole tree.

    Attributes:
      path: its path in the tree.
      name: its path with ``/`` for ``.``, without the attribute of the metadata box around it.
      boxed: its name with that attribute; ``""`` if there is no box around it.
      shape: its shape, which gives the sizes that a rule leaves open; ``None`` if not known.
      linen: whether the first keys of its tree are Linen's collections.
      dtype: its dtype; ``None`` if not known.
    """

    path: str
    name: str
    boxed: str
    shape: Shape | None
    linen: bool
    dtype: Any = None  # Any: the dtypes of JAX's PRNG keys are no NumPy dtypes.

    def below(self, at: str) -> str:
        """Returns the leaf's name below a subtree, or ``""`` if the leaf lies outside of it."""
        return _below(self.name, at)

    def own_names(self, at: str) -> Iterator[str]:
        """Yields the names of tensors that make the leaf without any rule."""
        if boxed := _below(self.boxed, at):
            yield boxed
        if below := self.below(at):
            yield below

    def names(self, at: str, rule: Rule) -> Iterator[str]:
        """Yields the tails of the leaf's name that a rule's patterns may match, longest first."""
        if below := self.below(at):
            yield below
        if rule.across_collections and (inner := self._below_collection(at)):
            yield inner

    def candidates(self, at: str, rules: Sequence[Rule]) -> Iterator[tuple[str, Rule | None]]:
        """Yields the names that the leaf's (first) tensor may have, best first, each with its rule.

        The rule is ``None`` for the leaf's own names. A stacked number stays ``{n}`` in a name.
        """
        for name in self.own_names(at):
            yield name, None
        for rule in rules:
            for name in self.names(at, rule):
                if tensor := rule.tensor_for(name):
                    yield tensor, rule

    def _below_collection(self, at: str) -> str:
        """Returns the name below ``at`` without a Linen collection; ``""`` if there is none."""
        collection, _, inner = at.partition("/")
        if not self.linen or collection not in ("", "params"):
            return ""
        return _below(self.name.partition("/")[2], inner)


def _below(name: str, at: str) -> str:
    """Returns the rest of a name below a subtree, or ``""`` if it lies outside of it."""
    if not at:
        return name
    return name[len(at) + 1 :] if name.startswith(at + "/") else ""


def places(tree: Any) -> list[tuple[Place, Any]]:
    """Returns every leaf of any pytree after its place, in JAX's order of leaves."""
    named, leaves = [], []
    raw = jax.tree_util.tree_leaves_with_path(tree)
    for (keys, leaf), (with_value, _) in zip(paths.leaves_with_keys(tree), raw, strict=True):
        path = paths.path_string(keys)
        is_boxed = len(keys) < len(with_value) or path.endswith("/value")
        name = slashed(paths.name_string(with_value) if is_boxed else path)
        named.append((path, name, slashed(paths.path_string(with_value)) if is_boxed else ""))
        leaves.append(leaf)
    return _placed(named, leaves)


def places_of(leaves: Mapping[str, Any]) -> list[tuple[Place, Any]]:
    """Returns leaves (of any type) that are given by path, each after its place, in order."""
    return _placed([(path, slashed(path), "") for path in leaves], list(leaves.values()))


def _placed(
    named: Sequence[tuple[str, str, str]], leaves: Sequence[Any]
) -> list[tuple[Place, Any]]:
    """Returns leaves after their places; ``named`` has the path, name and boxed name of each."""
    linen = any(name.startswith("params/") for _, name, _ in named)
    return [
        (
            Place(
                path, name, boxed, getattr(leaf, "shape", None), linen, getattr(leaf, "dtype", None)
            ),
            leaf,
        )
        for (path, name, boxed), leaf in zip(named, leaves, strict=True)
    ]
