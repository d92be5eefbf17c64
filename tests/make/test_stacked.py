"""Leaves made under a scan, a row at a time."""

from concurrent.futures import ThreadPoolExecutor

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
from lazyinit.make import draw, shards
from lazyinit.make.draw import Drawer
from lazyinit.make.executable import compiler
from lazyinit.make.limits import COLUMNS
from lazyinit.make.proofs import TRUSTED
from lazyinit.make.shards import Blocks
from lazyinit.make.stacked import Stacked
from lazyinit.make.ways import Job, way_of
from lazyinit.program.slices import SmallValues, gather

KEY = models.KEY
MESH = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


def stack(*inits, length=8, **kwargs):
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            for n, init in enumerate(inits):
                x = nn.Dense(64, kernel_init=init, name=f"dense_{n}", **kwargs)(x)
            return x, None

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            layers = nn.scan(
                Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=length
            )
            return layers(name="layers")(x, None)

    return Stack()


X = jnp.zeros((1, 64))
normal, uniform = nn.initializers.normal(0.02), nn.initializers.he_uniform()


@pytest.mark.parametrize("spec", [P(), P("a"), P(("a", "b")), P(None, "b"), P("b", None, "a")])
def test_rows_of_a_vmap_have_the_bits_of_eager_jax_on_any_mesh(spec):
    def layers(key):
        return jax.vmap(lambda k: (normal(k, (4, 64)), uniform(k, (4, 64)), jnp.full(64, 0.1)))(key)

    def make(key):
        return layers(jax.random.split(key, 8))

    tree = li.lazy(make)(KEY)
    for leaf in tree[:2]:
        assert Stacked.of(gather([leaf.init_fn], drawn=True, keys_apart=True)) is not None
    made = li.materialize(tree[:2], sharding=NamedSharding(MESH, spec))
    assert_same(made, make(KEY)[:2])
    assert_same(li.materialize(tree), make(KEY))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_rows_of_a_vmap_follow_another_key(impl):
    def make(rngs):
        @nnx.split_rngs(splits=4)
        @nnx.vmap
        def layer(rngs):
            return nnx.Linear(8, 128, rngs=rngs)

        return layer(rngs)

    first, second = (nnx.Rngs(jax.random.key(seed, impl=impl)) for seed in (0, 7))
    _, tree = li.lazy(make)(first)
    assert_same(li.materialize(li.reseed(tree, second)), nnx.state(make(second)))


@pytest.mark.parametrize("spec", [P(), P("a"), P(("a", "b")), P(None, "b"), P("b", None, "a")])
def test_rows_have_the_bits_of_eager_init_on_any_mesh(spec):
    module = stack(normal, uniform, nn.initializers.lecun_normal(), use_bias=False)
    tree = li.lazy(module).init(KEY, X)
    for leaf in jax.tree.leaves(tree):
        assert Stacked.of(gather([leaf.init_fn], drawn=True)) is not None
    assert_same(li.materialize(tree, sharding=NamedSharding(MESH, spec)), module.init(KEY, X))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("length", [1, 5])
def test_other_types_and_lengths_keep_their_bits(dtype, length):
    module = stack(normal, uniform, length=length, param_dtype=jnp.dtype(dtype))
    assert_same(li.materialize(li.lazy(module).init(KEY, X)), module.init(KEY, X))


def test_leaves_of_another_name_share_a_program(monkeypatch):
    requested = []
    real = compiler.request_sheet
    monkeypatch.setattr(
        compiler, "request_sheet", lambda *a: requested.append(a[1].signature) or real(*a)
    )
    li.materialize(li.lazy(stack(normal, normal, normal)).init(KEY, X))
    assert len(requested) == 3
    assert len(set(requested)) == 1


def test_a_device_draws_no_more_rows_than_it_holds(monkeypatch):
    """With one device of the eight here: as on a host of eight, each with one device."""
    real = shards.Shards.__init__

    def holds_one(self, path, shape, dtype, sharding, blocks):
        real(self, path, shape, dtype, sharding, blocks)
        device, at = next(iter(self._places.items()))
        self._places = {device: at}

    monkeypatch.setattr(shards.Shards, "__init__", holds_one)
    tree = li.lazy(stack(normal, use_bias=False)).init(KEY, X)
    leaf = tree["params"]["layers"]["dense_0"]["kernel"]
    sheets = []
    real_draw = draw._draw_sheet
    monkeypatch.setattr(draw, "_draw_sheet", lambda *a: sheets.append(a[1]) or real_draw(*a))
    job = Job("w", leaf, NamedSharding(MESH, P(("a", "b"))), leaf.dtype)
    way = way_of([job], lambda _: TRUSTED)
    roots = {stream: key.array() for stream, key in way.roots.items()}
    with ThreadPoolExecutor(2) as pool:
        drawer = Drawer(pool, pool, Blocks())
        filled = drawer.prepare(way, SmallValues(way.work.program, roots, {}))()
        drawer.flush()
        for task in filled.tasks:
            task.result()
    (strips,) = sheets
    assert sum(strip.last - strip.first for strip in strips) * COLUMNS == 64 * 64
    buffers = filled._buffers
    wanted = stack(normal, use_bias=False).init(KEY, X)["params"]["layers"]["dense_0"]["kernel"]
    np.testing.assert_array_equal(next(iter(buffers.values())), wanted[:1])


def test_what_carries_or_does_more_has_a_program_of_its_own():
    def body(self, x):
        keys = lambda key: jax.random.split(key, 3)  # noqa: E731
        self.param("carried", lambda key: jax.lax.scan(
            lambda c, k: (c + jax.random.normal(k, (4,)), c), jnp.zeros(4), keys(key))[1])  # fmt: skip
        self.param("summed", lambda key: jax.lax.scan(
            lambda _, k: (None, jax.random.normal(k, (4, 4)) @ jnp.ones((4, 4))), None, keys(key))[1])  # fmt: skip

    module = models.Wrap(body)
    tree = li.lazy(module).init(KEY, 0)
    for leaf in jax.tree.leaves(tree):
        assert Stacked.of(gather([leaf.init_fn], drawn=True)) is None
    assert_same(li.materialize(tree), module.init(KEY, 0))


def scanned(shape, dtype=jnp.float32, twice=False):
    def init(key):
        keys = jax.random.split(key, 8)
        draw = lambda _, k: (None, jax.random.normal(k[0] if twice else k, shape, dtype))  # noqa: E731
        return jax.lax.scan(draw, None, (keys, keys) if twice else keys)[1]

    return init


@pytest.mark.parametrize("spec", [None, P("a")])
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("shape", [(), (1,), (5,), (16, 8), (3, 64)])
def test_rows_of_any_shape_have_the_bits_of_eager_init(shape, twice, spec):
    init = scanned(shape, twice=twice)
    sharding = spec and NamedSharding(jax.make_mesh((8,), ("a",)), spec)
    assert_same(li.materialize(li.lazy(init)(KEY), sharding=sharding), init(KEY))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_rows_are_rounded_before_they_are_cast(dtype):
    init = scanned((33, 65), dtype)
    made = li.materialize(li.lazy(init)(KEY), dtype=jnp.float32)
    assert_same(made, init(KEY).astype(jnp.float32))
