"""Scalar constants that XLA casts, and NumPy would cast otherwise."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from oracles import assert_same

import lazyinit as li
from lazyinit import compat

# Out of range, not finite, subnormal, and two that NumPy rounds once from float64 and JAX twice.
VALUES = [
    -1.7, 300.5, -300.5, 1e10, -1e10, float("nan"), -float("nan"), float("inf"), -float("inf"), -0.0, 0.5,
    2.0, 1e-40, -1e-45, 1 + 2**-11 + 1e-10, 1 + 2**-8 + 1e-10, 65519.99,
]  # fmt: skip


@pytest.mark.parametrize(
    "dtype",
    ["bool", "int4", "uint4", "int8", "uint8", "int16", "uint16", "int32", "uint32", "float16",
     "bfloat16", "float32", "float8_e4m3fn", "float8_e5m2", "complex64"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")  # Those of eager JAX.
def test_a_scalar_is_cast_with_the_bits_of_eager_jax(dtype):
    def fn():
        made = {}
        for n, value in enumerate(VALUES):
            for given in (value, np.float64(value), np.float32(value)):
                made[f"{type(given).__name__} {n}"] = jnp.full((2, 3), given, dtype)
            given = jnp.asarray(complex(value, 1))
            made[f"complex {n}"] = jax.lax.convert_element_type(given, jnp.dtype(dtype))
            made[f"weak {n}"] = jnp.asarray(value).astype(dtype) * jnp.ones((2, 3), dtype)
        return made

    assert_same(li.materialize(li.lazy(fn)()), fn())


def test_a_constant_parameter_out_of_the_range_of_its_dtype_has_eager_bits():
    def body(self, x):
        self.param("low", nn.initializers.constant(-1.7), (4, 128), jnp.uint8)
        self.param("high", nn.initializers.constant(1e10), (4, 128), jnp.int8)

    module = models.Wrap(body)
    tree = li.lazy(module).init(models.KEY, models.X)
    assert_same(li.materialize(tree), module.init(models.KEY, models.X))


@pytest.mark.parametrize("value", [0.02, 2.0, -0.0])
def test_a_constant_that_numpy_casts_alike_stays_a_literal(value):
    def steps():
        with compat.eager_steps().current():
            made = jnp.full((3,), value, jnp.bfloat16)
        return made.inner  # pyright: ignore (a traced value)

    (equation,) = jax.make_jaxpr(steps)().eqns
    assert equation.primitive.name == "broadcast_in_dim"
