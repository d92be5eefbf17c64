"""Equal fingerprints mean equal programs; equal programs mostly have equal fingerprints."""

import functools
import gc
import itertools

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import models
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyinit.program.fingerprint import fingerprint, fingerprint_constant, fingerprint_params

KEY = jax.random.key(0)
X = jax.ShapeDtypeStruct((4,), "float32")


def of(fn, *args):
    return fingerprint(jax.make_jaxpr(fn)(*(args or (X,))))


def same(a, b):
    assert (a == b) == (b == a)
    assert a != b or hash(a) == hash(b)
    return a == b


def test_two_traces_of_two_closures_are_the_same():
    def maker(scale):
        return lambda x: jax.jit(lambda y: jnp.sin(y) * scale)(x) + 1.0

    assert same(of(maker(2.0)), of(maker(2.0)))
    assert not same(of(maker(2.0)), of(maker(3.0)))


def test_fresh_initializers_are_the_same():
    first, second, other = models.normal(0.02), models.normal(0.02), models.normal(0.03)
    shape = lambda init: of(lambda key: init(key, (4, 4)), KEY)  # noqa: E731
    assert same(shape(first), shape(second))
    assert not same(shape(first), shape(other))


def test_parameters_that_were_seen_before_are_told_apart_as_others_are():
    def layers(x):
        for scale in (1.0, 2.0, 2.0):
            x = jax.jit(lambda y, scale=scale: jnp.sin(y) * scale)(x)
            x = x.reshape(2, 2).reshape(4).astype("int32").astype("float32")
        return x

    equations = [e for _ in range(2) for e in jax.make_jaxpr(layers)(X).jaxpr.eqns]
    whole = [fingerprint(e.params) for e in equations]
    known = {}
    short = [fingerprint_params(e.params, known) for e in equations]
    assert 3 < len(set(short)) < len(short)
    for n, m in itertools.combinations(range(len(short)), 2):
        assert same(short[n], short[m]) == same(whole[n], whole[m])
    assert [fingerprint_params(e.params, known) for e in equations] == short
    assert [fingerprint_params(e.params, {}) for e in equations] == short


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (lambda x: x + 1.0, lambda x: x + 2.0),
        (lambda x: x.at[jnp.array([9])].get(mode="fill", fill_value=0.0),
         lambda x: x.at[jnp.array([9])].get(mode="fill", fill_value=-0.0)),
        (lambda x: x + 1.0, lambda x: 1.0 + x),
        (lambda x: x + 0.0, lambda x: x + -0.0),
        (lambda x: x * jnp.nan, lambda x: x * jnp.inf),
        (lambda x: x - x * 2, lambda x: x * 2 - x),
        (lambda x: (x, x + 1), lambda x: (x + 1, x)),
        (lambda x: x.reshape(2, 2), lambda x: x.reshape(4, 1)),
        (lambda x: x.astype("int32"), lambda x: x.astype("float16")),
        (lambda x: x[0], lambda x: x[1]),
        (lambda x: jnp.sin(jnp.cos(x)), lambda x: jnp.cos(jnp.sin(x))),
        (jax.jit(jnp.sin), jax.jit(jnp.cos)),
        (lambda x: jax.lax.scan(lambda c, _: (c + 1, c), x, None, length=2),
         lambda x: jax.lax.scan(lambda c, _: (c + 1, c), x, None, length=3)),
        (lambda x: jax.lax.scan(lambda c, _: (c + 1, c), x, None, length=2),
         lambda x: jax.lax.scan(lambda c, _: (c + 2, c), x, None, length=2)),
        (lambda x: jax.lax.cond(x[0] > 0, jnp.sin, jnp.cos, x),
         lambda x: jax.lax.cond(x[0] > 0, jnp.cos, jnp.sin, x)),
        (lambda x: x + np.arange(4, dtype=np.float32), lambda x: x + np.ones(4, np.float32)),
        (lambda x: jax.jit(lambda y: y + np.arange(4, dtype=np.float32))(x),
         lambda x: jax.jit(lambda y: y + np.ones(4, np.float32))(x)),
        (lambda x: x ** 2, lambda x: x ** 3),
    ],
)  # fmt: skip
def test_another_program_has_another_fingerprint(a, b):
    assert same(of(a), of(a))
    assert not same(of(a), of(b))


