"""Leaves made a sheet of elements at a time."""

import collections
import itertools
import os
import sys
import threading
from unittest import mock

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
from lazyinit.make import draw, executable, limits, moved
from lazyinit.make.draw import COLUMNS, ROWS
from lazyinit.make.moved import Indices, Order

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


@hypothesis.given(shards(), st.integers(2, 20), st.data())
def test_rows_of_a_shard_have_the_flat_indices_of_its_elements(shard, columns, data):
    shape, at = shard
    box = tuple(slice(start, stop) for start, stop in at)
    wanted = np.arange(np.prod(shape)).reshape(shape)[box].ravel()
    with mock.patch.object(moved, "COLUMNS", columns), mock.patch.object(draw, "COLUMNS", columns):
        indices = indices_of(shape, at)
        cuts = data.draw(st.sets(st.integers(1, indices.rows)))
        cuts = sorted({0, indices.rows, *cuts})
        found = [flat(indices, *rows) for rows in itertools.pairwise(cuts)]
    np.testing.assert_array_equal(np.concatenate(found)[: wanted.size], wanted)


@pytest.mark.parametrize("run", [1, 1000, 1024, 1500, 1501])
@pytest.mark.parametrize("strides", [(2**33,), (2**20,), (2**36, 2**33), (2**40, 2**15)])
def test_rows_of_a_leaf_of_more_than_32_bits_have_its_indices(strides, run):
    """No machine holds such a leaf, and many hold a shard of one."""
    shape, start = (2, 3)[: len(strides)], 2**42 + 2**32 - 700
    indices = Indices((*shape, run), (*strides, 1), start, 2**44)
    begins = np.tensordot(np.indices(shape), strides, ([0], [0])).reshape(-1, 1) + start
    wanted = (begins + np.arange(run)).reshape(-1)
    np.testing.assert_array_equal(flat(indices, 0, indices.rows)[: wanted.size], wanted)


def indices_of(shape, at):
    order = Order.of(shape)
    view, strides, start = order.view_of_shard(at, np.broadcast_to(0, [stop - n for n, stop in at]))
    return Indices(view.shape, strides, start, order.size)


def flat(indices, first, last):
    bases, offsets = indices.of_rows(first, last)
    assert bases.shape == (last - first, 2)
    if offsets is None:
        offsets = np.arange(draw.COLUMNS, dtype=np.uint32)
    found = (bases[:, :1].astype(np.int64) << 32) + bases[:, 1:] + offsets
    return found[:, : indices.width].ravel()


def test_a_row_ends_where_32_bits_do_not_hold_the_next_index():
    indices = indices_of((4, 2**33), ((1, 4), (5, 7)))
    assert (indices.width, indices.rows) == (2, 3)
    wanted = [row * 2**33 + 5 + n for row in (1, 2, 3) for n in (0, 1)]
    np.testing.assert_array_equal(flat(indices, 0, 3), wanted)
    np.testing.assert_array_equal(flat(indices, 1, 3), wanted[2:])


sheets_of_16 = collections.OrderedDict()  # Programs, compiled once for all that draw in these.


@pytest.fixture
def small_sheets(monkeypatch):
    for module in (draw, executable, moved):
        monkeypatch.setattr(module, "ROWS", 4, raising=False)
        monkeypatch.setattr(module, "COLUMNS", 16)
    monkeypatch.setattr(executable.compiler, "_kept", sheets_of_16)
    draw._counting.cache_clear()
    yield
    draw._counting.cache_clear()


