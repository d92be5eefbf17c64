"""Tables as plain values: rows in which numbered layers fold, and numbers of bytes as text."""

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")

# A number that is a whole key or ends one after "_" or "-": layer/0, layers_31, Dense-2.
# Numbers with leading zeros stay as they are: "01" and "1" are two names.
_NUMBER = re.compile(r"(?:(?<=[/._-])|^)(0|[1-9][0-9]{0,17})(?=[/.]|$)")

_Numbers: TypeAlias = Sequence[int]


@dataclass(frozen=True, slots=True)
class Table:
    """A table for people, which can be written as text or as HTML.

    Attributes:
      title: the line above the table; may be empty.
      columns: the heads of the columns.
      rows: the cells of each row.
      right: the heads of the columns that align right; their cells are never shortened.
      notes: the lines below the table.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Collection[str] = ()
    notes: Sequence[str] = ()

    def first(self, count: int) -> "Table":
        """Returns the table with at most ``count`` rows, and a note on how many are left out."""
        left = len(self.rows) - count
        if left <= 0:
            return self
        note = f"... and {left:,} more rows; print() shows all"
        return replace(self, rows=self.rows[:count], notes=(note, *self.notes))


@dataclass(frozen=True, slots=True)
class Folded:
    """One row that stands for several.

    Attributes:
      label: the path, with ``{0..5}`` for the numbers that vary.
      cells: the other cells, which are equal in all those rows.
      count: how many rows it stands for.
    """

    label: str
    cells: tuple[str, ...]
    count: int


def fold(rows: Iterable[tuple[str, *tuple[str, ...]]]) -> list[Folded]:
    """Folds rows that differ in nothing but the numbers in their paths. Takes linear time.

    A folded row stands for every combination of its numbers, so no row is lost or made up.

    Args:
      rows: the cells of each row, a path first, which no other row has. Rows fold only if all
        other cells are equal.

    Returns:
      The folded rows, in the order in which they first appeared.

    Example:
      >>> rows = [(f"layer/{i}/kernel", "f32[8,8]") for i in (0, 1, 2, 5)] + [("kernel", "f32[8]")]
      >>> [(row.label, row.count) for row in fold(rows)]
      [('layer/{0..2,5}/kernel', 4), ('kernel', 1)]
    """
    groups: dict[tuple[tuple[str, ...], tuple[str, ...]], list[_Numbers]] = {}
    for path, *cells in rows:
        pieces = _NUMBER.split(path)
        numbers = tuple(int(piece) for piece in pieces[1::2])
        groups.setdefault((tuple(pieces[::2]), tuple(cells)), []).append(numbers)
    return [
        Folded(_label(words, factors), cells, math.prod(map(len, factors)))
        for (words, cells), numbers in groups.items()
        for factors in _factored(numbers)
    ]


def _factored(rows: list[_Numbers]) -> list[tuple[_Numbers, ...]]:
    """Writes tuples of numbers as few products of sets, which have exactly these tuples.

    Merges one position after the other, which need not find the fewest products.

    >>> _factored([(0, 5), (0, 6), (1, 5), (1, 6), (2, 7)])
    [((0, 1), (5, 6)), ((2,), (7,))]
    """
    products: list[tuple[_Numbers, ...]] = [tuple((number,) for number in row) for row in rows]
    for position in range(len(rows[0])):
        merged: dict[tuple[_Numbers, ...], list[int]] = {}
        for product in products:
            others = product[:position] + product[position + 1 :]
            merged.setdefault(others, []).extend(product[position])
        products = [
            (*others[:position], tuple(sorted(numbers)), *others[position:])
            for others, numbers in merged.items()
        ]
    return products


def _label(words: tuple[str, ...], factors: tuple[_Numbers, ...]) -> str:
    """Returns a path with its numbers: one, or those of a range."""
    label = words[0]
    for numbers, word in zip(factors, words[1:], strict=True):
        label += (ranges(numbers) if len(numbers) > 1 else str(numbers[0])) + word
    return label


def ranges(numbers: Sequence[int]) -> str:
    """Returns numbers in ascending order as text: ``{0..3,7}``."""
    starts = [i for i, number in enumerate(numbers) if i == 0 or number != numbers[i - 1] + 1]
    runs = [numbers[i:j] for i, j in zip(starts, [*starts[1:], len(numbers)], strict=True)]
    return "{" + ",".join(f"{r[0]}..{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs) + "}"


def format_bytes(count: int) -> str:
    """Returns a number of bytes as text, in units that are powers of 1024.

    >>> format_bytes(1023), format_bytes(1536 * 2**20)
    ('1023 B', '1.5 GiB')
    """
    size, unit = float(count), 0
    # 1023.95 would be shown as 1024.0.
    while size >= (1024 if unit == 0 else 1023.95) and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.1f} {_UNITS[unit]}" if unit else f"{count} B"


def bar(part: float, width: int = 20) -> str:
    """Returns a bar for a part of a whole, from 0 to 1, in eighths of a column.

    >>> bar(0.3, 10), bar(1, 4)
    ('███', '████')
    """
    eighths = round(part * width * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


_NUMBERS = re.compile(r"(?<=[/._:-])[0-9]+(?=[/.#]|$)")


def numbered(path: str, origin: str) -> str:
    """Returns the text of an origin with ``{n}`` for each number that is also in the path."""
    known = set(_NUMBERS.findall("/" + path))
    return _NUMBERS.sub(lambda found: "{n}" if found[0] in known else found[0], origin)
