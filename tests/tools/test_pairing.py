"""Families of names, and which may be pairs; what is made of them is told in test_suggest."""

import pytest

from lazyinit.rules.joins import Stack
from lazyinit.rules.layout import Transpose
from lazyinit.tools.pairing import families, feasible, pair_up, pairs


def test_names_that_differ_in_numbers_are_one_family():
    shapes = {"layers_0/w": (2,), "layers_11/w": (3,), "fc1/w": (2,), "fc2/w": (2,)}
    found = families(shapes, numbered=True)
    assert [family.names for family in found] == [
        ["layers_0/w", "layers_11/w"],
        ["fc1/w"],
        ["fc2/w"],
    ]
    assert found[0].shapes == {(0,): (2,), (11,): (3,)}
    assert found[0].name(["{n}"]) == "layers_{n}/w"
    assert len(families(shapes, numbered=False)) == 4


def pairs_of(leaves, tensors):
    (leaf,), (tensor,) = families(leaves, numbered=True), families(tensors, numbered=True)
    return list(pairs(leaf, tensor))


T = Transpose("o i -> i o")


@pytest.mark.parametrize(
    ("leaf", "tensor", "layouts"),
    [
        ((2, 3), (2, 3), ((),)),
        ((2, 3), (3, 2), ((T,),)),
        ((3, 3), (3, 3), ((T,), ())),
        ((5, 7, 2, 3), (3, 2, 5, 7), ((Transpose("o i ... -> ... i o"),),)),
        ((4,), (4,), ((),)),
        ((2, 3), (2, 4), None),
        ((2, 3), (3,), None),
    ],
)
def test_a_pair_has_the_layouts_that_its_shapes_allow(leaf, tensor, layouts):
    found = pairs_of({"a/kernel": leaf}, {"b.weight": tensor})
    assert [set(pair.layouts) for pair in found] == ([] if layouts is None else [set(layouts)])


def test_numbers_must_agree_or_be_what_is_stacked():
    tensors = {f"h.{n}.w": (3, 2) for n in range(4)}
    assert pairs_of({f"l/{n}/kernel": (2, 3) for n in range(3)}, tensors) == []
    (pair,) = pairs_of({"l/kernel": (4, 2, 3)}, tensors)
    assert (pair.stacked, pair.layouts) == (0, ((T, Stack(0)),))
    assert pair.sources(()) == list(tensors)
    assert pairs_of({"l/kernel": (5, 2, 3)}, tensors) == []
    assert pairs_of({"l/kernel": (4, 2, 3)}, {f"h.{n}.w": (3, 2) for n in (0, 1, 2, 4)}) == []


def test_what_no_word_tells_apart_stays_open():
    leaves = families({"a/x": (2,), "b/x": (2,)}, numbered=True)
    tensors = families({"c.y": (2,), "d.y": (2,)}, numbered=True)
    found = pair_up(feasible(leaves, tensors))
    assert found.chosen == ()
    assert [[pair.tensor.names for pair in options] for options in found.open] == [
        [["c.y"], ["d.y"]]
    ] * 2
