"""What the documentation promises of itself: every name, every snippet, every notebook."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

import lazyinit as li

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
# What other libraries do, 48 GiB of arrays, calls on many hosts: blocks that cannot run here.
NOT_RUN = {
    "how-to/one-device.md": 1,
    "how-to/many-hosts.md": 1,
    "coming-from/transformers.md": 1,
    "coming-from/nnx.md": 1,
    "coming-from/orbax.md": 2,
}


def described():
    """Returns the names that have an entry in the reference."""
    text = "\n".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    entry = r"^\.\. (?:auto)?(?:function|class|data|module):: lazyinit\.(\S+)$"
    return re.findall(entry, text, re.MULTILINE)


def test_every_public_name_has_one_entry_in_the_reference():
    counts = Counter(name for name in described() if "." not in name)
    # Those two are among the members of `lazyinit.errors`.
    assert counts == Counter(set(li.__all__) - {"LazyinitError", "LazyinitWarning"})
    assert li.LazyinitError is li.errors.LazyinitError
    assert li.LazyinitWarning is li.errors.LazyinitWarning


def test_every_map_has_one_entry_in_the_reference():
    entries = (name for name in described() if name.startswith("maps."))
    counts = Counter(name.removeprefix("maps.") for name in entries)
    # A family's own page of names, `maps.bert`, stands beside its maps.
    assert {name: counts[name] for name in li.maps.__all__} == dict.fromkeys(li.maps.__all__, 1)


@pytest.mark.parametrize("page", PAGES)
def test_every_python_block_is_a_doctest(page):
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.M)
    loose = [block for block in blocks if not block.startswith(">>> ")]
    assert len(loose) == NOT_RUN.get(page, 0), loose


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_as_it_was_executed_from_top_to_bottom(path):
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_says_nothing_of_the_machine_that_executed_it(path):
    assert not re.findall(r"/(?:tmp|root|home)/[\w./-]*", path.read_text())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_asserts_what_it_says(path):
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert any("assert" in "".join(cell["source"]) for cell in cells)
