"""Paths as a tree in which alike subtrees are found: layers that differ in their numbers alone."""

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from lazyinit.view.table import ranges

_DEPTH = 48  # What lies deeper stays one key: such names are nobody's layers.
_NUMBER = re.compile(r"(?:^|(?<=[._-]))(0|[1-9][0-9]{0,17})$")


@dataclass(frozen=True, slots=True)
class Row:
    """One child of a branch, or several that are alike.

    Attributes:
      label: its key; for several, with ``{0..31}`` for the number in which they differ.
      keys: the key of each.
      members: each of them.
    """

    label: str
    keys: tuple[str, ...]
    members: tuple["Branch", ...]


@dataclass(frozen=True, slots=True)
class Branch:
    """A place in a tree.

    Attributes:
      leaf: the number of the leaf that is there, or -1.
      rows: what is below.
      kind: a number; branches of the same kind differ in nothing that was told of their leaves.
    """

    leaf: int
    rows: tuple[Row, ...]
    kind: int


def nest(paths: Sequence[Sequence[str]], kinds: Sequence[Hashable]) -> Branch:
    """Returns paths as a tree. Takes linear time.

    Args:
      paths: the keys of each leaf, from the root.
      kinds: what is known of each leaf; equal for leaves that are alike.

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
    """A branch that is not complete yet, by key."""

    __slots__ = ("leaf",)

    def __init__(self) -> None:
        self.leaf = -1


def _closed(node: _Open, kinds: Sequence[Hashable], known: dict[Hashable, int]) -> Branch:
    told = kinds[node.leaf] if node.leaf >= 0 else None
    if not node:
        return Branch(node.leaf, (), known.setdefault(("leaf", told), len(known)))
    children = {key: _closed(below, kinds, known) for key, below in node.items()}
    shape = (node.leaf >= 0, told, tuple((key, child.kind) for key, child in children.items()))
    return Branch(node.leaf, _rows(children), known.setdefault(shape, len(known)))


def _rows(children: dict[str, Branch]) -> tuple[Row, ...]:
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
