"""The site of the documentation, built strictly and opened in a real browser.

    pytest -n 0 tests/built_site.py

Not among the other tests, as it needs what the extra ``docs`` installs.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from browser import THEME
from browser import browser as start

DOCS = Path(__file__).parent.parent / "docs"
SOURCES = [path for ending in ("md", "ipynb") for path in sorted(DOCS.rglob(f"*.{ending}"))]
PAGES = [path.relative_to(DOCS).with_suffix(".html").as_posix() for path in SOURCES]

# Sphinx looks for an element of the role `main` in each page that it found, and Furo has none.
SEARCH_WITHOUT_MAIN = "Anchored content block not found"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(DOCS), str(folder)]
    subprocess.run(build, check=True)  # Warnings are errors, a link to nothing among them.
    with start(folder) as started:
        yield started


@pytest.fixture(autouse=True)
def the_console_stays_empty(browser):
    yield
    assert [error for error in browser.errors() if SEARCH_WITHOUT_MAIN not in error] == []


def visit(browser, page, theme="light", width=1300):
    browser.driver.set_window_size(width, 900)
    media = {"features": [{"name": THEME, "value": theme}]}
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    address = f"{browser.address}/{page}"
    browser.driver.get(address)
    there = "return document.readyState == 'complete' && location.href"
    browser.wait(lambda: browser.js(there) == address)


def brightness(browser, selector):
    """Returns the sum of red, green and blue behind an element, from 0 to 765."""
    script = "return getComputedStyle(document.querySelector(arguments[0])).backgroundColor"
    color = browser.js(script, selector)
    return sum(int(part) for part in color[color.index("(") + 1 : -1].split(",")[:3])


def lines_called(browser, name):
    return [line for line in browser.all(".lazyinit summary") if line.text.startswith(name)]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(("theme", "width"), [("light", 1300), ("dark", 500)])
def test_a_page_is_as_wide_as_the_window_and_as_light_as_the_system(browser, page, theme, width):
    visit(browser, page, theme, width)
    assert browser.one("h1").text
    needed, there = browser.js(
        "const page = document.documentElement; return [page.scrollWidth, page.clientWidth]"
    )
    assert needed <= there
    assert (brightness(browser, "body") < 200) == (theme == "dark")


def test_the_switch_of_the_page_makes_trees_dark_too(browser):
    visit(browser, "notebooks/first_look.html")
    assert brightness(browser, ".lazyinit") > 700
    (switch, *_) = [one for one in browser.all(".theme-toggle") if one.is_displayed()]
    switch.click()  # From the system's choice, light, to dark.
    assert brightness(browser, "body") < 200
    assert brightness(browser, ".lazyinit") < 200


def test_the_tree_of_a_notebook_unfolds_on_its_page(browser):
    visit(browser, "notebooks/first_look.html")
    assert "normal(0.02)" not in browser.texts(".lazyinit")[0]
    for name in ("embeddings", "word_embeddings"):
        lines = browser.wait(lambda name=name: lines_called(browser, name))
        browser.js("arguments[0].click()", lines[0])  # What floats over the page is no matter here.
    browser.wait(lambda: "normal(0.02)" in browser.texts(".lazyinit")[0])
    assert "float32[30522,384]" in browser.texts(".lazyinit")[0]


def test_the_search_of_the_site_finds_a_function(browser):
    visit(browser, "search.html?q=materialize")
    browser.wait(lambda: browser.all("#search-results li"))
    assert any("lazyinit.materialize" in text for text in browser.texts("#search-results li"))
