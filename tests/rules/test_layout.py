import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyinit import errors
from lazyinit.rules.layout import Cast, Transpose
from lazyinit.tensors.memory import HeldTensor
from lazyinit.tensors.views import transposed


@st.composite
def arrays_and_axes(draw):
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    array = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    return array, tuple(draw(st.permutations(range(len(shape)))))


@given(arrays_and_axes(), st.data())
def test_reading_a_part_is_a_part_of_reading_all(case, data):
    array, axes = case
    source = transposed(HeldTensor("x", array), axes)
    index = tuple(
        data.draw(st.tuples(st.integers(0, n), st.integers(0, n)).map(lambda ends: slice(*ends)))
        for n in source.shape
    )
    assert source.shape == array.transpose(axes).shape
    np.testing.assert_array_equal(source.read(index), array.transpose(axes)[(*index, ...)])


def test_reading_a_transposed_source_copies_nothing():
    array = np.ones((3, 4))
    read = transposed(HeldTensor("x", array), (1, 0)).read((slice(None), slice(0, 2)))
    assert np.shares_memory(read, array)


def test_a_transposed_source_is_a_value():
    array = np.ones((2, 3, 4))
    source = transposed(HeldTensor("a.b", array), (2, 0, 1))
    assert source == transposed(HeldTensor("a.b", array), (2, 0, 1))
    assert hash(source) == hash(transposed(HeldTensor("a.b", array), (2, 0, 1)))
    assert source != transposed(HeldTensor("a.b", array), (2, 1, 0))
    assert (source.names, source.origin, source.dtype) == (("a.b",), "the mapping", array.dtype)
    assert repr(source) == "the mapping:a.b.transpose(2, 0, 1)"
    assert repr(transposed(HeldTensor("a.b", array), (2, 1, 0))) == "the mapping:a.b.T"
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(source)).read((slice(None),) * 3), array.transpose(2, 0, 1)
    )


@pytest.mark.parametrize(
    ("ndim", "axes"), [(1, (0,)), (2, (1, 0)), (3, (2, 1, 0)), (4, (2, 3, 1, 0))]
)
def test_named_axes_serve_every_rank(ndim, axes):
    change = Transpose("o i ... -> ... i o")
    assert change.axes(ndim) == axes
    source = HeldTensor("w", np.ones(range(1, ndim + 1)))
    assert change(source).shape == tuple(axis + 1 for axis in axes)


def test_a_change_of_nothing_is_the_source_itself():
    source = HeldTensor("w", np.ones((2, 3)))
    assert Transpose("a b -> a b")(source) is source
    assert Transpose("a b c -> c b a")(source) is source
    assert Transpose("a -> a")(source) is source


@pytest.mark.parametrize("order", ["a b", "a b -> a", "a a -> a a", "a -> a b"])
def test_axes_that_differ_on_the_two_sides_are_refused(order):
    with pytest.raises(errors.FillError, match="wanted the same axes once each before and after"):
        Transpose(order)


def test_a_layout_is_checked_by_its_source(tmp_path):
    from safetensors.numpy import save_file

    from lazyinit.checkpoint import open_checkpoint

    path = tmp_path / "a.safetensors"
    save_file({"w": np.ones((2, 3))}, path)
    source = transposed(open_checkpoint(path)["w"], (1, 0))
    source.check()
    path.unlink()
    with pytest.raises(errors.CheckpointError, match="can no longer be read"):
        source.check()


def test_a_cast_changes_the_kind_of_number_and_back_if_that_is_said():
    source = HeldTensor("w", np.int8([1, 2]))
    cast = Cast("float32", back="int8").changed(source, None)
    assert (cast.dtype, cast.shape, repr(cast)) == (
        np.float32,
        (2,),
        "the mapping:w.astype(float32)",
    )
    np.testing.assert_array_equal(cast.read((slice(1, 2),)), np.float32([2]))
    assert Cast("float32", back="int8").restored(cast).dtype == np.int8
    assert Cast("float32").restored(cast) is cast
    assert Cast("int8").changed(source, None) is source


@pytest.mark.parametrize(
    "arguments", [("nothing",), ("float32", "nothing"), ("float32", []), (None,)]
)
def test_a_cast_to_what_is_no_dtype_is_refused(arguments):
    with pytest.raises(errors.FillError, match=r"Cast: wanted a dtype for \w+, got .*Write it as"):
        Cast(*arguments)


def test_a_transposition_undone_is_the_source_itself():
    source = HeldTensor("w", np.ones((2, 3, 4)))
    change = Transpose("a b ... -> ... a b")
    assert change.restored(change.changed(source, None)) is source
