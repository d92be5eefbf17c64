"""The search for the tensors of a leaf, one leaf after the other, in linear time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lazyinit import errors
from lazyinit.checkpoint import Checkpoint
from lazyinit.checkpoint.memory import Filled
from lazyinit.match.places import Form, Place, View
from lazyinit.params import Shape, Source
from lazyinit.rules.change import Grid
from lazyinit.rules.patterns import Captures, Pattern, joined_like, pattern, slashed
from lazyinit.rules.renames import Rename
from lazyinit.rules.rule import Constant, Rule


@dataclass(frozen=True, slots=True)
class Match:
    """The tensors that make a leaf.

    Attributes:
      tensors: what the checkpoint calls them; none if a rule says a constant.
      source: them, in the layout of the leaf; the first alone if there is a problem.
      problem: why they cannot make the leaf whatever its shape; ``""`` if they can.
      complete: whether all tensors that the rule wants are there.
    """

    tensors: tuple[str, ...]
    source: Source
    problem: str = ""
    complete: bool = True


def named(checkpoint: Checkpoint, renames: Sequence[Rename]) -> tuple[dict[str, str], set[int]]:
    """Returns the checkpoint's names by the names to match, and the ids of the renames used.

    Raises:
      FillError: two tensors go by one name.
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
                f"{checkpoint.origin}: tensors {names[name]!r} and {tensor!r} both go by {name!r}, "
                "as '.' and '/' mean the same. Keep them apart with lazyinit.Rename in rules."
            )
        names[name] = tensor
    return names, used


class Rules:
    """Rules, looked up by the last key of a leaf, so that few are tried on each."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        """Takes the rules, in order."""
        self._rules = rules
        self._ending: dict[str, list[tuple[Rule, list[tuple[int, Pattern]]]]] = {}

    def ending_like(self, name: str) -> list[tuple[Rule, list[tuple[int, Pattern]]]]:
        """Returns the rules, and the rows of their leaf patterns, whose last key may be that."""
        last = name.rpartition("/")[2]
        if last not in self._ending:
            self._ending[last] = found = []
            for rule in self._rules:
                rows = enumerate(map(pattern, rule.leaves))
                if fitting := [(row, each) for row, each in rows if each.last in ("", last)]:
                    found.append((rule, fitting))
        return self._ending[last]


class Search:
    """Finds the tensors of one leaf after the other; what is the same for several is kept."""

    def __init__(
        self,
        leaves: Sequence[Place],
        checkpoint: Checkpoint,
        names: Mapping[str, str],
        rules: Sequence[Rule],
        at: str,
    ) -> None:
        self._checkpoint, self._names, self._rules = checkpoint, names, Rules(rules)
        self._view = View.of(leaves, at)
        self._shapes = {place.name: place.shape for place in leaves}
        self._numbered = _Numbered(names)
        self._made: dict[tuple[int, str, Captures], _Made | None] = {}

    def find(self, place: Place) -> tuple[Match | None, Rule | None]:
        """Returns what makes a leaf, and the rule that says so, if any."""
        for name in self._view.own_names(place):
            if name in self._names:
                tensor = self._names[name]
                return Match((tensor,), self._checkpoint[tensor]), None
        second: tuple[Match | None, Rule | None] = None, None
        for rule, row, form, captures in self._fitting(place):
            found = self._match(rule, row, form, captures, place)
            if found is not None and found.complete:
                return found, rule
            if second[0] is None:
                second = found, rule
        return second

    def _fitting(self, place: Place) -> Iterator[tuple[Rule, int, Form, Captures]]:
        for rule, patterns in self._rules.ending_like(place.name):
            for form in self._view.forms(place, rule):
                for row, each in patterns:
                    if (captures := each.match(form.name)) is not None:
                        yield rule, row, form, captures

    def _match(
        self, rule: Rule, row: int, form: Form, captures: Captures, place: Place
    ) -> Match | None:
        if isinstance(rule.tensor, Constant):
            return _constant(rule.tensor, place.shape)
        made = self._make(rule, form.above, captures)
        if made is None or made.problem:
            return made and Match(made.tensors, made.first, made.problem, made.complete)
        column, number = made.grid.rows[row], int(dict(captures.numbers).get(rule.unstacked, 0))
        if number >= len(column):
            problem = f"{rule} makes {len(column)} leaves of them, and this is number {number}"
            return Match(made.tensors, made.first, problem)
        return Match(made.tensors, column[number])

    def _make(self, rule: Rule, above: str, captures: Captures) -> "_Made | None":
        several = len(rule.leaves) > 1 or rule.unstacked
        if not several:
            return self._made_of(rule, above, captures)
        key = (id(rule), above, captures.without(rule.unstacked))
        if key not in self._made:
            self._made[key] = self._made_of(rule, above, captures)
        return self._made[key]

    def _made_of(self, rule: Rule, above: str, captures: Captures) -> "_Made | None":
        rows, missing = self._tensors(rule, captures)
        tensors = tuple(tensor for row in rows for tensor in row)
        if not tensors:
            return None
        sources = tuple(tuple(self._checkpoint[tensor] for tensor in row) for row in rows)
        first = self._checkpoint[tensors[0]]
        if missing:
            return _Made(
                tensors,
                first,
                Grid(()),
                f"tensor {joined_like(missing, tensors[0])!r} is missing",
                False,
            )
        wanted = [self._shapes.get(above + pattern(leaf).write(captures)) for leaf in rule.leaves]
        try:
            grid = rule.changes().forward(Grid(sources, bool(rule.stacked)), tuple(wanted))
        except errors.FillError as error:
            return _Made(tensors, first, Grid(()), str(error).rstrip("."))
        return _Made(tensors, first, grid)

    def _tensors(self, rule: Rule, captures: Captures) -> tuple[list[tuple[str, ...]], str]:
        """Returns the tensors that there are for each pattern of a rule, and one that is not."""
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


@dataclass(frozen=True, slots=True)
class _Made:
    """What a rule makes of tensors, for all its leaves at once."""

    tensors: tuple[str, ...]
    first: Source
    grid: Grid
    problem: str = ""
    complete: bool = True


class _Numbered:
    """The tensors of a checkpoint by their names without a number; looked up once a pattern."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self._found: dict[tuple[str, str], dict[str, dict[int, str]]] = {}
        self._by_last: dict[str, list[str]] = {}
        for name in names:
            self._by_last.setdefault(name.rpartition("/")[2], []).append(name)

    def find(self, text: str, number: str, captures: Captures) -> Mapping[int, str]:
        """Returns tensors by their number: those of a pattern in which the rest is captured."""
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
    value = np.asarray(constant.value)
    wanted = value.shape if shape is None else shape
    try:
        np.broadcast_to(value, wanted)
    except ValueError:
        return Match((), Filled(value, value.shape), "it is not broadcast to another shape")
    return Match((), Filled(value, wanted))
