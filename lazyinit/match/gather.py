"""What a rule takes together: the cells of a grid, found one by one."""

from collections.abc import Hashable, Iterator, Sequence

from lazyinit import errors
from lazyinit.params import Source
from lazyinit.patterns import Captures, joined_like, pattern
from lazyinit.rules.change import Grid
from lazyinit.rules.rule import Rule


class Group:
    """The leaves, or the tensors, that one rule takes together; filled cell by cell."""

    def __init__(self, rule: Rule, captures: Captures, number: str) -> None:
        """Takes the rule, what all cells capture alike, and the number that counts columns."""
        self.rule, self.captures = rule, captures
        self._number = number
        self._cells: dict[tuple[int, int], tuple[str, Source]] = {}

    def add(self, row: int, captures: Captures, label: str, source: Source) -> None:
        """Puts a source where its pattern and its number say; ``label`` is what it is called."""
        column = int(dict(captures.numbers).get(self._number, 0))
        self._cells[row, column] = (label, source)

    @property
    def labels(self) -> list[str]:
        """What its cells are called, in the order in which they came."""
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
                    missing = joined_like(self.written(text, column), self.labels[0])
                    raise errors.FillError(
                        f"{self.labels[0]}: {self.rule} wants {missing!r} "
                        "beside it, which is not there. Write another rule for it."
                    )
        rows = (tuple(self._cells[row, n][1] for n in columns) for row in range(len(patterns)))
        return Grid(tuple(rows), bool(self._number))

    def written(self, text: str, column: int, number: str = "") -> str:
        """Returns the name that a pattern has here; ``number`` is the one that counts columns."""
        number = number or self._number
        captures = self.captures.having(number, str(column)) if number else self.captures
        return pattern(text).write(captures)

    def names(
        self, patterns: Sequence[str], number: str, grid: Grid
    ) -> Iterator[tuple[str, Source]]:
        """Yields the name of each cell of a grid whose rows have these patterns."""
        for text, row in zip(patterns, grid.rows, strict=True):
            for column, source in enumerate(row):
                yield self.written(text, column, number), source


class Groups:
    """Groups in the order in which they were begun."""

    def __init__(self) -> None:
        """Begins with none."""
        self._groups: dict[Hashable, Group] = {}

    def group(self, rule: Rule, above: str, captures: Captures, number: str) -> Group:
        """Returns the group of what a rule captures alike, but for a number."""
        alike = captures.without(number)
        return self._groups.setdefault((id(rule), above, alike), Group(rule, alike, number))

    def __iter__(self) -> Iterator[Group]:
        return iter(self._groups.values())
