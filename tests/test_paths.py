"""Paths as JAX prints them, and what selects them; the patterns are in test_patterns."""

import collections
import dataclasses
import typing

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from lazyinit import errors, paths

plain = st.text(st.sampled_from("ab1_."), min_size=1, max_size=3)
trees = st.recursive(
    st.integers(),
    lambda children: (
        st.dictionaries(plain, children, min_size=1, max_size=3)
        | st.lists(children, min_size=1, max_size=2)
    ),
    max_leaves=8,
)


class Point(typing.NamedTuple):
    x: int
    y: int


@flax.struct.dataclass
class State:
    params: dict
    step: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Plain:
    first: int
    second: list


TREES = {
    "dict": {"z": 1, "a": {"y": 2, "b": 3}},
    "list": [1, [2, (3, 4)]],
    "dict of ints": {1: 2, 0: 3},
    "frozen dict": flax.core.FrozenDict({"z": 1, "a": {"y": 2, "b": 3}}),
    "named tuple": Point(1, {"z": 2, "a": 3}),
    "dataclass": Plain(1, [2, {"z": 2, "a": 3}]),
    "flax dataclass": State({"z": 2, "a": 3}, 1),
    "box": {"kernel": nn.Partitioned({"z": 1, "a": 2}, names=("a",)), "b": 1},
    "nested box": nn.Partitioned(nn.LogicallyPartitioned(1, names=("a",)), names=("b",)),
    "ordered dict": collections.OrderedDict(z=1, a={"y": 2, "b": 3}),
    "default dict": collections.defaultdict(int, z=1, a={"y": 2, "b": 3}),
    "dict in dataclass in dict": {"z": State({"z": 2, "a": 3}, 1), "a": Point(1, 2)},
    "none": {"z": None, "a": 1},
    "leaf": 1,
    "empty": {"z": {}, "a": [], "b": (), "c": 2},
}


@pytest.mark.parametrize("name", TREES)
def test_paths_are_keystr(name):
    want = [
        jax.tree_util.keystr(p, simple=True, separator="/")
        for p, _ in jax.tree_util.tree_leaves_with_path(TREES[name])
    ]
    found = paths.leaves_with_paths(TREES[name])
    assert [path for path, _ in found] == want
    assert [leaf for _, leaf in found] == jax.tree.leaves(TREES[name])


def test_paths_read_as_people_write_them():
    tree = {"params": [Plain(1, [nn.Partitioned(2, names=("a",))])], "t": Point(1, 2)}
    assert [p for p, _ in paths.leaves_with_paths(tree)] == [
        "params/0/first",
        "params/0/second/0/value",
        "t/x",
        "t/y",
    ]
    assert paths.leaves_with_paths(5) == [("", 5)]


@pytest.mark.parametrize("name", TREES)
def test_replaced_leaves_keep_containers_and_the_order_of_keys(name):
    tree = TREES[name]
    again = paths.replace_leaves(tree, jax.tree.leaves(tree))
    assert type(again) is type(tree)
    assert repr(again) == repr(tree)
    assert jax.tree.structure(again) == jax.tree.structure(tree)


def test_replaced_leaves_leave_the_tree_alone():
    inner = {"z": 1, "a": 2}
    tree = [inner, State(inner, 0), collections.defaultdict(int, inner)]
    made = paths.replace_leaves(tree, [x * 10 for x in jax.tree.leaves(tree)])
    assert inner == {"z": 1, "a": 2}
    assert made[0] == {"z": 10, "a": 20}
    assert list(made[2].items()) == [("z", 10), ("a", 20)]
    assert list(tree[2].items()) == [("z", 1), ("a", 2)]


@given(trees)
def test_replaced_leaves_are_where_jax_puts_them(tree):
    leaves = [str(x) for x in jax.tree.leaves(tree)]
    made = paths.replace_leaves(tree, leaves)
    assert made == jax.tree.unflatten(jax.tree.structure(tree), leaves)
    assert repr(made).replace("'", "") == repr(tree).replace("'", "")


def test_a_checkpoint_calls_a_boxed_leaf_by_its_name():
    tree = {"kernel": nn.Partitioned(1, names=("a",)), "value": {"value": 2}}
    flat = jax.tree_util.tree_leaves_with_path(tree)
    assert [paths.name_string(p) for p, _ in flat] == ["kernel", "value/value"]
    (alone,) = jax.tree_util.tree_leaves_with_path(nn.Partitioned(1, names=("a",)))
    assert paths.name_string(alone[0]) == "value"


TREE = {"params": {"encoder": {"kernel": 1, "bias": 2}, "head": {"kernel": 3}}, "stats": [4, 5]}
LEAVES = paths.leaves_with_paths(TREE)


def chosen(pattern):
    return [x for (_, x), s in zip(LEAVES, paths.select(pattern, TREE), strict=True) if s]


def test_none_selects_all():
    assert chosen(None) == [2, 1, 3, 4, 5]


