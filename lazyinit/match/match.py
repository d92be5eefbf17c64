"""Which tensors of a checkpoint each leaf of a tree is made from: by its own name, or by rules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lazyinit.checkpoint import Checkpoint
from lazyinit.match.places import Place as Place
from lazyinit.match.places import View as View
from lazyinit.match.places import places as places
from lazyinit.match.search import Match as Match
from lazyinit.match.search import Search, named
from lazyinit.patterns import slashed as slashed
from lazyinit.rules.check import AnyRule
from lazyinit.rules.renames import Ignore, Rename
from lazyinit.rules.rule import Rule


@dataclass(frozen=True, slots=True)
class Matching:
    """What was found for the leaves of a tree.

    Attributes:
      matches: by the path of the leaf.
      unused_rules: rules that had no part in it and are not optional.
      ignored: tensors that make no leaf, and that a rule says are not missed.
    """

    matches: Mapping[str, Match]
    unused_rules: tuple[AnyRule, ...]
    ignored: frozenset[str] = frozenset()


def match(
    leaves: Sequence[Place], checkpoint: Checkpoint, *, rules: Sequence[AnyRule], at: str
) -> Matching:
    """Finds the tensors that make each leaf: by its own name first, then by the rules in order.

    Takes linear time: a rule is tried only on leaves that end in its last key.

    Raises:
      FillError: two tensors go by one name.
    """
    names, used = named(checkpoint, [rule for rule in rules if isinstance(rule, Rename)])
    search = Search(leaves, checkpoint, names, [r for r in rules if isinstance(r, Rule)], at)
    matches: dict[str, Match] = {}
    for place in leaves:
        found, rule = search.find(place)
        if found is not None:
            matches[place.path] = found
            used.add(id(rule))
    taken = {tensor for found in matches.values() for tensor in found.tensors}
    ignores = [rule for rule in rules if isinstance(rule, Ignore)]
    return Matching(
        matches,
        tuple(rule for rule in rules if id(rule) not in used and not _may_idle(rule)),
        frozenset(
            tensor
            for name, tensor in names.items()
            if tensor not in taken and any(rule.fits(name) for rule in ignores)
        ),
    )


def _may_idle(rule: AnyRule) -> bool:
    return isinstance(rule, Ignore) or (isinstance(rule, Rule) and rule.optional)
