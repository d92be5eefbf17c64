"""Messages and edges of Rearrange; test_change compares it with numpy."""

import numpy as np
import pytest
from pipelines import Counting, everything, refused

import lazyinit as li
from lazyinit.tensors.memory import HeldTensor
from lazyinit.tensors.views import Reshaped, reshaped


@pytest.mark.parametrize(
    "order", ["a b", "a b -> a", "a -> a -> a", "(a b -> a b", "(a (b)) -> a b", "a a -> a a", "->"]
)
def test_what_is_no_arrangement_is_refused(order):
    with refused(f"Rearrange({order!r}): wanted the same axes once each before and after '->'"):
        li.Rearrange(order)


@pytest.mark.parametrize("sizes", [{"x": 2}, {"a": -1}, {"a": 2.0}])
def test_sizes_are_those_of_named_axes(sizes):
    with refused("wanted sizes of named axes, from 0 on, as in Rearrange("):
        li.Rearrange("a -> a", **sizes)


def arranged(order, shape, wanted=None, **sizes):
    return li.Rearrange(order, **sizes).changed(HeldTensor("w", np.empty(shape)), wanted)


def test_sizes_that_the_tensor_does_not_tell_are_those_of_the_leaf():
    order = "(h k) i -> i h k"
    assert arranged(order, (6, 4), (4, 2, 3)).shape == (4, 2, 3)
    assert arranged(order, (6, 4), (-1, -1, 3)).shape == (4, 2, 3)
    assert arranged(order, (6, 4), h=3).shape == (4, 3, 2)
    with refused(
        "wanted a tensor of axes '(h k) i', got one of shape [6, 4]. The size of h cannot"
    ):
        arranged(order, (6, 4))
    with refused("wanted a tensor of axes '(h k) i', got one of shape [6, 4]."):
        arranged(order, (6, 4), h=4)
    with refused("wanted a tensor of axes '(h k) i', got one of shape [6]."):
        arranged(order, (6,))


def test_axes_of_size_one_and_axes_without_a_name():
    assert arranged("d -> 1 1 d", (4,)).shape == (1, 1, 4)
    assert arranged("1 1 d -> d", (1, 1, 4)).shape == (4,)
    assert arranged("o i ... -> ... i o", (2, 3, 4, 5)).shape == (4, 5, 3, 2)
    assert arranged("o i ... -> ... i o", (2, 3)).shape == (3, 2)
    with refused("wanted a tensor of axes '1 d', got one of shape [2, 4]."):
        arranged("1 d -> d", (2, 4))


def test_a_leaf_of_another_shape_is_left_to_be_a_mismatch():
    assert arranged("o i -> i o", (2, 3), (7, 7)).shape == (3, 2)


def test_whole_heads_are_one_read_and_parts_of_heads_are_several():
    calls = []

    class Noting(Counting):
        def read(self, index):
            calls.append(index)
            return super().read(index)

    source = Noting("w", np.arange(24).reshape(12, 2))
    heads = Reshaped(source, (4, 3, 2))
    heads.read((slice(1, 3), slice(0, 3), slice(0, 2)))
    assert calls == [(slice(3, 9), slice(0, 2))]
    calls.clear()
    heads.read((slice(1, 3), slice(0, 2), slice(0, 2)))
    assert calls == [(slice(3, 5), slice(0, 2)), (slice(6, 8), slice(0, 2))]


def test_a_reshape_undone_is_the_source_itself():
    source = HeldTensor("w", np.ones((4, 3)))
    there = reshaped(source, (2, 2, 3))
    assert repr(there) == "the mapping:w.reshape(2, 2, 3)"
    assert reshaped(there, (4, 3)) is source
    assert np.shares_memory(there.read(everything((2, 2, 3))), source.array)


def test_a_reshape_says_what_does_not_go_together():
    tensor = HeldTensor("w", np.empty((6, 4)))
    assert li.Reshape((2, -1)).changed(tensor, None).shape == (2, 12)
    assert li.Reshape((24,), back=(-1, 4)).restored(HeldTensor("w", np.empty(24))).shape == (6, 4)
    with refused("Reshape((5, 5)): wanted a tensor of 25 elements, got one of shape [6, 4]."):
        li.Reshape((5, 5)).changed(tensor, None)
    with refused("Reshape((5, -1)): wanted a tensor of 5 elements or a multiple, got one of shape"):
        li.Reshape((5, -1)).changed(tensor, None)
    with refused("Reshape((24,)): wanted the shape that the tensor had, which the leaf does not"):
        li.Reshape((24,)).restored(tensor)


@pytest.mark.parametrize("sizes", [{"shape": (-2,)}, {"shape": (-1, -1)}, {"back": (3, -4)}])
def test_sizes_of_a_reshape_are_counts_or_one_rest(sizes):
    with refused("wanted sizes from 0 on for " + next(iter(sizes))):
        li.Reshape(**{"shape": (1,), **sizes})
