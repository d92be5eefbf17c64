"""Finds the rules that fit a leaf, and groups what one rule takes together.

A place and rules come in, and a ``Fit`` for each rule that may make the leaf goes out. Fits that
capture the same text belong to one ``Group``, whose leaves or tensors become one grid.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from lazyinit import errors
from lazyinit.match.places import Place
from lazyinit.patterns import Captures, Pattern, joined_like, pattern
from lazyinit.rules.change import Grid
from lazyinit.rules.rule import Rule
from lazyinit.sources import Source


@dataclass(frozen=True, slots=True)
class Fit:
    """A name that fits one of the patterns of a rule.

    Attributes:
      rule: the rule.
      row: the index of that pattern, among those of the rule's leaves or of its tensors.
      above: the start of the full name that the pattern does not cover, such as ``"params/"``.
      captures: what the pattern captured in the rest of the name.
    """

    rule: Rule
    row: int
    above: str
    captures: Captures

    def key(self, number: str) -> Hashable:
        """Returns a key that is equal for fits of a rule which differ in row and ``number``."""
        return id(self.rule), self.above, self.captures.without(number)


class RuleIndex:
    """Rules, looked up by the last key of a leaf, so that few are tried on each."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        """Takes the rules, in order."""
        self._rules = rules
        self._ending: dict[str, list[tuple[Rule, list[tuple[int, Pattern]]]]] = {}

    def fits(self, place: Place, at: str, *, innermost: bool = False) -> Iterator[Fit]:
        """Yields the fits of the rules, in order, to the names of a leaf.

        The longest name comes first, or the shortest if ``innermost``.
        """
        for rule, patterns in self._ending_like(place.name.rpartition("/")[2]):
            names = list(place.names(at, rule))
            for name in reversed(names) if innermost else names:
                for row, each in patterns:
                    if (captures := each.match(name)) is not None:
                        yield Fit(rule, row, place.name.removesuffix(name), captures)

    def _ending_like(self, last: str) -> list[tuple[Rule, list[tuple[int, Pattern]]]]:
        """Returns rules with a pattern whose last key may be ``last``, each with such patterns."""
        if last not in self._ending:
            self._ending[last] = found = []
            for rule in self._rules:
                rows = enumerate(map(pattern, rule.leaves))
                if fitting := [(row, each) for row, each in rows if each.last in ("", last)]:
                    found.append((rule, fitting))
        return self._ending[last]


class Group:
    """The leaves, or the tensors, that one rule takes together, added cell by cell to a grid."""

    def __init__(self, fit: Fit, number: str) -> None:
        """Makes an empty group for fits like this one; the capture ``number`` counts columns."""
        self.rule, self.captures = fit.rule, fit.captures.without(number)
        self._number = number
        self._cells: dict[tuple[int, int], tuple[str, Source]] = {}

    def add(self, fit: Fit, label: str, source: Source) -> None:
        """Puts a source into the cell of a fit; ``label`` is the path or name for messages."""
        column = int(dict(fit.captures.numbers).get(self._number, 0))
        self._cells[fit.row, column] = (label, source)

    @property
    def labels(self) -> list[str]:
        """The paths of the leaves, or the names of the tensors, in the order they were added."""
        return [label for label, _ in self._cells.values()]

    def grid(self, patterns: Sequence[str]) -> Grid:
        """Returns the grid with a row for each pattern.

        Raises:
          FillError: a cell is missing.
        """
        columns = range(max(column for _, column in self._cells) + 1)
        for column in columns:
            for row, text in enumerate(patterns):
                if (row, column) not in self._cells:
                    missing = joined_like(self._written(text, column, self._number), self.labels[0])
                    raise errors.FillError(
                        f"{self.labels[0]}: {self.rule} wants {missing!r} beside it, but nothing "
                        "has that name. Write another rule for this one."
                    )
        rows = (tuple(self._cells[row, n][1] for n in columns) for row in range(len(patterns)))
        return Grid(tuple(rows), bool(self._number))

    def names(
        self, patterns: Sequence[str], number: str, grid: Grid
    ) -> Iterator[tuple[str, Source]]:
        """Yields the name and the source of each cell of a grid; each row has one pattern.

        The capture ``number`` counts the grid's columns; if it is ``""``, there is one column.
        """
        for text, row in zip(patterns, grid.rows, strict=True):
            for column, source in enumerate(row):
                yield self._written(text, column, number or self._number), source

    def _written(self, text: str, column: int, number: str) -> str:
        captures = self.captures.having(number, str(column)) if number else self.captures
        return pattern(text).write(captures)
