"""Values of a few bits in words, and what scales are made of: NumPy, place by place, is the oracle."""

import math

import ml_dtypes
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines import Counting, everything, indices

from lazyinit.tensors.memory import HeldTensor
from lazyinit.tensors.packed import SIGNED, UNSIGNED, Fields
from lazyinit.tensors.quantized import Scaled, blocks_of
from lazyinit.tensors.scales import Coded, Divided, Raised, Rows, Taken


@st.composite
def words(draw):
    """Returns a source of fields, the words that it reads, and the values, place by place."""
    bits = draw(st.sampled_from([2, 4, 8]))
    width = draw(st.sampled_from([b for b in (8, 16, 32, 64) if b >= bits]))
    shape = tuple(draw(st.lists(st.integers(0, 5), min_size=1, max_size=3)))
    axis, count = draw(st.integers(0, len(shape) - 1)), width // bits
    beyond = draw(st.integers(0, count - 1))
    size = max(shape[axis] * count - beyond, 0)
    order = draw(st.permutations(range(count))) if draw(st.booleans()) else range(count)
    is_signed = draw(st.booleans())
    flip = 1 << (bits - 1) if is_signed else 0
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    held = (
        rng.integers(0, 1 << 63, shape, np.uint64).astype(f"u{width // 8}").view(f"i{width // 8}")
    )
    kinds = SIGNED if is_signed else UNSIGNED
    source = Fields(
        Counting("w", held),
        bits,
        axis,
        size,
        kinds[bits],
        () if order == range(count) else tuple(order),
        flip,
    )
    moved = np.moveaxis(held, axis, 0)
    want = np.empty((size, *moved.shape[1:]), "int64")
    for place in range(size):
        for at in np.ndindex(moved.shape[1:]):
            word = int(moved[(place // count, *at)]) % (1 << width)
            value = word >> (bits * order[place % count]) & ((1 << bits) - 1)
            want[(place, *at)] = value - flip
    return source, np.moveaxis(want, 0, axis)


@settings(max_examples=60, deadline=None)
@given(words(), st.data())
def test_fields_are_the_bits_of_words_in_any_order_and_of_a_part_its_own_words(made, data):
    source, want = made
    index = data.draw(indices(source.shape))
    got = source.read(index)
    assert (got.dtype, got.shape) == (source.dtype, want[index].shape)
    np.testing.assert_array_equal(got.astype("int64"), want[index])
    assert got.tobytes() == want[index].astype(source.dtype).tobytes()  # No bits beyond its own.
    count = 8 * source.source.dtype.itemsize // source.bits
    part = index[source.axis]
    touched = max(-(-part.stop // count) - part.start // count, 0)
    others = math.prod(n for a, n in enumerate(got.shape) if a != source.axis)
    assert source.source.read_count == touched * others


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_zero_points_are_subtracted_before_scales_and_read_by_blocks(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    block = tuple(data.draw(st.integers(1, 4)) for _ in shape)
    rng, counts = np.random.default_rng(0), blocks_of(shape, block)
    kind = data.draw(st.sampled_from(["int8", "uint8", ml_dtypes.int4, ml_dtypes.uint4]))
    values = rng.integers(0, 8, shape).astype(kind)
    zeros = rng.integers(0, 8, counts).astype(kind)
    scales = rng.random(counts).astype("float16")
    counted = [Counting(n, x) for n, x in (("v", values), ("s", scales), ("z", zeros))]
    source = Scaled(*counted[:2], block, np.dtype("float16"), (counted[2],))
    index = data.draw(indices(shape))
    at = tuple(np.arange(n) // b for n, b in zip(shape, block, strict=True))
    less = values.astype("float32") - zeros.astype("float32")[np.ix_(*at)]
    want = (less * scales.astype("float32")[np.ix_(*at)]).astype("float16")
    got = source.read(index)
    assert got.tobytes() == want[index].tobytes()
    assert counted[0].read_count == got.size
    assert counted[1].read_count == counted[2].read_count
    touched = [len(set(part[i].tolist())) for part, i in zip(at, index, strict=True)]
    assert counted[1].read_count == (math.prod(touched) if got.size else 0)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_what_scales_are_made_of_is_what_numpy_makes_of_it(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=2)))
    rng = np.random.default_rng(1)
    codes, floats = rng.integers(0, 16, shape, np.uint8), rng.random(shape, np.float32)
    table, places = rng.random(16, np.float32), rng.integers(0, shape[1], 7).astype("int32")
    held = HeldTensor("x", floats)
    number = HeldTensor("n", np.array([3.0], np.float32))
    cases = {
        Coded(HeldTensor("c", codes), tuple(table.tolist())): table[codes],
        Raised(held, 0.1): floats + np.float32(0.1),
        Divided(held, number): floats / np.float32(3),
        Taken(held, 1, HeldTensor("p", places)): floats[:, places],
        Rows(HeldTensor("f", floats.ravel()), shape): floats,
    }
    for source, want in cases.items():
        assert everything(source.shape) == tuple(slice(0, n) for n in want.shape)
        index = data.draw(indices(want.shape))
        got = source.read(index)
        assert (got.dtype, got.tobytes()) == (want.dtype, want[index].tobytes()), source
        assert any(name in repr(source) for name in source.names)


def test_places_are_taken_of_what_lies_between_the_first_and_the_last():
    source = Counting("x", np.arange(20.0).reshape(2, 10))
    taken = Taken(source, 1, HeldTensor("p", np.array([7, 2, 4, 9])))
    np.testing.assert_array_equal(taken.read((slice(0, 1), slice(1, 3))), [[2, 4]])
    assert source.read_count == 3


def test_a_number_that_is_zero_divides_to_none():
    zero = HeldTensor("n", np.zeros(1, np.float32))
    made = Divided(HeldTensor("x", np.array([1.0, 0.0], np.float32)), zero)
    np.testing.assert_array_equal(made.read((slice(None),)), [np.inf, np.nan])
