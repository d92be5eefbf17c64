"""Layouts that may be proposed: numpy says which of them put elements in different places."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyinit.rules.change import Frame, Grid, Layout
from lazyinit.tensors.memory import HeldTensor
from lazyinit.tools import layouts


def made(option, tensor, leaf):
    """Returns what numpy has after a way from one tensor to one leaf."""
    one = Frame(1, False)
    source = HeldTensor("", np.arange(np.prod(tensor)).reshape(tensor))
    grid = Layout(option.changes, one, one).forward(Grid(((source,),)), (leaf,))
    return grid.rows[0][0].read(tuple(slice(0, size) for size in leaf)).tobytes()


@given(st.lists(st.sampled_from([1, 2, 3, 6]), min_size=1, max_size=4), st.data())
def test_ways_are_distinct_if_they_put_some_element_elsewhere(leaf, data):
    tensor = data.draw(st.permutations(leaf))
    if len(leaf) == 3 and data.draw(st.booleans()):
        at = data.draw(st.integers(0, 1))
        tensor = (*leaf[:at], leaf[at] * leaf[at + 1], *leaf[at + 2 :])
    ends = (tuple(tensor),), (tuple(leaf),)
    every = [each for each in layouts.alone(len(tensor)) if layouts.leads(each, *ends)]
    kept = layouts.possible(every, [ends])
    effects = {made(each, *(side[0] for side in ends)) for each in every}
    assert {made(each, *(side[0] for side in ends)) for each in kept} == effects
    assert len(kept) == len(effects)


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_a_way_says_whether_it_turns(rank):
    sizes = (2, 3, 5, 7)[:rank]
    for option in layouts.alone(rank):
        leaf = {1: (2,), 2: (3, 2)}.get(rank)
        if leaf and layouts.leads(option, (sizes,), (leaf,)):
            assert option.turned is (None if rank == 1 else True)


def test_ways_that_differ_for_one_layer_are_both_kept():
    ends = [(((3, 3),), ((3, 3),)), (((1, 1),), ((1, 1),))]
    assert len(layouts.possible(layouts.alone(2), ends)) == 2
    assert len(layouts.possible(layouts.alone(2), ends[1:])) == 1
