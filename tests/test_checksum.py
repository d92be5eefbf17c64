"""Sums of blocks add up to the sum of the array, and are what a loop over elements gives."""

import itertools

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyinit import checksum

DTYPES = [
    "bool", "int8", "uint16", "int32", "float32", "int64", "float64", "complex64", "complex128",
    ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4, ml_dtypes.uint2,
    ml_dtypes.float4_e2m1fn,
]  # fmt: skip


def random(shape, dtype, seed=0):
    dtype = np.dtype(dtype)
    rng = np.random.default_rng(seed)
    if dtype.itemsize == 1:
        return rng.integers(0, 2, shape).astype(dtype)
    return np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)


def weight(column, index, word):
    """Returns the number of a place, from the numbers drawn, in Python's own integers."""
    product = int(checksum._drawn("words", word, 1)[0, column])
    for axis, at in enumerate(index):
        product *= int(checksum._drawn(f"axis {axis}", at % 256, 1)[0, column])
        product *= int(checksum._drawn(f"runs of axis {axis}", at // 256, 1)[0, column])
    return product


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (5, 3), (2, 300), (3, 1, 2, 4)])
def test_it_is_the_sum_over_elements(shape, dtype):
    values = random(shape, dtype)
    words = values.view(np.uint8) if values.itemsize == 1 else values.reshape(*shape, 1).view("<u2")
    words = words.reshape(*shape, max(1, values.itemsize // 2))
    want = [
        sum(weight(k, at[:-1], at[-1]) * int(words[at]) for at in np.ndindex(words.shape))
        for k in range(checksum.COLUMNS)
    ]
    got = checksum.sums(values, [0] * len(shape))
    assert got.tolist() == [x % checksum.PRIME for x in want]


@settings(max_examples=40)
@given(st.data())
def test_blocks_add_up_to_the_whole(data):
    shape = data.draw(st.lists(st.integers(1, 700), min_size=1, max_size=2), label="shape")
    shape += data.draw(st.lists(st.integers(1, 5), max_size=2), label="more axes")
    values = random(shape, data.draw(st.sampled_from(["float32", "uint16", "int8"])))
    cuts = []
    for size in shape:
        inside = data.draw(st.lists(st.integers(0, size), max_size=3, unique=True))
        edges = sorted({0, size, *inside})
        cuts.append([slice(a, b) for a, b in itertools.pairwise(edges)])
    total = sum(
        checksum.sums(values[block], [s.start for s in block]) for block in itertools.product(*cuts)
    )
    assert (total % checksum.PRIME).tolist() == checksum.sums(values, [0] * len(shape)).tolist()


@pytest.mark.parametrize(
    ("shape", "start", "most"),
    [
        ((1000,), (0,), 512),
        ((1000,), (100,), 2**20),
        ((3, 900), (5, 250), 300),
        ((4, 5), (0, 0), 1),
    ],
)
def test_pieces_cover_a_block_and_cut_no_run_in_two_halves(shape, start, most):
    seen = np.zeros(shape, int)
    for index in checksum.cuts(shape, start, most):
        piece = seen[index]
        assert piece.size <= most
        piece += 1
        for first, cut in zip(start, index, strict=True):
            low, high = first + cut.start, first + cut.stop - 1
            assert low // 256 == high // 256 or (low % 256 == 0 and (high + 1) % 256 == 0)
    assert (seen == 1).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_bit_or_two_elements_that_change_places_make_another_sum(dtype):
    values = random((300, 40), dtype)
    whole = checksum.sums(values, (0, 0)).tolist()
    bits = 1 if np.dtype(dtype) == bool else jnp.dtype(dtype).itemsize * 8
    for n, bit in [(0, 0), (11999, 0), (5000, min(bits, 2) - 1)]:
        other = values.copy()
        other.view(np.uint8).reshape(-1, values.itemsize)[n, -1] ^= 1 << bit
        assert checksum.sums(other, (0, 0)).tolist() != whole
    first, second = np.unique(values.view(f"V{values.itemsize}"), return_index=True)[1][:2]
    other = values.copy().ravel()
    other[[first, second]] = other[[second, first]]
    assert checksum.sums(other.reshape(values.shape), (0, 0)).tolist() != whole


def test_the_unused_bits_of_small_elements_mean_nothing():
    values = np.array([-1, 3], ml_dtypes.int4)
    other = (values.view(np.uint8) ^ 0x50).view(ml_dtypes.int4)
    assert checksum.sums(values, [0]).tolist() == checksum.sums(other, [0]).tolist()


def test_the_longest_exact_sum_is_exact():
    """All bits set, as many products as are added up in a float64 at a time."""
    values = np.full((4, 2**13), 2**16 - 1, np.uint16)
    ones = checksum.sums(np.ones_like(values), (0, 0))
    assert checksum.sums(values, (0, 0)).tolist() == (ones * (2**16 - 1) % checksum.PRIME).tolist()
