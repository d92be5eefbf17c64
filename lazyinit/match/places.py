"""Where the leaves of a tree are, and the names by which a checkpoint may know them.

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
      name: its path with ``/`` for ``.``, without the attribute in which a metadata box keeps it.
      boxed: its name with that attribute; ``""`` if it is in no box.
      shape: its shape, which gives the sizes that a rule leaves open; ``None`` if not known.
      linen: whether the first keys of its tree are Linen's collections.
      dtype: its dtype; ``None`` if not known.
    """

    path: str
    name: str
    boxed: str
    shape: Shape | None
    linen: bool
    dtype: Any = None  # Also those of JAX's keys.

    def below(self, at: str) -> str:
        """Returns its name below a subtree, or ``""`` if it lies outside."""
        return _below(self.name, at)

    def own_names(self, at: str) -> Iterator[str]:
        """Yields the names of the tensors that make it without any rule."""
        if boxed := _below(self.boxed, at):
            yield boxed
        if below := self.below(at):
            yield below

    def names(self, at: str, rule: Rule) -> Iterator[str]:
        """Yields the names, ends of its own, by which a rule may know it: the longest first."""
        if below := self.below(at):
            yield below
        if rule.across_collections and (inner := self._below_collection(at)):
            yield inner

    def candidates(self, at: str, rules: Sequence[Rule]) -> Iterator[tuple[str, Rule | None]]:
        """Yields the names that its (first) tensor may have, best first, and the rules.

        A number that is stacked stays as it is in the rule, ``{n}``.
        """
        for name in self.own_names(at):
            yield name, None
        for rule in rules:
            for name in self.names(at, rule):
                if tensor := rule.tensor_for(name):
                    yield tensor, rule

    def _below_collection(self, at: str) -> str:
        collection, _, inner = at.partition("/")
        if not self.linen or collection not in ("", "params"):
            return ""
        return _below(self.name.partition("/")[2], inner)


def _below(name: str, at: str) -> str:
    if not at:
        return name
    return name[len(at) + 1 :] if name.startswith(at + "/") else ""


def places(tree: Any) -> list[tuple[Place, Any]]:
    """Returns every leaf of any pytree with its place, in JAX's order of leaves."""
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
    """Returns leaves that are given by path (of any type) with their places, in order."""
    return _placed([(path, slashed(path), "") for path in leaves], list(leaves.values()))


def _placed(
    named: Sequence[tuple[str, str, str]], leaves: Sequence[Any]
) -> list[tuple[Place, Any]]:
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
