"""Leaves made a run of elements at a time."""

import sys
from concurrent.futures import ThreadPoolExecutor

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from oracles import assert_same

import lazyinit as li
from lazyinit.making import draw
from lazyinit.making.buffers import Blocks
from lazyinit.making.draw import Drawing
from lazyinit.making.shards import Shards

KEY = models.KEY
MESH = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


@st.composite
def shards(draw_from):
    shape = tuple(draw_from(st.lists(st.integers(1, 7), min_size=1, max_size=4)))
    at = []
    for n in shape:
        start = draw_from(st.integers(0, n - 1))
        at.append((start, draw_from(st.integers(start + 1, n))))
    return shape, tuple(at)


@hypothesis.given(shards(), st.integers(2, 20))
def test_runs_of_a_shard_have_the_flat_indices_of_its_elements(shard, run):
    shape, at = shard
    box = tuple(slice(start, stop) for start, stop in at)
    wanted = np.arange(np.prod(shape)).reshape(shape)[box].ravel()
    indices = draw._Indices(shape, at)
    found = []
    while len(found) < len(wanted):
        left = len(wanted) - len(found)
        base, offsets, count = indices.run(len(found), min(run, left), run)
        assert offsets.shape == (run,)
        found += [(int(base[0]) << 32) + int(base[1]) + int(o) for o in offsets[:count]]
    np.testing.assert_array_equal(found, wanted)


def test_a_run_ends_where_32_bits_do_not_hold_the_next_index():
    indices = draw._Indices((4, 2**33), ((1, 4), (5, 7)))
    base, offsets, count = indices.run(0, 6, 8)
    assert (list(base), list(offsets[:count])) == ([2, 5], [0, 1])
    base, _, _ = indices.run(2, 4, 8)
    assert list(base) == [4, 5]


@pytest.fixture
def short_runs(monkeypatch):
    monkeypatch.setattr(draw, "RUN", 64)
    monkeypatch.setattr(draw, "SHORT_RUN", 16)


@pytest.mark.parametrize(
    "spec", [P(), P("a"), P(None, "b"), P("b", "a"), P(None, None, ("a", "b"))]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_any_cut_and_any_run_give_the_bits_of_eager_init(short_runs, spec, dtype):
    def body(self, x):
        for name in ("normal", "lecun_normal", "uniform", "he_uniform", "truncated_normal"):
            init = getattr(jax.nn.initializers, name)()
            self.param(name, init, (4, 12, 8), jnp.dtype(dtype))

    module = models.Wrap(body)
    made = li.materialize(li.lazy(module).init(KEY, 0), sharding=NamedSharding(MESH, spec))
    assert_same(made, module.init(KEY, 0))
    for leaf in jax.tree.leaves(made):
        assert leaf.sharding == NamedSharding(MESH, spec)


def test_a_leaf_of_many_runs_has_the_bits_of_eager_init():
    shape = (3, draw.RUN + 5, 2)
    module = models.Wrap(lambda self, x: self.param("w", jax.nn.initializers.normal(0.02), shape))
    tree = li.lazy(module).init(KEY, 0)
    assert_same(li.materialize(tree), module.init(KEY, 0))


def test_each_device_has_memory_of_its_own():
    module = models.Wrap(lambda self, x: self.param("w", jax.random.normal, (64, 64)))
    whole = NamedSharding(MESH, P())
    made = li.materialize(li.lazy(module).init(KEY, 0), sharding=whole)["params"]["w"]
    assert len({s.data.unsafe_buffer_pointer() for s in made.addressable_shards}) == 8


def test_a_leaf_that_no_memory_holds_says_which():
    shape = (1 << 24, 1 << 24)
    drawing = Drawing(shape, Shards("params/huge", shape, np.dtype("float32"), None, Blocks()))
    with (
        ThreadPoolExecutor(1) as pool,
        pytest.raises(
            MemoryError, match=r"^params/huge: wanted memory for float32\[.*smaller dtype"
        ),
    ):
        drawing.draw(None, [], 64, pool)


def test_what_fails_in_a_thread_is_raised(monkeypatch):
    module = models.Wrap(lambda self, x: self.param("w", jax.nn.initializers.normal(0.321), (8, 7)))
    tree = li.lazy(module).init(KEY, 0)

    def fails(*_):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(draw._Indices, "run", fails)
    with pytest.raises(RuntimeError, match="out of luck"):
        li.materialize(tree)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_beyond_the_leaf_is_bounded():
    def resident(field):
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))

    size = 2**24
    init = jax.nn.initializers.normal(0.02)
    tree = li.lazy(models.Wrap(lambda self, x: self.param("w", init, (size,)))).init(KEY, 0)
    li.materialize(
        li.lazy(models.Wrap(lambda self, x: self.param("w", init, (9999,)))).init(KEY, 0)
    )
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = resident("VmRSS")
    made = jax.block_until_ready(li.materialize(tree))
    assert resident("VmHWM") - before < made["params"]["w"].nbytes + 2**25


@pytest.mark.parametrize("cut", [None, 8])
@pytest.mark.parametrize("size", [3, 5, 7, 13, 15, 24, 40, 120])
def test_functions_that_xla_has_in_two_forms_have_eager_bits_at_any_size(size, cut):
    def init(key):
        x = jax.random.normal(key, (size,))
        return jnp.exp(x), jnp.log(abs(x) + 0.1), jnp.tanh(x) * x

    mesh = jax.make_mesh((8,), ("a",))
    spec = P("a") if cut and size % cut == 0 else P()
    for seed in range(3):
        key = jax.random.key(seed)
        made = li.materialize(li.lazy(init)(key), sharding=NamedSharding(mesh, spec))
        assert_same(made, init(key))
