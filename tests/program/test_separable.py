"""What of a jit or a scan may be made without the rest, and what happens where it may not."""

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from jax import lax
from jax.nn import initializers
from oracles import assert_same

import lazyinit as li
from lazyinit.program.separable import is_separable
from lazyinit.program.slices import gather

KEY = models.KEY
SHAPE = (64, 64)
normal = initializers.normal(0.02)


def separable(fn, *wanted, drawn=False):
    (equation,) = jax.make_jaxpr(jax.jit(fn))(KEY).jaxpr.eqns
    return is_separable(equation, wanted, drawn=drawn)


def split(key, n):
    return jax.random.fold_in(key, n)


def test_draws_from_keys_of_their_own_share_nothing():
    def two(key):
        return normal(split(key, 0), SHAPE), normal(split(key, 1), SHAPE)

    assert separable(two, True, False)
    assert separable(two, False, True)


def test_a_copy_and_what_it_is_a_copy_of_share_arithmetic():
    def two(key):
        return (p := normal(key, SHAPE)), p + 0.01 * normal(split(key, 1), SHAPE)

    assert not separable(two, False, True)
    assert not separable(two, True, False)
    assert separable(two, True, False, drawn=True)  # The first is a result, drawn in any loop.
    assert not separable(two, False, True, drawn=True)


def test_what_goes_may_use_a_result_only_if_that_is_drawn():
    def two(key):
        return (p := normal(key, SHAPE)), p @ p

    assert not separable(two, True, False)
    assert separable(two, True, False, drawn=True)


def test_numbers_drawn_twice_from_one_key_are_shared():
    def two(key):
        return normal(key, SHAPE), jax.random.normal(key, SHAPE) * 0.5

    assert not separable(two, True, False)


def test_integers_and_constants_are_exact_however_they_are_fused():
    def two(key):
        bits = jax.random.bits(key, SHAPE)
        half = jnp.float32(1) / 2
        return bits >> 3, (bits & 7) + 1, jnp.ones(3) * half

    assert separable(two, True, False, False)
    assert separable(two, False, False, True)


def test_a_carry_that_the_next_step_needs_is_wanted_too():
    def fn(key):
        def step(carry, k):
            a, b = carry
            return (a * 0.5 + b, b * 2.0), normal(k, SHAPE)

        return lax.scan(step, (jnp.ones(SHAPE), jnp.ones(SHAPE)), jax.random.split(key, 2))

    (equation,) = (e for e in jax.make_jaxpr(fn)(KEY).jaxpr.eqns if e.primitive.name == "scan")
    assert is_separable(equation, [False, False, True], drawn=False)
    assert is_separable(equation, [False, True, False], drawn=False)
    assert is_separable(equation, [True, True, False], drawn=False)


CASES = {
    "a derived leaf": jax.jit(
        lambda key, x: (
            (p := initializers.lecun_normal()(key, SHAPE)),
            p + 0.01 * jax.random.normal(split(key, 1), SHAPE),
        )
    ),
    "a cast and its rest": jax.jit(
        lambda key, x: (
            (p := initializers.lecun_normal()(key, SHAPE)),
            (q := p.astype("bfloat16")),
            p - q.astype("float32"),
        )
    ),
    "a sum of what else is a result": jax.jit(
        lambda key, x: ((a := x[0] * x[1]), (b := a + x[2]), jnp.sum(a * b, 0))
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_leaves_that_share_arithmetic_have_their_bits_whole_and_alone(name):
    x = jax.random.normal(KEY, (3, *SHAPE))
    want, tree = CASES[name](KEY, x), li.lazy(CASES[name])(KEY, x)
    assert_same(li.materialize(tree), want)
    for n, leaf in enumerate(want):
        made = li.materialize(tree, str(n))
        assert_same(made[n], leaf)
        assert all(isinstance(x, li.LazyParam) for k, x in enumerate(made) if k != n)


def scanned(key, x):
    """Makes a kernel with a short last axis in each layer, and uses it at once."""

    def layer(x, k):
        kernel = initializers.orthogonal()(k, (8, 8))
        return jnp.tanh(x @ kernel), kernel

    return lax.scan(layer, x, jax.random.split(key, 3))[1]


def test_what_a_leaf_does_not_depend_on_is_zeros_where_the_whole_must_be_run():
    tree = li.lazy(scanned)(KEY, jax.ShapeDtypeStruct((4, 8), "float32"))
    work = gather([tree.init_fn])
    (scan,) = (e for e in work.equations if e.origin.primitive.name == "scan")
    assert scan.idle  # The forward pass runs, since XLA compiles it with the kernel, on nothing.
    assert not work.program.abstract.keys() & set(work.inputs)
    assert_same(li.materialize(tree), scanned(KEY, jnp.ones((4, 8))))


def test_a_loop_that_ends_by_a_value_is_never_run_on_zeros():
    def fn(key, x):
        end = lax.while_loop(lambda v: v.sum() < 100.0, lambda v: v * 2.0, x)
        return (p := normal(key, (8, 8))), p * end.sum()

    tree = li.lazy(jax.jit(fn))(KEY, jax.ShapeDtypeStruct((4,), "float32"))
    with pytest.raises(li.errors.AbstractInputError, match=r"^0: "):
        li.materialize(tree, "0")
    x = np.ones(4, np.float32)
    assert_same(li.materialize(li.lazy(jax.jit(fn))(KEY, x)), jax.jit(fn)(KEY, x))
