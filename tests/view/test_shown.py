"""Tables at any width, in color or not, and as HTML."""

import io
import os
import re
import sys
from html import unescape

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import Decoder
from rich.cells import cell_len

import lazyinit as li
from lazyinit.view import html, shown
from lazyinit.view.shown import as_text, columns_there, printable, shortened, wrapped
from lazyinit.view.table import Table

IDS = jax.ShapeDtypeStruct((1, 4), "int32")


NAMES = ("view", "placed", "compared", "plan", "report", "provenance", "check")


@pytest.fixture(scope="module")
def values():
    """Returns a value of each class that prints as a table, of a tree of twelve layers."""
    tree = li.lazy(Decoder(layers=12)).init(jax.random.key(0), IDS)
    stored = {"params/head/kernel": np.ones((16, 64), "f"), "other": np.ones(3, "f")}
    filled, report = li.fill(tree, stored, on_missing="init")
    mesh = "data=4,model=2"
    return {
        "view": li.inspect(filled),
        "placed": li.inspect(filled, sharding=li.shard_fsdp(mesh, ("data", "model"))),
        "compared": li.inspect(tree, filled),
        "plan": li.plan(filled, li.shard_fsdp(mesh, ("data", "model"))),
        "report": report,
        "provenance": li.provenance(filled),
        "check": li.Check("jax", True, ("drawn normal float32",), {"compiled dot": "sum"}, 1.0),
    }


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("name", NAMES)
def test_no_line_is_wider_than_the_terminal(values, name, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = str(values[name]).splitlines()
    assert len(lines) > 4
    assert max(map(cell_len, lines)) <= width


@pytest.mark.parametrize("name", ["view", "placed", "compared", "plan", "report", "provenance"])
def test_a_wide_terminal_shows_all(values, name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    wide = str(values[name])
    monkeypatch.delenv("COLUMNS")
    assert "…" not in wide
    rows = [line for line in str(values[name]).splitlines() if line.startswith("params/")]
    assert rows
    assert set(rows) <= set(wide.splitlines())


def test_a_narrow_table_shortens_paths_in_the_middle_and_other_cells_at_their_ends():
    row = ["params/layers_{0..31}/attention/query/kernel", "12", "variance_scaling(1.0, fan_in)"]
    table = Table("", ["path", "leaves", "from"], [row], right=["leaves"])
    assert as_text(table, 60).splitlines()[-1] == (
        "params/layer…ention/query/kernel      12  variance_scalin…"
    )


cells = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40)


@given(st.lists(st.tuples(cells, cells, cells), max_size=4), st.integers(40, 120), cells, cells)
def test_no_table_is_wider_than_it_may_be(rows, width, title, note):
    sized = [(path, state, str(len(array))) for path, state, array in rows]
    table = Table(title, ["path", "state", "bytes"], sized, right=["bytes"], notes=[note])
    assert all(cell_len(line) <= width for line in as_text(table, width).splitlines())


@given(st.text("abc/:.", max_size=60), st.integers(1, 40))
def test_a_shortened_text_has_no_more_columns_than_there_are(text, width):
    short = shortened(text, width)
    assert cell_len(short) <= width
    assert short == text if len(text) <= width else "…" in short


def test_a_table_is_plain_text():
    table = Table("title", ["path", "n"], [["x" * 300, "1"], ["[red]y[/red]", "22"]], right=["n"])
    assert as_text(table) == "\n".join(
        [
            "title",
            "path" + " " * 299 + " n",
            "─" * 305,
            "x" * 300 + "    1",
            "[red]y[/red]" + " " * 288 + "   22",
        ]
    )


def test_characters_that_move_the_cursor_are_escaped():
    text = as_text(Table("a\x1b[31m", ["path"], [["b\x1b[2J\n"]], notes=["c\x1b[1m"]))
    assert "\x1b" not in text
    assert "b\\x1b[2J\\n" in text
    assert printable("c\x1b") == "c\\x1b"


def test_long_prose_is_cut_between_words():
    assert wrapped(["one two  three", "four"], 9) == ["one two", "  three", "four"]


def test_output_that_is_no_terminal_has_every_column(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert columns_there() == 10_000
    monkeypatch.setattr(sys, "stdout", None)
    assert columns_there() == 10_000


def test_a_terminal_says_how_wide_it_is(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((91, 30)))
    with open(os.devnull, "w") as anything:
        monkeypatch.setattr(sys, "stdout", anything)
        assert columns_there() == 91
        monkeypatch.setenv("COLUMNS", "72")
        assert columns_there() == 72
        monkeypatch.setenv("COLUMNS", "many")
        assert columns_there() == 91


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "no_color", "is_colored"),
    [(Terminal(), "", True), (Terminal(), "1", False), (io.StringIO(), "", False)],
)
def test_only_a_terminal_without_no_color_gets_colors(stream, no_color, is_colored, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(sys, "stdout", stream)
    table = Table("title", ["path", "state"], [["a/b", "lazy"]])
    shown.show(table)
    assert ("\x1b[33mlazy" in stream.getvalue()) == is_colored
    plain = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    assert [line.rstrip() for line in plain.splitlines()] == as_text(table).splitlines()


def test_a_repr_stays_short(values):
    tree = {f"{n:05}": np.zeros(n, "f") for n in range(500)}
    for value in (li.inspect(tree), li.plan(tree), li.provenance(tree)):
        assert len(repr(value).splitlines()) < 50
        assert "... and 460 more rows; print() shows all" in repr(value)
        assert len(str(value).splitlines()) > 500
    assert repr(values["report"]) == f"Report({values['report'].summary()})"


@pytest.mark.parametrize("name", ["plan", "report", "provenance", "check"])
def test_as_html_a_value_has_every_cell_that_it_prints(values, name):
    page = values[name]._repr_html_()
    table = values[name]._table()
    texts = [unescape(text) for text in re.findall(r">([^<]*)<", page)]
    for row in table.rows:
        assert {cell for cell in row if cell} <= set(texts)
    assert {*table.columns, *table.notes} <= set(texts)


def test_html_of_what_others_wrote_has_no_tags_of_theirs():
    bad = '<script>alert("x")</script>'
    page = html.page(html.table(Table(bad, [bad], [[bad]], notes=[bad])), html.source(bad, []))
    page += html.page(html.facts(bad, bad, [(bad, bad)]))
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_html_is_ascii_and_asks_for_nothing():
    page = html.page(html.table(Table("", ["path"], [["größe → 鍵"]])))
    assert page.isascii()
    assert "größe → 鍵" in unescape(page)
    assert not re.search(r"https?:|src=|@import|url\(", page)


def test_suggested_rules_show_their_source():
    tree = {"up": {"kernel": np.zeros((2, 3))}, "head": {"kernel": np.zeros((2, 5))}}
    stored = {"up.w": np.zeros((3, 2)), "out.w": np.zeros((5, 2)), "rest": np.zeros(7)}
    found = li.suggest_rules(tree, stored)
    page = unescape(found._repr_html_())
    assert str(found).split("]\n")[0] in page
    assert "unmatched tensor" in page
    assert "<li>rest</li>" in page
