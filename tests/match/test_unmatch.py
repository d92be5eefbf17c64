"""Rules read backwards: what is written is what would be read."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import assert_not_quadratic
from pipelines import assert_equal, count, filled, layouts, nested, refused, values, written

import lazyinit as li
from lazyinit import errors
from lazyinit.match.match import match
from lazyinit.match.places import places
from lazyinit.match.unmatch import unmatch
from lazyinit.tensors.memory import HeldTensor, open_tree

# What is written.


def test_without_rules_a_tensor_goes_by_the_path_of_its_leaf():
    flat = {"c.d/e": count(2), "a/kernel": count(2)}
    assert list(written(flat, ())) == ["a/kernel", "c.d/e"]
    assert list(written(flat, (), at="a")) == ["kernel"]


def test_with_rules_for_dotted_names_a_leaf_that_none_fits_is_dotted():
    flat = {"a/x": count(2), "b": count(2)}
    assert list(written(flat, [li.Rule("b", "c.d")])) == ["a.x", "c.d"]
    assert list(written(flat, [li.Rule("b", "c/d")])) == ["a/x", "c/d"]


def test_torch_is_read_backwards():
    flat = {
        "params/fc/kernel": count(2, 3),
        "params/fc/bias": count(3),
        "params/norm/scale": count(3),
        "params/embed/embedding": count(5, 3),
        "params/conv/kernel": count(5, 7, 4, 3),
        "batch_stats/bn/mean": count(3),
    }
    tensors = values(written(flat, li.TORCH))
    assert {name: x.shape for name, x in tensors.items()} == {
        "bn.running_mean": (3,),
        "conv.weight": (3, 4, 5, 7),
        "embed.weight": (5, 3),
        "fc.bias": (3,),
        "fc.weight": (3, 2),
        "norm.weight": (3,),
    }
    np.testing.assert_array_equal(tensors["fc.weight"], flat["params/fc/kernel"].T)
    assert_equal(filled(flat, tensors, li.TORCH)[0], dict(sorted(flat.items())))


def test_a_box_goes_by_its_own_name():
    import flax.linen as nn

    tree = {"a": {"kernel": nn.Partitioned(count(2, 3), ("x", None))}}
    leaves = [(place, HeldTensor(place.path, x)) for place, x in places(tree)]
    assert list(unmatch(leaves, rules=(), at="")) == ["a/kernel"]
    assert list(unmatch(leaves, rules=li.TORCH, at="")) == ["a.weight"]


FUSED = [
    li.Rule(
        "**/qkv/kernel",
        ("**.q.weight", "**.k.weight", "**.v.weight"),
        [li.Transpose("o i -> i o"), li.Concat(axis=1, parts=(2, 1, 1))],
    )
]
SPLIT = [
    li.Rule(
        ("**/q/kernel", "**/k/kernel", "**/v/kernel"),
        "**.qkv.weight",
        [li.Transpose("o i -> i o"), li.Split(axis=1)],
    )
]
STACKED = [
    li.Rule(
        "params/layers/q/kernel",
        "model.layers.{n}.q.weight",
        [li.Transpose("o i -> i o"), li.Stack(axis=0)],
    )
]


def test_several_tensors_make_one_leaf_and_it_makes_them():
    tensors = {"a.q.weight": count(4, 3), "a.k.weight": count(2, 3) + 1, "a.v.weight": count(2, 3)}
    flat = {"a/qkv/kernel": np.concatenate([x.T for x in tensors.values()], axis=1)}
    leaves, report = filled(flat, tensors, FUSED)
    assert_equal(leaves, flat)
    assert report.entries[0].tensors == tuple(tensors)
    assert report.entries[0].tensor == "a.q.weight, a.k.weight, a.v.weight"
    assert report.unexpected == ()
    assert_equal(values(written(flat, FUSED)), tensors)


def test_one_tensor_makes_several_leaves_of_the_sizes_that_they_have():
    flat = {"a/k/kernel": count(3, 2), "a/q/kernel": count(3, 4) + 1, "a/v/kernel": count(3, 2) + 2}
    qkv = np.concatenate([flat[f"a/{name}/kernel"].T for name in "qkv"])
    assert_equal(filled(flat, {"a.qkv.weight": qkv}, SPLIT)[0], flat)
    assert_equal(values(written(flat, SPLIT)), {"a.qkv.weight": qkv})


def test_numbered_tensors_make_a_stacked_leaf_and_it_makes_them():
    tensors = {f"model.layers.{n}.q.weight": count(4, 3) + n for n in range(12)}
    flat = {"params/layers/q/kernel": np.stack([x.T for x in tensors.values()])}
    shuffled = dict(sorted(tensors.items()))
    leaves, report = filled(flat, shuffled, STACKED)
    assert_equal(leaves, flat)
    assert report.entries[0].tensor == (
        "model.layers.0.q.weight, ... (12), model.layers.11.q.weight"
    )
    assert_equal(values(written(flat, STACKED)), tensors)


def test_one_stacked_tensor_makes_numbered_leaves_and_they_make_it():
    rules = [li.Rule("h/{n}/q/kernel", "layers.q.kernel", [li.Unstack(axis=1)])]
    flat = {f"h/{n}/q/kernel": count(2, 3) + n for n in range(11)}
    tensors = {"layers.q.kernel": np.stack(list(flat.values()), axis=1)}
    assert_equal(filled(flat, tensors, rules)[0], dict(sorted(flat.items())))
    assert_equal(values(written(flat, rules)), tensors)


def test_numbers_on_both_sides_are_captured():
    rules = [li.Rule("layers_{n}/**", "h.{n}.**")]
    flat = {"layers_3/kernel": count(2), "layers_x/kernel": count(2)}
    assert list(written(flat, rules)) == ["h.3.kernel", "layers_x.kernel"]


def test_renames_are_undone_last_to_first():
    back = (re.compile(r"^h\.(\d+)\."), r"decoder.block.\1.")
    rules = [
        li.strip_prefix("model."),
        li.Rename(re.compile(r"^decoder\.block\.(\d+)\."), r"h.\1.", back=back),
        li.Rename("h.*.**", "layers_*.**"),
        *li.TORCH,
    ]
    flat = {"layers_0/fc/kernel": count(2, 3)}
    tensors = values(written(flat, rules))
    assert list(tensors) == ["model.decoder.block.0.fc.weight"]
    assert_equal(filled(flat, tensors, rules)[0], flat)


def test_a_constant_is_not_written():
    rules = [li.Rule("mask", li.Constant(np.float32(1)))]
    flat = {"mask": np.ones((2, 2), "float32"), "x": count(2)}
    assert list(written(flat, rules)) == ["x"]
    leaves, report = filled(flat, {"x": count(2)}, rules)
    assert_equal(leaves, flat)
    assert report.entries[0].tensor == "constant 1.0"


TIED = [
    li.Rule("embed/embedding", "wte.weight"),
    li.Rule("head/kernel", "wte.weight", li.Transpose("v d -> d v")),
]


def test_leaves_tied_by_rules_make_one_tensor_if_they_are_equal():
    wte = count(5, 2)
    flat = {"embed/embedding": wte, "head/kernel": wte.T}
    assert_equal(filled(flat, {"wte.weight": wte}, TIED)[0], flat)
    assert_equal(values(written(flat, TIED)), {"wte.weight": wte})


def test_leaves_tied_by_rules_that_differ_are_an_error_when_they_are_read():
    flat = {"embed/embedding": count(5, 2), "head/kernel": count(5, 2).T + 1}
    with pytest.raises(errors.FillError) as caught:
        values(written(flat, TIED))
    assert str(caught.value) == (
        "wte.weight: wanted leaves that are equal, as the rules make them from one tensor, got "
        "the mapping:embed/embedding and the mapping:head/kernel.T, which differ. Give one of "
        "them a tensor of its own in rules."
    )


# What cannot be written.


def test_a_function_as_layout_cannot_be_read_backwards():
    rules = [li.Rule("a", "b", lambda source: source)]
    with refused("a: Rule('a', 'b', <function") as caught:
        written({"a": count(2)}, rules)
    assert "wanted a layout that can be read backwards, got the function" in str(caught.value)


def test_a_regular_expression_without_its_inverse_cannot_be_read_backwards():
    rules = [li.Rename(re.compile("a"), "b")]
    with refused("Rename(re.compile('a'), 'b'): wanted a rule that can be read backwards, got a"):
        written({"b": count(2)}, rules)


def test_leaves_of_which_one_is_missing_make_no_tensor():
    with refused("a/q/kernel: Rule(") as caught:
        written({"a/q/kernel": count(3, 4), "a/v/kernel": count(3, 4)}, SPLIT)
    assert "wants 'a/k/kernel' beside it, but nothing has that name." in str(caught.value)


def test_two_leaves_of_other_shapes_cannot_make_one_tensor():
    with refused("the rules call both it and a/kernel 'a.weight', and the shapes [2, 4] and"):
        written({"a/kernel": count(2, 3), "a/weight": count(2, 4)}, li.TORCH)


def test_what_would_be_read_back_as_another_leaf_is_refused():
    rules = [li.Rule("a", "b"), li.Rule("b", "a")]
    message = "a: wanted rules that read this leaf back from ['b'], got rules that read it from "
    with refused(message + "['a']. Write a rule for this leaf"):
        written({"a": count(2), "b": count(2)}, rules)


def test_a_leaf_that_is_not_divided_evenly_wants_parts():
    rules = [li.Rule("qkv", ("q", "k", "v"), [li.Concat(axis=0)])]
    with refused("wanted parts of 1 + 1 + 1 along axis 0, got a tensor of shape [4]. Pass the"):
        written({"qkv": count(4)}, rules)


# Laws.

KEYS = st.text("ab_0", min_size=1, max_size=2)


@st.composite
def rule_and_tensors(draw, place):
    """Returns a rule with a random layout, its tensors, and the leaves they make, under a prefix."""
    layout, tensors, leaves = draw(layouts(max_changes=3))
    above = "/".join([f"m{place}", *draw(st.lists(KEYS, max_size=2))])
    n = "{n}" if layout.tensors.numbered else ""
    m = "{n}" if layout.leaves.numbered else ""
    rule = li.Rule(
        tuple(f"m{place}/**/leaf{row}_{m}/w" for row in range(len(leaves))),
        tuple(f"t{place}.**.x{row}.{n}w" for row in range(len(tensors))),
        list(layout.changes),
    )
    assert eval(repr(rule), vars(li)) == rule
    stem = above.partition("/")[2].replace("/", ".")
    names = {
        ".".join(filter(None, (f"t{place}", stem, f"x{row}.{column if n else ''}w"))): x
        for row, xs in enumerate(tensors)
        for column, x in enumerate(xs)
    }
    paths = {
        f"{above}/leaf{row}_{column if m else ''}/w": x
        for row, xs in enumerate(leaves)
        for column, x in enumerate(xs)
    }
    return rule, names, paths


@settings(max_examples=75)
@given(st.data(), st.integers(1, 3), st.booleans())
def test_there_and_back_is_the_identity_on_random_rules_and_trees(data, count, prefixed):
    cases = [data.draw(rule_and_tensors(place)) for place in range(count)]
    rules = [rule for rule, _, _ in cases]
    tensors = {name: x for _, names, _ in cases for name, x in names.items()}
    flat = {path: x for _, _, paths in cases for path, x in paths.items()}
    if prefixed:
        tensors = {f"model.{name}": x for name, x in tensors.items()}
        rules.insert(0, li.strip_prefix("model."))
    leaves, report = filled(flat, tensors, rules)
    assert_equal(dict(sorted(leaves.items())), dict(sorted(flat.items())))
    assert report.unused_rules == report.unexpected == report.missing == ()
    back = values(written(leaves, rules))
    assert_equal(dict(sorted(back.items())), dict(sorted(tensors.items())))


def test_writing_costs_in_proportion_to_the_tree():
    def writing(layers):
        flat = {f"l_{i}/fc/{leaf}": count(1) for i in range(layers) for leaf in ("kernel", "w")}
        leaves = [(place, HeldTensor(place.path, x)) for place, x in places(nested(flat))]

        def run():
            assert len(unmatch(leaves, rules=li.TORCH, at="")) == 2 * layers
            none = match([p for p, _ in leaves], open_tree({"x": count(1)}), rules=(), at="")
            assert not none.matches

        return run

    assert_not_quadratic(writing)