@pytest.mark.parametrize(
    "spec", [P(), P("a"), P(None, "b"), P("b", "a"), P(None, None, ("a", "b"))]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_any_cut_gives_the_bits_of_eager_init(small_sheets, spec, dtype):
    def body(self, x):
        for name in ("normal", "lecun_normal", "uniform", "he_uniform", "truncated_normal"):
            init = getattr(jax.nn.initializers, name)()
            self.param(name, init, (4, 12, 72), jnp.dtype(dtype))

    module = models.Wrap(body)
    made = li.materialize(li.lazy(module).init(KEY, 0), sharding=NamedSharding(MESH, spec))
    assert_same(made, module.init(KEY, 0))
    for leaf in jax.tree.leaves(made):
        assert leaf.sharding == NamedSharding(MESH, spec)


def test_a_leaf_of_many_sheets_has_the_bits_of_eager_init():
    shape = (3, ROWS * COLUMNS + 5)
    module = models.Wrap(lambda self, x: self.param("w", jax.nn.initializers.normal(0.02), shape))
    tree = li.lazy(module).init(KEY, 0)
    assert_same(li.materialize(tree), module.init(KEY, 0))


# Around whole sheets of 64 elements, and between them. Eager JAX compiles a program for each.
SIZES = [60, 63, 64, 65, 100, 127, 128, 129, 250, 256]


@hypothesis.settings(deadline=None, max_examples=20)
@hypothesis.given(st.lists(st.sampled_from(SIZES), min_size=1, max_size=12), st.integers(0, 2))
def test_leaves_of_any_sizes_share_sheets(sizes, seed):
    def body(self, x):
        for n, size in enumerate(sizes):
            init = jax.nn.initializers.normal(0.02 if n % 3 else 0.5)
            self.param(f"w{n}", init, (size,))

    module = models.Wrap(body)
    key = jax.random.key(seed)
    with (
        mock.patch.multiple(draw, ROWS=4, COLUMNS=16),
        mock.patch.multiple(executable, ROWS=4, COLUMNS=16),
        mock.patch.object(moved, "COLUMNS", 16),
        mock.patch.object(executable.compiler, "_kept", sheets_of_16),
    ):
        draw._counting.cache_clear()
        made = li.materialize(li.lazy(module).init(key, 0))
        draw._counting.cache_clear()
    assert_same(made, module.init(key, 0))


@pytest.fixture
def drawn(monkeypatch):
    """The spans of each sheet that is drawn."""
    found = []
    real = draw._draw_sheet
    monkeypatch.setattr(draw, "_draw_sheet", lambda *a: found.append(a[1]) or real(*a))
    return found


def test_small_leaves_of_one_kind_take_one_sheet(drawn):
    def body(self, x):
        for n in range(20):
            self.param(f"w{n}", jax.nn.initializers.normal(0.02), (3 + n % 2, COLUMNS))

    module = models.Wrap(body)
    assert_same(li.materialize(li.lazy(module).init(KEY, 0)), module.init(KEY, 0))
    assert len(drawn) == 1


def test_what_differs_beyond_the_key_has_sheets_of_its_own(drawn):
    def body(self, x):
        for n in range(6):
            self.param(f"w{n}", jax.nn.initializers.normal((n % 2 + 1) / 100), (5, 71))
        self.param("narrow", jax.nn.initializers.normal(0.02, "bfloat16"), (5, 71))

    module = models.Wrap(body)
    assert_same(li.materialize(li.lazy(module).init(KEY, 0)), module.init(KEY, 0))
    assert len(drawn) == 3


def test_a_leaf_that_no_memory_holds_says_which():
    shape = (1 << 24, 1 << 24)
    for init in (jax.nn.initializers.normal(0.02), jax.nn.initializers.ones):
        module = models.Wrap(lambda self, x, init=init: self.param("huge", init, shape))
        tree = li.lazy(module).init(KEY, 0)
        with pytest.raises(
            MemoryError, match=r"^params/huge: wanted memory for float32\[.*smaller dtype"
        ):
            li.materialize(tree)


def test_what_fails_in_a_thread_is_raised_and_nothing_more_is_begun(monkeypatch):
    def body(self, x):
        for n in range(50):
            self.param(f"w{n}", jax.nn.initializers.normal(0.321), (ROWS, COLUMNS))

    tree = li.lazy(models.Wrap(body)).init(KEY, 0)
    begun = []

    def fails(*_):
        begun.append(1)
        failed.wait(0.01 * len(begun))
        raise RuntimeError("out of luck")

    failed = threading.Event()
    monkeypatch.setattr(Indices, "of_rows", fails)
    with pytest.raises(RuntimeError, match="out of luck"):
        li.materialize(tree)
    assert len(begun) < 50


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
    bound = (os.cpu_count() or 1) * limits.SHEET_BYTES
    assert resident("VmHWM") - before < made["params"]["w"].nbytes + bound


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
