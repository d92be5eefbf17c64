"""Tracing in eager JAX's steps, and values that Python code may look at."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lazyinit import compat

X = jnp.arange(6.0).reshape(2, 3)


def traced(fn, **options):
    """Returns the jaxpr of a function of a key (known) and an array (unknown), and what it saw."""
    seen = []
    root = jax.random.key(3)

    def steps(key, x):
        trace = compat.eager_steps(**options)
        key, x = trace.known("params", key, root), trace.unknown("x", x)
        with trace.current():
            out = fn(key, x)
        seen.append(trace.looked_at)
        return jax.tree.map(trace.unwrap, out)

    return jax.make_jaxpr(steps)(root, X), seen[0]


def names(fn, **options):
    return [e.primitive.name for e in traced(fn, **options)[0].jaxpr.eqns]


def test_a_function_that_eager_jax_compiles_as_one_is_one_equation():
    def fn(key, x):
        return jax.random.lognormal(key, 1.0, (3,))

    assert names(fn) == ["jit"]
    assert [
        e.primitive.name for e in jax.make_jaxpr(lambda k: fn(k, X))(jax.random.key(0)).eqns
    ] != ["jit"]


def test_a_function_with_a_derivative_of_its_own_is_laid_out():
    @jax.custom_jvp
    def double(x):
        return jax.lax.sin(x)

    @jax.custom_vjp
    def triple(x):
        return jax.lax.cos(x)

    double.defjvp(lambda p, t: (double(*p), t[0]))
    triple.defvjp(lambda x: (triple(x), x), lambda x, g: (g,))
    assert names(lambda key, x: triple(double(x))) == ["sin", "cos"]


def test_a_value_that_is_computed_from_what_is_known_can_be_looked_at():
    def fn(key, x):
        y = jax.random.normal(key, (4,))
        held.append([bool(y.sum() > 0), float(y[0]), int(y[0] * 100), np.asarray(y), y.tolist(),
                     y[1].item(), complex(y[2]), list(range(100))[(y[3] > -100).astype(int)]])  # fmt: skip
        return y

    held = []
    _, looked_at = traced(fn)
    fn(jax.random.key(3), X)
    np.testing.assert_equal(held[0], held[1])
    assert looked_at == {"params"}


def test_what_was_not_looked_at_is_not_counted():
    assert traced(lambda key, x: jax.random.normal(key, x.shape) + x)[1] == set()
    assert traced(lambda key, x: x if jnp.ones(3).sum() > 2 else key)[1] == set()


def test_looking_lets_go_of_what_it_needed():
    def fn(key, x):
        y = jax.random.normal(key, (64, 64))
        for _ in range(50):
            y = y @ y / 8.0
        held.append(bool(y.max() > 0))
        gc.collect()
        alive.extend(a.shape for a in jax.live_arrays() if a.size >= 64 * 64)
        return y

    held, alive = [], []
    traced(fn)
    fn(jax.random.key(3), X)
    assert held[0] == held[1]
    assert alive[:1] != [(64, 64)] or len(alive) == 1  # The second run is eager: it holds its own.


def test_a_value_that_cannot_be_known_says_what_it_is_computed_from():
    with pytest.raises(jax.errors.TracerBoolConversionError, match="computed from x"):
        traced(lambda key, x: 1.0 if (x.sum() + jax.random.normal(key)) > 0 else 2.0)
    with pytest.raises(jax.errors.TracerArrayConversionError, match="computed from x"):
        traced(lambda key, x: np.asarray(x))


def test_eager_jax_picks_its_way_by_scalar_constants_and_so_does_this():
    assert names(lambda key, x: x ** jnp.int32(3)) == names(lambda key, x: x**3)
    assert names(lambda key, x: x ** (jnp.int32(2) + 1))[-1] == "integer_pow"


def test_jax_gets_its_sizes_when_it_asks_for_them_and_only_then():
    def fn(key, x):
        return jnp.nonzero(jax.random.normal(key, (8,)) > 0)[0]

    with pytest.raises(jax.errors.ConcretizationTypeError):
        traced(fn)
    jaxpr, _ = traced(fn, answers_all=True)
    assert jaxpr.out_avals[0].shape == fn(jax.random.key(3), X).shape
