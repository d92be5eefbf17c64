"""Leaves that are computed from other leaves: the bits are those of the function, run eagerly."""

import functools
import pickle

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from oracles import assert_same

import lazyinit as li
from lazyinit import paths
from lazyinit.errors import AbstractInputError, NotMaterializedError, PicklingError, RecordError
from lazyinit.keys import Key, RngPath

KEY = jax.random.key(0)
TYPES = [AxisType.Auto, AxisType.Explicit]


def base(key):
    first, second = jax.random.split(key)
    return {
        "w": jax.random.normal(first, (64, 128)),
        "b": jnp.zeros((128,)),
        "u": jax.random.uniform(second, (128, 64), jnp.bfloat16),
        "s": jnp.float32(2.5),
    }


def tensor(*shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@functools.cache
def mixed():
    """Returns a tree with thunks of every kind, and an array."""
    lazy = li.lazy(base)(KEY)
    held = {"w": tensor(64, 128, dtype=ml_dtypes.bfloat16), "u": tensor(128, 64, seed=1)}
    stored, _ = li.fill(lazy, held, on_missing="init")
    smaller = {"w": tensor(32, 100, seed=2)}
    overlap, _ = li.fill(lazy, smaller, on_missing="init", on_mismatch=li.overlap)
    return {
        "lazy": lazy,
        "stored": {name: stored[name] for name in ("w", "u")},
        "overlap": {"w": overlap["w"]},
        "array": {"w": jnp.asarray(tensor(64, 128, seed=3)), "b": jnp.arange(128.0)},
    }


def lora(tree, key=KEY):
    first, _ = jax.random.split(key)
    w = tree["stored"]["w"]
    a = jax.random.normal(first, (w.shape[0], 4)) * 0.1
    return {**tree, "lora": {"a": a, "b": jnp.zeros((4, w.shape[1]))}}


def quantize(w):
    scale = jnp.max(jnp.abs(w), axis=0, keepdims=True) / 127
    return {"q": jnp.round(w / scale).astype(jnp.int8), "scale": scale}


FUNCTIONS = {
    "the same": lambda tree: tree,
    "cast": lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree),
    "copy": lambda tree: jax.tree.map(jnp.copy, tree),
    "transpose": lambda tree: jax.tree.map(jnp.transpose, tree),
    "stack": lambda tree: jnp.stack([tree[k]["w"] for k in ("lazy", "stored", "array")]),
    "concatenate": lambda tree: jnp.concatenate([tree[k]["w"] for k in ("overlap", "stored")], 1),
    "one of several": lambda tree: tree["lazy"]["w"][3:7, 5],
    "master copy": lambda tree: {"p": tree, "ema": jax.tree.map(lambda x: x + 0, tree)},
    "adam": lambda tree: optax.adamw(1e-3).init(tree),
    "lora": lora,
    "merge": lambda tree: (lambda t: t["stored"]["w"] + t["lora"]["a"] @ t["lora"]["b"])(
        lora(tree)
    ),
    "quantize": lambda tree: jax.tree.map(quantize, {k: tree[k]["w"] for k in tree}),
    "jit": jax.jit(lambda tree: jax.tree.map(lambda x: x * 2 + 1, tree)),
    "norm": lambda tree: jax.tree.map(
        lambda x: x / optax.tree.norm(tree), {k: tree[k]["w"] for k in tree}
    ),
    "weak": lambda tree: jnp.where(tree["lazy"]["s"] > 1, 1.0, 2.0),
}


@functools.cache
def recorded(name):
    """Returns what a function is recorded as, and what it is eagerly."""
    return li.lazy(FUNCTIONS[name])(mixed()), FUNCTIONS[name](li.materialize(mixed()))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_a_function_computes_of_thunks_has_the_bits_of_eager(name):
    lazy, want = recorded(name)
    assert_same(li.materialize(lazy), want)
    assert_same(li.materialize(lazy, check=True), want)


