"""Thunks in treescope, the tree viewer of Flax's own notebooks."""

from typing import Any

import jax
import treescope
from treescope import rendering_parts
from treescope.renderers import TreescopeRenderer

from lazyinit.params import Thunk, describe
from lazyinit.sharding import describe as where
from lazyinit.view.facts import state
from lazyinit.view.table import format_bytes

_LAZY, _STORED = "oklch(0.88 0.08 85)", "oklch(0.88 0.07 235)"


def to_html(tree: Any) -> str:
    """Returns HTML in which a tree (any pytree) can be unfolded, one line for each leaf."""
    # Only for this call: the renderer that notebooks share stays as it is.
    with treescope.active_renderer.set_scoped(renderer()):
        return treescope.render_to_html(tree)


def renderer() -> TreescopeRenderer:
    """Returns treescope's active renderer, extended by thunks and by arrays that are cut up."""
    return treescope.active_renderer.get().extended_with(handlers=[_render_leaf])


def _render_leaf(node: Any, path: str | None, subtree_renderer: Any) -> Any:
    # The types are treescope's own protocol for handlers, which leaves them open.
    del subtree_renderer
    if isinstance(node, Thunk):
        line, color = repr(node), _STORED if state(node) == "stored" else _LAZY
    elif _is_cut_up(node):
        # treescope would slice it to show some values, which would move data between devices.
        line, color = f"Array({describe(node.shape, node.dtype)}, {where(node.sharding)})", None
    else:
        return NotImplemented
    size = rendering_parts.text(f"  # {format_bytes(node.nbytes)}")
    return rendering_parts.build_one_line_tree_node(
        line=rendering_parts.siblings(
            rendering_parts.text(line), rendering_parts.comment_color(size)
        ),
        path=path,
        background_color=color,
    )


def _is_cut_up(node: object) -> bool:
    return isinstance(node, jax.Array) and len(node.sharding.device_set) > 1
