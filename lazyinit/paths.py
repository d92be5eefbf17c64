"""Paths of leaves: how they are printed, which of them ``paths=`` selects, and what is suggested.

A tree comes in, and its leaves with their paths go out, or a tree with other leaves. A path is
what ``jax.tree_util.keystr(path, simple=True, separator="/")`` prints, for trees of every kind:
``params/layers_0/attn/kernel``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax

from lazyinit import errors
from lazyinit.patterns import glob

Predicate: TypeAlias = Callable[[str, Any], bool]  # Any: a leaf may be any Python object.
Paths: TypeAlias = str | Iterable[str] | Predicate | None


def path_string(key_path: Sequence[Any]) -> str:
    """Returns the ``/``-joined form of a JAX key path (whose entries JAX leaves untyped)."""
    return jax.tree_util.keystr(tuple(key_path), simple=True, separator="/")


def name_string(key_path: Sequence[Any]) -> str:
    """Returns what a checkpoint calls the leaf at a JAX key path (entries untyped by JAX).

    That is its path, but for the attribute ``value`` in which Flax's metadata boxes
    (``nn.Partitioned``, ``nnx.Variable``) keep their array.
    """
    keys = list(key_path)
    while len(keys) > 1 and keys[-1] == jax.tree_util.GetAttrKey("value"):
        keys.pop()
    return path_string(keys)


def leaves_with_paths(tree: Any) -> list[tuple[str, Any]]:
    """Returns ``(path, leaf)`` for every leaf of any pytree, in JAX's order of leaves."""
    return [(path_string(p), x) for p, x in jax.tree_util.tree_leaves_with_path(tree)]


def replace_leaves(tree: Any, leaves: Sequence[Any]) -> Any:
    """Returns ``tree`` (any pytree) with other leaves, given in JAX's order of leaves.

    Unlike ``jax.tree.unflatten``, it keeps the order in which each dict holds its keys.
    """
    return _rebuilt(tree, iter(leaves))


def _rebuilt(node: Any, leaves: Iterator[Any]) -> Any:
    children, structure = jax.tree.flatten(node, is_leaf=lambda x: x is not node)
    if jax.tree_util.treedef_is_leaf(structure) and children:  # None has no leaf.
        return next(leaves)
    result = structure.unflatten([_rebuilt(child, leaves) for child in children])
    if not isinstance(node, Mapping) or list(result) == list(node):
        return result
    in_order = {key: result[key] for key in node}
    if not isinstance(node, dict):
        make: Any = type(node)  # flax.core.FrozenDict, for one.
        return make(in_order)
    result.clear()
    result.update(in_order)
    return result


def select(paths: Paths, leaves: Sequence[tuple[str, Any]]) -> list[bool]:
    """Says for each ``(path, leaf)`` whether ``paths`` selects it.

    Args:
      paths: ``None`` for all, a glob, several globs, or a predicate ``(path, leaf) -> bool``.
      leaves: what ``leaves_with_paths`` returned.

    Raises:
      PathError: a glob selects nothing; the message suggests the nearest path.
    """
    if paths is None:
        return [True] * len(leaves)
    if callable(paths):
        return [bool(paths(path, leaf)) for path, leaf in leaves]
    several = isinstance(paths, Iterable) and not isinstance(paths, str)
    selected = [False] * len(leaves)
    for pattern in paths if several else [paths]:
        if not isinstance(pattern, str):
            raise errors.PathError(
                f"paths: wanted a glob such as 'params/head', got {pattern!r}. "
                "Pass None, a string, several strings, or a predicate (path, leaf) -> bool."
            )
        selects = glob(pattern).selects
        hits = [selects(path) for path, _ in leaves]
        if not any(hits):
            raise errors.PathError(nothing_matches(pattern, [path for path, _ in leaves]))
        selected = [s or h for s, h in zip(selected, hits, strict=True)]
    return selected


def nothing_matches(pattern: str, known: Sequence[str]) -> str:
    """Returns the message for a pattern that selects none of the known paths."""
    subtrees = {
        "/".join(path.split("/")[:n]) for path in known for n in range(1, path.count("/") + 2)
    }
    return (
        f"{pattern}: this pattern matches none of the tree's {len(known)} leaves"
        f"{errors.nearest(pattern, sorted(subtrees))}"
    )
