"""The pages of ``inspect`` and of tables, in a real browser."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from browser import browser as start
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from models import Decoder
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

import lazyinit as li
from lazyinit import paths

pytestmark = pytest.mark.slow  # A browser takes seconds to start.

LAZY = li.LazyParam((4, 2), "float32", jax.nn.initializers.normal(0.02))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with start(tmp_path_factory.mktemp("pages")) as started:
        yield started


@pytest.fixture(autouse=True)
def the_console_stays_empty(browser):
    yield
    assert browser.errors() == []


def decoder(layers=12):
    ids = jax.ShapeDtypeStruct((1, 4), "int32")
    return li.lazy(Decoder(layers=layers)).init(jax.random.key(0), ids)


def filled(*without):
    tree = decoder()
    stored = {
        path: np.zeros(leaf.shape, "f")
        for path, leaf in paths.leaves_with_paths(tree)
        if path.endswith("kernel") and not path.startswith(without)
    }
    return li.fill(tree, stored, on_missing="init")[0]


def test_alike_layers_are_one_line_that_unfolds(browser):
    browser.show(li.inspect(filled()).to_html())
    text = browser.line("layers_{0..11}").text
    assert "12 alike" in text
    assert "108 leaves" in text
    assert "lazy 24" in text
    assert "stored 84" in text
    assert "q/kernel" in browser.open("layers_{0..11}")
    facts = browser.open("q/kernel")
    assert "params/layers_*/q/kernel" in facts
    assert "params/layers_{n}/q/kernel (12 that differ)" in facts
    each = browser.open("each")
    assert len(browser.all(".li-each > details")) == 12
    assert "params/layers_7 9 leaves" in each
    assert "params/layers_7 copy" in browser.open("params/layers_7")


def test_nothing_is_made_of_a_place_before_it_is_opened(browser):
    tree = {f"w{n * 7919 % 20011:05}": replace(LAZY, shape=(1, n)) for n in range(20_000)}
    browser.show(li.inspect({"a": tree, "b": LAZY}).to_html())
    assert browser.js("return document.querySelectorAll('*').length") < 100
    browser.open("a")
    assert len(browser.all(".li-body > details")) == 200
    more = browser.one(".li-more")
    assert more.text == "show 200 more of 19,800"
    more.click()
    assert len(browser.all(".li-body > details")) == 400


def test_search_finds_leaves_by_words_and_by_globs(browser):
    browser.show(li.inspect(filled("params/layers_3")).to_html())
    box = browser.one(".li-search")
    for query, status in (
        ("layers_7 q/kernel", "1 of 111 leaves"),
        ("NORMAL(0.02)", "8 of 111 leaves"),
        ("params/**/kernel", "85 of 111 leaves"),
        ("params/layers_?/q", "10 of 111 leaves"),
        ("nothing of the sort", "0 of 111 leaves"),
    ):
        box.clear()
        box.send_keys(query)
        browser.wait(lambda: browser.one(".li-status").text == status)
        shown = [e for e in browser.all(".li-found > details") if e.is_displayed()]
        assert len(shown) == int(status.split()[0])
        assert not browser.one(".li-tree").is_displayed()
    box.clear()
    box.send_keys(" ")
    browser.wait(lambda: browser.one(".li-tree").is_displayed())


@pytest.mark.parametrize(
    ("names", "selected"),
    [
        (["params"], "params/**"),
        (["params", "head/kernel"], "params/head/kernel"),
        (["params", "layers_{0..2,4..11}"], "params/layers_[!3]*/**"),
        (["params", "layers_{0..2,4..11}", "q/kernel"], "params/layers_[!3]*/q/kernel"),
        (["params", "layers_3"], "params/layers_3"),
    ],
)
def test_what_is_copied_selects_what_the_line_shows(browser, names, selected):
    tree = filled("params/layers_3")
    browser.show(li.inspect(tree).to_html())
    browser.open(*names)
    details = browser.line(names[-1]).find_element(By.XPATH, "..")
    details.find_element(By.CSS_SELECTOR, ".li-copy").click()
    browser.wait(lambda: browser.one(".li-status").text.startswith("copied"))
    copied = browser.clipboard()
    wanted = copied if copied[0] != "[" else eval(copied, {})
    assert paths.select(wanted, tree) == paths.select(selected, tree)
    made = li.materialize(tree, wanted)
    assert [isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(made)] == paths.select(
        selected, tree
    )


def test_odd_names_are_shown_and_copied_as_they_are(browser):
    names = [
        "a*b",
        "[x]",
        "<img src=x onerror=alert(1)>",
        "q?",
        "größe 鍵",
        "\ue000\ue001",
        "3_7",
        "{n}",
    ]
    tree = {name: {"7": replace(LAZY), "w": replace(LAZY)} for name in names}
    stored, _ = li.fill(
        tree, {f"{name}/w": np.zeros((4, 2), "f") for name in names}, on_missing="init"
    )
    browser.show(li.inspect(stored).to_html())
    assert {e.text for e in browser.all(".li-name")} == set(names)
    for number, name in enumerate(sorted(names)):
        browser.js(
            "document.querySelectorAll('.li-tree > details')[arguments[0]].open = true", number
        )
        leaf = browser.wait(
            lambda: browser.all(f".li-tree > details:nth-child({number + 1}) .li-body > details")
        )[1]
        browser.js("arguments[0].open = true", leaf)
        button = browser.wait(lambda: leaf.find_elements(By.CSS_SELECTOR, ".li-copy"))[0]
        assert (
            leaf.find_elements(By.CSS_SELECTOR, "dd")[1].get_attribute("textContent") == f"{name}/w"
        )
        browser.js("document.querySelector('.li-status').textContent = ''")
        button.click()
        browser.wait(lambda: browser.one(".li-status").text)
        chosen = paths.select(browser.clipboard(), tree)
        assert [
            p for (p, _), x in zip(paths.leaves_with_paths(tree), chosen, strict=True) if x
        ] == [f"{name}/w"]


def test_a_page_without_a_clipboard_copies_all_the_same(browser):
    browser.show(li.inspect(filled()).to_html())
    browser.js(
        "window.kept = navigator.clipboard; Object.defineProperty(navigator, 'clipboard', {value: undefined})"
    )
    browser.open("head/kernel")
    browser.all(".li-copy")[1].click()
    browser.wait(lambda: browser.one(".li-status").text == "copied params/head/kernel")
    read = browser.driver.execute_async_script(
        "const done = arguments[0]; kept.readText().then(done)"
    )
    assert read == "params/head/kernel"


def brightness(browser):
    color = browser.js(
        "return getComputedStyle(document.querySelector('.lazyinit')).backgroundColor"
    )
    return sum(map(int, re.findall(r"\d+", color)[:3]))


@pytest.mark.parametrize("system", ["light", "dark"])
@pytest.mark.parametrize(
    ("theme", "is_dark"),
    [
        ("", None),
        ('data-jp-theme-light="true"', False),
        ('data-jp-theme-light="false"', True),
        ('class="vscode-dark"', True),
        ('class="vscode-light"', False),
        ('class="vscode-high-contrast"', True),
        ('class="vscode-high-contrast vscode-high-contrast-light"', False),
        ('data-theme="dark"', True),
        ('data-md-color-scheme="slate"', True),
    ],
)
def test_pages_are_dark_where_the_notebook_is_or_else_the_system(browser, system, theme, is_dark):
    html = li.inspect(decoder()).to_html()
    browser.show(f"<div {theme}>{html}</div>", theme=system)
    is_dark = (system == "dark") if is_dark is None else is_dark
    assert (brightness(browser) < 200) == is_dark
    assert (brightness(browser) > 700) == (not is_dark)


CONTRAST = """
const pixel = (...colors) => {
  const canvas = document.createElement('canvas');
  const paint = canvas.getContext('2d');
  for (const color of colors) { paint.fillStyle = color; paint.fillRect(0, 0, 1, 1); }
  const parts = [...paint.getImageData(0, 0, 1, 1).data].slice(0, 3).map((c) => {
    c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
};
return [...document.querySelectorAll(arguments[0])].map((one) => {
  const style = getComputedStyle(one);
  const page = getComputedStyle(document.querySelector('.lazyinit')).backgroundColor;
  const back = pixel(page, style.backgroundColor);
  const front = pixel(page, style.backgroundColor, style.color);
  return (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
});
"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_can_be_read_on_what_is_behind_them(browser, theme):
    tree = {"lazy": LAZY, "array": np.ones(3, "f"), "shape": jax.ShapeDtypeStruct((2,), "float32")}
    tree["overlap"] = li.fill({"w": LAZY}, {"w": np.ones((3, 2), "f")}, on_mismatch=li.overlap)[0][
        "w"
    ]
    tree["stored"] = li.fill({"w": LAZY}, {"w": np.ones((4, 2), "f")})[0]["w"]
    tree["derived"] = li.lazy(lambda t: t["w"] * 2)({"w": tree["stored"]})
    browser.show(li.inspect(tree).to_html(), theme=theme)
    browser.open("lazy")
    words = set(browser.texts("summary .li-word"))
    assert words == {"lazy", "array", "abstract", "overlap", "stored", "derived"}
    for selector in (
        ".li-word",
        ".li-name",
        ".li-bytes",
        ".li-from",
        ".li-facts dt",
        ".li-path",
        "button",
    ):
        ratios = browser.js(CONTRAST, selector)  # What WCAG asks of text is 4.5.
        assert ratios
        assert min(ratios) >= 4.5, selector


def test_the_keyboard_alone_goes_everywhere(browser):
    browser.show(li.inspect(filled()).to_html())
    focused = lambda: browser.driver.switch_to.active_element  # noqa: E731
    press = lambda key: focused().send_keys(key)  # noqa: E731
    browser.one("body").send_keys(Keys.TAB)
    assert focused().get_attribute("type") == "search"
    press(Keys.TAB)
    assert focused().text.startswith("params")
    press(Keys.ARROW_DOWN)
    assert focused().text.startswith("embed/embedding")
    press(Keys.ARROW_RIGHT)
    browser.wait(lambda: browser.all(".li-facts"))
    press(Keys.ARROW_LEFT)
    assert focused().find_element(By.XPATH, "..").get_attribute("open") is None
    press(Keys.ENTER)
    assert focused().find_element(By.XPATH, "..").get_attribute("open") is not None
    press(Keys.TAB)
    assert focused().accessible_name == "copy the path params/embed/embedding"
    press(Keys.ENTER)
    browser.wait(lambda: browser.one(".li-status").text == "copied params/embed/embedding")
    focused().send_keys(Keys.SHIFT, Keys.TAB)
    press(Keys.END)
    assert focused().text.startswith("norm/scale")
    press(Keys.ARROW_LEFT)
    assert focused().text.startswith("params")
    press(Keys.HOME)
    assert focused().text.startswith("params")


def test_keys_pressed_in_the_page_are_no_commands_of_the_notebook(browser):
    browser.show(li.inspect(filled()).to_html())
    browser.js("window.heard = []; document.addEventListener('keydown', (e) => heard.push(e.key))")
    browser.one(".li-search").send_keys(Keys.TAB)
    browser.driver.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    browser.one(".li-search").send_keys("dd")
    assert browser.js("return heard") == []


def test_a_screen_reader_hears_a_name_for_each_control(browser):
    browser.show(li.inspect(filled(), sharding="data=2").to_html())
    browser.open("embed/embedding")
    controls = browser.all("button, input, meter, summary, section")
    assert len(controls) > 8
    assert all(control.accessible_name for control in controls)
    assert browser.one(".li-search").accessible_name.startswith("search paths")
    assert browser.one(".li-status").aria_role == "status"
    assert browser.one("meter").accessible_name.startswith("each of devices 0 to 1: ")


def picture(browser):
    """Returns how many cells of a canvas treescope has drawn."""
    return browser.js(
        "const root = document.querySelector('treescope-container')?.shadowRoot;"
        "return root ? root.querySelectorAll('canvas').length : 0"
    )


def test_arrays_are_drawn_by_treescope_once_they_are_opened(browser):
    browser.show(li.inspect({"a": jnp.arange(12.0).reshape(3, 4), "b": LAZY}).to_html())
    assert picture(browser) == 0
    browser.open("a")
    browser.wait(lambda: picture(browser) > 0)


def test_shardings_are_drawn_by_treescope_planned_or_real(browser):
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    array = jax.device_put(jnp.zeros((8, 4)), NamedSharding(mesh, P("data", "model")))
    views = [
        li.inspect({"a": array, "b": LAZY}),
        li.inspect({"a": LAZY, "b": LAZY}, sharding=li.shard_by_rules("x=4", {"**": P("x")})),
    ]
    for view in views:
        browser.show(view.to_html())
        browser.open("a")
        shadow = browser.wait(
            lambda: browser.js("return document.querySelector('treescope-container')?.shadowRoot")
        )
        browser.wait(
            lambda: "Colored by device" in browser.js("return arguments[0].textContent", shadow)
        )


def test_bytes_per_device_are_bars(browser):
    browser.show(li.inspect(decoder(), sharding=li.shard_fsdp("data=4", "data")).to_html())
    per_device = li.plan(decoder(), li.shard_fsdp("data=4", "data")).bytes_per_device
    assert browser.one("meter").get_attribute("value") == str(set(per_device.values()).pop())
    assert browser.texts(".li-bars th") == ["each of devices 0 to 3"]


def test_what_a_fill_changed_is_told_in_words(browser):
    browser.show(li.inspect(decoder(), filled("params/layers_3")).to_html())
    assert "lazy → stored" in browser.line("head/kernel").text
    assert "before\nlazy, float32[16,64]" in browser.open("head/kernel")
    assert "lazy → stored 77" in browser.line("layers_{0..2,4..11}").text


def test_a_page_shown_twice_works_twice(browser):
    html = li.inspect(decoder()).to_html()
    browser.show(html + html)
    assert len(browser.all(".li-search")) == 2
    assert len(browser.all(".li-tree > details")) == 2


def test_without_scripts_a_table_is_shown(browser):
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.show(li.inspect(filled()).to_html())
        assert "params/layers_{0..11}/q/kernel" in browser.texts("td")
        assert browser.all("details") == []
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.parametrize("width", [500, 1200])
def test_rows_of_tables_are_one_line_each_however_narrow_the_page(browser, width):
    browser.show(li.plan(filled(), "data=2")._repr_html_(), width=width)
    heights = browser.js(
        "return [...document.querySelectorAll('tbody tr')].map((r) => r.offsetHeight)"
    )
    assert len(heights) > 5
    assert len(set(heights)) == 1
    page, room = browser.js(
        "const d = document.documentElement; return [d.scrollWidth, d.clientWidth]"
    )
    assert page <= room


@pytest.mark.parametrize("width", [400, 1000])
def test_a_tree_fits_the_page(browser, width):
    browser.show(li.inspect(filled()).to_html(), width=width)
    browser.open("layers_{0..11}", "attention_norm/scale")
    page, room = browser.js(
        "const d = document.documentElement; return [d.scrollWidth, d.clientWidth]"
    )
    assert page <= room


# What JupyterLab does to all that is in a cell, and more of it.
HOST = """<style>
.host.host.host :is(td, th, tr) { padding: 7px; text-align: right; vertical-align: middle; white-space: normal; }
.host.host.host tr:nth-child(odd) { background: red; }
.host.host.host table { border: 3px solid; margin: 1em auto; table-layout: fixed; }
.host.host.host dt { float: left; font-weight: 700; width: 5%; }
.host.host.host dd { margin: 0 0 1em 20%; }
.host.host.host :is(code, pre) { background: red; border: 1px solid; padding: 1px 5px; }
.host.host.host ul { list-style: square; margin-bottom: 2em; padding-left: 4em; }
.host.host.host input::placeholder { color: red; }
</style><div class="host">"""
LOOK = """
const shown = (e) => e.offsetParent !== null && !e.closest('.li-picture');
const look = (e, part) => {
  const s = getComputedStyle(e, part);
  return [s.color, s.backgroundColor, s.textAlign, s.paddingLeft, s.listStyleType, s.fontWeight];
};
const input = document.querySelector('input');
return [...document.querySelectorAll('.lazyinit :is(table, tr, td, th, dl, dt, dd, code, pre, ul, li)')]
  .filter(shown).map((e) => [e.tagName, e.offsetWidth, e.offsetHeight, ...look(e)])
  .concat(input ? [look(input, '::placeholder')] : []);
"""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("what", ["tree", "plan", "leaf", "suggestion"])
def test_pages_look_the_same_whatever_the_notebook_does_to_cells(browser, what, theme):
    tree = filled()
    html = {
        "tree": lambda: li.inspect(tree, sharding=li.shard_fsdp("data=4", "data")).to_html(),
        "plan": lambda: li.plan(tree, "data=2")._repr_html_(),
        "leaf": lambda: tree["params"]["layers_0"]["q"]["kernel"]._repr_html_(),
        "suggestion": lambda: li.suggest_rules(tree, {"a.weight": np.zeros((3, 3))})._repr_html_(),
    }[what]()
    looks = []
    for before in ("", HOST):
        browser.show(html, theme=theme, before=before)
        if what == "tree":
            browser.open("layers_{0..11}", "attention_norm/scale")
        looks.append(browser.js(LOOK))
    assert len(looks[0]) > 5 or what == "suggestion"
    assert looks[0] == looks[1]
