"""Leaves made under a scan, a row at a time."""

import functools
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
from oracles import assert_same, kernel_sharding

import lazyinit as li
from lazyinit.make import draw, shards
from lazyinit.make.draw import Drawer
from lazyinit.make.executable import compiler
from lazyinit.make.limits import COLUMNS
from lazyinit.make.proofs import TRUSTED
from lazyinit.make.shards import Blocks
from lazyinit.make.stacked import Stacked
from lazyinit.make.ways import Drawn, Job, Replayed, way_of
from lazyinit.program.slices import gather
from lazyinit.program.small_values import SmallValues

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
    way = way_of([job], lambda *_: TRUSTED)
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


@pytest.mark.parametrize("order", [1, -1])
def test_rows_whose_keys_follow_from_several_inputs_take_each_in_its_place(order):
    def init(key):
        inputs = [jax.random.split(k, 8) for k in jax.random.split(key)][::order]

        def step(count, keys):
            other = jax.random.bits(keys[1], (), "uint32")
            mixed = jax.random.fold_in(jax.random.fold_in(keys[0], count), other)
            return count + 1, jax.random.normal(mixed, (16, 64))

        return jax.lax.scan(step, jax.random.randint(key, (), 0, 9), inputs)[1]

    assert_same(li.materialize(li.lazy(init)(KEY)), init(KEY))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_rows_are_rounded_before_they_are_cast(dtype):
    init = scanned((33, 65), dtype)
    made = li.materialize(li.lazy(init)(KEY), dtype=jnp.float32)
    assert_same(made, init(KEY).astype(jnp.float32))


# Keys that follow from counts, which go from step to step.


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(4, 64, rngs=rngs)
        self.norm = nnx.LayerNorm(64, rngs=rngs)


def layered(**options):
    def make(rngs):
        carried = nnx.scan(in_axes=(nnx.Carry,), out_axes=(nnx.Carry, 0), length=3, **options)
        return carried(lambda rngs: (rngs, Layer(rngs)))(rngs)[1]

    return make


def split(rngs):
    over = nnx.scan(in_axes=(0,), out_axes=0, length=3)
    return nnx.split_rngs(splits=3)(over(Layer))(rngs)


COUNTED = {
    "carry": layered(),
    "reverse": layered(reverse=True),
    "unroll": layered(unroll=3),
    "split": split,
    "jit": nnx.jit(Layer),
}


@pytest.mark.parametrize("name", COUNTED)
def test_layers_of_nnx_scan_are_drawn_whatever_their_rngs_count(name):
    make = COUNTED[name]
    _, tree = li.lazy(make)(nnx.Rngs(0))
    jobs = [Job("", leaf, None, leaf.dtype) for leaf in jax.tree.leaves(tree)]
    assert all(isinstance(way_of([job], lambda *_: TRUSTED), Drawn) for job in jobs)
    eager = nnx.state(make(nnx.Rngs(0)))
    assert_same(li.materialize(tree), eager)
    mesh = jax.make_mesh((2, 4), ("a", "b"))
    assert_same(li.materialize(tree, sharding=kernel_sharding(mesh)), eager)
    if name == "carry":
        other = li.reseed(tree, nnx.Rngs(5))
        assert_same(li.materialize(other), nnx.state(make(nnx.Rngs(5))))


def test_a_key_that_follows_from_elements_is_made_step_by_step():
    def step(count, key):
        row = jax.random.normal(jax.random.fold_in(key, count), (16, 64))
        return count + jnp.argmax(row), row

    def make(key):
        return jax.lax.scan(step, 0, jax.random.split(key, 3))[1]

    leaf = li.lazy(make)(KEY)
    assert isinstance(way_of([Job("", leaf, None, leaf.dtype)], lambda *_: TRUSTED), Replayed)
    assert_same(li.materialize(leaf), make(KEY))


# Rows of rows.

SPLIT = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}


