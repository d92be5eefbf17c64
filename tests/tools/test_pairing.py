"""Which families may be pairs; what is made of them is told in test_suggest."""

import pytest

from lazyinit.rules.joins import Stack
from lazyinit.rules.layout import Transpose
from lazyinit.tools.families import families
from lazyinit.tools.pairing import feasible, pair, pair_up
from lazyinit.tools.words import Dictionary


def layouts_of(leaves, tensors):
    (leaf,), (tensor,) = families(leaves, numbered=True), families(tensors, numbered=True)
    found = pair(leaf, tensor)
    return [] if found is None else [option.changes for option in found.options]


T = Transpose("o i -> i o")


@pytest.mark.parametrize(
    ("leaf", "tensor", "layouts"),
    [
        ((2, 3), (2, 3), [()]),
        ((2, 3), (3, 2), [(T,)]),
        ((3, 3), (3, 3), [(T,), ()]),
        ((5, 7, 2, 3), (3, 2, 5, 7), [(Transpose("o i ... -> ... i o"),)]),
        ((4,), (4,), [()]),
        ((2, 3), (2, 4), []),
        ((2, 3), (3,), []),
    ],
)
def test_a_pair_has_the_layouts_that_its_shapes_allow(leaf, tensor, layouts):
    assert layouts_of({"a/kernel": leaf}, {"b.weight": tensor}) == layouts


def test_numbers_must_agree_or_be_what_is_stacked():
    tensors = {f"h.{n}.w": (3, 2) for n in range(4)}
    assert layouts_of({f"l/{n}/kernel": (2, 3) for n in range(3)}, tensors) == []
    assert layouts_of({"l/kernel": (4, 2, 3)}, tensors) == [(T, Stack(0))]
    assert layouts_of({"l/kernel": (5, 2, 3)}, tensors) == []
    assert layouts_of({"l/kernel": (4, 2, 3)}, {f"h.{n}.w": (3, 2) for n in (0, 1, 2, 4)}) == []


def test_a_pair_names_the_tensors_of_each_leaf():
    tensors = {f"h.{n}.e.{m}.w": (3, 2) for n in range(2) for m in range(4)}
    leaves = {f"h/{n}/kernel": (4, 2, 3) for n in range(2)}
    (found,) = feasible(families(leaves, numbered=True), families(tensors, numbered=True), set())
    assert found.sources((1,)) == [f"h.1.e.{m}.w" for m in range(4)]


def test_modules_of_the_same_names_are_not_crossed():
    leaves = families({"gate/kernel": (2, 2), "down/kernel": (2, 2)}, numbered=True)
    tensors = families({"gate/weight": (2, 2), "down/weight": (2, 2)}, numbered=True)
    found = feasible(leaves, tensors, {"gate", "down"})
    assert [[f.keys[0] for f in (*p.leaves, *p.tensors)] for p in found] == [
        ["gate"] * 2,
        ["down"] * 2,
    ]


def test_what_no_word_tells_apart_stays_open():
    leaves = families({"a/x": (2,), "b/x": (2,)}, numbered=True)
    tensors = families({"c.y": (2,), "d.y": (2,)}, numbered=True)
    found = pair_up(feasible(leaves, tensors, set()), Dictionary())
    assert found.chosen == ()
    assert [[each.tensors[0].names for each in options] for options in found.open] == [
        [["c.y"], ["d.y"]]
    ] * 2
