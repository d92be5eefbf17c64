"""``inspect``: a tree as an interactive view in a notebook, as a table in a terminal."""

from dataclasses import dataclass
from typing import Any

import jax

from lazyinit import paths, sharding
from lazyinit.view import table
from lazyinit.view.facts import Facts, is_array_like


@dataclass(frozen=True, slots=True, repr=False)
class TreeView:
    """A tree to look at: a notebook shows it as HTML, a terminal as a table.

    Attributes:
      tree: what is shown; nothing of it is made or read.
    """

    tree: Any

    def __str__(self) -> str:
        leaves = [(p, x) for p, x in paths.leaves_with_paths(self.tree) if is_array_like(x)]
        facts = [Facts.of(path, leaf) for path, leaf in leaves]
        rows = table.fold(
            (x.path, x.state, x.origin or _place(leaf), x.array, table.format_bytes(x.nbytes))
            for x, (_, leaf) in zip(facts, leaves, strict=True)
        )
        open_bytes = sum(x.nbytes for x in facts if x.state != "array")
        made_bytes = sum(x.nbytes for x in facts if x.state == "array")
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


def _place(leaf: Any) -> str:
    return sharding.describe(leaf.sharding) if isinstance(leaf, jax.Array) else "host"
