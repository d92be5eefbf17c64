"""``inspect``: a tree as an interactive view in a notebook, as a table in a terminal."""

import os
from dataclasses import dataclass
from typing import Any

import jax

from lazyinit import paths, sharding
from lazyinit.params import LazyParam, OverlapParam, Source, StoredParam, Thunk, describe, label
from lazyinit.view import table


@dataclass(frozen=True, slots=True, repr=False)
class TreeView:
    """A tree to look at: a notebook shows it as HTML, a terminal as a table.

    Attributes:
      tree: what is shown; nothing of it is made or read.
    """

    tree: Any

    def __str__(self) -> str:
        leaves = [(p, x) for p, x in paths.leaves_with_paths(self.tree) if hasattr(x, "shape")]
        rows = table.fold(
            (path, *_kind_and_origin(x), describe(x.shape, x.dtype), table.format_bytes(x.nbytes))
            for path, x in leaves
        )
        open_bytes = sum(x.nbytes for _, x in leaves if isinstance(x, Thunk))
        made_bytes = sum(x.nbytes for _, x in leaves if not isinstance(x, Thunk))
        title = (
            f"{len(leaves)} leaves: {table.format_bytes(open_bytes)} not made yet, "
            f"{table.format_bytes(made_bytes)} in arrays"
        )
        columns = ("path", "leaves", "state", "from or on", "array", "bytes each")
        cells = [(row.label, str(row.count), *row.cells) for row in rows]
        return table.render(title, columns, cells, right=("leaves", "bytes each"))

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_html(self) -> str:
        """Returns the interactive view as HTML that needs no server, to embed or to save."""
        from lazyinit.view import notebook

        return notebook.to_html(self.tree)


def inspect(tree: Any) -> TreeView:
    """Returns a view of a tree, without making or reading any of it.

    Args:
      tree: any pytree with thunks or arrays among its leaves.

    Returns:
      A value that a notebook shows as a tree to unfold and a terminal as a table; ``to_html``
      gives the former as a string.

    Example:
      >>> import jax, flax.linen as nn, lazyinit as li
      >>> x = jax.ShapeDtypeStruct((1, 3), "float32")
      >>> print(li.inspect(li.lazy(nn.Dense(2)).init(jax.random.key(0), x)))
      2 leaves: 32 B not made yet, 0 B in arrays
      path            leaves   state   from or on ...
      ─────────...
      params/bias          1   lazy    zeros ...
      params/kernel        1   lazy    variance_scaling(1.0, truncated_normal, fan_in) ...
    """
    return TreeView(tree)


def _kind_and_origin(leaf: Any) -> tuple[str, str]:
    match leaf:
        case LazyParam():
            return "lazy", label(leaf.init_fn)
        case StoredParam():
            return "stored", _file(leaf.source)
        case OverlapParam():
            return "overlap", f"{_file(leaf.stored)} over {label(leaf.rest.init_fn)}"
        case _:
            on_device = isinstance(leaf, jax.Array)
            return "array", sharding.describe(leaf.sharding) if on_device else "host"


def _file(source: Source) -> str:
    return os.path.basename(source.origin.rstrip("/")) or source.origin
