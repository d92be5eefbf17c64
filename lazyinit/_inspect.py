"""The verb ``inspect``: a tree -> an interactive view in a notebook, a table in a terminal."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.sharding import Sharding

from lazyinit import errors
from lazyinit import paths as tree_paths
from lazyinit._plan import plan
from lazyinit.cost.planned import Plan, by_device
from lazyinit.params import Thunk
from lazyinit.record.garbage import uncollected
from lazyinit.sharding import ShardingLike
from lazyinit.sharding import describe as where
from lazyinit.view import table
from lazyinit.view.facts import is_array_like
from lazyinit.view.lines import Line, line_of, rows_of, size
from lazyinit.view.shown import Shown


@dataclass(frozen=True, slots=True, repr=False)
class TreeView(Shown):
    """A tree to look at: a notebook shows it as HTML, a terminal as a table.

    Attributes:
      tree: the tree that is shown, or the later one if two are compared. Nothing of it is made or
        read.
      lines: what is shown of each leaf.
      plan: where the leaves will go, if a sharding was given.
    """

    tree: Any
    lines: Sequence[Line]
    plan: Plan | None = None

    def _table(self) -> table.Table:
        word = "state" if all(line.word == line.state for line in self.lines) else "change"
        origin = "from or on" if self.plan is None else "sharding"
        columns = ("path", "leaves", word, origin, "array", "bytes each")
        notes = _notes(self._bars())
        right = ("leaves", "bytes each")
        return table.Table(self._title(), columns, rows_of(self.lines), right=right, notes=notes)

    def _title(self) -> str:
        open_bytes = sum(x.nbytes for x in self.lines if x.state != "array")
        made_bytes = sum(x.nbytes for x in self.lines if x.state == "array")
        title = (
            f"{len(self.lines)} leaves: {table.format_bytes(open_bytes)} not made yet, "
            f"{table.format_bytes(made_bytes)} in arrays"
        )
        changed = Counter(line.word for line in self.lines if line.word != line.state)
        return title + "".join(f", {count} {word}" for word, count in changed.items())

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_html(self) -> str:
        """Returns the interactive view as HTML that needs no server, to embed or to save."""
        from lazyinit.view import page

        with uncollected():
            return page.of_tree(self._title(), self.lines, self._bars(), self._placements())

    def _bars(self) -> Sequence[tuple[str, int]]:
        return [] if self.plan is None else by_device(self.plan.bytes_per_device)

    def _placements(self) -> list[Sharding | None]:
        if self.plan is None:
            return [_placement(line.leaf) for line in self.lines]
        goes = {leaf.path: leaf.sharding for leaf in self.plan.leaves}
        return [goes[line.path] for line in self.lines]


def inspect(
    tree: Any,
    second: Any = None,
    /,
    *,
    paths: tree_paths.Paths = None,
    after: Any = None,
    sharding: ShardingLike = None,
) -> TreeView:
    """Returns a view of a tree, without making or reading any of it.

    Args:
      tree: any pytree with thunks or arrays among its leaves.
      second: either ``paths`` or ``after``: it is a second tree if it has thunks, arrays or shapes
        among its leaves, and paths otherwise.
      paths: which leaves are shown, as ``materialize`` takes them; ``None`` for all.
      after: the same tree later, for example after ``fill``. Each line then says how its leaf has
        changed, such as ``lazy → stored``. Values of arrays are not compared: an array that is
        another object has been ``replaced``.
      sharding: as for ``plan``; the view then shows where each leaf will go, and the bytes that
        arrive on each device.

    Returns:
      A value that a notebook shows as a tree to unfold, and a terminal as a table. Its ``to_html``
      returns the tree as HTML.

    Raises:
      PathError: a pattern selects nothing, the two trees have no path in common, or paths or a
        second tree are given twice.
      ShardingError: a sharding does not fit a leaf, or is given beside a second tree.

    Example:
      >>> import jax, flax.linen as nn, numpy as np, lazyinit as li
      >>> x = jax.ShapeDtypeStruct((1, 3), "float32")
      >>> tree = li.lazy(nn.Dense(2)).init(jax.random.key(0), x)
      >>> print(li.inspect(tree))
      2 leaves: 32 B not made yet, 0 B in arrays
      path            leaves   state   from or on ...
      ─────────...
      params/bias          1   lazy    zeros ...
      params/kernel        1   lazy    variance_scaling(1.0, truncated_normal, fan_in) ...
      >>> filled, _ = li.fill(tree, {"params/kernel": np.ones((3, 2), "f")}, on_missing="init")
      >>> [line.word for line in li.inspect(tree, filled).lines]
      ['lazy', 'lazy → stored']
    """
    if second is not None:
        paths, after = _told(second, paths, after)
    if after is not None and sharding is not None:
        raise errors.ShardingError(
            "inspect: wanted a sharding or a second tree, got both. Compare the trees first, then "
            "pass sharding= with the later one alone."
        )
    # Python's garbage collector would walk over some 100,000 small objects, and free none.
    with uncollected():
        return _view(tree, paths, sharding) if after is None else _compared(tree, after, paths)


def _told(second: Any, chosen: tree_paths.Paths, after: Any) -> tuple[tree_paths.Paths, Any]:
    """Returns ``paths`` and ``after``, one of which is the second positional argument.

    Raises:
      PathError: the same is given by keyword, too.
    """
    is_tree = _is_tree(second)
    if (after if is_tree else chosen) is not None:
        what = "second tree" if is_tree else "choice of paths"
        raise errors.PathError(
            f"inspect: wanted one {what}, got two: the second argument is one, and so is "
            f"{'after' if is_tree else 'paths'}=. Leave one of them out."
        )
    return (chosen, second) if is_tree else (second, after)


def _is_tree(second: Any) -> bool:
    """Tells whether the second argument is a tree, not paths."""
    if isinstance(second, str) or tree_paths.is_filter(second):
        return False
    if isinstance(second, Mapping):
        return True
    return any(
        is_array_like(leaf) for leaf in jax.tree.leaves(second) if not tree_paths.is_filter(leaf)
    )


def _view(tree: Any, chosen: tree_paths.Paths, sharding: ShardingLike) -> TreeView:
    """Returns the view of one tree; with a sharding, it shows what a plan says of each leaf."""
    name = _Names()
    shown = _shown(tree, chosen)
    if sharding is None:
        return TreeView(tree, tuple(line_of(path, leaf, name) for path, leaf in shown))
    planned = plan(tree, sharding, paths=chosen)
    goes = {leaf.path: leaf for leaf in planned.leaves}
    lines = []
    for path, leaf in shown:
        line, there = line_of(path, leaf, name), goes[path]
        more = (
            *(pair for pair in line.more if pair[0] != "sharding"),
            ("will", there.action),
            ("sharding", name(there.sharding)),
            ("bytes per device", size(there.bytes_per_device)),
        )
        lines.append(replace(line, origin=name(there.sharding), more=more))
    return TreeView(tree, tuple(lines), planned)


def _shown(tree: Any, chosen: tree_paths.Paths) -> list[tuple[str, Any]]:
    leaves = zip(tree_paths.leaves_with_paths(tree), tree_paths.select(chosen, tree), strict=True)
    return [both for both, is_chosen in leaves if is_chosen and is_array_like(both[1])]


def _compared(before: Any, after: Any, chosen: tree_paths.Paths) -> TreeView:
    """Returns the view of the later of two trees, with what changed."""
    old = {path: leaf for path, leaf in tree_paths.leaves_with_paths(before) if is_array_like(leaf)}
    new = {path: leaf for path, leaf in tree_paths.leaves_with_paths(after) if is_array_like(leaf)}
    if old and not old.keys() & new.keys():
        raise errors.PathError(
            f"{next(iter(old))}: wanted a second tree that has paths of the first, got one with "
            f"{', '.join(map(repr, [*new][:3])) or 'no arrays'}. Pass the same tree as it is later."
        )
    name, lines = _Names(), []
    for path, leaf in _shown(after, chosen):
        line = line_of(path, leaf, name)
        if path not in old:
            lines.append(replace(line, word=f"new: {line.state}"))
            continue
        was = line_of(path, old[path], name)
        word = _change(was, line)
        more = [("before", f"{was.state}, {was.array}" + f", {was.origin}" * bool(was.origin))]
        lines.append(replace(line, word=word, more=(*line.more, *more * (word != line.state))))
    gone = [path for path in old if path not in new] if chosen is None else []
    lines += [_gone(line_of(path, old[path], name)) for path in gone]
    return TreeView(after, tuple(lines))


def _gone(line: Line) -> Line:
    return replace(line, word="gone")


def _change(was: Line, line: Line) -> str:
    """Returns how a leaf changed, or only its state if it did not."""
    if was.leaf is line.leaf:
        return line.state
    if was.state != line.state:
        return f"{was.state} → {line.state}"
    if was.array != line.array:
        return f"{line.state}, was {was.array}"
    is_same = isinstance(line.leaf, Thunk) and (was.more == line.more or was.leaf == line.leaf)
    return line.state if is_same else f"{line.state}, replaced"


class _Names:
    """Names shardings, and keeps the names: trees have few shardings, and naming one is slow."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, str]] = {}

    def __call__(self, sharding: Any) -> str:
        # The sharding is kept alive, so that no other can get its id.
        known = self._known.setdefault(id(sharding), (sharding, ""))
        if not known[1]:
            known = self._known[id(sharding)] = (sharding, where(sharding))
        return known[1]


def _placement(leaf: Any) -> Sharding | None:
    return leaf.sharding if isinstance(leaf, jax.Array | Thunk) else None


def _notes(bars: Sequence[tuple[str, int]]) -> list[str]:
    """Returns a line of text with a bar for each device."""
    most = max((count for _, count in bars), default=0) or 1
    width = max((len(name) for name, _ in bars), default=0)
    room = max((len(table.format_bytes(count)) for _, count in bars), default=0)
    return [
        f"{name:<{width}}  {table.format_bytes(count):>{room}}  {table.bar(count / most)}".rstrip()
        for name, count in bars
    ]
