"""Finds the tensors of a checkpoint that make each leaf of a tree, by its own name or by rules.

Places and a checkpoint come in, and a ``Match`` for each leaf that has tensors goes out. Nothing
is read. The search takes linear time: names are looked up, and a rule is tried only on leaves
that end in its last key.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lazyinit import errors
from lazyinit.checkpoint import Checkpoint
from lazyinit.match.fits import Fit, RuleIndex
from lazyinit.match.places import Place
from lazyinit.match.unfit import Unfit
from lazyinit.patterns import Captures, Pattern, joined_like, pattern, slashed
from lazyinit.rules.change import Grid
from lazyinit.rules.renames import Ignore, Rename
from lazyinit.rules.rule import AnyRule, Constant, Rule
from lazyinit.sources import Shape, Source
from lazyinit.tensors.memory import Filled
from lazyinit.tensors.quantized import kept_as


@dataclass(frozen=True, slots=True)
class Match:
    """The tensors that make a leaf.

    Attributes:
      tensors: their names in the checkpoint; empty if a rule gives a constant.
      source: reads them in the layout of the leaf; if there is a problem, the first tensor alone.
      problem: why they cannot make the leaf in any shape; ``""`` if they can.
      complete: whether the checkpoint has all tensors that the rule wants.
    """

    tensors: tuple[str, ...]
    source: Source
    problem: str = ""
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Matching:
    """What was found for the leaves of a tree.

    Attributes:
      matches: the match of each leaf that has one, by the leaf's path.
      unused_rules: rules that were not used, without optional ones and ``Ignore``.
      ignored: the names of tensors that make no leaf and that an ``Ignore`` fits.
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
      FillError: two tensors have the same name after renames, with ``.`` read as ``/``.
    """
    at = slashed(at).strip("/")
    names, used = named(checkpoint, [rule for rule in rules if isinstance(rule, Rename)])
    search = _Search(leaves, checkpoint, names, [r for r in rules if isinstance(r, Rule)], at)
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
    """Tells whether nobody needs to know that a rule was not used."""
    return isinstance(rule, Ignore) or (isinstance(rule, Rule) and rule.optional)


def named(checkpoint: Checkpoint, renames: Sequence[Rename]) -> tuple[dict[str, str], set[int]]:
    """Returns each tensor's name in the checkpoint by its name after renames.

    Returns also the ids of the renames that were used.

    Raises:
      FillError: two tensors have the same name after renames, with ``.`` read as ``/``.
    """
    names: dict[str, str] = {}
    used: set[int] = set()
    for tensor in checkpoint:
        name = slashed(tensor)
        for rename in renames:
            if new := rename.name_for(name):
                name = new
                used.add(id(rename))
        if name in names:
            raise errors.FillError(
                f"{checkpoint.origin}: wanted tensors with different names, got {names[name]!r} "
                f"and {tensor!r}, which are both read as {name!r}, because '.' and '/' mean the "
                "same. Give one of them another name in a mapping: {new: tensor for name, tensor "
                "in lazyinit.open_checkpoint(...).items()}."
            )
        names[name] = tensor
    return names, used


class _Search:
    """Finds the tensors of leaves, one leaf at a time, and caches what several leaves share."""

    def __init__(
        self,
        leaves: Sequence[Place],
        checkpoint: Checkpoint,
        names: Mapping[str, str],
        rules: Sequence[Rule],
        at: str,
    ) -> None:
        self._checkpoint, self._names, self._at = checkpoint, names, at
        self._rules = RuleIndex(rules)
        self._given = rules
        self._shapes = {place.name: place.shape for place in leaves}
        self._numbered = _Numbered(names)
        self._unfit = Unfit(checkpoint)
        self._kept: dict[Hashable, tuple[Match | None, Grid]] = {}

    def find(self, place: Place) -> tuple[Match | None, Rule | None]:
        """Returns the tensors that make a leaf, and the rule that led to them.

        The match is ``None`` if no tensor makes the leaf. The rule is ``None`` if none was needed,
        since the leaf's own name is a tensor's.
        """
        found, rule = self._find(place)
        if found is None:
            names = (name for name, _ in place.candidates(self._at, self._given))
            packed, problem = self._unfit.packed(names)
            return (Match((packed,), self._checkpoint[packed], problem) if packed else None), None
        if not found.tensors:
            return found, rule
        is_scaled = rule is not None and rule.changes().is_decoding
        problem = self._unfit.refused(found.tensors) or found.problem
        if not problem and not is_scaled:
            problem = self._unfit.unscaled(found.tensors, place.dtype)
        return replace(found, problem=problem), rule

    def _find(self, place: Place) -> tuple[Match | None, Rule | None]:
        """Returns the first complete match, else an incomplete one, else that of its own name."""
        own = [self._names[n] for n in place.own_names(self._at) if n in self._names][:1]
        partial: tuple[Match | None, Rule | None] = None, None
        for fit in self._rules.fits(place, self._at):
            if own and not self._takes(fit, own[0]):
                continue
            found = self._match(fit, place)
            if found is not None and found.complete:
                return partial if self._lacks_scales(partial, found, place) else (found, fit.rule)
            if partial[0] is None:
                partial = found, fit.rule
        if own and partial[0] is None:
            return Match((own[0],), kept_as(self._checkpoint[own[0]], place.dtype)), None
        return partial

    def _takes(self, fit: Fit, tensor: str) -> bool:
        """Tells whether a tensor is among those that a rule makes a leaf of."""
        return any(tensor in row for row in self._tensors(fit.rule, fit.captures)[0])

    def _lacks_scales(
        self, partial: tuple[Match | None, Rule | None], found: Match, place: Place
    ) -> bool:
        """Tells whether a later rule would read quantized values without their scales.

        That is so if an earlier rule decodes them, but lacks a tensor (``partial``).
        """
        rule = partial[1]
        is_decoded = partial[0] is not None and rule is not None and rule.changes().is_decoding
        return is_decoded and self._unfit.are_quantized(found.tensors, place.dtype)

    def _match(self, fit: Fit, place: Place) -> Match | None:
        """Returns what a rule makes of its tensors for one leaf; ``None`` if it has no tensor."""
        rule = fit.rule
        if isinstance(rule.tensor, Constant):
            return _constant(rule.tensor, place.shape)
        found, grid = self._made(fit, place.dtype)
        if found is None or found.problem:
            return found
        column, number = grid.rows[fit.row], int(dict(fit.captures.numbers).get(rule.unstacked, 0))
        if number >= len(column):
            problem = f"{rule} makes {len(column)} leaves of them, and this is number {number}"
            return replace(found, problem=problem)
        return Match(found.tensors, column[number])

    def _made(self, fit: Fit, dtype: Any) -> tuple[Match | None, Grid]:
        """Returns the tensors that a rule takes, and the grid of all leaves that it makes of them.

        The match's source is the first tensor alone. The grid is empty if there is a problem.
        """
        if len(fit.rule.leaves) == 1 and not fit.rule.unstacked:
            return self._made_anew(fit, dtype)
        key = fit.key(fit.rule.unstacked)
        if fit.rule.changes().is_decoding or self._checkpoint.dequantized:
            key = key, dtype
        if key not in self._kept:
            self._kept[key] = self._made_anew(fit, dtype)
        return self._kept[key]

    def _made_anew(self, fit: Fit, dtype: Any) -> tuple[Match | None, Grid]:
        """Does the work of ``_made``, which caches the result."""
        rule = fit.rule
        rows, missing = self._tensors(rule, fit.captures)
        tensors = tuple(tensor for row in rows for tensor in row)
        if not tensors:
            return None, Grid(())
        found = Match(tensors, self._checkpoint[tensors[0]])
        if missing:
            problem = f"tensor {joined_like(missing, tensors[0])!r} is missing"
            return replace(found, problem=problem, complete=False), Grid(())
        sources = tuple(tuple(kept_as(self._checkpoint[t], dtype) for t in row) for row in rows)
        leaves = (fit.above + pattern(leaf).write(fit.captures) for leaf in rule.leaves)
        wanted = tuple(self._shapes.get(leaf) for leaf in leaves)
        layout = rule.changes()
        if layout.is_decoding and found.source.dtype == dtype:
            layout = layout.kept()
        try:
            made = layout.forward(Grid(sources, bool(rule.stacked)), wanted)
            return found, made.map(lambda source: kept_as(source, dtype))
        except errors.FillError as error:
            return replace(found, problem=str(error).rstrip(".")), Grid(())

    def _tensors(self, rule: Rule, captures: Captures) -> tuple[list[tuple[str, ...]], str]:
        """Returns the tensors that exist for each pattern of a rule, and one missing name."""
        patterns = [pattern(tensor) for tensor in rule.tensors]
        if not rule.stacked:
            wanted = [each.write(captures) for each in patterns]
            missing = next((name for name in wanted if name not in self._names), "")
            return [(self._names[name],) if name in self._names else () for name in wanted], missing
        found = [self._numbered.find(t, rule.stacked, captures) for t in rule.tensors]
        count = max(max(row, default=-1) for row in found) + 1
        missing = next(
            (
                each.write(captures.having(rule.stacked, str(number)))
                for each, row in zip(patterns, found, strict=True)
                for number in range(count)
                if number not in row
            ),
            "",
        )
        return [tuple(row[number] for number in sorted(row)) for row in found], missing


class _Numbered:
    """An index of tensors by their names without one number, built once for each pattern."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self._found: dict[tuple[str, str], dict[str, dict[int, str]]] = {}
        self._by_last: dict[str, list[str]] = {}
        for name in names:
            self._by_last.setdefault(name.rpartition("/")[2], []).append(name)

    def find(self, text: str, number: str, captures: Captures) -> Mapping[int, str]:
        """Returns the tensors that fit a pattern with these captures, by what ``number`` is."""
        if (text, number) not in self._found:
            self._found[text, number] = self._look(pattern(text), number)
        return self._found[text, number].get(pattern(text).write(captures.without(number)), {})

    def _look(self, wanted: Pattern, number: str) -> dict[str, dict[int, str]]:
        found: dict[str, dict[int, str]] = {}
        for name in self._by_last.get(wanted.last, ()) if wanted.last else self._names:
            if (captures := wanted.match(name)) is not None:
                group = found.setdefault(wanted.write(captures.without(number)), {})
                group[int(dict(captures.numbers)[number])] = self._names[name]
        return found


def _constant(constant: Constant, shape: Shape | None) -> Match:
    """Returns the match of a leaf whose values a rule gives, broadcast to the leaf's shape."""
    value = np.asarray(constant.value)
    wanted = value.shape if shape is None else shape
    try:
        np.broadcast_to(value, wanted)
    except ValueError:
        return Match((), Filled(value, value.shape), "it cannot be broadcast to that shape")
    return Match((), Filled(value, wanted))
