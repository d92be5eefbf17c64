"""The documentation site: ``python -m sphinx -W -n -b html docs site``.

Sphinx with myst-nb, as JAX, Flax and treescope have it: what a cell shows is on the page as it
is in a notebook, and every reference to a name, a page or a heading is checked.
"""

import re
import tomllib
from pathlib import Path

from docutils import nodes

_ROOT = Path(__file__).parent.parent

project = "lazyinit"
author = "the authors of lazyinit"
project_copyright = author
release = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["conf.py"]

# Pages keep the links that GitHub follows. `nb_execution_mode`: notebooks are kept with their
# outputs, and `tests/test_notebooks.py` executes them.
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_merge_streams = True

autodoc_typehints = "description"  # Signatures stay short.
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
nitpicky = True
# Types in signatures are those of JAX and NumPy, whose pages this build cannot reach, or private.
nitpick_ignore_regex = [("py:class", ".*"), ("py:obj", ".*")]
add_module_names = False
python_use_unqualified_type_names = True

# Copied without prompts and outputs.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "lazyinit"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_show_sphinx = False


def _returns_as_field(app, what, name, obj, options, lines):
    """Turns ``Returns:`` into a field, for napoleon takes what stands before a colon for a type."""
    if "Returns:" not in lines:
        return
    start = lines.index("Returns:")
    end = next((n for n in range(start + 1, len(lines)) if lines[n][:1].strip()), len(lines))
    lines[start : start + 2] = [f":returns: {lines[start + 1].strip()}"]
    for n in range(start + 1, end - 1):
        lines[n] = lines[n] and "    " + lines[n].strip()


def _drop_any(app, domain, kind, content):
    """Drops ``Return type: Any``, which says nothing beside a sentence on what is returned."""
    for field in list(content.findall(nodes.field)):
        if [child.astext() for child in field] == ["rtype", "Any"]:
            field.parent.remove(field)


def _trim_doctests(app, page, source):
    """Drops the empty line that a doctest needs before the end of its block."""
    source[0] = re.sub(
        r"(```python\n>>> (?:(?!```).)*\n)\n```", r"\1```", source[0], flags=re.DOTALL
    )


def setup(app):
    """Registers the above: one before napoleon, one after what collects types."""
    app.connect("source-read", _trim_doctests)
    app.connect("autodoc-process-docstring", _returns_as_field, priority=100)
    app.connect("object-description-transform", _drop_any, priority=900)
