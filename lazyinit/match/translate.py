"""Rules read forwards without a tree: the leaves that a checkpoint's tensors would make.

A checkpoint and rules come in, and sources by the names of leaves go out. Without a tree no leaf
says which rule it needs, so the narrowest rule that fits a tensor decides.
"""

import functools
from collections.abc import Hashable, Sequence

from lazyinit import errors
from lazyinit.checkpoint import Checkpoint
from lazyinit.match.fits import Fit, Group
from lazyinit.match.match import named
from lazyinit.patterns import Captures, joined_like, pattern, slashed
from lazyinit.rules.renames import Ignore, Rename
from lazyinit.rules.rule import AnyRule, Rule
from lazyinit.sources import Source


def translate(checkpoint: Checkpoint, *, rules: Sequence[AnyRule]) -> dict[str, Source]:
    """Returns the leaves that rules make of tensors, where the rules alone say which.

    If several rules fit a tensor, the one that is narrower than all others counts. A tensor that
    an ``Ignore`` fits is left out. Tied leaves and constants are not made: a tied tensor is in its
    first leaf already, and the shape of a constant is not known. If there is no ``Rule``, a tensor
    keeps its name, or gets the one that a ``Rename`` gives it.

    Args:
      checkpoint: the tensors.
      rules: as ``fill`` takes them.

    Returns:
      The sources by the names of leaves, in the order of the checkpoint.

    Raises:
      FillError: the rules do not say what a tensor becomes, or would need the shapes of leaves
        to say it; or a tensor that a rule takes beside others is not there.
    """
    names, _ = named(checkpoint, [rule for rule in rules if isinstance(rule, Rename)])
    choice = _Choice(rules)
    if not any(isinstance(rule, Rule) for rule in rules):
        return {
            tensor if slashed(tensor) == name else joined_like(name, tensor): checkpoint[tensor]
            for name, tensor in names.items()
            if not choice.fits(name)
        }
    groups: dict[Hashable, Group] = {}
    problems = []
    for name, tensor in names.items():
        fits = choice.fits(name)
        if len(fits) == 1:
            ((rule, row, captures),) = fits
            if isinstance(rule, Rule):
                fit = Fit(rule, row, "", captures)
                group = groups.setdefault(fit.key(rule.stacked), Group(fit, rule.stacked))
                group.add(fit, tensor, checkpoint[tensor])
        else:
            told = " and ".join(str(rule) for rule, _, _ in fits) or "none"
            problems.append(
                f"{tensor}: wanted one rule to say what becomes of this tensor, got {told}. Write "
                "a rule that fits only this tensor, or lazyinit.Ignore."
            )
    if problems:
        raise errors.FillError(errors.listing(problems))
    leaves: dict[str, Source] = {}
    for group in groups.values():
        rule, tensors = group.rule, group.grid(group.rule.tensors)
        try:
            grid = rule.changes().forward(tensors, (None,) * len(rule.leaves))
        except errors.FillError as error:
            raise errors.FillError(f"{group.labels[0]}: {rule}: {error}") from None
        for leaf, source in group.names(rule.leaves, rule.unstacked, grid):
            if leaf in leaves:
                raise errors.FillError(
                    f"{group.labels[0]}: wanted a leaf of its own for this tensor, but the rules "
                    f"make {leaf!r} of {leaves[leaf]!r}, too. Write another rule for one of them."
                )
            leaves[leaf] = source
    return leaves


class _Choice:
    """Chooses the rule that says what becomes of a tensor."""

    def __init__(self, rules: Sequence[AnyRule]) -> None:
        self._rows = [
            (rule, row, text)
            for rule in rules
            if isinstance(rule, Ignore) or (isinstance(rule, Rule) and not rule.tied)
            for row, text in enumerate((rule.tensor,) if isinstance(rule, Ignore) else rule.tensors)
        ]

    def fits(self, name: str) -> list[tuple[Rule | Ignore, int, Captures]]:
        """Returns the narrowest rules that fit a tensor: one, unless none or several qualify.

        Each comes with the index of its pattern, and what that captured.
        """
        last = name.rpartition("/")[2]
        found = [
            (rule, row, captures, text)
            for rule, row, text in self._rows
            if pattern(text).last in ("", last)
            and (captures := pattern(text).match(name)) is not None
        ]
        narrowest = [
            (rule, row, captures)
            for rule, row, captures, text in found
            if not any(_is_narrower(other, text) for *_, other in found)
        ]
        # A rule counts before an Ignore, and rules that say the same count as one.
        rules = [each for each in narrowest if isinstance(each[0], Rule)]
        return list({_said(each[0]): each for each in rules or narrowest}.values())


def _said(rule: Rule | Ignore) -> object:
    return rule if isinstance(rule, Ignore) else (rule.leaf, rule.tensor, rule.layout)


@functools.lru_cache(maxsize=4096)
def _is_narrower(one: str, other: str) -> bool:
    """Tells whether what fits one pattern fits the other, but not the other way round."""
    inside = pattern(other).match(pattern(one).sample()) is not None
    return inside and pattern(one).match(pattern(other).sample()) is None