def test_other_types_of_the_same_equations_have_other_fingerprints():
    double = lambda x: x + x  # noqa: E731
    others = [jax.ShapeDtypeStruct((5,), "float32"), jax.ShapeDtypeStruct((4,), "bfloat16"),
              jax.ShapeDtypeStruct((4, 1), "float32")]  # fmt: skip
    for other in others:
        assert not same(of(double, X), of(double, other))


def test_weak_types_inside_a_body_count():
    weak = jax.make_jaxpr(jax.jit(lambda x: x * jnp.bfloat16(2)))(1.0)
    strong = jax.make_jaxpr(jax.jit(lambda x: x * jnp.bfloat16(2)))(jnp.float32(1))
    assert not same(fingerprint(weak), fingerprint(strong))


def test_a_key_of_another_implementation_is_another_type():
    draw = lambda key: jax.random.bits(key, (4,))  # noqa: E731
    assert not same(of(draw, KEY), of(draw, jax.random.key(0, impl="rbg")))


@pytest.mark.parametrize(
    "a", [1, 1.0, True, np.float32(1), "1", (1,), [1], (1.0,), {"a": 1}, None, X]
)
@pytest.mark.parametrize(
    "b", [1, 1.0, True, np.float32(1), "1", (1,), [1], (1.0,), {"a": 1}, None, X]
)
def test_parameters_of_other_types_differ(a, b):
    alike = type(a) is type(b) and a == b and repr(a) == repr(b)
    assert same(fingerprint(a), fingerprint(b)) == alike


@pytest.mark.parametrize(
    ("a", "b"), [(0.0, -0.0), (0j, -0j), (complex(0.0, 0.0), complex(0.0, -0.0)), (np.nan, -np.nan)]
)
def test_numbers_that_differ_in_a_sign_alone_are_two_parameters(a, b):
    assert not same(fingerprint(a), fingerprint(b))
    assert same(fingerprint(a), fingerprint(a + 0 if a != a else a))


def test_an_unhashable_parameter_is_itself_alone():
    class Unhashable:
        __hash__ = None

    one = Unhashable()
    assert same(fingerprint(one), fingerprint(one))
    assert not same(fingerprint(one), fingerprint(Unhashable()))


arrays = st.builds(
    lambda dtype, shape, seed: np.random.default_rng(seed).integers(0, 3, shape).astype(dtype),
    st.sampled_from(["float32", "int32", "uint8", "bool"]),
    st.sampled_from([(), (1,), (2,), (1, 2), (2, 1), (0,)]),
    st.integers(0, 3),
)


@given(arrays, arrays)
def test_numpy_parameters_are_compared_by_value(a, b):
    equal = a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    assert same(fingerprint(a), fingerprint(b)) == equal
    avals = [jax.typeof(jnp.asarray(x)) for x in (a, b)]
    assert same(fingerprint_constant(a, avals[0]), fingerprint_constant(b, avals[1])) == equal


def test_large_constants_are_compared_by_identity():
    large = np.arange(1000.0, dtype=np.float32)
    aval = jax.typeof(jnp.zeros(1000))
    assert same(fingerprint_constant(large, aval), fingerprint_constant(large, aval))
    assert not same(fingerprint_constant(large, aval), fingerprint_constant(large.copy(), aval))


def test_the_fingerprint_of_a_program_that_is_gone_is_not_mistaken_for_a_new_one():
    init = functools.partial(jax.jit, static_argnums=1)
    seen = {}
    for n in range(50):
        jaxpr = jax.make_jaxpr(lambda x, n=n: init(lambda y, k: y + k)(x, float(n)))(X)
        seen[n] = fingerprint(jaxpr)
        del jaxpr
        gc.collect(0)
    assert len(set(seen.values())) == 50


def test_a_closed_jaxpr_is_more_than_its_jaxpr():
    consts = [np.arange(4, dtype=np.float32), np.ones(4, np.float32)]
    jaxpr = jax.make_jaxpr(lambda x: x + consts[0])(X)
    if jaxpr.consts:
        other = jex.ClosedJaxpr(jaxpr.jaxpr, [consts[1]])
        assert not same(fingerprint(jaxpr), fingerprint(other))
