"""The page that a newcomer reads first names what is there."""

import ast
import re
from pathlib import Path

import planted
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lazyinit"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::([\w.]+)`", PAGE)))
ROOMS = sorted(p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists())


def names_of(file):
    """Returns the functions and classes of a file, methods as ``Class.method``."""
    found = set()
    for node in ast.parse((PACKAGE / file).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            inner = [n for n in node.body if isinstance(n, ast.FunctionDef)]
            found |= {f"{node.name}.{n.name}" for n in inner}
    return found


def test_the_way_of_a_parameter_has_some_steps():
    assert len(NAMED) >= 20


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_what_the_page_names_exists(file, name):
    assert name in names_of(file)


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_is_on_the_page_and_opens_with_what_it_is_about(room):
    assert f"`{room}/`" in PAGE
    essay = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))
    assert essay is not None
    assert essay.count(".") >= 3, "whole sentences: what comes in, what goes out, its one idea"


def test_no_two_files_and_no_two_classes_share_a_name():
    files = [p.name for p in PACKAGE.rglob("*.py") if p.name != "__init__.py"]
    classes = [
        node.name
        for p in PACKAGE.rglob("*.py")
        for node in ast.parse(p.read_text()).body
        if isinstance(node, ast.ClassDef)
    ]
    for names in (files, classes):
        assert sorted(names) == sorted(set(names))


def test_what_the_planted_faults_change_stands_in_the_code():
    gone = [
        (file, old)
        for _, file, old, _, _ in planted.FAULTS
        if (PACKAGE / file).read_text().count(old) != 1
    ]
    assert not gone, "write these faults anew, in tests/planted.py"


def test_every_floor_is_on_few_lines():
    layers = (ROOT / ".importlinter").read_text().partition("layers =\n")[2].partition("\n\n")[0]
    assert len(layers.splitlines()) <= 8
