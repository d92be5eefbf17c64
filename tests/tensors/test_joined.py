"""Sources of several tensors as values; test_change holds the laws of reading."""

import pickle

import numpy as np
import pytest
from pipelines import everything

from lazyinit import errors
from lazyinit.tensors.joined import Agreeing, Joined
from lazyinit.tensors.memory import Filled, HeldTensor
from lazyinit.tensors.views import cut, selected

ARRAYS = [np.arange(6, dtype="float32").reshape(2, 3) + n for n in range(5)]
HELD = tuple(HeldTensor(f"t{n}", x) for n, x in enumerate(ARRAYS))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (Joined(HELD[:2], 1, is_stacked=True), "stack([the mapping:t0, the mapping:t1], axis=1)"),
        (Joined(HELD, 0, is_stacked=True), "stack([the mapping:t0, ..., the mapping:t4], axis=0)"),
        (Joined(HELD[:1], 0), "concat([the mapping:t0], axis=0)"),
        (cut(HELD[0], {1: (1, 3)}), "the mapping:t0[:, 1:3]"),
        (selected(HELD[0], 0, 1), "the mapping:t0[1]"),
        (Agreeing(HELD[:2], "t"), "the mapping:t0"),
        (Filled(np.float32(2), (2, 3)), "constant 2.0"),
    ],
)
def test_sources_are_values_that_say_what_they_are(source, text):
    assert repr(source) == text
    assert source == type(source)(*(getattr(source, f) for f in source.__dataclass_fields__))
    assert hash(source) == hash(source)
    assert pickle.loads(pickle.dumps(source)).shape == source.shape
    source.check()


def test_what_lies_in_one_part_is_read_without_a_copy():
    for source in (Joined(HELD, 0, is_stacked=True), Joined(HELD, 0)):
        index = (slice(0, 1), *everything(source.shape)[1:])
        assert np.shares_memory(source.read(index), ARRAYS[0])
    assert np.shares_memory(cut(HELD[0], {1: (1, 3)}).read(everything((2, 2))), ARRAYS[0])
    assert np.shares_memory(selected(HELD[0], 0, 1).read(everything((3,))), ARRAYS[0])


def test_a_constant_is_one_value_read_anywhere():
    source = Filled(np.float32([1, 2]), (3, 2))
    np.testing.assert_array_equal(source.read((slice(1, 3), slice(0, 2))), [[1, 2], [1, 2]])
    assert (source.names, source.extents, source.origin) == ((), (), "a constant")
    assert Filled(np.float32(1), (2,)) != Filled(np.float32(1), (3,))


def test_parts_agree_bit_by_bit():
    nan = HeldTensor("a", np.float32([[np.nan, 1]])), HeldTensor("b", np.float32([[np.nan, 1]]))
    assert np.isnan(Agreeing(nan, "t").read(everything((1, 2)))[0, 0])
    with pytest.raises(errors.FillError, match="t: wanted leaves that are equal"):
        Agreeing((HELD[0], HELD[1]), "t").read(everything((2, 3)))


@pytest.mark.parametrize("is_stacked", [False, True])
def test_parts_of_several_dtypes_hold_what_the_dtype_of_all_holds(is_stacked):
    # JAX takes float16 for the dtype of int32 and float16 together.
    held = HeldTensor("a", np.int32([1, 2])), HeldTensor("b", np.float16([3, 4]))
    joined = Joined(held, 0, is_stacked)
    want = np.concatenate([np.float16([1, 2]), np.float16([3, 4])]).reshape(joined.shape)
    np.testing.assert_array_equal(joined.read(everything(joined.shape)), want)
    assert joined.may_refuse
    large = Joined((HeldTensor("a", np.int32([1, 10**6])), held[1]), 0, is_stacked)
    for stop in (1, large.shape[0]):
        index = (slice(0, stop), *everything(large.shape)[1:])
        if stop == 1 and not is_stacked:
            assert large.read(index) == [1]
            continue
        with pytest.raises(errors.CastError, match="^the mapping: tensor 'a': wanted values that"):
            large.read(index)
    assert not Joined(held[1:] * 2, 0, is_stacked).may_refuse
