"""What JAX has had since 0.10, at both ends of the range; eager JAX is the oracle."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from oracles import assert_same

import lazyinit as li

KEY = models.KEY


class Placed(nnx.Module):
    """Has metadata on one drawn and one replayed kernel, and none on others."""

    def __init__(self, rngs):
        lecun, orthogonal = nnx.initializers.lecun_normal(), nnx.initializers.orthogonal()
        cut = nnx.with_partitioning
        self.drawn = nnx.Linear(16, 128, kernel_init=cut(lecun, (None, "b")), rngs=rngs)
        self.whole = nnx.Linear(16, 16, kernel_init=cut(orthogonal, ("a", None)), rngs=rngs)
        self.short = nnx.Linear(16, 4, rngs=rngs)


def linen():
    def body(self, x):
        # Flax refuses to place a parameter of Linen by metadata on axes that are explicit.
        self.param("drawn", nn.initializers.normal(0.02), (16, 128))
        self.param("whole", nn.initializers.orthogonal(), (16, 16))
        self.param("short", nn.initializers.lecun_normal(), (16, 4))

    return models.Wrap(body)


MODELS = {
    "NNX": (lambda: nnx.state(Placed(nnx.Rngs(0))), lambda: li.lazy(Placed)(nnx.Rngs(0))[1]),
    "Linen": (lambda: linen().init(KEY, 0), lambda: li.lazy(linen()).init(KEY, 0)),
}
# What jax.make_mesh takes by itself is one of these, by version.
KINDS = {
    "explicit": {"axis_types": (AxisType.Explicit,) * 2},
    "auto": {"axis_types": (AxisType.Auto,) * 2},
}


def arrays(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


@functools.cache
def within(kind, model):
    """Returns a mesh, what eager Flax makes within it, and what is recorded there."""
    mesh = jax.make_mesh((2, 4), ("a", "b"), **KINDS[kind])
    eager, lazy = MODELS[model]
    with jax.set_mesh(mesh):
        return mesh, eager(), lazy()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_under_a_mesh_that_is_set_leaves_have_the_bits_and_places_of_eager_init(model, kind):
    mesh, want, tree = within(kind, model)
    with jax.set_mesh(mesh):
        made = li.materialize(tree)
    for got, wanted in zip(jax.tree.leaves(made), jax.tree.leaves(want), strict=True):
        assert got.sharding == wanted.sharding
    for got, wanted in zip(arrays(made), arrays(want), strict=True):
        assert_same(got, wanted)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_recorded_under_a_mesh_is_made_anywhere(model, kind):
    mesh, want, tree = within(kind, model)
    other = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    place = lambda path, leaf: NamedSharding(other, P("x") if leaf.shape[0] % 4 == 0 else P())  # noqa: E731
    for sharding in (place, NamedSharding(mesh, P())):
        made = li.materialize(tree, sharding=sharding)
        for got, wanted in zip(arrays(made), arrays(want), strict=True):
            assert_same(got, wanted)


@pytest.mark.parametrize("kind", ["explicit", "auto"])
def test_a_model_is_recorded_under_a_mesh_without_devices(kind):
    mesh = jax.make_mesh((2, 4), ("a", "b"), **KINDS[kind])
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        tree = li.lazy(models.MLP()).init(KEY, models.X)
    want = models.MLP().init(KEY, models.X)
    for got, wanted in zip(arrays(li.materialize(tree)), arrays(want), strict=True):
        assert_same(got, wanted)


def test_an_empty_array_is_recorded_though_its_values_are_nobodys():
    """``jnp.empty`` may be uninitialized since jax 0.11: its bits are no promise of ours."""
    tree = li.lazy(lambda key: {"e": jnp.empty((3, 70)), "z": jnp.zeros(70)})(KEY)
    made = li.materialize(tree)
    assert made["e"].shape == (3, 70)
    assert made["e"].dtype == jnp.float32
    assert_same(made["z"], jnp.zeros(70))


@pytest.mark.parametrize("on", [True, False])
def test_how_a_gpu_hashes_changes_no_bit_of_a_recording(on):
    if not hasattr(jax.config, "jax_threefry_gpu_kernel_lowering"):
        pytest.fail("the setting is gone: drop this test")
    before = jax.config.jax_threefry_gpu_kernel_lowering
    want = models.MLP().init(KEY, models.X)
    jax.config.update("jax_threefry_gpu_kernel_lowering", on)
    try:
        assert_same(li.materialize(li.lazy(models.MLP()).init(KEY, models.X)), want)
    finally:
        jax.config.update("jax_threefry_gpu_kernel_lowering", before)


def test_remat_of_each_kind_keeps_the_bits():
    class Layer(nnx.Module):
        def __init__(self, rngs):
            self.inner = nnx.remat(lambda r: nnx.Linear(8, 128, rngs=r))(rngs)

    @jax.checkpoint
    def drawn(key):
        x = jax.random.normal(key, (8, 128))
        return x * 0.3 + 0.7

    assert_same(li.materialize(li.lazy(drawn)(KEY)), drawn(KEY))
    want = nnx.state(Layer(nnx.Rngs(0)))
    assert_same(li.materialize(li.lazy(Layer)(nnx.Rngs(0))[1]), want)
