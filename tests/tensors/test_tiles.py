import itertools
import tracemalloc
from unittest import mock

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from lazyinit.make import limits
from lazyinit.tensors import tiles
from lazyinit.tensors.casting import Overflow

DTYPES = [
    *("bfloat16", "float16", "float32", "float8_e4m3fn", "int8", "bool", "int32", "float64"),
    *("complex64", "complex128"),
]


def random_bits(shape, dtype, seed=0):
    """Returns values of which every bit is random, infinite ones and NaN among them."""
    top = 2 if dtype == "bool" else 256
    count = int(np.prod(shape)) * jnp.dtype(dtype).itemsize
    values = np.random.default_rng(seed).integers(0, top, count, np.uint8)
    return values.view(jnp.dtype(dtype)).reshape(shape)


def bits(values):
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def numpys_copy(to, values):
    with np.errstate(all="ignore"):
        np.copyto(to, values.astype(to.dtype))


@st.composite
def pairs(draw):
    """Draws a part of an array, with its axes in any order, and two like places for its values."""
    ndim = draw(st.integers(0, 5))
    shape = tuple(draw(st.integers(1, 24 if ndim < 4 else 7)) for _ in range(ndim))
    whole = random_bits(shape, draw(st.sampled_from(DTYPES)), draw(st.integers(0, 9)))
    cut = (slice(draw(st.integers(0, n // 2)), draw(st.integers(n // 2, n))) for n in shape)
    values = whole[(*cut, ...)].transpose(draw(st.permutations(range(ndim))))
    if ndim and draw(st.booleans()):  # One value along an axis, again and again.
        axis = draw(st.integers(0, ndim - 1))
        one = np.take(values, range(min(1, values.shape[axis])), axis)
        values = np.broadcast_to(one, values.shape) if one.size else values
    dtype = values.dtype
    if dtype.kind != "c" and draw(st.booleans()):
        dtype = jnp.dtype(draw(st.sampled_from(DTYPES)))
    order = draw(st.permutations(range(ndim)))
    around = [np.zeros([values.shape[n] + 2 for n in order], dtype) for _ in range(2)]
    inner = (*(slice(1, -1) for _ in order), ...)
    places = [one[inner].transpose(*np.argsort(order).astype(int)) for one in around]
    return values, places, around


@hypothesis.given(pairs(), st.data())
def test_a_copy_has_the_bits_of_numpys_and_touches_nothing_else(pair, data):
    values, (made, want), around = pair
    numpys_copy(want, values)
    size = st.integers(1, 6).map(lambda n: 2**n)
    limits = {
        "TILE": data.draw(st.integers(4, 12).map(lambda n: 2**n)),
        "_READ": data.draw(size),
        "_WRITTEN": data.draw(size),
        "_SHORT": data.draw(size),
        "_SMALL": max(made.itemsize, values.itemsize),
    }
    with mock.patch.multiple(tiles, **limits):
        tiles.copy(made, values, overflow=True)
        np.testing.assert_array_equal(bits(around[0]), bits(around[1]))
        assert is_refused(made, values) == is_refused(
            made.copy(), np.array(values), tiles.cast_into
        )
    np.testing.assert_array_equal(bits(around[0]), bits(around[1]))


def is_refused(made, values, copy=tiles.copy):
    try:
        copy(made, values)
    except Overflow:
        return True
    return False


SHAPES = [(700, 1100), (3, 300, 520), (260, 12, 64), (520, 3, 3, 65), (5000, 8), (8, 5000)]


@pytest.mark.parametrize(
    ("shape", "axes"), [(s, axes) for s in SHAPES for axes in itertools.permutations(range(len(s)))]
)
@pytest.mark.parametrize(
    ("dtype", "to"),
    [("bfloat16", "bfloat16"), ("float32", "float32"), ("bfloat16", "float32"), ("int8", "int8")],
)
def test_every_order_of_axes_is_copied_in_tiles_of_the_real_size(shape, axes, dtype, to):
    values = random_bits(shape, dtype).transpose(axes)
    made, want = (np.zeros(values.shape, jnp.dtype(to)) for _ in range(2))
    numpys_copy(want, values)
    tiles.copy(made, values)
    np.testing.assert_array_equal(bits(made), bits(want))


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("axes", [(0, 1), (1, 0)])
def test_a_copy_takes_little_memory_whatever_its_size(dtype, axes):
    values = random_bits((2048, 4096), dtype).transpose(axes)
    made = np.empty(values.shape, np.float32)
    tracemalloc.start()
    try:
        tiles.copy(made, values)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < limits.READ_BYTES - limits.PIECE
