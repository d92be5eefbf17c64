import pickle
import re

import numpy as np
import pytest
from pipelines import count, filled, refused

import lazyinit as li
from lazyinit import errors

RULES = [
    li.Rule(
        "**/qkv/kernel",
        ("**.q.weight", "**.k.weight", "**.v.weight"),
        [li.Transpose("o i -> i o"), li.Concat(axis=1, parts=(2, 1, 1))],
    ),
    li.Rule(("**/q/kernel", "**/k/kernel"), "**.qk.weight", [li.Split(axis=1)], optional=True),
    li.Rule("layers/q", "layers.{n}.q", [li.Rearrange("(h k) i -> i h k", h=2), li.Stack(axis=0)]),
    li.Rule("layers/{n}/q", "layers.q", li.Unstack(axis=-1)),
    li.Rule("**/mask", li.Constant(0.5)),
    li.Rule("**/mask", li.Constant(np.arange(2)), tied=True),
    li.Rule("a", "b", li.Cast("float32", back="int8"), across_collections=True),
]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_rules_are_values_that_print_as_they_are_written(rule):
    there = eval(repr(rule), {"array": np.array, **vars(li)})
    assert there == rule == pickle.loads(pickle.dumps(rule))
    assert hash(there) == hash(rule)


def test_an_empty_layout_is_none():
    assert li.Rule("a", "b", []) == li.Rule("a", "b")
    assert repr(li.Rule("a", "b", [])) == "Rule('a', 'b')"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("l/{n}", "m"), "wanted changes that lead to 1 pattern, numbered, got 1 pattern. Several"),
        (("l", "m.{n}"), "wanted changes that lead to 1 pattern, got 1 pattern, numbered. Several"),
        (("a", ("b", "c")), "wanted changes that lead to 1 pattern, got 2 patterns. Several"),
        (("a", "b", [li.Stack()]), "Stack(axis=0): wanted several tensors, got one. Number them"),
        (
            ("a", "b", [li.Unstack()]),
            "Unstack(axis=0): wanted several leaves, got one. Number them",
        ),
        (
            ("a", "b", [li.Concat(0)]),
            "Concat(axis=0): wanted several tensors, got 1. List their patterns",
        ),
        (("a", "b", [li.Split(0)]), "Split(axis=0): wanted several leaves, got 1. List"),
        (
            (("a", "b"), "c", [li.Split(0, parts=(1, 0))]),
            "Split(axis=0, parts=(1, 0)): wanted a part of 1 or more for each of 2 leaves, got 2.",
        ),
        (
            ("a", ("b", "c"), [li.Concat(0, parts=(1, 2, 3))]),
            "Concat(axis=0, parts=(1, 2, 3)): wanted a part of 1 or more for each of 2 tensors, got",
        ),
        (
            (("a", "b"), ("c", "d"), [li.Split(0)]),
            "Split(axis=0): wanted one tensor to split, got 2",
        ),
        (("a", "b", ["T"]), "wanted changes of layout such as Transpose('o i -> i o'), got 'T'."),
        (("a", "b", [len]), "wanted changes of layout such as Transpose('o i -> i o'), got <built"),
    ],
)
def test_a_layout_that_does_not_lead_to_the_leaves_is_refused(arguments, message):
    with refused(message) as caught:
        li.Rule(*arguments)
    assert str(caught.value).startswith("Rule(")


@pytest.mark.parametrize("value", ["text", None, {}, ["a"]])
def test_a_constant_that_is_no_number_is_refused(value):
    with refused("Constant: wanted a number or an array of numbers, got"):
        li.Constant(value)


def test_a_constant_takes_the_shape_of_its_leaf():
    rules = [li.Rule("**/mask", li.Constant(np.float32([1, 2])))]
    flat = {"a/mask": np.float32([[1, 2], [1, 2]]), "x": count(1)}
    leaves, report = filled(flat, {"x": count(1)}, rules)
    np.testing.assert_array_equal(leaves["a/mask"], flat["a/mask"])
    assert report.loaded == ("a/mask", "x")
    tree = {"a": {"mask": li.LazyParam((3,), "float32", np.zeros)}}
    with refused(
        "a/mask: the model wants float32[3], constant [1.0, 2.0] holds float32[2]; it can"
    ):
        li.fill(tree, {"x": count(1)}, rules)


def test_a_function_may_be_a_layout():
    calls = []
    rule = li.Rule("a", "b", lambda source: calls.append(source) or source)
    filled({"a": count(2)}, {"b": count(2)}, [rule])
    assert len(calls) == 1
    assert rule.tensor_for("a") == "b"


def test_patterns_with_several_sides_share_their_wildcards():
    with pytest.raises(errors.FillError, match=re.escape("'**/a' and '**/b' and 'c'")):
        li.Rule(("**/a", "**/b"), "c", [li.Split(axis=0)])
