"""How one leaf is shown in a notebook: as the result of a cell, and within treescope's trees."""

from typing import Any

from lazyinit.params import Thunk, leaf_as_html, leaf_in_treescope
from lazyinit.view import html, table
from lazyinit.view.facts import state
from lazyinit.view.lines import line_of, size

# Background colors, on which treescope writes in black.
_COLORS = {
    "lazy": "oklch(0.88 0.08 85)",
    "stored": "oklch(0.88 0.07 235)",
    "overlap": "oklch(0.88 0.07 310)",
    "derived": "oklch(0.88 0.07 185)",
}


@leaf_as_html.register
def _leaf_as_html(leaf: Thunk) -> str:
    line = line_of(leaf.path, leaf)
    title = f"{type(leaf).__name__}, {line.array}"
    path = [("path", leaf.path)] * bool(leaf.path)
    return html.page(
        html.facts(title, line.state, [*path, *line.more, ("bytes", size(leaf.nbytes))])
    )


@leaf_in_treescope.register
def _leaf_in_treescope(leaf: Thunk, path: str | None, subtree_renderer: Any) -> Any:
    del subtree_renderer
    # treescope calls this with values of its own types, which it does not document (hence Any).
    from treescope import rendering_parts as parts

    size = parts.text(f"  # {state(leaf)}, {table.format_bytes(leaf.nbytes)}")
    return parts.build_one_line_tree_node(
        line=parts.siblings(parts.text(repr(leaf)), parts.comment_color(size)),
        path=path,
        background_color=_COLORS[state(leaf)],
    )
