"""Works that give each element from its index."""

import functools
import itertools

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from jax.nn import initializers
from oracles import assert_same

import lazyinit as li
from lazyinit.make.elementwise import elementwise_of
from lazyinit.make.selfcheck import proofs_on
from lazyinit.make.ways import Job, Replayed, way_of
from lazyinit.program.slices import gather


def work_of(init, shape=(8, 64), key=models.KEY):
    tree = li.lazy(models.Wrap(lambda self, x: self.param("w", init, shape))).init(key, 0)
    return gather([tree["params"]["w"].init_fn], drawn=True)


FORMS = {
    "zeros": initializers.zeros,
    "constant": initializers.constant(3.0),
    "normal": initializers.normal(0.02),
    "truncated normal": initializers.truncated_normal(0.02),
    "variance scaling": initializers.variance_scaling(2.0, "fan_in", "uniform"),
    "bits": lambda key, shape: jax.random.bits(key, shape),
    "bernoulli": lambda key, shape: jax.random.bernoulli(key, 0.3, shape),
    "two draws": lambda key, shape: (
        jax.random.normal(key, shape) + jax.random.uniform(jax.random.split(key)[1], shape)
    ),
    "reshaped": lambda key, shape: jax.random.normal(key, (1024,)).reshape(shape) ** 2,
    "under jit": jax.jit(lambda key, shape: jax.random.normal(key, shape) * 3, static_argnums=1),
    "chosen": lambda key, shape: jnp.where(jax.random.normal(key, shape) > 0, np.float32(1), -2.0),
    "scaled and moved": lambda key, shape: jax.random.normal(key, shape) * 0.3 + 0.7,
    "moved by a product": lambda key, shape: (lambda n: n * 0.3 + n * 0.7 - 0.1)(
        jax.random.normal(key, shape)
    ),
    "used again": lambda key, shape: (lambda n: n * 0.3 + jnp.fmod(n, 0.7) * jnp.sin(n))(
        jax.random.normal(key, shape)
    ),
    "clipped": lambda key, shape: jnp.clip(jax.random.normal(key, shape), -0.5, 0.5),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_leaf_made_by_its_indices_has_the_bits_of_eager_init(name):
    assert elementwise_of(work_of(FORMS[name], (16, 64))) is not None
    module = models.Wrap(lambda self, x: self.param("w", FORMS[name], (16, 64)))
    assert_same(li.materialize(li.lazy(module).init(models.KEY, 0)), module.init(models.KEY, 0))


def test_short_last_axes_are_left_to_eager_jax():
    for shape in ((64, 3), (4096, 63), (3,)):
        assert elementwise_of(work_of(initializers.normal(0.02), shape)) is None
        assert elementwise_of(work_of(initializers.zeros, shape)) is not None  # Nothing is rounded.


def test_two_products_in_one_sum_are_left_to_eager_jax_if_it_compiles_them_as_one():
    def init(key, shape):
        x = jax.random.normal(key, shape)
        return x * 0.3 + x * 0.7

    assert elementwise_of(work_of(init)) is not None
    assert elementwise_of(work_of(jax.jit(init, static_argnums=1))) is None


@functools.partial(jax.jit, static_argnums=1)
def pair(key, shape):
    x = jax.random.normal(key, shape)
    return x * 0.3 + 1.0, x * 0.7 - 0.1


def test_a_leaf_that_is_made_beside_a_result_nobody_wants_is_replayed():
    init = lambda key, shape: pair(key, shape)[0]  # noqa: E731
    assert not work_of(init).keeps_all()
    module = models.Wrap(lambda self, x: self.param("w", init, (8, 64)))
    tree = li.lazy(module).init(models.KEY, 0)
    leaf = tree["params"]["w"]
    way = way_of([Job("params/w", leaf, None, leaf.dtype)], proofs_on)
    assert isinstance(way, Replayed)
    assert_same(li.materialize(tree), module.init(models.KEY, 0))


OTHERS = {
    "exponential": lambda key, shape: jax.random.exponential(key, shape),
    "gumbel": lambda key, shape: jax.random.gumbel(key, shape),
    "orthogonal": initializers.orthogonal(),
    "a sum": lambda key, shape: jax.random.normal(key, shape) - jax.random.normal(key, shape).sum(),
    "a flip": lambda key, shape: jax.random.normal(key, shape)[::-1],
    "a transpose": lambda key, shape: jax.random.normal(key, shape[::-1]).T,
    "two parts": lambda key, shape: jnp.concatenate(
        [jax.random.normal(key, (4, 4)), jnp.ones((4, 4))]
    ),
    "an array": lambda key, shape: jax.random.normal(key, shape) * np.arange(4, dtype=np.float32),
    "a scan": lambda key, shape: jnp.cumsum(jax.random.normal(key, shape)),
    "weakly typed": lambda key, shape: jnp.broadcast_to(jnp.asarray(1.0), shape) * 1.0,
    "nothing": lambda key, shape: jnp.zeros((0, 3)),
    "a drawn scale": lambda key, shape: (
        jax.random.normal(key, shape) * jnp.exp(jax.random.normal(jax.random.split(key)[0], ()))
    ),
    "keys": lambda key, shape: jax.random.split(key, 3),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_leaves_are_left_to_eager_jax(name):
    assert elementwise_of(work_of(OTHERS[name], (8, 4))) is None
    module = models.Wrap(lambda self, x: self.param("w", OTHERS[name], (8, 4)))
    assert_same(li.materialize(li.lazy(module).init(models.KEY, 0)), module.init(models.KEY, 0))


def test_other_generators_count_in_other_ways():
    normal = initializers.normal(0.02)
    assert elementwise_of(work_of(normal, key=jax.random.key(0, impl="rbg"))) is None
    with jax.threefry_partitionable(False):
        assert elementwise_of(work_of(normal)) is None
    assert elementwise_of(work_of(normal, key=jax.random.PRNGKey(0))) is not None


def test_one_signature_serves_all_shapes_and_scales_but_not_other_dtypes():
    def signature(init, shape):
        form = elementwise_of(work_of(init, shape))
        assert form is not None
        return form.signature

    normal = signature(initializers.normal(0.02), (8, 64))
    assert signature(initializers.normal(0.5), (3, 5, 77)) == normal
    assert signature(initializers.normal(0.02, "bfloat16"), (8, 64)) != normal
    assert signature(initializers.uniform(0.02), (8, 64)) != normal


@pytest.mark.parametrize("shape", [(), (1,), (2,), (1, 1), (2, 1)])
def test_tiny_leaves_are_no_exception(shape):
    for name in ("normal", "two draws", "constant", "clipped", "chosen"):
        module = models.Wrap(lambda self, x, name=name: self.param("w", FORMS[name], shape))
        assert_same(li.materialize(li.lazy(module).init(models.KEY, 0)), module.init(models.KEY, 0))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_64_bit_types_keep_their_bits(dtype):
    with jax.enable_x64(True):
        init = initializers.normal(0.02, dtype)
        module = models.Wrap(lambda self, x: self.param("w", init, (3, 65)))
        tree = li.lazy(module).init(models.KEY, 0)
        wanted = module.init(models.KEY, 0)
    assert_same(li.materialize(tree), wanted)


def kinds(init):
    """Returns what kind of barrier is where, by the operation in front."""
    steps = elementwise_of(work_of(init, (8, 64))).steps
    return [
        (before.equation.primitive.name, step.kind)
        for before, step in itertools.pairwise(steps)
        if step.kind in ("barrier", "fence")
    ]


def test_a_product_shares_the_loop_in_front():
    for init in (initializers.normal(0.02), initializers.lecun_normal()):
        # One loop more where eager JAX compiles the inverse error function alone (since 0.11).
        assert [kind for _, kind in kinds(init)][-2:] == ["fence", "barrier"]


def test_what_may_have_no_vectors_shares_no_loop():
    before = kinds(lambda k, s: jnp.fmod(jax.random.uniform(k, s), 2.0))
    assert before == [("max", "barrier"), ("rem", "barrier")]
    after = kinds(lambda k, s: jnp.cbrt(jax.random.uniform(k, s)) * 2.0)
    assert after == [("max", "barrier"), ("cbrt", "barrier"), ("mul", "barrier")]
    # Nor does what such a loop uses later on.
    again = kinds(lambda k, s: (lambda n: n * 2.0 + jnp.cbrt(n))(jax.random.uniform(k, s)))
    assert [kind for _, kind in again] == ["barrier"] * 4
