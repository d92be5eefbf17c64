"""Each shim over a name of JAX or Flax that is not public, tested alone.

A shim whose test passes with the shim taken out can go.
"""

import flax.linen as nn
import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core.scope import LazyRng
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_same

from lazyinit import compat

KEY = jax.random.key(0)
X = jnp.linspace(-1.0, 2.0, 64)


def equations(fn, *args):
    return jax.make_jaxpr(fn)(*args).jaxpr.eqns


def only(fn, *args):
    (equation,) = equations(fn, *args)
    return equation


@jax.custom_jvp
def custom_jvp(x):
    return x * 2.0 + 1.0


@jax.custom_vjp
def custom_vjp(x):
    return x * 2.0 + 1.0


@jax.custom_batching.custom_vmap
def custom_vmap(x):
    return x * 2.0 + 1.0


custom_vmap.def_vmap(lambda size, batched, x: (x * 2.0 + 1.0, True))
custom_jvp.defjvp(lambda x, t: (custom_jvp(*x), t[0]))
custom_vjp.defvjp(lambda x: (custom_vjp(x), x), lambda _, g: (g,))


@pytest.mark.parametrize(
    "fn", [custom_jvp, custom_vjp, custom_vmap, jax.checkpoint(lambda x: x * 2.0 + 1.0)]
)
def test_what_eager_jax_runs_step_by_step_shows_its_steps(fn):
    equation = only(fn, X)
    body, consts = compat.transparent_body(equation)
    assert [e.primitive.name for e in body.eqns] == ["mul", "add"]
    assert len(consts) == len(body.constvars)
    # The fact that makes it right: eager JAX rounds the product, as two programs do.
    assert_same(fn(X), jnp.add(jnp.multiply(X, 2.0), 1.0))


@pytest.mark.parametrize(
    "fn",
    [
        jax.jit(lambda x: x * 2.0 + 1.0),
        lambda x: jax.lax.scan(lambda c, _: (c * 2.0, None), x, None, length=2)[0],
        lambda x: jax.lax.cond(True, jnp.sin, jnp.cos, x),
        jnp.sin,
    ],
)
def test_what_eager_jax_compiles_whole_shows_no_steps(fn):
    assert all(compat.transparent_body(e) is None for e in equations(fn, X))


def test_the_bodies_of_an_equation_are_its_jaxprs():
    assert compat.bodies(only(jnp.sin, X)) == []
    assert len(compat.bodies(only(jax.jit(jnp.sin), X))) == 1
    cond = equations(lambda p, x: jax.lax.cond(p, jnp.sin, jnp.cos, x), True, X)[-1]
    assert len(compat.bodies(cond)) == 2


def test_an_equation_runs_as_it_was_traced():
    product = only(lambda x: x * x, X)
    assert_same(compat.bind(product, X, X)[0], X * X)
    first, second = compat.bind(only(jax.jit(lambda x: (x + 1, x * 2)), X), X)
    assert_same((first, second), (X + 1, X * 2))
    assert_same(jax.jit(lambda x: compat.bind(product, x, x)[0])(X), X * X)


@pytest.mark.parametrize("partitionable", [True, False])
def test_an_equation_runs_with_the_threefry_that_it_was_traced_with(partitionable):
    with jax.threefry_partitionable(partitionable):
        draw = only(lambda k: jax.random.bits(k, (3, 5)), KEY)
        want = jax.random.bits(KEY, (3, 5))
    with jax.threefry_partitionable(not partitionable):
        assert_same(compat.bind(draw, KEY)[0], want)
        assert not bool((jax.random.bits(KEY, (3, 5)) == want).all())


def test_a_narrowed_equation_lacks_what_only_the_unwanted_need():
    equation = only(jax.jit(lambda x, y: (jnp.sin(x), jnp.cos(y))), X, X)
    narrow = compat.narrow(equation, [True, False])
    assert narrow.invars == equation.invars[:1]
    assert narrow.outvars == equation.outvars[:1]
    assert_same(compat.bind(narrow, X)[0], jax.jit(jnp.sin)(X))