@pytest.mark.parametrize("axis_type", TYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_same_on_a_mesh(name, axis_type):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(axis_type,) * 2)
    lazy, want = recorded(name)

    def place(path, leaf):
        axes = [
            n if leaf.shape[d] % mesh.shape[n] == 0 else None
            for d, n in enumerate("ab"[: leaf.ndim])
        ]
        return NamedSharding(mesh, P(*axes))

    made = li.materialize(lazy, sharding=place)
    for array, thunk in zip(jax.tree.leaves(made), jax.tree.leaves(lazy), strict=True):
        if not isinstance(thunk, np.ndarray):
            assert array.sharding == place("", array)
    assert_same(made, want)
    with jax.set_mesh(mesh):
        assert_same(li.materialize(lazy, sharding=place), made)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_leaf_by_leaf(name):
    lazy, want = recorded(name)
    pairs = zip(paths.leaves_with_paths(lazy), jax.tree.leaves(want), strict=True)
    for (path, _), array in pairs:
        made = li.materialize(lazy, lambda p, _, path=path: p == path)
        assert_same(dict(paths.leaves_with_paths(made))[path], array)


# Random functions, of random steps over random trees.

STEPS = {
    "cast": lambda x, _: x.astype(jnp.bfloat16),
    "wide": lambda x, _: x.astype(jnp.float32),
    "transpose": lambda x, _: x.T,
    "reshape": lambda x, _: x.reshape(-1, 8),
    "cut": lambda x, _: x[1:-1],
    "stack": lambda x, _: jnp.stack([x, x]).reshape(-1, x.shape[-1]),
    "scale": lambda x, _: x * 0.5 + 1,
    "exp": lambda x, _: jnp.exp(x),
    "sum": lambda x, _: x - x.sum(0, keepdims=True),
    "norm": lambda x, _: x / jnp.linalg.norm(x.astype(jnp.float32)),
    "noise": lambda x, key: x + jax.random.normal(key, x.shape),
    "jit": jax.jit(lambda x, _: jnp.tanh(x) * x),
    "integers": lambda x, _: jnp.round(x * 100).astype(jnp.int32),
    "gram": lambda x, _: x @ x.T,
}


@settings(max_examples=15, phases=[Phase.explicit, Phase.generate])
@given(
    steps=st.lists(st.lists(st.sampled_from(sorted(STEPS)), max_size=4), min_size=2, max_size=4),
    seed=st.integers(0, 3),
    devices=st.sampled_from([1, 8]),
)
def test_random_functions_of_random_trees(steps, seed, devices):
    tree = mixed()
    sources = [tree["lazy"]["w"], tree["stored"]["u"], tree["overlap"]["w"], tree["array"]["w"]]
    chosen = [sources[(seed + n) % 4] for n in range(len(steps))]

    def function(leaves, key):
        made = []
        for n, (leaf, names) in enumerate(zip(leaves, steps, strict=True)):
            for m, name in enumerate(names):
                leaf = STEPS[name](leaf, jax.random.fold_in(key, 10 * n + m))
            made.append(leaf)
        return {"each": made, "both": jnp.sum(made[0]) + made[1]}

    lazy = li.lazy(function)(chosen, jax.random.key(seed))
    want = function(li.materialize(chosen), jax.random.key(seed))
    mesh = jax.make_mesh((devices,), ("a",), devices=jax.devices()[:devices])

    def place(path, leaf):
        cut = leaf.ndim and leaf.shape[0] % devices == 0
        return NamedSharding(mesh, P("a") if cut else P())

    sharding = place if devices > 1 else None
    assert_same(li.materialize(lazy, sharding=sharding), want)
    both = li.materialize(lazy, "both", sharding)
    assert_same(both["both"], want["both"])
    assert_same(li.materialize(pickle.loads(pickle.dumps(lazy))), want)


# What stays the same leaf, and what is read as it was.


def test_what_passes_through_is_the_same_thunk():
    tree = mixed()
    lazy = li.lazy(lora)(tree)
    for name in ("lazy", "stored", "overlap"):
        for key, leaf in tree[name].items():
            assert lazy[name][key] is leaf
    assert isinstance(lazy["lora"]["a"], li.LazyParam)
    assert lazy["array"]["w"] is tree["array"]["w"]


