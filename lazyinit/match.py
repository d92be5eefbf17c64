"""Which tensor of a checkpoint each leaf of a tree is made from: names and rules, no shapes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from lazyinit import errors, paths
from lazyinit.checkpoint import Checkpoint
from lazyinit.params import Source
from lazyinit.rules import AnyRule, Rename, Rule


@dataclass(frozen=True, slots=True)
class Place:
    """Where a leaf is, and what it goes by.

    Attributes:
      path: its path in the tree.
      name: its path with ``/`` for ``.``, less the attribute in which a metadata box keeps it.
    """

    path: str
    name: str


def places(tree: Any) -> list[tuple[Place, Any]]:
    """Returns every leaf of any pytree with its place, in JAX's order of leaves."""
    found = []
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path = paths.path_string(keys)
        name = paths.name_string(keys) if path.endswith("/value") else path
        found.append((Place(path, slashed(name)), leaf))
    return found


def slashed(name: str) -> str:
    """Returns the form in which names are compared: ``a.b`` and ``a/b`` are one name."""
    return name.replace(".", "/")


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

    def candidates(self, place: Place, rules: Sequence[Rule]) -> Iterator[tuple[str, Rule | None]]:
        """Yields the names that the tensor of a leaf may have, best first, and the rules."""
        below = _below(place.name, self.at)
        if place.path.endswith("/value") and (boxed := _below(slashed(place.path), self.at)):
            yield boxed, None
        if below:
            yield below, None
        inner = self._below_collection(place)
        for rule in rules:
            if below and (name := rule.tensor_for(below)):
                yield name, rule
            if inner and rule.across_collections and (name := rule.tensor_for(inner)):
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


@dataclass(frozen=True, slots=True)
class Match:
    """A tensor that makes a leaf.

    Attributes:
      tensor: what the checkpoint calls it.
      source: the tensor, in the layout of the leaf.
    """

    tensor: str
    source: Source


@dataclass(frozen=True, slots=True)
class Matching:
    """What was found for the leaves of a tree.

    Attributes:
      matches: by the path of the leaf.
      unused_rules: rules that had no part in it and are not optional.
    """

    matches: Mapping[str, Match]
    unused_rules: tuple[AnyRule, ...]


def match(
    leaves: Sequence[Place], checkpoint: Checkpoint, *, rules: Sequence[AnyRule], at: str
) -> Matching:
    """Finds the tensor that makes each leaf: by its own name first, then by the rules in order.

    Raises:
      FillError: two tensors go by one name.
    """
    renames = [rule for rule in rules if isinstance(rule, Rename)]
    makers = [rule for rule in rules if isinstance(rule, Rule)]
    named, used = _named(checkpoint, renames)
    view = View.of(leaves, at)
    matches: dict[str, Match] = {}
    for place in leaves:
        for name, rule in view.candidates(place, makers):
            if name in named:
                tensor = named[name]
                source = checkpoint[tensor]
                matches[place.path] = Match(tensor, rule.layout(source) if rule else source)
                used.add(id(rule))
                break
    unused = (rule for rule in rules if id(rule) not in used)
    return Matching(
        matches, tuple(rule for rule in unused if isinstance(rule, Rename) or not rule.optional)
    )


def _named(checkpoint: Checkpoint, renames: Sequence[Rename]) -> tuple[dict[str, str], set[int]]:
    """Returns the checkpoint's names by the names to match, and the ids of the renames used."""
    named: dict[str, str] = {}
    used: set[int] = set()
    for tensor in checkpoint:
        name = slashed(tensor)
        for rename in renames:
            if new := rename.name_for(name):
                name = new
                used.add(id(rename))
        if name in named:
            raise errors.FillError(
                f"{checkpoint.origin}: tensors {named[name]!r} and {tensor!r} both go by {name!r}, "
                "as '.' and '/' mean the same. Keep them apart with lazyinit.Rename in rules."
            )
        named[name] = tensor
    return named, used


@dataclass(frozen=True, slots=True)
class Advice:
    """Other arguments of ``fill``, and how many leaves they would match.

    Attributes:
      text: the arguments as one would write them.
      count: leaves.
    """

    text: str
    count: int


_TRIES = 3  # How many guesses are checked for each set of rules.


def advise(
    leaves: Sequence[Place],
    checkpoint: Checkpoint,
    rule_sets: Sequence[tuple[str, Sequence[AnyRule]]],
) -> Advice:
    """Finds the ``at``, the rules and the prefix of names that match the most leaves.

    Each leaf votes for the longest end of its path that names the end of just one tensor: what
    is left over of the path is an ``at``, what is left over of the name a prefix. The best
    guesses are then tried. Takes linear time.

    Args:
      leaves: the leaves of the tree.
      checkpoint: the tensors.
      rule_sets: the rules to try, each with how to write them; the simplest first.

    Returns:
      The best advice; its count is 0 if there is none.
    """
    best = Advice("", 0)
    for written, rules in rule_sets:
        for at, prefix in _guesses(leaves, checkpoint, rules)[:_TRIES]:
            try:
                tried = [Rename(prefix + "/**", "**"), *rules] if prefix else rules
                count = len(match(leaves, checkpoint, rules=tried, at=at).matches)
            # A name with "*" in it, or two tensors that go by one name without the prefix.
            except errors.FillError:
                continue
            if count > best.count:
                best = Advice(_written(at, prefix, written), count)
    return best


def _guesses(
    leaves: Sequence[Place], checkpoint: Checkpoint, rules: Sequence[AnyRule]
) -> list[tuple[str, str]]:
    named, _ = _named(checkpoint, [rule for rule in rules if isinstance(rule, Rename)])
    makers = [rule for rule in rules if isinstance(rule, Rule)]
    prefixes: dict[str, str | None] = {}
    for name in named:
        for prefix, rest in _cuts(name):
            prefixes[rest] = None if rest in prefixes else prefix
    linen = View.of(leaves, "").linen
    votes: dict[tuple[str, str], int] = {}
    for place in leaves:
        for at, _ in _cuts(place.name):
            names = (name for name, _ in View(at, linen).candidates(place, makers))
            prefix = next((p for name in names if (p := prefixes.get(name)) is not None), None)
            if prefix is not None:
                votes[at, prefix] = votes.get((at, prefix), 0) + 1
                break
    return sorted(votes, key=lambda guess: (-votes[guess], len(guess[1]), len(guess[0])))


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    keys = name.split("/")
    return (("/".join(keys[:n]), "/".join(keys[n:])) for n in range(len(keys)))


def _written(at: str, prefix: str, rules: str) -> str:
    if prefix:
        strip = f'lazyinit.strip_prefix("{prefix.replace("/", ".")}.")'
        rules = f"[{strip}, *{rules}]" if rules else f"[{strip}]"
    return ", ".join(filter(None, (f'at="{at}"' * bool(at), f"rules={rules}" * bool(rules))))
