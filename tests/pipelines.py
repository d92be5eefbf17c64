"""Rules in both directions: random layouts with numpy's word for them, and short ways to apply some."""

import math
import re

import jax
import numpy as np
import pytest
from hypothesis import strategies as st

import lazyinit as li
from lazyinit import errors
from lazyinit.match.places import places
from lazyinit.match.unmatch import unmatch
from lazyinit.rules.change import Frame, Grid, Layout
from lazyinit.rules.joins import Concat, Split, Stack, Unstack
from lazyinit.rules.layout import Cast, Transpose
from lazyinit.rules.lengths import Pad, Repeat, Trim
from lazyinit.rules.reshape import Rearrange, Reshape
from lazyinit.rules.rule import as_rules
from lazyinit.tensors.memory import HeldTensor

zeros = jax.nn.initializers.zeros


class Counting:
    """A source that counts the elements it is asked for."""

    def __init__(self, name, array):
        self._held = HeldTensor(name, array)
        self.read_count = 0

    def __getattr__(self, name):
        return getattr(self._held, name)

    def read(self, index):
        values = self._held.read(index)
        self.read_count += values.size
        return values


def everything(shape):
    return tuple(slice(0, size) for size in shape)


def indices(shape):
    """Returns a strategy for an index: a slice with step 1 for each axis."""
    return st.tuples(
        *(
            st.tuples(st.integers(0, n), st.integers(0, n)).map(lambda ends: slice(*sorted(ends)))
            for n in shape
        )
    )


@st.composite
def transposes(draw, shape):
    names = [f"x{axis}" for axis in range(len(shape))]
    order = draw(st.permutations(names))
    change = Transpose(f"{' '.join(names)} -> {' '.join(order)}")
    return change, lambda x: x.transpose([names.index(n) for n in order])


