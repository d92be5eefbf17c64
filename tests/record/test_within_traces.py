"""Recording and materializing within a trace of ``jit``, ``vmap``, ``grad``, ``eval_shape``."""

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from oracles import assert_same

import lazyinit as li

KEY = jax.random.key(7)
KEYS = jax.random.split(KEY, 3)
X = models.X
MODULE = models.MLP()
MESH = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def eager(key, x=X):
    return MODULE.init(key, x)


def lazily(key, x=X):
    return li.materialize(li.lazy(MODULE).init(key, x))


def assert_close(got, want):
    """Under one jit XLA fuses what it likes, so that bits are those of no eager program."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("key", [KEY, jax.random.PRNGKey(7)], ids=["typed", "raw"])
def test_a_traced_key_under_jit(key):
    assert_close(jax.jit(lazily)(key), jax.jit(eager)(key))


def test_a_traced_key_under_vmap_has_the_bits_of_eager_init():
    assert_same(jax.vmap(lazily)(KEYS), jax.vmap(eager)(KEYS))


def test_a_traced_key_under_eval_shape():
    assert jax.eval_shape(lazily, KEY) == jax.eval_shape(eager, KEY)


def test_a_traced_input_under_jit():
    assert_close(jax.jit(lambda x: lazily(KEY, x))(X), jax.jit(lambda x: eager(KEY, x))(X))


def test_a_gradient_through_what_is_made():
    def loss(init):
        def of(scale):
            tree = init(KEY, X * scale)
            return sum(jnp.sum(x**2) for x in jax.tree.leaves(tree))

        return jax.grad(of)(2.0)

    module = models.Wrap(
        lambda self, x: self.param("w", lambda key: x * jax.random.normal(key, x.shape))
    )
    got = loss(lambda key, x: li.materialize(li.lazy(module).init(key, x)))
    assert_same(got, loss(module.init))
    assert got != 0


def test_a_tree_recorded_outside_is_made_within_with_the_bits_of_eager_init():
    tree = li.lazy(MODULE).init(KEY, X)
    sharding = NamedSharding(MESH, P())
    want = jax.tree.map(lambda x: x, eager(KEY))  # With the keys sorted, as jit returns them.
    assert_same(jax.jit(lambda: li.materialize(tree, sharding=sharding))(), want)
    assert_same(jax.jit(lambda: lazily(KEY))(), want)
    assert_same(jax.vmap(lambda x: (x, li.materialize(tree)), out_axes=(0, None))(X)[1], want)


def test_a_sharding_within_jit():
    sharding = NamedSharding(MESH, P())
    made = jax.jit(lambda key: li.materialize(li.lazy(MODULE).init(key, X), sharding=sharding))(KEY)
    assert_close(made, eager(KEY))
    assert {x.sharding for x in jax.tree.leaves(made)} == {sharding}


def test_part_of_a_tree_and_another_dtype_within_jit():
    def head(key):
        tree = li.lazy(MODULE).init(key, X)
        name = next(iter(tree["params"]))
        return li.materialize(tree, f"params/{name}", dtype="bfloat16")["params"][name]

    made = jax.jit(head)(KEY)
    assert {x.dtype for x in jax.tree.leaves(made)} == {jnp.bfloat16.dtype}


def test_a_tree_of_arrays_within_jit_can_be_filled_and_made():
    stored = {"w": np.arange(6.0, dtype="float32")}
    tree = li.lazy(lambda key: {"w": jnp.zeros(6), "b": jax.random.normal(key, (2,))})
    filled = lambda key: li.materialize(li.fill(tree(key), stored, on_missing="init")[0])  # noqa: E731
    made = jax.jit(filled)(KEY)
    np.testing.assert_array_equal(made["w"], stored["w"])
    assert_close(made["b"], jax.random.normal(KEY, (2,)))


def test_nnx_within_jit_and_vmap():
    def make(key):
        return li.materialize(li.lazy(nnx.Linear)(3, 4, rngs=nnx.Rngs(key))[1])

    def want(key):
        return nnx.state(nnx.Linear(3, 4, rngs=nnx.Rngs(key)))

    assert_close(jax.jit(make)(KEY), jax.jit(want)(KEY))
    assert_close(jax.vmap(make)(KEYS), jax.vmap(want)(KEYS))


def test_no_tracer_leaks_from_within():
    with jax.checking_leaks():
        jax.jit(lazily)(KEY)


def test_a_traced_tree_shows_itself():
    shown = []
    jax.jit(lambda key: shown.append(repr(li.lazy(MODULE).init(key, X))) or key)(KEY)
    assert "LazyParam(float32[" in shown[0]
    assert "params" in shown[0]


@pytest.mark.parametrize("name", ["WeightNorm", "scan axis 0", "vmap split", "several streams"])
def test_sliced_leaves_of_a_known_key_have_the_bits_of_eager_init(name):
    module, rngs, args, kwargs = models.CASES[name]
    want = jax.tree.map(lambda x: x, module.init(rngs, *args, **kwargs))
    tree = li.lazy(module).init(rngs, *args, **kwargs)
    assert_same(jax.jit(lambda: li.materialize(tree))(), want)
