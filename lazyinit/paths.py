"""Paths of leaves: how they are printed, and which of them ``paths=`` selects.

A tree comes in, and its leaves with their paths go out, or a tree with other leaves. A path is
what ``jax.tree_util.keystr(path, simple=True, separator="/")`` prints, for trees of every kind:
``params/layers_0/attn/kernel``. The attribute ``value``, in which an ``nnx.Variable`` keeps its
array, is no part of the path.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax

from lazyinit import errors
from lazyinit.patterns import escape, glob

Predicate: TypeAlias = Callable[[str, Any], bool]  # Any: a leaf may be any Python object.
Filter: TypeAlias = Any  # Of Flax NNX: ``nnx.Param``, ``nnx.Not(nnx.RngState)``, ``...``.
Paths: TypeAlias = str | Iterable[str | Filter] | Predicate | Filter | None


def path_string(key_path: Sequence[Any]) -> str:
    """Returns the ``/``-joined form of a JAX key path (whose entries JAX leaves untyped)."""
    return jax.tree_util.keystr(tuple(key_path), simple=True, separator="/")


def name_string(key_path: Sequence[Any]) -> str:
    """Returns the name in a checkpoint of the leaf at a JAX key path (entries untyped by JAX).

    The name is the path without the attribute ``value``, in which Flax's metadata boxes
    (``nn.Partitioned``) keep their array, as an ``nnx.Variable`` does.
    """
    keys = list(key_path)
    while len(keys) > 1 and keys[-1] == jax.tree_util.GetAttrKey("value"):
        keys.pop()
    return path_string(keys)


def is_variable(node: Any) -> bool:
    """Tells whether a node of a tree is an ``nnx.Variable``; without Flax NNX, none is."""
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(node, nnx.Variable)


def leaves_with_keys(
    tree: Any, is_leaf: Callable[[Any], bool] = lambda _: False
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yields the JAX key path (without a variable's ``value``) and the leaf, in JAX's order.

    Args:
      tree: any pytree.
      is_leaf: tells of a node whether it counts as a leaf, as in ``jax.tree``.
    """

    def stops(node: Any) -> bool:
        return is_leaf(node) or is_variable(node)

    for keys, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=stops):
        if not is_variable(node):
            yield keys, node
            continue
        for inner, leaf in jax.tree_util.tree_leaves_with_path(node, is_leaf=is_leaf):
            yield (*keys, *inner[1:]), leaf


def leaves_with_paths(
    tree: Any, is_leaf: Callable[[Any], bool] = lambda _: False
) -> list[tuple[str, Any]]:
    """Returns ``(path, leaf)`` for every leaf of any pytree, in JAX's order of leaves."""
    return [(path_string(keys), leaf) for keys, leaf in leaves_with_keys(tree, is_leaf)]


def replace_leaves(tree: Any, leaves: Sequence[Any]) -> Any:
    """Returns ``tree`` (any pytree) with other leaves, given in JAX's order of leaves.

    Unlike ``jax.tree.unflatten``, it keeps the order in which each dict holds its keys.
    """
    return _rebuilt(tree, iter(leaves))


def _rebuilt(node: Any, leaves: Iterator[Any]) -> Any:
    """Returns a node with the next leaves, and with the keys of dicts in their old order."""
    children, structure = jax.tree.flatten(node, is_leaf=lambda x: x is not node)
    if jax.tree_util.treedef_is_leaf(structure) and children:  # None has no leaf.
        return next(leaves)
    result = structure.unflatten([_rebuilt(child, leaves) for child in children])
    if not isinstance(node, Mapping) or list(result) == list(node):
        return result
    in_order = {key: result[key] for key in node}
    if not isinstance(node, dict):
        make: Any = type(node)  # For example flax.core.FrozenDict.
        return make(in_order)
    result.clear()
    result.update(in_order)
    return result


def select(paths: Paths, tree: Any) -> list[bool]:
    """Tells for each leaf of any pytree, in JAX's order, whether ``paths`` selects it.

    Args:
      paths: ``None`` for all; a glob; a filter of Flax NNX (``nnx.Param``); several of both; or a
        predicate ``(path, leaf) -> bool``.
      tree: the tree.

    Raises:
      PathError: a glob or a filter selects nothing; the message suggests the nearest path.
    """
    if paths is None:
        return [True] * len(jax.tree.leaves(tree))
    leaves = leaves_with_paths(tree)
    if callable(paths) and not is_filter(paths):
        return [bool(paths(path, leaf)) for path, leaf in leaves]
    several: Any = paths if isinstance(paths, Iterable) and not isinstance(paths, str) else [paths]
    selected = [False] * len(leaves)
    for pattern in several:
        if is_filter(pattern):
            hits = _filtered(pattern, tree)
        elif isinstance(pattern, str):
            hits = [glob(pattern).selects(path) for path, _ in leaves]
        else:
            raise errors.PathError(
                f"paths: wanted a glob such as 'params/head', got {pattern!r}. Pass None, a "
                "string, a filter of Flax NNX, several of these, or a predicate "
                "(path, leaf) -> bool."
            )
        if not any(hits):
            raise errors.PathError(nothing_matches(str(pattern), [path for path, _ in leaves]))
        selected = [s or h for s, h in zip(selected, hits, strict=True)]
    return selected


def of_random_streams(tree: Any) -> list[bool]:
    """Tells for each leaf, in JAX's order, whether it is the key or the count of an NNX stream."""
    nnx = sys.modules.get("flax.nnx")
    return [False] * len(jax.tree.leaves(tree)) if nnx is None else _filtered(nnx.RngState, tree)


def is_filter(x: Any) -> bool:
    """Tells whether a value is a filter of Flax NNX, and not a predicate ``(path, leaf)``."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is None:
        return False
    if isinstance(x, type):
        return issubclass(x, nnx.Variable)
    return x is ... or type(x).__module__ == nnx.filterlib.__name__


def by_path(given: Any, tree: Any) -> Any:
    """Replaces each filter in a mapping by the paths of the leaves that it selects.

    Args:
      given: a mapping from globs and filters; anything else is returned unchanged.
      tree: any pytree.

    Raises:
      PathError: a filter selects nothing.
    """
    if not isinstance(given, Mapping) or not any(map(is_filter, given)):
        return given
    found: dict[Any, Any] = {}
    for pattern, value in given.items():
        if not is_filter(pattern):
            found[pattern] = value
            continue
        chosen = zip(leaves_with_paths(tree), select(pattern, tree), strict=True)
        for path in (path for (path, _), is_chosen in chosen if is_chosen):
            found.setdefault(path, value)  # The first filter that selects a leaf decides.
    return found


def _filtered(wanted: Filter, tree: Any) -> list[bool]:
    """Tells for each leaf whether a filter of Flax NNX selects the variable that holds it."""
    selects = sys.modules["flax.nnx"].filterlib.to_predicate(wanted)
    hits = []
    for keys, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_variable):
        parts = tuple(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k))) for k in keys)
        hits += [bool(selects(parts, node))] * len(jax.tree.leaves(node))
    return hits


def nothing_matches(pattern: str, known: Sequence[str]) -> str:
    """Returns the message for a pattern that selects none of the known paths."""
    subtrees = {
        "/".join(path.split("/")[:n]) for path in known for n in range(1, path.count("/") + 2)
    }
    matches = f"{pattern}: this pattern matches none of the tree's {len(known)} leaves"
    if pattern in subtrees:  # The path has characters with a meaning in patterns.
        return f"{matches}; the path {pattern!r} is written {escape(pattern)!r}"
    return f"{matches}{errors.nearest(pattern, sorted(subtrees))}"