@pytest.mark.parametrize("name", ["cast", "copy", "transpose", "slice", "layers", "wide"])
def test_moving_and_casting_a_stored_leaf_is_a_stored_leaf(name):
    held = {"w": tensor(8, 6, dtype=ml_dtypes.bfloat16), "u": tensor(8, 6, seed=1)}
    shapes = {n: jax.ShapeDtypeStruct((8, 6), "float32") for n in held}
    tree, _ = li.fill(shapes, held)
    function = {
        "cast": lambda t: jax.tree.map(lambda x: x.astype(jnp.bfloat16), t),
        "wide": lambda t: jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), t),
        "copy": lambda t: jax.tree.map(jnp.copy, t),
        "transpose": lambda t: jax.tree.map(jnp.transpose, t),
        "slice": lambda t: t["w"][2:5, None, 1].reshape(1, 3),
        "layers": lambda t: jnp.concatenate([jnp.stack([t["w"], t["u"]]), t["w"][None]]),
    }[name]
    lazy = li.lazy(function)(tree)
    assert all(isinstance(x, li.StoredParam) for x in jax.tree.leaves(lazy))
    assert_same(li.materialize(lazy), function(li.materialize(tree)))


def test_casts_of_every_number_have_the_bits_of_eager():
    words = np.arange(2**16, dtype=np.uint16)
    halves = {"half": words.view(np.float16), "brain": words.view(ml_dtypes.bfloat16)}
    halves["single"] = np.random.default_rng(0).integers(0, 2**32, 2**16, np.uint32).view("f")
    tree, _ = li.fill(
        {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in halves.items()}, halves
    )
    for dtype in ("float16", "bfloat16", "float32"):
        lazy = li.lazy(lambda t, d=dtype: jax.tree.map(lambda x: x.astype(d), t))(tree)
        assert dtype == "float16" or isinstance(lazy["brain"], li.StoredParam)
        assert_same(
            li.materialize(lazy), jax.tree.map(lambda x, d=dtype: x.astype(d), li.materialize(tree))
        )


# The other verbs.


def test_the_verbs_know_derived_leaves(tmp_path):
    tree = mixed()
    function = FUNCTIONS["merge"]
    lazy = {"merged": li.lazy(function)(tree), "w": tree["stored"]["w"]}
    leaf = lazy["merged"]
    assert isinstance(leaf, li.DerivedParam)
    assert repr(leaf) == "DerivedParam(float32[64,128], add of w)"
    plan = li.plan(lazy)
    assert [x.action for x in plan.leaves] == ["derive", "load"]
    assert plan.bytes_of("derive") == leaf.nbytes
    (peak,), (arriving,) = plan.peak_bytes_per_device.values(), plan.bytes_per_device.values()
    assert peak >= arriving + leaf.inputs[0].nbytes + leaf.nbytes
    assert "derived" in str(li.inspect(lazy))
    record = li.provenance(lazy)["merged"]
    assert (record.state, [x.tensors for x in record.stored]) == ("derived", [("w",)])
    assert li.Provenance.from_json(li.provenance(lazy).to_json()) == li.provenance(lazy)
    assert "add of the mapping:w, cast from bfloat16" in str(li.provenance(lazy))
    assert li.abstract(lazy)["merged"].shape == (64, 128)
    with pytest.raises(NotMaterializedError, match="merged: wanted an array or a leaf from a che"):
        li.save(lazy, tmp_path)
    li.save(lazy, tmp_path, lazy="make")
    saved = li.open_checkpoint(tmp_path)["merged"].read((slice(None),) * 2)
    assert_same(jnp.asarray(saved), function(li.materialize(tree)))