def test_several_patterns_select_the_union():
    assert chosen(["params/head", "stats/0"]) == [3, 4]
    assert chosen(("**/kernel", "params")) == [2, 1, 3]


def test_a_generator_of_patterns_is_read_once():
    assert chosen(p for p in ("params/head", "stats")) == [3, 4, 5]
    assert chosen({"params/head": 0, "stats/1": 0}) == [3, 5]


def test_no_patterns_select_nothing():
    assert chosen([]) == []


def test_a_predicate_sees_path_and_leaf():
    assert chosen(lambda path, leaf: path.endswith("kernel") and leaf > 1) == [3]
    assert chosen(lambda path, leaf: jnp.bool_(leaf == 5)) == [5]
    assert chosen(lambda path, leaf: False) == []


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [
        ("params/hed", "params/head"),
        ("params/head/kernle", "params/head/kernel"),
        ("param/encoder", "params/encoder"),
        ("state", "stats"),
        ("params/encodr/bias", "params/encoder/bias"),
        ("params/head/kernel/value", "params/head/kernel"),
    ],
)
def test_a_pattern_that_matches_nothing_suggests_the_nearest_path(pattern, nearest):
    with pytest.raises(errors.PathError) as error:
        paths.select(pattern, TREE)
    assert str(error.value) == (
        f"{pattern}: this pattern matches none of the tree's 5 leaves; did you mean {nearest!r}?"
    )


def test_a_pattern_far_from_all_paths_suggests_none():
    with pytest.raises(errors.PathError) as error:
        paths.select("zzzzzzzzzzzz", TREE)
    assert str(error.value) == "zzzzzzzzzzzz: this pattern matches none of the tree's 5 leaves"


def test_one_of_several_patterns_that_matches_nothing_is_an_error():
    with pytest.raises(errors.PathError, match="^params/hed: "):
        paths.select(["params/head", "params/hed"], TREE)


def test_an_empty_tree_has_no_path_to_suggest():
    with pytest.raises(errors.PathError, match="none of the tree's 0 leaves$"):
        paths.select("params", {})
    assert paths.select(None, {}) == []


@pytest.mark.parametrize("pattern", [[3], [None], [("a", "b")], [lambda p, x: True]])
def test_a_pattern_of_the_wrong_kind_says_what_to_pass(pattern):
    with pytest.raises(errors.PathError, match=r"paths: wanted a glob such as .*, got .*predicate"):
        paths.select(pattern, TREE)


@pytest.mark.parametrize("pattern", [3, 1.5, True])
def test_paths_of_the_wrong_kind_say_what_to_pass(pattern):
    with pytest.raises(errors.PathError, match=r"paths: wanted a glob such as .*, got .*predicate"):
        paths.select(pattern, TREE)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)


STATE = nnx.state(Net(nnx.Rngs(0)))


def selected(wanted):
    leaves = paths.leaves_with_paths(STATE)
    return [p for (p, _), s in zip(leaves, paths.select(wanted, STATE), strict=True) if s]


def test_the_path_of_a_variable_is_that_of_its_attribute():
    assert selected(None) == [
        "dropout/rngs/count",
        "dropout/rngs/key",
        "linear/bias",
        "linear/kernel",
        "norm/bias",
        "norm/mean",
        "norm/scale",
        "norm/var",
    ]
    nested = {"q": nnx.Param({"a": jnp.ones(1), "value": [jnp.ones(1)]}), "value": 3}
    assert [p for p, _ in paths.leaves_with_paths(nested)] == ["q/a", "q/value/0", "value"]


@pytest.mark.parametrize(
    "wanted",
    [
        nnx.Param,
        nnx.BatchStat,
        nnx.RngState,
        nnx.Not(nnx.RngState),
        nnx.Any(nnx.BatchStat, nnx.RngKey),
        nnx.All(nnx.Param, nnx.PathContains("linear")),
        nnx.PathContains("dropout"),
        nnx.OfType(nnx.RngCount),
        ...,
    ],
)
def test_a_filter_selects_what_nnx_selects(wanted):
    want = [p for p, _ in paths.leaves_with_paths(nnx.filter_state(STATE, wanted))]
    assert want
    assert selected(wanted) == want


def test_filters_and_globs_select_together():
    assert selected([nnx.BatchStat, "linear/bias"]) == ["linear/bias", "norm/mean", "norm/var"]


def test_a_filter_that_selects_nothing_is_an_error():
    with pytest.raises(errors.PathError, match="this pattern matches none of the tree's 8 leaves"):
        selected(nnx.Cache)


def test_a_filter_in_a_mapping_stands_for_the_paths_that_it_selects():
    given = {"linear/bias": 1, nnx.BatchStat: 2, nnx.Not(nnx.RngState): 3}
    assert paths.by_path(given, STATE) == {
        "linear/bias": 1,
        "norm/mean": 2,
        "norm/var": 2,
        "linear/kernel": 3,
        "norm/bias": 3,
        "norm/scale": 3,
    }
    assert paths.by_path("init", STATE) == "init"
