"""Messages of Stack, Concat and their inverses; test_change compares them with numpy."""

import numpy as np
import pytest
from pipelines import count, filled

import lazyinit as li
from lazyinit import errors


def mismatch(rules, tensors, flat):
    with pytest.raises(errors.FillError) as caught:
        filled(flat, tensors, rules)
    return str(caught.value)


def test_tensors_of_other_shapes_are_not_stacked():
    rules = [li.Rule("w", "h.{n}", [li.Stack()])]
    assert mismatch(rules, {"h.0": count(2), "h.1": count(3)}, {"w": count(2, 2)}) == (
        "w: the model wants float32[2,2], tensors 'h.0', 'h.1' hold float32[2], float32[3]; "
        "Stack(axis=0): wanted tensors of one shape, got [2] in the mapping:h.0 and [3] in "
        'the mapping:h.1. Drop it with on_mismatch="init", or map it in rules.'
    )


def test_another_number_of_tensors_than_the_leaf_has_is_a_mismatch():
    rules = [li.Rule("w", "h.{n}", [li.Stack()])]
    tensors = {f"h.{n}": count(2) for n in range(5)}
    assert mismatch(rules, tensors, {"w": count(4, 2)}).startswith(
        "w: the model wants float32[4,2], tensors 'h.0', ... (5), 'h.4' hold float32[2] each. Drop"
    )


@pytest.mark.parametrize(("numbers", "gap"), [((0, 1, 3), 2), ((1, 2), 0), ((0, 123456789), 1)])
def test_a_gap_in_the_numbers_names_the_tensor_that_is_missing(numbers, gap):
    rules = [li.Rule("w", "h.{n}.w", [li.Stack()])]
    tensors = {f"h.{n}.w": count(2) for n in numbers}
    assert f"hold float32[2] each; tensor 'h.{gap}.w' is missing. Drop" in mismatch(
        rules, tensors, {"w": count(3, 2)}
    )


def test_one_of_several_tensors_that_is_missing_is_named():
    rules = [li.Rule("qk", ("q", "k"), [li.Concat(axis=0)])]
    assert "tensor 'q' holds float32[2]; tensor 'k' is missing. Drop" in mismatch(
        rules, {"q": count(2)}, {"qk": count(4)}
    )


def test_a_later_rule_of_which_all_tensors_are_there_comes_before():
    rules = [li.Rule("qk", ("q", "k"), [li.Concat(axis=0)]), li.Rule("qk", "fused")]
    _, report = filled({"qk": count(4)}, {"q": count(2), "fused": count(4)}, rules)
    assert report.entries[0].tensors == ("fused",)


def test_tensors_that_differ_along_another_axis_are_not_concatenated():
    rules = [li.Rule("qk", ("q", "k"), [li.Concat(axis=0)])]
    assert "Concat(axis=0): wanted shapes that differ along that axis alone, got [2, 3] in" in (
        mismatch(rules, {"q": count(2, 3), "k": count(2, 4)}, {"qk": count(4, 3)})
    )


def test_a_tensor_is_not_split_into_leaves_of_other_sizes():
    rules = [li.Rule(("q", "k"), "qk", [li.Split(axis=0)])]
    assert "Split(axis=0): wanted parts of 2 + 3 along axis 0, got a tensor of shape [4]" in (
        mismatch(rules, {"qk": count(4)}, {"q": count(2), "k": count(3)})
    )


def test_an_axis_that_is_not_there_is_a_mismatch():
    rules = [li.Rule("qk", ("q", "k"), [li.Concat(axis=3)])]
    assert "Concat(axis=3): wanted an axis of the leaf or tensor, which has 1 in all" in (
        mismatch(rules, {"q": count(2), "k": count(2)}, {"qk": count(4)})
    )


def test_a_number_beyond_the_axis_is_a_mismatch():
    rules = [li.Rule("h/{n}", "h", [li.Unstack()])]
    assert (
        "h/2: the model wants float32[3], tensor 'h' holds float32[2,3]; Rule('h/{n}', 'h', "
        in (mismatch(rules, {"h": count(2, 3)}, {f"h/{n}": count(3) for n in range(3)}))
    )
    rules = [li.Rule(("a", "b"), "h", [li.Unstack()])]
    assert "Unstack(axis=0): wanted an axis of size 2, got [3]" in mismatch(
        rules, {"h": count(3)}, {"a": count(), "b": count()}
    )


def test_stacked_tensors_of_several_dtypes_take_the_one_that_holds_all():
    rules = [li.Rule("w", "h.{n}", [li.Stack()])]
    tensors = {"h.0": np.float16([1]), "h.1": np.float64([1 / 3])}
    leaves, _ = filled({"w": np.zeros((2, 1))}, tensors, rules)
    assert leaves["w"].dtype == np.float64
    np.testing.assert_array_equal(leaves["w"], [[1], [1 / 3]])


def test_a_leaf_whose_tensors_do_not_go_together_may_be_left_to_be_initialized():
    rules = [li.Rule("w", "h.{n}.w", [li.Stack()])]
    tensors = {f"h.{n}.w": count(2) for n in (0, 2)} | {"x": count(1)}
    tree = {name: li.LazyParam((3, 2), "float32", np.zeros) for name in "w"}
    filled, report = li.fill(tree, tensors, rules, on_mismatch="init")
    assert filled["w"] is tree["w"]
    assert report.mismatched == ("w",)
    assert report.unexpected == ("x",)
    assert report.sources["w"].tensors == ("h.0.w", "h.2.w")
