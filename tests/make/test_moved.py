"""Leaves whose elements are drawn, and then only moved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_leaves
from flax import nnx
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax.nn import initializers
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from oracles import assert_same

import lazyinit as li
from lazyinit.make.moved import Indices, form_of
from lazyinit.make.proofs import TRUSTED
from lazyinit.make.ways import Drawn, Job, way_of
from lazyinit.program.slices import gather

KEY = jax.random.key(0)
normal = initializers.normal(0.02)


def is_drawn(leaf):
    return isinstance(way_of([Job("", leaf, None, leaf.dtype)], lambda *_: TRUSTED), Drawn)


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
    "flipped": lambda key: normal(key, (16, 64))[::-1],
    "flipped along all axes": lambda key: jnp.flip(normal(key, (4, 8, 65))),
    "flipped, and merged": lambda key: jnp.flip(normal(key, (4, 8, 64))).reshape(32, 64),
    "turned by a quarter": lambda key: jnp.rot90(normal(key, (16, 64))),
    "every other": lambda key: normal(key, (16, 64))[::2, 1::3],
    "every third from the last": lambda key: normal(key, (26, 128))[2:-1:3, ::-2],
    "by a jit": lambda key: jax.jit(lambda x: x.reshape(8, 4, 16).T)(normal(key, (8, 64))),
    "rows along another axis": lambda key: rows(key, 1),
    "rows transposed": lambda key: rows(key).T,
    "rows flipped": lambda key: jnp.flip(rows(key), (0, 2)),
    "every third row": lambda key: rows(key)[1::3, ::-1],
    "rows split and cut": lambda key: rows(key).reshape(8, 6, 4, 16)[2:].transpose(2, 0, 3, 1),
    "scanned rows along another axis": lambda key: scanned(key).transpose(1, 2, 0),
    "scanned rows flipped": lambda key: scanned(key)[::-1, :, ::-2],
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
    "rows flipped with what is in them": lambda key: rows(key).reshape(-1)[::-1],
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
    for seed in range(1000, 1020):
        random_leaves.check_moved(seed)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_an_order_says_where_the_elements_of_any_part_are_drawn(seed):
    rng = np.random.default_rng(seed)
    drawn = np.arange(24 * 66, dtype=np.int32).reshape(*rng.permutation([4, 6]), 66)
    moves, left = [], jax.ShapeDtypeStruct(drawn.shape, drawn.dtype)
    for _ in range(int(rng.integers(1, 4))):
        move, _ = random_leaves.random_move(rng, left.shape)
        left = jax.eval_shape(move, left)
        moves.append(move)

    def init(key):
        x = jax.random.normal(key, drawn.shape)
        for move in moves:
            x = move(x)
        return x

    found = form_of(gather([li.lazy(init)(KEY).init_fn], drawn=True))
    assume(found is not None)  # A reshape may leave neighbors unevenly apart.
    wanted = drawn
    for move in moves:
        wanted = np.asarray(move(wanted))
    begins = [int(rng.integers(n)) for n in wanted.shape]
    ends = [int(rng.integers(b, n)) + 1 for b, n in zip(begins, wanted.shape, strict=True)]
    part = wanted[tuple(map(slice, begins, ends))]
    made = np.zeros_like(part)
    view, strides, start = found[1].view_of_shard(tuple(zip(begins, ends, strict=True)), made)
    indices = Indices(view.shape, strides, start, drawn.size)
    bases, offsets = indices.of_rows(0, indices.rows)
    counting = np.arange(indices.width, dtype=np.uint32)
    offsets = counting if offsets is None else offsets[:, : indices.width]
    low = bases[:, 1:] + offsets
    high = bases[:, :1] + (low < offsets)  # With the carry, as a program does it.
    places = (high.astype(np.int64) << 32) + low
    view[...] = places.reshape(-1)[: view.size].reshape(view.shape)
    np.testing.assert_array_equal(made, part)
