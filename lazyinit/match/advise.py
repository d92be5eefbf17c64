"""Finds arguments of ``fill`` that would match, for its error message where nothing matches.

Leaves and a checkpoint come in; a sentence such as ``at="params/bert" would match 7.`` goes out.
"""

from collections.abc import Iterator, Sequence

from lazyinit import errors
from lazyinit.checkpoint import Checkpoint
from lazyinit.match.match import match, named
from lazyinit.match.places import Place
from lazyinit.patterns import pattern
from lazyinit.rules.renames import Rename
from lazyinit.rules.rule import AnyRule, Rule

_TRIES = 3  # How many guesses are checked for each set of rules.


def advise(
    leaves: Sequence[Place],
    checkpoint: Checkpoint,
    rule_sets: Sequence[tuple[str, Sequence[AnyRule]]],
) -> str:
    """Finds the ``at``, the rules and the prefix of names that match the most leaves.

    Each leaf votes for one guess. It looks for the longest tail of its path that, by itself or by
    a rule, names the tail of exactly one tensor. What stands before the tail in the path is the
    ``at``; what stands before it in the tensor's name is the prefix. The guesses with the most
    votes are then tried. Takes linear time.

    Args:
      leaves: the places of the tree's leaves.
      checkpoint: the tensors.
      rule_sets: the rules to try, the simplest first, each set after the code that a user writes.

    Returns:
      A sentence with the best arguments, as a user writes them, and how many leaves they would
      match; ``""`` if no guess matches a leaf.
    """
    advice, most = "", 0
    for written, rules in rule_sets:
        for at, prefix in guesses(leaves, checkpoint, rules)[:_TRIES]:
            try:
                tried = [Rename(prefix + "/**", "**"), *rules] if prefix else rules
                count = len(match(leaves, checkpoint, rules=tried, at=at).matches)
            # A name has "*" in it, or two tensors have one name once the prefix is gone.
            except errors.FillError:
                continue
            if count > most:
                advice, most = f"{_written(at, prefix, written)} would match {count}.", count
    return advice


def guesses(
    leaves: Sequence[Place], checkpoint: Checkpoint, rules: Sequence[AnyRule]
) -> list[tuple[str, str]]:
    """Returns guesses ``(at, prefix of names)``, the one with the most votes of leaves first."""
    names, _ = named(checkpoint, [rule for rule in rules if isinstance(rule, Rename)])
    makers = [rule for rule in rules if isinstance(rule, Rule)]
    prefixes: dict[str, str | None] = {}
    for name in names:
        for prefix, rest in _cuts(name):
            prefixes[rest] = None if rest in prefixes else prefix
    votes: dict[tuple[str, str], int] = {}
    ending: dict[str, list[Rule]] = {}  # The rules that may fit a leaf, by its last key.
    for place in leaves:
        last = place.name.rpartition("/")[2]
        if last not in ending:
            ends = [(rule, {pattern(leaf).last for leaf in rule.leaves}) for rule in makers]
            ending[last] = [rule for rule, lasts in ends if lasts & {"", last}]
        for at, _ in _cuts(place.name):
            found = (name for name, _ in place.candidates(at, ending[last]))
            prefix = next((p for name in found if (p := prefixes.get(name)) is not None), None)
            if prefix is not None:
                votes[at, prefix] = votes.get((at, prefix), 0) + 1
                break
    return sorted(votes, key=lambda guess: (-votes[guess], len(guess[1]), len(guess[0])))


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """Yields each way to cut a name between two keys; the first has an empty start."""
    keys = name.split("/")
    return (("/".join(keys[:n]), "/".join(keys[n:])) for n in range(len(keys)))


def _written(at: str, prefix: str, rules: str) -> str:
    """Returns the arguments of ``fill`` as a user writes them."""
    if prefix:
        strip = f'lazyinit.strip_prefix("{prefix.replace("/", ".")}.")'
        rules = f"[{strip}, *{rules}]" if rules else f"[{strip}]"
    return ", ".join(filter(None, (f'at="{at}"' * bool(at), f"rules={rules}" * bool(rules))))
