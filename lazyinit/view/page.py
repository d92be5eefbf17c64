"""Writes a tree as HTML for notebooks: data about each leaf, and a script that unfolds the tree.

treescope, the viewer of Flax's notebooks, draws the pictures. It does not draw this tree: it writes
every node, open or not, which takes 3 s and more for 20,000 leaves, and its nodes are reached by
mouse alone, on a white page. Here the leaves are data, in which equal parts are written once.
``page.js`` makes a ``<details>`` element of a branch when somebody opens it: browsers, keyboards
and screen readers can handle these without more script.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, TypeAlias

from lazyinit.view import html, pictures, table
from lazyinit.view.lines import Line, rows_of
from lazyinit.view.nested import Branch, Row, nest
from lazyinit.view.table import Table

_PICTURES = 16  # The most pictures of values, and of shardings, in a page; each takes some 17 KB.
_PLAIN = 300  # How many leaves the table has that is shown where scripts do not run.
_DIGITS = re.compile("[0-9]+")

# A number in a text that is also in the leaf's path is replaced by a character of this range, so
# that the texts of alike layers are equal, and are written once. `page.js` puts the number back.
_FIRST, _LAST = 0xE000, 0xE0FF


def of_tree(
    title: str, lines: Sequence[Line], bars: Sequence[tuple[str, int]], shardings: Any
) -> str:
    """Returns the HTML of a tree.

    Args:
      title: the line above the tree.
      lines: what is shown of each leaf.
      bars: names of devices, and the bytes on each, which are drawn as bars; may be empty.
      shardings: the sharding that each leaf has or will have, or ``None``, in the order of lines.
    """
    data = _Data()
    root = nest(
        [line.path.split("/") if line.path else [] for line in lines], [x.kind for x in lines]
    )
    drawn = _drawn(lines, shardings)
    for number, line in enumerate(lines):
        data.add(line, drawn.get(number, ()))
    whole = {"root": data.node(root), "nodes": list(data.nodes), "records": list(data.records)}
    written = json.dumps({**whole, "strings": list(data.strings)}, separators=(",", ":"))
    # No tag can begin within a JSON text that has no "<".
    written = written.replace("<", "\\u003c")
    name = hashlib.blake2b(written.encode(), digest_size=8).hexdigest()
    script = html.resource("page.js").replace("{{name}}", name)
    heads = ("path", "leaves", "state", "from or on", "array", "bytes each")
    left = len(lines) - _PLAIN
    more = [f"... and {left:,} more leaves"] * (left > 0)
    plain = html.table(Table("", heads, rows_of(lines[:_PLAIN]), ("leaves", "bytes each"), more))
    return html.page(
        f'<section class="li-page" data-lazyinit="{name}" data-lm-suppress-shortcuts="true" '
        f'aria-label="inspected tree"><div class="li-title">{escape(title)}</div>{_bars(bars)}'
        f'<div class="li-plain">{plain}</div>'
        f'<script type="application/json">{written}</script>'
        f"{''.join(_template(n, picture) for n, picture in enumerate(data.pictures))}</section>"
        f"<script>{script}</script>"
    )


def _drawn(lines: Sequence[Line], shardings: Any) -> dict[int, tuple[str, ...]]:
    """Returns the pictures of leaves, by their index: values of the first arrays, and shardings."""
    found: dict[int, tuple[str, ...]] = {}
    values, known = 0, dict[Any, str]()
    for number, (line, sharding) in enumerate(zip(lines, shardings, strict=True)):
        picture = pictures.of_values(line.leaf) if values < _PICTURES else ""
        values += bool(picture)
        cut = (tuple(line.leaf.shape), sharding)
        if cut not in known and sharding is not None:
            is_one_more = sum(map(bool, known.values())) < _PICTURES
            known[cut] = pictures.of_sharding(*cut) if is_one_more else ""
        if both := tuple(filter(None, (picture, known.get(cut, "")))):
            found[number] = both
    return found


def _template(number: int, picture: str) -> str:
    # Browsers neither show nor run a template. `page.js` does so when somebody opens its leaf.
    return f'<template data-picture="{number}">{picture}</template>'


def _bars(bars: Sequence[tuple[str, int]]) -> str:
    """Returns the bytes on each device as HTML, with bars."""
    most = max((count for _, count in bars), default=0) or 1
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="li-right">{table.format_bytes(count)}'
        f'</td><td class="li-bar"><meter min="0" max="{most}" value="{count}" '
        f'aria-label="{escape(name)}: {table.format_bytes(count)}"></meter></td></tr>'
        for name, count in bars
    )
    return f'<div class="li-scroll"><table class="li-bars">{rows}</table></div>' if rows else ""


_Node: TypeAlias = "int | tuple[int, tuple[Any, ...]]"  # Any: rows, which hold numbers and keys.


@dataclass(slots=True)
class _Data:
    """The data that ``page.js`` reads, in which equal strings, records and nodes are kept once."""

    strings: dict[str, int] = field(default_factory=dict)
    pictures: dict[str, int] = field(default_factory=dict)
    records: dict[tuple[Any, ...], int] = field(default_factory=dict)
    nodes: dict[_Node, int] = field(default_factory=dict)
    _of_leaf: list[int] = field(default_factory=list)

    def add(self, line: Line, drawn: Iterable[str]) -> None:
        """Adds a leaf: its record is [word, state, array, bytes, origin, pictures, more]."""
        path = _numbers(line.path)
        more = [
            number
            for label, text in line.more
            for number in (self._string(label), self._text(text, path))
        ]
        record = (
            self._string(line.word),
            self._string(line.state),
            self._string(line.array),
            line.nbytes,
            self._text(line.origin, path),
            tuple(self.pictures.setdefault(each, len(self.pictures)) for each in drawn),
            tuple(more),
        )
        self._of_leaf.append(self.records.setdefault(record, len(self.records)))

    def node(self, branch: Branch) -> int:
        """Adds a branch and all below it; returns its number.

        A node is [record, rows], or the record alone if nothing is below it. The record is given by
        its number, or -1 where there is no leaf. A row is [label, [key, node, key, node...]], with
        the numbers of nodes; if it has only one key, the key is the label, and 0 stands for it.
        """
        record = self._of_leaf[branch.leaf] if branch.leaf >= 0 else -1
        node: _Node = record
        if branch.rows:
            node = (record, tuple(map(self._row, branch.rows)))
        return self.nodes.setdefault(node, len(self.nodes))

    def _row(self, row: Row) -> tuple[Any, ...]:
        members: list[Any] = []
        for key, member in zip(row.keys, row.members, strict=True):
            members += [key, self.node(member)]
        return (0 if len(row.keys) == 1 else row.label, tuple(members))

    def _text(self, text: str, path: Mapping[str, str]) -> int:
        """Adds a text with the numbers of a path replaced; returns its index."""
        if path:
            text = _DIGITS.sub(lambda found: path.get(found[0], found[0]), text)
        return self._string(text)

    def _string(self, text: str) -> int:
        return self.strings.setdefault(text, len(self.strings))


def _numbers(path: str) -> dict[str, str]:
    """Returns the character that replaces each number of a path, by the number's digits."""
    found = list(dict.fromkeys(_DIGITS.findall(path)))[: _LAST - _FIRST]
    return {digits: chr(_FIRST + place) for place, digits in enumerate(found)}
