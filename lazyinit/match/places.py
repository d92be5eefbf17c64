"""Where the leaves of a tree are, and the names that a checkpoint may know them by."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from lazyinit import paths
from lazyinit.params import Shape
from lazyinit.patterns import slashed
from lazyinit.rules.rule import Rule


@dataclass(frozen=True, slots=True)
class Place:
    """Where a leaf is, and what it goes by.

    Attributes:
      path: its path in the tree.
      name: its path with ``/`` for ``.``, less the attribute in which a metadata box keeps it.
      shape: its shape, or ``None`` if that is not known: sizes that a rule leaves open are its.
    """

    path: str
    name: str
    shape: Shape | None = None


def places(tree: Any) -> list[tuple[Place, Any]]:
    """Returns every leaf of any pytree with its place, in JAX's order of leaves."""
    found = []
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path = paths.path_string(keys)
        name = paths.name_string(keys) if path.endswith("/value") else path
        found.append((Place(path, slashed(name), getattr(leaf, "shape", None)), leaf))
    return found


@dataclass(frozen=True, slots=True)
class Form:
    """A way to name a leaf: relative to somewhere above it.

    Attributes:
      above: the keys left out, each followed by ``/``.
      name: the others.
    """

    above: str
    name: str


@dataclass(frozen=True, slots=True)
class View:
    """How a tree is looked at while a checkpoint is matched.

    Attributes:
      at: the subtree under which the checkpoint hangs; ``""`` for the whole tree.
      linen: whether the first keys are Linen collections.
    """

    at: str
    linen: bool

    @classmethod
    def of(cls, leaves: Iterable[Place], at: str) -> "View":
        """Returns the view of these leaves: they are Linen's if some are in ``params``."""
        return cls(slashed(at), any(place.name.startswith("params/") for place in leaves))

    def covers(self, place: Place) -> bool:
        """Tells whether a leaf lies where the checkpoint hangs."""
        return bool(_below(place.name, self.at))

    def own_names(self, place: Place) -> Iterator[str]:
        """Yields the names under which a leaf is looked for without any rule."""
        if place.path.endswith("/value") and (boxed := _below(slashed(place.path), self.at)):
            yield boxed
        if below := _below(place.name, self.at):
            yield below

    def forms(self, place: Place, rule: Rule) -> Iterator[Form]:
        """Yields the names that a rule may know a leaf by, best first."""
        if below := _below(place.name, self.at):
            yield Form(place.name.removesuffix(below), below)
        if rule.across_collections and (inner := self._below_collection(place)):
            yield Form(place.name.removesuffix(inner), inner)

    def candidates(self, place: Place, rules: Sequence[Rule]) -> Iterator[tuple[str, Rule | None]]:
        """Yields the names that the (first) tensor of a leaf may have, best first, and the rules.

        A number that is stacked stays as it is in the rule, ``{n}``.
        """
        for name in self.own_names(place):
            yield name, None
        for rule in rules:
            for form in self.forms(place, rule):
                if name := rule.tensor_for(form.name):
                    yield name, rule

    def _below_collection(self, place: Place) -> str:
        collection, _, at = self.at.partition("/")
        if not self.linen or collection not in ("", "params"):
            return ""
        return _below(place.name.partition("/")[2], at)


def _below(name: str, at: str) -> str:
    if not at:
        return name
    return name[len(at) + 1 :] if name.startswith(at + "/") else ""
