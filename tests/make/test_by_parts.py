"""Derived leaves that each device computes its own part of: the bits of the whole, less memory."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from oracles import assert_same

import lazyinit as li
from lazyinit.make.derive import derivations_of
from lazyinit.make.proofs import TRUSTED
from lazyinit.make.shards import Shards
from lazyinit.make.ways import Job

SHAPE = (16, 128)
TYPES = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}


@functools.cache
def mesh_of(devices, axis_type):
    shape = (devices // 2, 2) if devices > 1 else (1, 1)
    axes = (TYPES[axis_type],) * 2
    return jax.make_mesh(shape, ("a", "b"), axis_types=axes, devices=jax.devices()[:devices])


def stored(kind, dtype):
    """Returns thunks of what a checkpoint has: a matrix of some kind of numbers, and a row."""
    random = np.random.default_rng(0)
    w, row = random.standard_normal(SHAPE), random.standard_normal(SHAPE[1:])
    if kind == "any bits":
        words = random.integers(0, 2**32, SHAPE, np.uint32)
        w = words.astype(f"uint{8 * np.dtype(dtype).itemsize}").view(dtype)
    elif kind == "zeros":
        w = np.where(random.random(SHAPE) < 0.7, np.copysign(0.0, w), w)
    elif kind == "smallest":
        w = w * (1e-39 if dtype != np.float16 else 3e-7)
    held = {"w": w.astype(dtype), "row": row.astype("float32")}
    shapes = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in held.items()}
    return li.fill(shapes, held)[0]


def int8(x):
    scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 127
    scale = jnp.where(scale == 0, 1, scale)
    return jnp.clip(jnp.round(x / scale), -128, 127).astype(jnp.int8)


# Each takes and gives a matrix of this shape, of any dtype; ``row`` is a vector beside it.
STEPS = {
    "double": lambda x, row: x * 2,
    "add the row": lambda x, row: x + row,
    "divide": lambda x, row: x / 3,
    "root": lambda x, row: jnp.sqrt(jnp.abs(x)),
    "square": lambda x, row: x**2,
    "cube": lambda x, row: x**3,
    "bfloat16": lambda x, row: x.astype(jnp.bfloat16),
    "float16": lambda x, row: x.astype(jnp.float16),
    "float32": lambda x, row: x.astype(jnp.float32),
    "float8": lambda x, row: x.astype(jnp.float8_e4m3fn).astype(jnp.float32),
    "int32": lambda x, row: x.astype(jnp.int32),
    "clip": lambda x, row: jnp.clip(x, -1, 1),
    "where": lambda x, row: jnp.where(x > 0, x, row),
    "round": lambda x, row: jnp.round(x),
    "remainder": lambda x, row: x % 3,
    "mask": lambda x, row: x * (jnp.arange(SHAPE[1]) < 77),
    "tiles": lambda x, row: (x.reshape(16, 4, 32) / 2).reshape(SHAPE),
    "lanes": lambda x, row: x.reshape(8, 2, 128)[:, ::-1].transpose(1, 0, 2).reshape(SHAPE),
    "turn": lambda x, row: (x.T + 1).T,
    "halves": lambda x, row: jnp.concatenate([x[:, 64:], x[:, :64]], 1),
    "absmax": lambda x, row: x + jnp.max(jnp.abs(x), axis=0, keepdims=True),
    "blocks": lambda x, row: (x.reshape(16, 4, 32) - x.reshape(16, 4, 32).min(2)[..., None]).reshape(
        SHAPE
    ),
    "least": lambda x, row: x + jnp.argmin(x, axis=1)[:, None],
    "any": lambda x, row: jnp.where(jnp.any(x > 2, axis=1, keepdims=True), x, -x),
    "total": lambda x, row: x.astype(jnp.int32).sum(0) + jnp.zeros(SHAPE, jnp.int32),
    "sum": lambda x, row: x - x.sum(0, keepdims=True),  # Whole: it rounds by order.
    "exp": lambda x, row: jnp.exp(x),  # Whole: it has two forms.
    "jit of one": jax.jit(lambda x, row: jnp.abs(x) * 3),
    "jit of two": jax.jit(lambda x, row: x * 3 + row),  # Whole: two roundings may be one.
    "jit of a narrow product": jax.jit(lambda x, row: (x.astype(jnp.bfloat16) * 3 > row) + x),
    "jit of a quotient": jax.jit(lambda x, row: x / 127),
    "int8": lambda x, row: int8(x),
}  # fmt: skip


def program(names):
    def run(tree):
        x = tree["w"]
        made = {}
        for name in names:
            x = made[name] = STEPS[name](x, tree["row"])
        return made

    return run


@settings(max_examples=12, phases=[Phase.explicit, Phase.generate], deadline=None)
@given(
    names=st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=3),
    kind=st.sampled_from(["normal", "any bits", "zeros", "smallest"]),
    dtype=st.sampled_from([np.dtype("f"), np.dtype("e"), np.dtype(ml_dtypes.bfloat16)]),
    spec=st.sampled_from([P("a"), P(None, "b"), P("a", "b"), P("b", "a"), P(None, ("a", "b"))]),
    devices=st.sampled_from([1, 8]),
    axis_type=st.sampled_from(sorted(TYPES)),
)
@example(["absmax"], "zeros", np.dtype("f"), P("a", "b"), 8, "auto")
@example(["least"], "any bits", np.dtype("f"), P("a"), 8, "explicit")
@example(["float16"], "any bits", np.dtype(ml_dtypes.bfloat16), P("a"), 1, "auto")
@example(["float16"], "any bits", np.dtype("f"), P("a"), 8, "auto")
@example(["float32"], "any bits", np.dtype("e"), P("a"), 8, "explicit")
def test_any_program_has_the_bits_that_it_has_on_the_whole(
    names, kind, dtype, spec, devices, axis_type
):
    tree, function = stored(kind, dtype), program(names)
    mesh = mesh_of(devices, axis_type)
    made = li.materialize(li.lazy(function)(tree), sharding=NamedSharding(mesh, spec))
    for array in made.values():
        assert array.sharding == NamedSharding(mesh, spec)
    assert_same(made, function(li.materialize(tree)))


@pytest.mark.parametrize("name", STEPS)
def test_what_is_computed_by_parts(name):
    tree = stored("normal", np.dtype("f"))
    leaves = jax.tree.leaves(li.lazy(program([name]))(tree))
    sharding = NamedSharding(mesh_of(8, "auto"), P("a", "b"))
    jobs = [Job("", x, sharding, x.dtype) for x in leaves if isinstance(x, li.DerivedParam)]
    by_parts = all(group.parted is not None for group in derivations_of(jobs, lambda *_: TRUSTED))
    is_whole = name in (
        "sum", "exp", "jit of two", "jit of a narrow product", "lanes"
    )  # fmt: skip
    assert by_parts is not is_whole


def test_no_device_holds_more_than_its_part(monkeypatch):
    tree = stored("normal", np.dtype("f"))
    lazy = li.lazy(lambda tree: int8(tree["w"]))(tree)
    sharding = NamedSharding(mesh_of(8, "auto"), P("a"))
    allocate, sizes = Shards.allocate, []

    def watched(self, **options):
        buffers = allocate(self, **options)
        sizes.extend(buffer.size for buffer in buffers.values())
        return buffers

    monkeypatch.setattr(Shards, "allocate", watched)
    li.materialize(lazy, sharding=sharding)
    assert max(sizes) == np.prod(SHAPE) // 4
    whole, cut = (max(li.plan(lazy, s).peak_bytes_per_device.values()) for s in (None, sharding))
    assert cut + tree["w"].nbytes < whole


def test_values_that_a_comparison_is_not_sure_of_are_computed_whole():
    tree = stored("zeros", np.dtype("f"))
    largest = li.lazy(lambda tree: {"m": tree["w"].max(0, keepdims=True) + tree["w"] * 0})(tree)
    sharding = NamedSharding(mesh_of(8, "auto"), P(None, "b"))
    (group,) = derivations_of([Job("m", largest["m"], sharding, np.dtype("f"))], lambda *_: TRUSTED)
    assert group.parted is not None
    want = {"m": li.materialize(tree)["w"].max(0, keepdims=True) + li.materialize(tree)["w"] * 0}
    assert_same(li.materialize(largest, sharding=sharding), want)


# XLA multiplies by the reciprocal of what it repeats itself, and divides by what it does not.
DIVIDED = {
    "a number": lambda x: x / 3.0,
    "a row": lambda x: x / (x[:1] + 2),
    "a column": lambda x: x / (x[:, :1] + 2),
    "the largest of each row": lambda x: x / jnp.abs(x).max(1, keepdims=True),
    "the largest of each column": lambda x: x / jnp.abs(x).max(0, keepdims=True),
    "what was repeated before": lambda x: x / jnp.full(x.shape, 3.0, x.dtype),
    "in one program": jax.jit(lambda x: x / (jnp.abs(x).max(1, keepdims=True) / 127)),
    "the other way round": lambda x: 3.0 / x,
}


@pytest.mark.parametrize("name", DIVIDED)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [(8, 8), (8, 1), (1, 8), (16, 8), (8, 3), (8, 64)])
def test_what_is_divided_has_the_bits_of_the_whole_however_small_its_parts(shape, axis, name):
    mesh = jax.make_mesh((8,), ("a",))
    values = np.random.default_rng(0).standard_normal(shape).astype("float32")

    def place(_, leaf):
        names = [None, None]
        names[axis] = "a" if leaf.shape[axis] % 8 == 0 else None
        return NamedSharding(mesh, P(*names))

    struct = jax.ShapeDtypeStruct(shape, "float32")
    tree = li.lazy(DIVIDED[name])(li.fill({"x": struct}, {"x": values})[0]["x"])
    assert_same(li.materialize(tree, sharding=place), DIVIDED[name](jnp.asarray(values)))
