"""Builds a tree from paths and finds alike subtrees: layers that differ in their numbers alone."""

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from lazyinit.view.table import ranges

_DEPTH = 48  # All keys below this depth become one key, as no model has layers so deep.
_NUMBER = re.compile(r"(?:^|(?<=[._-]))(0|[1-9][0-9]{0,17})$")


@dataclass(frozen=True, slots=True)
class Row:
    """One child of a branch, or several that are alike.

    Attributes:
      label: the key of the child; for several, with ``{0..31}`` for the numbers that vary.
      keys: the key of each child.
      members: the children.
    """

    label: str
    keys: tuple[str, ...]
    members: tuple["Branch", ...]


@dataclass(frozen=True, slots=True)
class Branch:
    """A place in a tree.

    Attributes:
      leaf: the index of the leaf at this place, or -1.
      rows: the children, of which alike ones are one row.
      kind: a number that alike branches share: those with the same keys and kinds of leaves below.
    """

    leaf: int
    rows: tuple[Row, ...]
    kind: int


def nest(paths: Sequence[Sequence[str]], kinds: Sequence[Hashable]) -> Branch:
    """Returns the root of a tree of paths. Takes linear time.

    Args:
      paths: the keys of each leaf, from the root.
      kinds: a value for each leaf, which is equal for leaves that are alike.

    Example:
      >>> root = nest([("h_0", "w"), ("h_1", "w"), ("head",)], ["f32", "f32", "f32"])
      >>> [(row.label, len(row.members)) for row in root.rows]
      [('h_{0..1}', 2), ('head', 1)]
    """
    root = _Open()
    for number, keys in enumerate(paths):
        node = root
        if len(keys) > _DEPTH:
            keys = [*keys[:_DEPTH], "/".join(keys[_DEPTH:])]
        for key in keys:
            below = node.get(key)
            if below is None:
                below = node[key] = _Open()
            node = below
        node.leaf = number
    return _closed(root, kinds, {})


class _Open(dict[str, "_Open"]):
    """A branch to which leaves are still added: its children by key."""

    __slots__ = ("leaf",)

    def __init__(self) -> None:
        self.leaf = -1


def _closed(node: _Open, kinds: Sequence[Hashable], known: dict[Hashable, int]) -> Branch:
    """Returns a complete branch; ``known`` collects the number of each kind of branch."""
    told = kinds[node.leaf] if node.leaf >= 0 else None
    if not node:
        return Branch(node.leaf, (), known.setdefault(("leaf", told), len(known)))
    children = {key: _closed(below, kinds, known) for key, below in node.items()}
    shape = (node.leaf >= 0, told, tuple((key, child.kind) for key, child in children.items()))
    return Branch(node.leaf, _rows(children), known.setdefault(shape, len(known)))


def _rows(children: dict[str, Branch]) -> tuple[Row, ...]:
    """Returns the rows of children: alike ones whose keys end in a number are one row."""
    if len(children) == 1:
        ((key, child),) = children.items()
        return (Row(key, (key,), (child,)),)
    groups: dict[tuple[object, ...], list[tuple[int, str]]] = {}
    for key, child in children.items():
        found = _NUMBER.search(key) if key[-1:].isdigit() else None
        if found:
            alike = (key[: found.start()], child.kind)
            groups.setdefault(alike, []).append((int(found[1]), key))
        else:
            groups[(key,)] = [(0, key)]
    rows = []
    for (stem, *_), members in groups.items():
        members.sort()
        keys = tuple(key for _, key in members)
        label = keys[0] if len(keys) == 1 else f"{stem}{ranges([n for n, _ in members])}"
        rows.append(Row(label, keys, tuple(children[key] for key in keys)))
    return tuple(rows)
