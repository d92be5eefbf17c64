"""Laws of layouts: parts, both directions, and how much is read; numpy is the oracle."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines import Counting, everything, held, indices, layouts

from lazyinit import errors
from lazyinit.rules.change import Change, Frame, Grid, Layout
from lazyinit.rules.joins import Concat, Split, Stack, Unstack
from lazyinit.rules.layout import Cast, Transpose
from lazyinit.rules.lengths import Pad, Repeat, Trim
from lazyinit.rules.reshape import Rearrange, Reshape
from lazyinit.tensors.memory import HeldTensor


def read(source):
    return source.read(everything(source.shape))


@settings(max_examples=200)
@given(layouts(), st.data())
def test_a_part_is_read_as_numpy_cuts_it_and_no_more_is_read(case, data):
    layout, tensors, leaves = case
    grid = held(tensors, layout.tensors.numbered)
    wanted = tuple(row[0].shape for row in leaves)
    made = layout.forward(grid, wanted)
    assert [len(row) for row in made.rows] == [len(row) for row in leaves]
    for row, arrays in zip(made.rows, leaves, strict=True):
        for source, array in zip(row, arrays, strict=True):
            assert source.shape == array.shape
            index = data.draw(indices(array.shape))
            for source_row in grid.rows:
                for part in source_row:
                    part.read_count = 0
            values = source.read(index)
            np.testing.assert_array_equal(values, array[(*index, ...)])
            assert values.dtype == source.dtype == array.dtype
            asked = sum(part.read_count for source_row in grid.rows for part in source_row)
            # Tensors hold no zero: that is what is padded, and not read.
            assert asked == np.count_nonzero(array[(*index, ...)])


@settings(max_examples=200)
@given(layouts())
def test_forwards_then_backwards_is_the_identity(case):
    layout, tensors, leaves = case
    grid = held(tensors, layout.tensors.numbered, HeldTensor)
    there = layout.forward(grid, tuple(row[0].shape for row in leaves))
    back = layout.backward(there)
    assert back.numbered == grid.numbered
    for row, arrays in zip(back.rows, tensors, strict=True):
        assert len(row) == len(arrays)
        for source, array in zip(row, arrays, strict=True):
            np.testing.assert_array_equal(read(source), array)
            assert source.dtype == array.dtype


@settings(max_examples=200)
@given(layouts())
def test_what_is_wanted_of_the_tensors_is_what_they_have(case):
    layout, tensors, leaves = case
    wanted = tuple(row[0].shape for row in leaves)
    frames = [layout.tensors]
    for change in layout.changes:
        frames.append(change.after(frames[-1], layout.leaves))
    for change, frame in zip(layout.changes[::-1], frames[-2::-1], strict=True):
        wanted = change.before(wanted, frame)
    for shape, row in zip(wanted, tensors, strict=True):
        assert shape is None or all(
            a in (-1, b) for a, b in zip(shape, row[0].shape, strict=True)
        ), (layout, shape, row[0].shape)


@pytest.mark.parametrize(
    "change",
    [
        Transpose("a b -> b a"),
        Cast("int8"),
        Rearrange("a -> a"),
        Reshape((2, 3), back=(6,)),
        Repeat(-1, 3),
        Pad(0, back=2, value=1.5),
        Trim(1, size=4),
        Stack(),
        Unstack(),
        Concat(0),
        Split(0),
    ],
)
def test_each_change_obeys_the_protocol_and_is_a_value(change):
    import pickle

    import lazyinit as li

    assert isinstance(change, Change)
    assert pickle.loads(pickle.dumps(change)) == change
    assert eval(repr(change), vars(li)) == change
    assert hash(change) == hash(eval(repr(change), vars(li)))


def test_a_layout_that_does_not_lead_to_the_leaves_is_refused():
    with pytest.raises(errors.FillError, match="wanted changes that lead to 1 pattern, got 2 patt"):
        Layout((), Frame(2, False), Frame(1, False))


def test_sources_say_what_they_read():
    parts = tuple(Counting(f"t{n}", np.ones((2, 3))) for n in range(2))
    layout = Layout((Transpose("a b -> b a"), Stack(0)), Frame(1, True), Frame(1, False))
    ((made,),) = layout.forward(Grid((parts,), True), ((2, 3, 2),)).rows
    assert made.names == ("t0", "t1")
    assert made.origin == "the mapping"
    assert made.extents == ()
    assert made.dtype == np.float64
    made.check()
