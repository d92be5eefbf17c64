"""The base of all values that are shown as a table, and the table as text.

A subclass says what its table is. ``print`` writes it in lines that are no wider than the terminal,
a notebook shows it as HTML, and ``repr`` has only its first rows.
"""

import io
import os
import sys
from collections.abc import Iterator, Sequence

from rich import console
from rich.cells import cell_len, set_cell_size
from rich.text import Text

from lazyinit.view import html
from lazyinit.view.table import Table

_UNLIMITED = 10_000  # Columns; wide enough that nothing is shortened.
_ROWS_OF_REPR = 40
_GAP, _NARROW_GAP = 3, 2  # Columns between two cells.
_LEAST = 8  # The columns below which a cell is shortened only if nothing else helps.

# The style of a cell that is one of these words, in terminals with colors.
STYLES = {
    **dict.fromkeys(("lazy", "initialize", "missing"), "yellow"),
    **dict.fromkeys(("stored", "load", "loaded"), "blue"),
    **dict.fromkeys(("overlap", "adapted"), "magenta"),
    **dict.fromkeys(("derived", "derive"), "cyan"),
    **dict.fromkeys(("array", "made", "keep", "kept"), "green"),
    **dict.fromkeys(("mismatched", "unexpected"), "red"),
}


class Shown:
    """A base for values that show themselves as a table."""

    __slots__ = ()

    def _table(self) -> Table:
        """Returns the table that is shown."""
        raise NotImplementedError  # Each subclass has its own.

    def __str__(self) -> str:
        return as_text(self._table(), columns_there())

    def __repr__(self) -> str:
        return as_text(self._table().first(_ROWS_OF_REPR), columns_there())

    def _repr_html_(self) -> str:
        return html.page(html.table(self._table()))


def columns_there() -> int:
    """Returns how many columns the terminal has; very many if the output goes elsewhere.

    ``COLUMNS`` in the environment decides, if it is a number.
    """
    told = os.environ.get("COLUMNS", "")
    if told.isdecimal() and int(told):
        return int(told)
    try:
        # A terminal that does not know its width reports 0.
        return (os.get_terminal_size(sys.stdout.fileno()).columns) or _UNLIMITED
    except (OSError, ValueError, AttributeError):  # No terminal, no file, or nothing at all.
        return _UNLIMITED


def as_text(table: Table, width: int = _UNLIMITED) -> str:
    """Returns a table as text whose lines are no longer than ``width``, and never wrap.

    Where that is too narrow, cells are shortened: paths in the middle, others at the end. Only
    below some 40 columns lines may be longer.

    Args:
      table: what to print; characters that do not print are escaped.
      width: columns of the terminal.

    Example:
      >>> rows = [["a", "8"], ["b/c", "16"]]
      >>> print(as_text(Table("2 leaves", ["path", "bytes"], rows, right=["bytes"])))
      2 leaves
      path   bytes
      ────────────
      a          8
      b/c       16
    """
    return "\n".join("".join(text for text, _ in line).rstrip() for line in _lines(table, width))


def show(table: Table) -> None:
    """Prints a table: in color on a terminal, unless ``NO_COLOR`` is set."""
    to = console.Console(highlight=False)
    for line in _lines(table, columns_there()):
        text = Text.assemble(*line)
        text.rstrip()
        to.print(text, soft_wrap=True)


def _lines(table: Table, width: int) -> Iterator[list[tuple[str, str]]]:
    """Yields the lines of a table, each as a list of texts with their styles for rich."""
    for line in wrapped([table.title] if table.title else [], width):
        yield [(line, "bold")]
    if table.columns:
        yield from _body(table, width)
    for line in wrapped(table.notes, width):
        yield [(line, "")]


def _body(table: Table, width: int) -> Iterator[list[tuple[str, str]]]:
    """Yields the lines of the heads, of a rule below them, and of the rows."""
    rows = [[printable(cell) for cell in row] for row in table.rows]
    widths = [max(map(cell_len, column)) for column in zip(table.columns, *rows, strict=True)]
    heads, gap = [list(table.columns)], _GAP
    if sum(widths) + gap * (len(widths) - 1) > width:
        gap = _NARROW_GAP
        heads = _heads_in_lines(table)
        widths = _fitted(table, heads, rows, width - gap * (len(widths) - 1))

    def line(cells: Sequence[str], styles: Sequence[str]) -> list[tuple[str, str]]:
        parts: list[tuple[str, str]] = []
        for name, cell, room, style in zip(table.columns, cells, widths, styles, strict=True):
            text = shortened(cell, room)
            space = " " * (room - cell_len(text))
            padded = (space, "", text, style) if name in table.right else (text, style, space, "")
            parts += [(" " * gap * bool(parts), ""), padded[:2], padded[2:]]
        return parts

    for head in heads:
        yield line(head, ["dim"] * len(head))
    yield [("─" * (sum(widths) + gap * (len(widths) - 1)), "dim")]
    plain = ["cyan" if name == "share" else "" for name in table.columns]
    for row in rows:
        yield line(row, [STYLES.get(x, style) for x, style in zip(row, plain, strict=True)])


def _heads_in_lines(table: Table) -> list[list[str]]:
    """Returns the heads as several lines; those of numbers have one word a line, to be narrow."""
    words = [head.split(" ") if head in table.right else [head] for head in table.columns]
    count = max(map(len, words))
    return [list(line) for line in zip(*([""] * (count - len(w)) + w for w in words), strict=True)]


def _fitted(
    table: Table, heads: Sequence[Sequence[str]], rows: Sequence[Sequence[str]], width: int
) -> list[int]:
    """Returns the width of each column, so that all together take ``width`` if that is possible."""
    natural = [max(map(cell_len, column)) for column in zip(*heads, *rows, strict=True)]
    # People look for the first column, so it gets twice as much room as others.
    weights = [2 if place == 0 else 1 for place in range(len(natural))]
    fixed: list[bool] = []
    for least, whole in ((_LEAST, ("array", "share")), (_LEAST, ()), (1, ())):
        fixed = [name in table.right or name in whole for name in table.columns]
        for share in range(max(natural), 0, -1):
            widths = [
                size if is_fixed else min(size, max(least, share * weight))
                for size, is_fixed, weight in zip(natural, fixed, weights, strict=True)
            ]
            if sum(widths) <= width:
                return widths
    return [size if is_fixed else 1 for size, is_fixed in zip(natural, fixed, strict=True)]


def shortened(text: str, width: int) -> str:
    """Shortens a text to ``width`` columns: a path loses its middle, another text its end.

    >>> shortened("params/layers_{0..31}/attention/q/kernel", 24)
    'params/la…ntion/q/kernel'
    """
    if cell_len(text) <= width:
        return text
    if cell_len(text) == len(text) and ("/" in text or ":" in text) and width > 4:
        head = (width - 1) * 2 // 5
        return text[:head] + "…" + text[len(text) - (width - 1 - head) :]
    return set_cell_size(text, max(width - 1, 0)).rstrip() + "…"


def wrapped(lines: Sequence[str], width: int) -> list[str]:
    """Returns lines of prose, in which those that are too long are wrapped and indented."""
    found: list[str] = []
    for part in (printable(part) for line in lines for part in line.split("\n")):
        if cell_len(part) <= width:
            found.append(part)
            continue
        indent = "  " if width > 8 else ""
        cut = Text(part).wrap(console.Console(file=io.StringIO()), width - len(indent))
        found += [indent * bool(n) + line.plain.rstrip() for n, line in enumerate(cut)]
    return found


def printable(text: str) -> str:
    """Escapes characters that do not print: in a name from a file, they could move the cursor."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
