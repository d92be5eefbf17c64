"""Writes tables as HTML for notebooks: without scripts, and in the light or dark of the page."""

import functools
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from lazyinit.view.table import Table

_MOST_ROWS = 1000  # More make notebooks slow to open.


@functools.cache
def resource(name: str) -> str:
    """Returns the text of a file in this folder: the style sheet or the script of pages."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def page(*parts: str) -> str:
    """Returns HTML with its style sheet, in ASCII, so that it looks the same in every encoding."""
    whole = f'<div class="lazyinit"><style>{resource("page.css")}</style>{"".join(parts)}</div>'
    return whole.encode("ascii", "xmlcharrefreplace").decode()


def table(shown: Table) -> str:
    """Returns the HTML of a table, its title and its notes."""
    shown = shown.first(_MOST_ROWS)
    heads = [_cell("th", head, head in shown.right, ' scope="col"') for head in shown.columns]
    rows = ["".join(_row(row, shown)) for row in shown.rows]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    caption = f"<caption>{escape(shown.title)}</caption>" if shown.title else ""
    return (
        f'<div class="li-scroll" tabindex="0" role="region" aria-label="table"><table>{caption}'
        f"<thead><tr>{''.join(heads)}</tr></thead><tbody>{body}</tbody></table></div>"
        f"{notes(shown.notes)}"
    )


def facts(title: str, state: str, rows: Sequence[tuple[str, str]]) -> str:
    """Returns the HTML of labeled facts about one leaf, under a title with its state."""
    listed = "".join(f"<dt>{escape(label)}</dt><dd>{escape(text)}</dd>" for label, text in rows)
    return (
        f'<div class="li-title">{escape(title)} {word(state)}</div>'
        f'<dl class="li-facts">{listed}</dl>'
    )


def source(code: str, remarks: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Returns the HTML of source code to copy, with lists of remarks below, each with a title."""
    lists = "".join(
        f'<div class="li-title">{escape(title)}</div>{notes(lines)}'
        for title, lines in remarks
        if lines
    )
    return f'<pre tabindex="0"><code>{escape(code)}</code></pre>{lists}'


def notes(lines: Sequence[str]) -> str:
    """Returns the HTML of lines of prose as a list; ``""`` if there are none."""
    listed = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{listed}</ul>" if listed else ""


def word(text: str) -> str:
    """Returns the HTML of a state's word, in the color of the state if it has one."""
    state = text.replace(",", " ").split(" ")[0]
    return f'<span class="li-word li-{escape(state)}">{escape(text)}</span>'


def _row(row: Sequence[str], shown: Table) -> Iterable[str]:
    for head, cell in zip(shown.columns, row, strict=True):
        if head in ("state", "action", "status"):
            yield f"<td>{word(cell)}</td>"
        else:
            yield _cell("td", cell, head in shown.right)


def _cell(tag: str, text: str, is_right: bool, more: str = "") -> str:
    return f"<{tag}{more}{' class=li-right' * is_right}>{escape(text)}</{tag}>"
