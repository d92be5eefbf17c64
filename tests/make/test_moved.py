"""Leaves whose elements are drawn, and then only moved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_leaves
from flax import nnx
from jax.nn import initializers
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from oracles import assert_same

import lazyinit as li
from lazyinit.make.proofs import TRUSTED
from lazyinit.make.ways import Drawn, Job, way_of

KEY = jax.random.key(0)
normal = initializers.normal(0.02)


def is_drawn(leaf):
    return isinstance(way_of([Job("", leaf, None, leaf.dtype)], lambda _: TRUSTED), Drawn)


def rows(key, axis=0):
    return jax.vmap(lambda k: normal(k, (6, 64)), out_axes=axis)(jax.random.split(key, 8))


def scanned(key, *, reverse=False):
    def step(n, key):
        return n + 1, normal(jax.random.fold_in(key, n), (6, 64))

    return jax.lax.scan(step, 0, jax.random.split(key, 8), reverse=reverse)[1]


DRAWN = {
    "transposed": lambda key: normal(key, (16, 64)).T,
    "swapped": lambda key: jnp.swapaxes(normal(key, (4, 6, 64)), 0, 2),
    "moved": lambda key: jnp.moveaxis(normal(key, (4, 6, 64)), 0, 1),
    "split into heads": lambda key: normal(key, (16, 128)).reshape(16, 4, 32),
    "split, and heads first": lambda key: normal(key, (8, 128)).reshape(8, 4, 32).swapaxes(0, 1),
    "merged": lambda key: normal(key, (4, 6, 64)).transpose(2, 0, 1).reshape(64, 24),
    "cut": lambda key: normal(key, (20, 64))[3:11],
    "one of some": lambda key: normal(key, (3, 8, 64))[1],
    "cut, and transposed": lambda key: normal(key, (20, 80))[2:10, 5:69].T,
    "by a jit": lambda key: jax.jit(lambda x: x.reshape(8, 4, 16).T)(normal(key, (8, 64))),
    "rows along another axis": lambda key: rows(key, 1),
    "rows transposed": lambda key: rows(key).T,
    "rows split and cut": lambda key: rows(key).reshape(8, 6, 4, 16)[2:].transpose(2, 0, 3, 1),
    "scanned rows along another axis": lambda key: scanned(key).transpose(1, 2, 0),
    "scanned from the last row": lambda key: scanned(key, reverse=True),
    "placed between": lambda key: jax.device_put(normal(key, (16, 64)), jax.devices()[0]).T,
}


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("name", DRAWN)
def test_moved_elements_are_drawn_with_the_bits_of_eager_jax_on_any_mesh(name, axis_type):
    make = DRAWN[name]
    wanted = make(KEY)
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(axis_type,) * 2)
    with jax.set_mesh(mesh):
        leaf = li.lazy(make)(KEY)
    assert is_drawn(leaf)
    alone = SingleDeviceSharding(jax.devices()[0])
    for sharding in (alone, *(NamedSharding(mesh, spec) for spec in specs(leaf.shape))):
        assert_same(li.materialize(leaf, sharding=sharding), wanted, f"{name} to {sharding}")


def specs(shape):
    yield P()
    for axis, size in enumerate(shape):
        if size % 8 == 0:
            yield P(*[None] * axis, ("a", "b"))


# Computed in short rows somewhere, or in one compiled program with the move, or not evenly apart.
REPLAYED = {
    "short rows made long": lambda key: normal(key, (1024, 3)).reshape(48, 64),
    "shorter rows made longer": lambda key: normal(key, (4096, 5)).reshape(20, 1024),
    "scaled when it is short": lambda key: normal(key, (3, 64)).T * np.float32(0.3),
    "scaled when it is cut short": lambda key: normal(key, (8, 128)).reshape(32, 32) * 0.3,
    "transposed in a jit": jax.jit(lambda key: normal(key, (16, 64)).T * 0.3),
    "long in a jit that has it short": jax.jit(
        lambda key: (jax.random.normal(key, (1024, 3)) * 0.3).reshape(48, 64)
    ),
    "merged across": lambda key: normal(key, (4, 6, 64)).transpose(1, 0, 2).reshape(24, 64),
    "rows merged with what is in them": lambda key: rows(key).reshape(-1),
    "every other": lambda key: normal(key, (16, 64))[::2],
}


@pytest.mark.parametrize("name", REPLAYED)
def test_what_is_not_proven_is_replayed_with_the_bits_of_eager_jax(name):
    leaf = li.lazy(REPLAYED[name])(KEY)
    assert not is_drawn(leaf)
    assert_same(li.materialize(leaf), REPLAYED[name](KEY))


def test_attention_heads_of_nnx_are_drawn():
    def make(rngs):
        return nnx.MultiHeadAttention(4, 64, 128, rngs=rngs, decode=False)

    _, tree = li.lazy(make)(nnx.Rngs(0))
    kernels = [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim == 3]
    assert len(kernels) == 4
    assert all(map(is_drawn, kernels))
    assert_same(li.materialize(tree), nnx.state(make(nnx.Rngs(0))))


@pytest.mark.parametrize("first", range(0, 20, 10))
def test_random_moves_have_the_bits_of_eager_jax(first):
    for seed in range(first, first + 10):
        random_leaves.check_moved(seed)


@pytest.mark.slow
def test_many_random_moves_have_the_bits_of_eager_jax():
    for seed in range(1000, 1040):
        random_leaves.check_moved(seed)