@st.composite
def rearranges(draw, shape):
    """Splits axes into factors, puts them in another order, and merges neighbors."""
    before, sizes = [], {}
    for axis, size in enumerate(shape):
        factors = [f for f in range(1, size + 1) if size % f == 0] or [1]
        factor = draw(st.sampled_from(factors))
        names = [f"a{axis}", f"b{axis}"] if draw(st.booleans()) else [f"a{axis}"]
        sizes |= (
            dict(zip(names, [factor, size // factor][: len(names)], strict=True))
            if len(names) == 2
            else {names[0]: size}
        )
        before.append(names)
    order = draw(st.permutations([name for names in before for name in names]))
    after = []
    for name in order:
        if after and draw(st.booleans()):
            after[-1].append(name)
        else:
            after.append([name])
    if draw(st.booleans()):
        after.insert(draw(st.integers(0, len(after))), [])
    text = " -> ".join(
        " ".join(
            f"({' '.join(names)})" if len(names) > 1 else (names or ["1"])[0] for names in side
        )
        for side in (before, after)
    )
    flat = [name for names in before for name in names]

    def oracle(x):
        x = x.reshape([sizes[name] for name in flat])
        x = x.transpose([flat.index(name) for name in order])
        return x.reshape([math.prod(sizes[name] for name in names) for names in after])

    return Rearrange(text, **sizes), oracle


@st.composite
def reshapes(draw, shape):
    """Splits axes into factors, or merges all, under -1 for a size that is told."""
    size = math.prod(shape)
    factor = draw(st.sampled_from([f for f in range(1, size + 1) if size % f == 0] or [1]))
    after = draw(st.sampled_from([(size,), (factor, size // factor), (1, *shape), shape[::-1]]))
    said = (*after[:-1], -1) if size and draw(st.booleans()) else after
    return Reshape(said, back=shape), lambda x: x.reshape(after)


@st.composite
def lengths(draw, shape):
    """Repeats places along an axis, fills it up, or fills it up and drops some of that again."""
    axis = draw(st.integers(0, len(shape) - 1))
    kind = draw(st.sampled_from(["repeat", "pad", "slice"]))
    if kind == "repeat":
        times = draw(st.integers(1, 3))
        return [Repeat(axis, times)], lambda x: np.repeat(x, times, axis)
    least, most = sorted(shape[axis] + draw(st.integers(0, 3)) for _ in range(2))
    if draw(st.booleans()):
        axis -= len(shape)
    longest = most if kind == "slice" else least
    changes = [Pad(axis, size=longest, back=shape[axis])]
    changes += [Trim(axis, size=least, back=longest)] * (kind == "slice")

    def oracle(x):
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, least - x.shape[axis])
        return np.pad(x, widths)

    return changes, oracle


@st.composite
def layouts(draw, max_changes=4):
    """Returns a layout, numpy arrays for its tensors, and those for its leaves, as numpy has them."""
    numbered = draw(st.booleans())
    several = draw(st.booleans())
    shape = tuple(
        draw(st.lists(st.integers(0 if not draw(st.booleans()) else 1, 6), min_size=1, max_size=3))
    )
    columns = draw(st.integers(1, 3)) if numbered else 1
    rows = draw(st.integers(2, 3)) if several else 1
    counter = iter(range(1, 10**6))

    def fresh(shape):
        return np.array([next(counter) for _ in range(math.prod(shape))], np.int32).reshape(shape)

    tensors = [[fresh(shape) for _ in range(columns)] for _ in range(rows)]
    start = Frame(rows, numbered)
    grid, changes = tensors, []
    for _ in range(draw(st.integers(0, max_changes))):
        change, grid, numbered = draw(_steps(grid, numbered))
        changes += change if isinstance(change, list) else [change]
    if numbered:
        change, grid, numbered = draw(_stacks(grid, numbered))
        changes.append(change)
    kind = draw(st.sampled_from(["", "unstack", "unstack", "split", "split"]))
    shape = grid[0][0].shape
    if kind == "unstack" and shape and shape[0] and len({row[0].shape[0] for row in grid}) == 1:
        changes.append(Unstack(0))
        to_rows = len(grid) == 1 and shape[0] > 1 and draw(st.booleans())
        places = list(grid[0][0]) if to_rows else []
        grid = [[x] for x in places] or [list(row[0]) for row in grid]
        numbered = not to_rows and not start.numbered
        if not to_rows and start.numbered:
            changes, grid = changes[:-1], [[np.stack(row)] for row in grid]
    elif kind == "split" and shape and len(grid) == 1:
        axis = draw(st.integers(0, len(shape) - 1))
        cuts = sorted(draw(st.lists(st.integers(0, shape[axis]), min_size=1, max_size=2)))
        changes.append(Split(axis))
        grid = [[x] for x in np.split(grid[0][0], cuts, axis)]
        change, oracle = draw(transposes(shape))
        changes.append(change)
        grid = [[oracle(x) for x in row] for row in grid]
    return Layout(tuple(changes), start, Frame(len(grid), numbered)), tensors, grid


@st.composite
def _steps(draw, grid, numbered):
    shapes = {x.shape for row in grid for x in row}
    kinds = ["cast"]
    if len({len(shape) for shape in shapes}) == 1:
        kinds.append("transpose")
    if len(shapes) == 1:
        kinds += ["rearrange", "reshape"]
        kinds += ["lengths"] * bool(next(iter(shapes)))
        if len(grid) > 1 and next(iter(shapes)):
            kinds += ["concat"] * 3
        if len(grid) > 1 and not numbered:
            kinds += ["stack"] * 2
    kind = draw(st.sampled_from(kinds))
    shape = grid[0][0].shape
    if kind == "stack" or (numbered and draw(st.integers(0, 5)) == 0):
        return draw(_stacks(grid, numbered))
    if kind == "cast":
        change, oracle = Cast("int64", back="int32"), lambda x: x.astype(np.int64)
    elif kind == "concat":
        axis = draw(st.integers(-len(shape), len(shape) - 1))
        return (
            Concat(axis),
            [[np.concatenate(column, axis) for column in zip(*grid, strict=True)]],
            numbered,
        )
    else:
        ways = {"transpose": transposes, "rearrange": rearranges}
        ways |= {"reshape": reshapes, "lengths": lengths}
        change, oracle = draw(ways[kind](shape))
    return change, [[oracle(x) for x in row] for row in grid], numbered


@st.composite
def _stacks(draw, grid, numbered):
    axis = draw(st.integers(-grid[0][0].ndim - 1, grid[0][0].ndim))
    if numbered:
        return Stack(axis), [[np.stack(row, axis)] for row in grid], False
    return Stack(axis), [[np.stack([row[0] for row in grid], axis)]], False


def held(arrays, numbered, kind=Counting):
    rows = tuple(
        tuple(kind(f"t{r}.{c}", x) for c, x in enumerate(row)) for r, row in enumerate(arrays)
    )
    return Grid(rows, numbered)


def nested(flat):
    tree = {}
    for path, leaf in flat.items():
        *keys, last = path.split("/")
        node = tree
        for key in keys:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def written(flat, rules, at=""):
    """Returns the tensors for leaves given as numpy arrays by path."""
    leaves = [(place, HeldTensor(place.path, x)) for place, x in places(nested(flat))]
    return unmatch(leaves, rules=as_rules(rules), at=at)


def values(sources):
    return {name: source.read(everything(source.shape)) for name, source in sources.items()}


def filled(flat, tensors, rules, at=""):
    """Returns what fill makes of tensors, as numpy arrays by path."""
    tree = nested({path: li.LazyParam(x.shape, x.dtype, zeros) for path, x in flat.items()})
    tree, report = li.fill(tree, tensors, rules, at=at)
    sources = {place.path: leaf.source for place, leaf in places(tree) if leaf.path}
    assert report.mismatched == ()
    return values(sources), report


def assert_equal(one, other):
    assert list(one) == list(other)
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])


def count(*shape):
    return np.arange(np.prod(shape), dtype="float32").reshape(shape)


def refused(message):
    return pytest.raises(errors.FillError, match=re.escape(message))