def test_a_scan_is_narrowed_to_the_carry_that_is_wanted():
    def fn(x, y):
        return jax.lax.scan(lambda c, _: ((c[0] + 1, jnp.sin(c[1])), c[1]), (x, y), None, length=3)

    (equation,) = (e for e in equations(fn, X, X) if e.primitive.name == "scan")
    narrow = compat.narrow(equation, [True, False, False])
    (body,) = compat.bodies(narrow)
    assert "sin" not in str(body)
    assert_same(compat.bind(narrow, *[X for _ in narrow.invars])[0], X + 1 + 1 + 1)


def test_an_equation_of_which_all_is_wanted_stays_whole():
    equation = only(jax.jit(lambda x, y: (x + y, x * y)), X, X)
    narrow = compat.narrow(equation, [True, True])
    assert narrow is None or len(narrow.outvars) == 2


def test_settings_are_read_by_name():
    with jax.threefry_partitionable(False):
        assert compat.setting("jax_threefry_partitionable") is False
    with jax.threefry_partitionable(True):
        assert compat.setting("jax_threefry_partitionable") is True


def rounds_twice(x):
    return jax.lax.optimization_barrier(jax.lax.optimization_barrier(x * 3.0) + 0.1)


def test_barriers_hold_in_what_threads_draw():
    compiled = jax.jit(rounds_twice).lower(X).compile(compat.for_one_thread())
    assert_same(compiled(X), rounds_twice(X))


@pytest.mark.parametrize("on", [True, False])
def test_64_bit_types_are_on_or_off_in_a_context(on):
    before = jnp.arange(2).dtype
    with compat.enable_x64(on):
        assert jnp.arange(2).dtype == (jnp.int64 if on else jnp.int32)
    assert jnp.arange(2).dtype == before


names = st.lists(st.text("abz_é", max_size=6) | st.integers(0, 2**40), max_size=5)


@pytest.mark.parametrize("separator", [True, False])
@given(names=names)
def test_flax_folds_the_same_value(separator, names):
    import flax

    before = flax.config.flax_fix_rng_separator
    flax.config.update("flax_fix_rng_separator", separator)
    try:
        want = LazyRng.create(KEY, *names).as_jax_rng()
        got = jax.random.fold_in(KEY, np.uint32(compat.flax_fold(names))) if names else KEY
    finally:
        flax.config.update("flax_fix_rng_separator", before)
    assert_same(got, want)


def test_a_tracer_is_told_from_an_array():
    seen = []
    jax.jit(lambda x: seen.append(compat.is_tracer(x)))(1.0)
    assert seen == [True]
    assert not compat.is_tracer(X)
    assert not compat.is_tracer(np.ones(2))
    assert not compat.is_tracer(None)


@pytest.mark.parametrize(
    ("rng", "valid"),
    [
        (KEY, True),
        (jax.random.PRNGKey(0), True),
        (np.zeros(2, np.uint32), True),
        (jnp.zeros(2), False),
        (jnp.zeros(3, jnp.uint32), False),
        (jax.random.split(KEY), False),
        (3, False),
        (None, False),
    ],
)
def test_a_key_is_what_flax_takes_for_one(rng, valid):
    assert compat.is_one_key(rng) is valid
    if valid:
        nn.Dense(2).init(rng, jnp.ones((1, 2)))
    else:
        with pytest.raises(Exception):  # noqa: B017 (Flax has several)
            nn.Dense(2).init(rng, jnp.ones((1, 2)))


def test_equations_have_the_attributes_that_the_shims_read():
    equation = only(jax.jit(jnp.sin), X)
    assert isinstance(equation, jex.JaxprEqn)
    assert hasattr(equation.ctx, "manager")
    assert hasattr(equation.primitive, "get_bind_params")