class Dense(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return nn.Dense(64, kernel_init=uniform, use_bias=False)(x), None


class Inner(nn.Module):
    by: str

    @nn.compact
    def __call__(self, x, _=None):
        if self.by == "scan":
            return nn.scan(Dense, length=3, **SPLIT)()(x, None)
        return nn.vmap(Dense, in_axes=None, axis_size=3, **SPLIT)()(x)[0].sum(0), None


NESTED = {
    "scan of scan": lambda axis: nn.scan(
        Inner, length=4, **SPLIT | {"variable_axes": {"params": axis}}
    )("scan"),
    "scan of vmap": lambda axis: nn.scan(
        Inner, length=4, **SPLIT | {"variable_axes": {"params": axis}}
    )("vmap"),
    "vmap of scan": lambda axis: nn.vmap(
        Inner, in_axes=None, axis_size=4, **SPLIT | {"variable_axes": {"params": axis}}
    )("scan"),
}


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", NESTED)
def test_rows_of_rows_are_drawn_along_any_axis_on_any_mesh(name, axis):
    module = NESTED[name](axis)
    tree, wanted = li.lazy(module).init(KEY, X), module.init(KEY, X)
    (leaf,) = jax.tree.leaves(tree)
    way = way_of([Job("", leaf, None, leaf.dtype)], lambda *_: TRUSTED)
    assert isinstance(way, Drawn)
    assert_same(li.materialize(tree), wanted)
    for cut in (4, 64):  # Along the layers, and along a dimension of each.
        spec = P(*("b" if n == leaf.shape.index(cut) else None for n in range(4)))
        assert_same(li.materialize(tree, sharding=NamedSharding(MESH, spec)), wanted)
    other = jax.random.key(9)
    assert_same(li.materialize(li.reseed(tree, other)), module.init(other, X))


@pytest.mark.parametrize("size", [8, 64])
def test_experts_in_scanned_layers_of_nnx_have_the_bits_of_eager_jax(size):
    @nnx.split_rngs(splits=4)
    @nnx.scan(in_axes=0, out_axes=0)
    def layers(rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def experts(rngs):
            return nnx.Linear(16, size, rngs=rngs)

        return experts(rngs)

    _, tree = li.lazy(layers)(nnx.Rngs(0))
    jobs = [Job("", leaf, None, leaf.dtype) for leaf in jax.tree.leaves(tree) if leaf.ndim == 4]
    assert isinstance(way_of(jobs, lambda *_: TRUSTED), Drawn) is (size == 64)
    assert_same(li.materialize(tree), nnx.state(layers(nnx.Rngs(0))))


@pytest.mark.parametrize("shape", [(), (3,), (8,), (1,)])
def test_small_rows_of_rows_have_the_bits_of_eager_jax(shape):
    def make(key):
        def step(n, key):
            keys = jax.random.split(jax.random.fold_in(key, n), 5)
            return n + 1, jax.vmap(lambda k: jax.random.normal(k, shape) * 0.3)(keys)

        return jax.lax.scan(step, 0, jax.random.split(key, 2))[1]

    assert_same(li.materialize(li.lazy(make)(KEY)), make(KEY))


# Layers in blocks, as MaxText's Gemma 4 has them: a scan of blocks, in each a scan of layers, whose
# keys are made of counts, and whose axis is moved within the step of the block.


def blocks(layer, rngs, *, length=3, axis=1, unroll=1):
    """Stacks layers by hand, as ``nnx.scan`` does, and moves their axis to its place."""
    rngs_graph, counts = nnx.split(rngs.split(length))
    graph = nnx.graphdef(layer(nnx.merge(rngs_graph, jax.tree.map(lambda x: x[0], counts))))

    def step(_, counts):
        return None, nnx.state(layer(nnx.merge(rngs_graph, counts)))

    _, state = jax.lax.scan(step, None, counts, unroll=unroll)
    return nnx.merge(
        graph, jax.tree.map(lambda x: jnp.moveaxis(x, 0, min(axis, x.ndim - 1)), state)
    )


class Normed(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Param(uniform(rngs.params(), (4, 6, 64)))
        self.scale = nnx.Param(jnp.ones(64))


class Block(nnx.Module):
    def __init__(self, rngs, **options):
        self.inner = blocks(Normed, rngs, length=2, **options)
        self.last = Normed(rngs)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_layers_of_a_scan_whose_axis_is_moved_within_another_scan_are_drawn(axis):
    def make(rngs):
        return blocks(functools.partial(Block, axis=axis), rngs, axis=axis)

    _, tree = li.lazy(make)(nnx.Rngs(0))
    for leaf in jax.tree.leaves(tree):
        assert isinstance(way_of([Job("", leaf, None, leaf.dtype)], lambda *_: TRUSTED), Drawn)
    wanted = nnx.state(make(nnx.Rngs(0)))
    assert_same(li.materialize(tree), wanted)
    assert_same(li.materialize(tree, sharding=kernel_sharding(MESH)), wanted)
    other = li.reseed(tree, nnx.Rngs(5))
    assert_same(li.materialize(other), nnx.state(make(nnx.Rngs(5))))


@pytest.mark.parametrize("more", ["unrolled", "computed"])
def test_what_xla_may_fuse_with_the_moves_of_a_step_has_a_program_of_its_own(more):
    def make(key):
        def step(n, key):
            keys = jax.random.split(jax.random.fold_in(key, n), 2)
            counts = jnp.zeros(2, "uint32")

            def layer(_, x):
                return None, uniform(jax.random.fold_in(*x), (4, 64))

            rows = jax.lax.scan(layer, None, (keys, counts), unroll=1 + (more == "unrolled"))[1]
            rows = rows * 0.3 if more == "computed" else rows
            return n + 1, rows.transpose(1, 0, 2)

        return jax.lax.scan(step, 0, jax.random.split(key, 3))[1]

    leaf = li.lazy(make)(KEY)
    assert isinstance(way_of([Job("", leaf, None, leaf.dtype)], lambda *_: TRUSTED), Replayed)
    assert_same(li.materialize(leaf), make(KEY))
