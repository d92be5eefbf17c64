"""Tables as plain text, in which numbered layers fold into one row."""

import io
import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rich import box, console
from rich import table as rich_table
from rich.text import Text

_WIDTH = 10_000  # Columns; wide enough that nothing wraps, whatever the terminal.
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")

# A number that is a whole key or ends one after "_" or "-": layer/0, layers_31, Dense-2.
# Numbers with leading zeros stay as they are: "01" and "1" are two names.
_NUMBER = re.compile(r"(?:(?<=[/._-])|^)(0|[1-9][0-9]{0,17})(?=[/.]|$)")

_Numbers: TypeAlias = Sequence[int]


@dataclass(frozen=True, slots=True)
class Folded:
    """One row that stands for several.

    Attributes:
      label: the path, with ``{0..5}`` for the numbers that vary.
      cells: what all of them share.
      count: how many rows it stands for.
    """

    label: str
    cells: tuple[str, ...]
    count: int


def fold(rows: Iterable[tuple[str, *tuple[str, ...]]]) -> list[Folded]:
    """Folds rows that differ in nothing but the numbers in their paths. Takes linear time.

    A folded row stands for every combination of its numbers, so no row is lost or made up.

    Args:
      rows: a path, unlike any other in the table, and other cells; rows fold only if those are
        equal.

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
    """Writes a set of number tuples as a union of products, exactly: one position at a time."""
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
    label = words[0]
    for numbers, word in zip(factors, words[1:], strict=True):
        label += (_ranges(numbers) if len(numbers) > 1 else str(numbers[0])) + word
    return label


def _ranges(numbers: _Numbers) -> str:
    starts = [i for i, number in enumerate(numbers) if i == 0 or number != numbers[i - 1] + 1]
    runs = [numbers[i:j] for i, j in zip(starts, [*starts[1:], len(numbers)], strict=True)]
    return "{" + ",".join(f"{r[0]}..{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs) + "}"


def render(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Collection[str] = (),
) -> str:
    """Returns a table as plain text: no colors, no wrapping, the same in every terminal.

    Args:
      title: the line above the table; may be empty.
      columns: the heads.
      rows: the cells; characters that do not print are escaped.
      right: the heads of the columns that align right.

    Example:
      >>> print(render("2 leaves", ["path", "bytes"], [["a", "8"], ["b/c", "16"]], right=["bytes"]))
      2 leaves
      path   bytes
      ────────────
      a          8
      b/c       16
    """
    body = rich_table.Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for head in columns:
        body.add_column(head, justify="right" if head in right else "left", no_wrap=True)
    for row in rows:
        body.add_row(*(Text(_printable(cell)) for cell in row))
    stream = io.StringIO()
    console.Console(file=stream, width=_WIDTH, color_system=None, force_jupyter=False).print(body)
    lines = [_printable(title)] * bool(title) + stream.getvalue().splitlines()
    return "\n".join(line.rstrip() for line in lines)


def _printable(text: str) -> str:
    # A name in a file that somebody else wrote could hold what moves the cursor.
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def format_bytes(count: int) -> str:
    """Returns a number of bytes for people, in powers of 1024.

    >>> format_bytes(1023), format_bytes(1536 * 2**20)
    ('1023 B', '1.5 GiB')
    """
    size, unit = float(count), 0
    # 1023.95 would be shown as 1024.0.
    while size >= (1024 if unit == 0 else 1023.95) and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.1f} {_UNITS[unit]}" if unit else f"{count} B"


_NUMBERS = re.compile(r"(?<=[/._:-])[0-9]+(?=[/.#]|$)")


def numbered(path: str, origin: str) -> str:
    """Returns the text of an origin with ``{n}`` for numbers that stand in the path as well."""
    known = set(_NUMBERS.findall("/" + path))
    return _NUMBERS.sub(lambda found: "{n}" if found[0] in known else found[0], origin)
