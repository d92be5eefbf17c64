import math
import warnings

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from lazyinit.tensors.casting import Overflow, cast_into, is_by_table, may_overflow

DTYPES = [
    *("bool", "int8", "uint8", "int32", "float16", "float32", "float64", "complex64", "bfloat16"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float4_e2m1fn", "int4", "uint4"),
]
BYTES = [dtype for dtype in DTYPES if jnp.dtype(dtype).itemsize == 1]


def every_value(dtype):
    if dtype == "bool":
        return np.array([False, True])
    return np.arange(256, dtype=np.uint8).view(jnp.dtype(dtype))


def numpys_cast(values, to):
    """Returns what NumPy's cast gives, by way of float32 where ml_dtypes has none."""
    with np.errstate(all="ignore"):
        try:
            return values.astype(to)
        except TypeError:
            return values.astype(np.float32).astype(to)


def bits(values):
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


@pytest.mark.parametrize("to", DTYPES)
@pytest.mark.parametrize("dtype", BYTES)
def test_every_value_of_a_byte_is_cast_as_numpy_casts_it(dtype, to):
    values, made = every_value(dtype), np.empty(every_value(dtype).shape, jnp.dtype(to))
    want = numpys_cast(values, jnp.dtype(to))
    cast_into(made, values, overflow=True)
    np.testing.assert_array_equal(bits(made), bits(want))


def test_what_is_looked_up_are_the_bytes_that_numpy_has_no_dtype_for():
    looked_up = [dtype for dtype in DTYPES if is_by_table(jnp.dtype(dtype))]
    assert looked_up == [dtype for dtype in BYTES if dtype.startswith(("float", "int4", "uint4"))]


@pytest.mark.parametrize("to", ["float16", "float32", "bfloat16"])
def test_what_is_too_large_is_infinite_if_that_is_asked_for_and_warns_of_nothing(to):
    made = np.empty(3, jnp.dtype(to))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cast_into(made, np.array([1e300, -1e300, 1.0]), overflow=True)
    np.testing.assert_array_equal(made.astype(float), [np.inf, -np.inf, 1.0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex128", "float8_e5m2"])
def test_a_copy_keeps_every_bit_of_a_nan(dtype):
    values = np.random.default_rng(0).integers(0, 256, 4096, np.uint8)
    values[::2] |= 0x7F  # Many exponents of ones alone.
    values = values.view(jnp.dtype(dtype))
    made = np.empty_like(values)
    cast_into(made, values)
    np.testing.assert_array_equal(bits(made), bits(values))


# What a dtype cannot hold. The judge counts with Python's numbers, one value at a time.

EVERY = [
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2", "int4"),
    *("uint4", "float8_e4m3fnuz", "float8_e8m0fnu", "float4_e2m1fn", "complex64", "complex128"),
]


def kind_of(number):
    return "nan" if math.isnan(number) else "inf" if math.isinf(number) else "finite"


def is_held(value, made):
    """Tells whether a dtype holds a value, of which NumPy's cast has made another."""
    dtype = made.dtype
    if "bool" in (dtype.name, value.dtype.name):
        return True
    if jnp.issubdtype(dtype, jnp.complexfloating):
        parts = [(value.real, made.real), (value.imag, made.imag)]
        return all(kind_of(float(v)) == kind_of(float(m)) for v, m in parts)
    number = int(value) if jnp.issubdtype(value.dtype, jnp.integer) else float(value)
    if jnp.issubdtype(dtype, jnp.integer):
        info = jnp.iinfo(dtype)
        return math.isfinite(number) and int(info.min) <= math.trunc(number) <= int(info.max)
    if dtype == jnp.float4_e2m1fn:  # It has no infinity, no NaN and nothing above 6.
        return abs(number) <= 7
    return kind_of(number) == kind_of(float(made))


@st.composite
def values_to_cast(draw):
    dtype, to = (jnp.dtype(draw(st.sampled_from(EVERY))) for _ in range(2))
    # NumPy has no real part in mind when it casts complex values to real ones.
    if dtype.kind == "c" or to.kind == "c":
        dtype, to = (jnp.dtype(draw(st.sampled_from(EVERY[-2:]))) for _ in range(2))
    count, seed = draw(st.integers(0, 40)), draw(st.integers(0, 99))
    rng = np.random.default_rng(seed)
    if dtype.name == "bool" or draw(st.booleans()):  # Most of them fit most dtypes.
        whole = rng.integers(0, 2 if dtype.name == "bool" else 7, count)
        values = whole.astype(np.float32).astype(dtype)
    else:
        values = rng.integers(0, 256, count * dtype.itemsize, np.uint8).view(dtype)
    return values, to


@hypothesis.given(values_to_cast())
@hypothesis.settings(max_examples=300, deadline=None)
def test_a_value_is_rounded_by_a_cast_or_refused_unless_it_may_overflow(case):
    values, to = case
    made, want = np.empty(values.shape, to), numpys_cast(values, to)
    cast_into(made, values, overflow=True)
    np.testing.assert_array_equal(bits(made), bits(want))
    lost = [n for n in range(len(values)) if not is_held(values[n], want[n])]
    if values.dtype == to or not lost:
        cast_into(made, values)
        np.testing.assert_array_equal(bits(made), bits(want))
    else:
        assert may_overflow(values.dtype, to)
        with pytest.raises(Overflow) as error:
            cast_into(made, values)
        assert repr(error.value.value) == repr(values[lost[0]])
        assert repr(error.value.made) == repr(want[lost[0]])


@pytest.mark.parametrize("to", EVERY[:-2])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "float8_e4m3fn", "float8_e5m2", "uint4"])
def test_dtypes_of_a_byte_may_overflow_if_one_of_their_values_does(dtype, to):
    values, to = every_value(dtype), jnp.dtype(to)
    lost = not all(map(is_held, values, numpys_cast(values, to)))
    assert may_overflow(jnp.dtype(dtype), to) is (lost and jnp.dtype(dtype) != to)


@pytest.mark.parametrize(
    ("dtype", "to", "expected"),
    [
        ("bfloat16", "float32", False),
        ("float16", "float32", False),
        ("float16", "bfloat16", False),
        ("float32", "float64", False),
        ("int64", "float32", False),
        ("int32", "int64", False),
        ("float32", "bfloat16", True),
        ("float32", "float16", True),
        ("bfloat16", "float16", True),
        ("int64", "int32", True),
        ("int32", "uint32", True),
        ("int64", "float16", True),
        ("float32", "int64", True),
    ],
)
def test_a_cast_between_two_dtypes_may_overflow_if_ranges_differ(dtype, to, expected):
    assert may_overflow(jnp.dtype(dtype), jnp.dtype(to)) is expected


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("to", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan, 0.0])
def test_what_was_infinite_or_nan_before_is_no_overflow(dtype, to, special):
    values = np.full(70_000, 1.5, jnp.dtype(dtype))
    values[-1] = special
    made = np.empty(values.shape, jnp.dtype(to))
    cast_into(made, values)
    np.testing.assert_array_equal(made[-1].astype(float), special)