def test_equal_recordings_give_equal_derived_leaves():
    tree = mixed()
    for name in ("merge", "quantize", "norm"):
        one, other = (li.lazy(FUNCTIONS[name])(tree) for _ in range(2))
        assert jax.tree.leaves(one) == jax.tree.leaves(other)
        assert {hash(x) for x in jax.tree.leaves(one)} == {hash(x) for x in jax.tree.leaves(other)}
    assert li.lazy(FUNCTIONS["merge"])(tree) != li.lazy(lambda t: t["lazy"]["w"] * 2)(tree)


def test_reseeding_reaches_what_a_leaf_is_computed_from():
    other = jax.random.key(9)

    def both(key):
        tree = li.lazy(base)(key)
        return li.lazy(lambda t, k: {"t": t, "x": t["w"] + jax.random.normal(k, (64, 128))})(
            tree, key
        )

    lazy = both(KEY)
    again = li.reseed(lazy, {"0": other, "1": other})
    assert again["x"].inputs[0] is again["t"]["w"]
    assert_same(li.materialize(again), li.materialize(both(other)))
    assert li.reseed(again, {"0": other, "1": other})["x"] is again["x"]


def test_within_a_jit():
    tree = li.lazy(base)(KEY)
    lazy = li.lazy(quantize)(tree["w"])
    want = quantize(li.materialize(tree)["w"])
    assert_same(jax.jit(lambda: li.materialize(lazy))(), want)

    def traced(key):
        tree = li.lazy(base)(key)
        return li.materialize(li.lazy(lambda t: t["w"] * 2)(tree))

    assert_same(jax.jit(traced)(KEY), li.materialize(tree)["w"] * 2)
    keys = jax.random.split(KEY, 3)
    assert_same(jax.vmap(traced)(keys)[1], traced(keys[1]))


def test_an_array_on_a_mesh_beside_a_thunk():
    mesh = jax.make_mesh((8,), ("a",), axis_types=(AxisType.Auto,))
    spread = jax.device_put(jnp.arange(64.0), NamedSharding(mesh, P("a")))
    tree = li.lazy(base)(KEY)
    lazy = li.lazy(lambda t, x: t["w"] * x[:, None])(tree, spread)
    want = li.materialize(tree)["w"] * jnp.arange(64.0)[:, None]
    assert_same(li.materialize(lazy), want)
    assert_same(li.materialize({"x": lazy, "w": tree["w"]})["x"], want)
    assert_same(li.materialize(lazy, sharding=NamedSharding(mesh, P("a"))), want)


def test_a_placement_follows_what_is_computed_element_by_element():
    mesh = jax.make_mesh((8,), ("a",), axis_types=(AxisType.Auto,))
    placed = NamedSharding(mesh, P("a"))
    shapes = {"w": jax.ShapeDtypeStruct((8, 4), "float32", sharding=placed)}
    tree, _ = li.fill(shapes, {"w": tensor(8, 4)})
    lazy = li.lazy(lambda t: [t["w"] * 2, t["w"].astype(jnp.bfloat16)])(tree)
    assert [x.sharding for x in lazy] == [placed, placed]
    assert [x.sharding for x in li.materialize(lazy)] == [placed, placed]


def test_what_cannot_be_is_refused():
    tree = mixed()
    shape = jax.ShapeDtypeStruct((64, 128), "float32")
    lazy = {"both": li.lazy(lambda t, x: t["lazy"]["w"] + x)(tree, shape)}
    with pytest.raises(AbstractInputError, match="its initial value depends on argument 1"):
        li.materialize(lazy)
    with pytest.raises(RecordError, match="wants the value of an array that has none"):
        li.lazy(lambda t: t["w"] if t["w"].sum() > 0 else t["u"])(tree["stored"])
    called = li.lazy(lambda t: jax.pure_callback(lambda x: x, shape, t["w"]))(tree["stored"])
    with pytest.raises(
        PicklingError, match="wanted a function that can be pickled, got pure_callb"
    ):
        pickle.dumps(called)


def test_a_file_that_is_gone_is_an_error_before_anything_is_made(tmp_path):
    li.save({"w": tensor(8, 4)}, tmp_path)
    tree, _ = li.fill({"w": jax.ShapeDtypeStruct((8, 4), "float32")}, tmp_path)
    lazy = li.lazy(lambda t: t["w"] * 2)(tree)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(li.errors.CheckpointError, match="model.safetensors"):
        li.materialize(lazy)


