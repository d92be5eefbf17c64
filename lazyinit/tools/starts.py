"""Finds the existing rules that fit a tree and a checkpoint best, as the base of new ones.

Leaves, a checkpoint and the user's rules come in, and a ``Base`` goes out: an ``at``, a prefix of
names to drop, and ``TORCH`` or the map that makes the most leaves, if it makes more than half.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lazyinit import errors, maps
from lazyinit.checkpoint import Checkpoint
from lazyinit.match.advise import guesses
from lazyinit.match.match import Matching, match, named
from lazyinit.match.places import Place
from lazyinit.rules.layout import Transpose
from lazyinit.rules.renames import Rename, strip_prefix
from lazyinit.rules.rule import AnyRule, Rule
from lazyinit.rules.torch import TORCH
from lazyinit.sources import Shape
from lazyinit.tools.decide import Decision
from lazyinit.tools.families import families
from lazyinit.tools.pairing import Pair, given

READY: dict[str, Sequence[AnyRule]] = {
    "TORCH": TORCH,
    **{f"maps.{name}": getattr(maps, name) for name in maps.__all__ if name.isupper()},
}


@dataclass(frozen=True, slots=True)
class Base:
    """The rules to start from, and the subtree that the checkpoint fills.

    Attributes:
      at: the path of the subtree; ``""`` for the whole tree.
      renames: the rename that drops a prefix, if there is one, and the user's renames.
      makers: the user's other rules.
      ready: the rules of ``TORCH`` or of a map that fit.
    """

    at: str
    renames: tuple[AnyRule, ...]
    makers: tuple[AnyRule, ...]
    ready: tuple[AnyRule, ...] = ()

    def rules(self, *found: AnyRule) -> tuple[AnyRule, ...]:
        """Returns all rules in order, with newly found ones after the renames."""
        return (*self.renames, *found, *self.makers, *self.ready)

    def plain(self) -> "Base":
        """Returns the same base without ready rules."""
        return replace(self, ready=())


def best_base(
    leaves: Sequence[Place], checkpoint: Checkpoint, rules: tuple[AnyRule, ...], at: str
) -> Base:
    """Returns the ``at``, the prefix and the ready rules that make the most leaves."""
    leaves = one_of_each(leaves)
    renames = tuple(rule for rule in rules if isinstance(rule, Rename))
    makers = tuple(rule for rule in rules if not isinstance(rule, Rename))
    best, most = Base(at, renames, makers), len(leaves) // 2  # Fewer may match by chance.
    for named_as, ready in (("", ()), *READY.items()):
        new = tuple(rule for rule in ready if rule not in rules)
        tried = [(at, "")]
        if not rules:
            found = guesses(leaves, checkpoint, ready)[:3]
            tried += [(place, prefix) for place, prefix in found if not at or place == at]
        for place, prefix in tried:
            strip = (strip_prefix(prefix),) if prefix else ()
            base = Base(place, (*strip, *renames), makers, new)
            try:
                made = match(leaves, checkpoint, rules=base.rules(), at=place)
            except errors.FillError:  # Two tensors have one name once the prefix is gone.
                continue
            count = len(fitting(leaves, made))
            # Other models share some names with these: only a tree that fits as a whole counts.
            if count > most and (
                not named_as.endswith(("_TUNIX", "_MAXTEXT")) or count == len(leaves)
            ):
                best, most = base, count
    return best


def one_of_each(leaves: Sequence[Place]) -> list[Place]:
    """Returns the first of each group of leaves whose names differ in their numbers alone."""
    by_name = {place.name: place for place in leaves}
    shapes = {place.name: place.shape for place in leaves if place.shape is not None}
    return [by_name[family.names[0]] for family in families(shapes, numbered=True)]


def fitting(leaves: Sequence[Place], found: Matching) -> set[str]:
    """Returns the paths of the leaves that match tensors of their own shape."""
    return {
        place.path
        for place in leaves
        if (made := found.matches.get(place.path)) is not None
        and not made.problem
        and made.source.shape == place.shape
    }


@dataclass(frozen=True, slots=True)
class Matched:
    """A leaf that the rules of a ``Base`` make from one tensor.

    Attributes:
      pair: the families of the leaf and of the tensor, with the layouts that their shapes allow.
      rule: the rule that makes the leaf; ``None`` if the leaf has the tensor's name.
    """

    pair: Pair
    rule: Rule | None

    def agrees(self, decision: Decision) -> bool:
        """Tells whether the rule transposes the tensor if, and only if, the decision does.

        It is ``False`` if the decision is open. Otherwise it is ``True`` for vectors, which have no
        second axis.
        """
        turned = self.rule is not None and any(
            isinstance(change, Transpose) for change in self.rule.changes().changes
        )
        ways = {option.turned for option in decision.options} - {None}
        return not decision.is_open and ways <= {turned}


def matched(leaves: Sequence[Place], checkpoint: Checkpoint, base: Base) -> Iterator[Matched]:
    """Yields the leaves that a base makes of one tensor each, one of each group of layers."""
    leaves = one_of_each(leaves)
    names, _ = named(checkpoint, [rule for rule in base.renames if isinstance(rule, Rename)])
    by_tensor: dict[str, str] = {tensor: name for name, tensor in names.items()}
    found = match(leaves, checkpoint, rules=base.rules(), at=base.at)
    fits = fitting(leaves, found)
    makers = [rule for rule in base.rules() if isinstance(rule, Rule)]
    for place in leaves:
        tensors = found.matches[place.path].tensors if place.path in fits else ()
        if len(tensors) != 1 or place.shape is None:
            continue
        name, tensor = own_name(place, base), by_tensor[tensors[0]]
        shapes: tuple[Shape, Shape] = place.shape, checkpoint[tensors[0]].shape
        rules = (rule for each, rule in place.candidates(base.at, makers) if each == tensor)
        if (pair := given(name, tensor, shapes)) is not None:
            yield Matched(pair, next(rules, None))


def own_name(place: Place, base: Base) -> str:
    """Returns the name of a leaf below the base's ``at``, without Linen's ``params/``."""
    name = place.below(base.at)
    return name.removeprefix("params/") if place.linen and not base.at else name
