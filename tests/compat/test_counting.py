"""Whole numbers that are added and converted on the host, judged by JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_same

from lazyinit import compat

DTYPES = ("uint32", "int32", "uint8", "int8", "int16")


def equation_of(function, *args):
    (equation,) = jax.make_jaxpr(function)(*args).eqns
    return equation


@given(st.data(), st.sampled_from(DTYPES), st.sampled_from(DTYPES))
def test_a_count_is_that_of_jax_and_wraps_around_as_it_does(data, dtype, to):
    bounds = np.iinfo(dtype)
    near = st.sampled_from([bounds.min, bounds.min + 1, bounds.max - 1, bounds.max])
    one, other = (
        np.array(data.draw(st.integers(int(bounds.min), int(bounds.max)) | near), dtype)
        for _ in range(2)
    )

    @jax.jit
    def count(x, y):
        return jax.jit(jnp.add)(x, y).astype(to) + 1, x

    made = compat.counted(equation_of(count, one, other), [one, jnp.asarray(other)])
    assert made is not None
    for got, want in zip(made, count(one, other), strict=True):
        assert_same(np.asarray(got), np.asarray(want))


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (jax.lax.mul, (np.uint32(3), np.uint32(4))),
        (jax.lax.add, (np.float32(3), np.float32(4))),
        (jax.lax.add, (np.ones(2, np.int32), np.ones(2, np.int32))),
        (lambda x: jax.lax.convert_element_type(x, jnp.float32), (np.int32(3),)),
        (lambda x: jax.lax.convert_element_type(x, jnp.int32), (np.float32(3.5),)),
        (jax.lax.add, (3, 4)),  # The type of the result is weak.
        (jax.jit(lambda x: (x + 1) * 2), (np.uint32(3),)),
        (lambda key: jax.random.bits(key), (jax.random.key(0),)),
    ],
)
def test_any_other_equation_is_left_to_jax(function, args):
    equations = jax.make_jaxpr(function)(*args).eqns
    assert compat.counted(equations[0], args) is None