@pytest.mark.parametrize("axis_type", [None, *TYPES])
def test_leaves_made_by_hand_may_be_inputs(axis_type):
    def init(key):
        return jax.random.normal(key, (16, 128))

    hand = li.LazyParam((16, 128), jnp.dtype("float32"), init, RngPath({"params": Key.of(KEY)}))
    # One that is made, and one that a smaller tensor is read over.
    small = tensor(8, 128)
    over, _ = li.fill({"x": hand}, {"x": small}, on_mismatch=li.overlap, on_missing="init")
    tree = {"x": hand, "over": over["x"]}
    lazy = {**tree, "twice": li.lazy(lambda t: {k: v * 2 for k, v in t.items()})(tree)}
    sharding = None
    if axis_type is not None:
        mesh = jax.make_mesh((8,), ("a",), axis_types=(axis_type,))
        sharding = NamedSharding(mesh, P("a"))
    got = jax.tree.map(np.asarray, li.materialize(lazy, sharding=sharding))
    x = np.asarray(jax.random.normal(KEY, (16, 128)))
    want = {"over": np.concatenate([small, x[8:]]), "x": x}
    twice = {name: value * 2 for name, value in want.items()}
    assert_same(got, {"over": want["over"], "twice": twice, "x": x})


def test_inputs_are_made_once_for_all_that_is_computed_of_them_and_let_go():
    held = {"w": tensor(8, 4)}
    tree, _ = li.fill({"w": jax.ShapeDtypeStruct((8, 4), "float32")}, held)
    before = len(jax.live_arrays())
    lazy = li.lazy(quantize)(tree["w"])
    assert len(jax.live_arrays()) == before
    made = li.materialize(lazy)
    assert len(jax.live_arrays()) <= before + len(made)


# NNX.


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(8, 16, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        return self.second(self.dropout(self.first(x)))


def with_lora(graphdef, state, key):
    """Wraps the layers of a model that is there in adapters."""
    model = nnx.merge(graphdef, state)
    rngs = nnx.Rngs(key)
    for name in ("first", "second"):
        layer = getattr(model, name)
        low = nnx.LoRA(layer.in_features, 2, layer.out_features, base_module=layer, rngs=rngs)
        setattr(model, name, low)
    return model


def test_lora_beside_a_filled_base_initializes_its_factors_alone():
    graphdef, state = li.lazy(Net)(nnx.Rngs(0))
    held = {f"{n}.kernel": tensor(*s) for n, s in {"first": (8, 16), "second": (16, 4)}.items()}
    held |= {"first.bias": tensor(16), "second.bias": tensor(4)}
    state, _ = li.fill(state, held, on_missing="init")
    defined, lazy = li.lazy(lambda state: with_lora(graphdef, state, KEY))(state)
    actions = {x.path: x.action for x in li.plan(lazy).leaves}
    assert {p for p, a in actions.items() if a == "load"} == {
        f"{n}/base_module/{p}" for n in ("first", "second") for p in ("kernel", "bias")
    }
    assert "derive" not in actions.values()
    eager = with_lora(graphdef, li.materialize(state), KEY)
    assert_same(li.materialize(lazy), nnx.state(eager))
    x = jnp.ones((2, 8))
    made = nnx.merge(defined, li.materialize(lazy))
    made.eval(), eager.eval()
    assert_same(made(x), eager(x))


def test_an_optimizer_of_thunks_has_moments_that_need_no_parameters():
    _, state = li.lazy(Net)(nnx.Rngs(0))
    params = nnx.filter_state(state, nnx.Param)
    lazy = li.lazy(optax.adamw(1e-3).init)(params)
    assert not any(isinstance(x, li.DerivedParam) for x in jax.tree.leaves(lazy))
    assert_same(li.materialize(lazy), optax.adamw(1e-3).init(li.materialize(params)))
