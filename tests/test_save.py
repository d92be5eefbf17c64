"""What is saved is read back: by fill, by the official library, by PyTorch's models."""

import re

import flax.linen as nn
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from models import MLP, Decoder, X
from oracles import assert_same, kernel_sharding, large_arrays_since, live
from safetensors.numpy import load_file, save_file

import lazyinit as li
from lazyinit.tensors.arrays import DeviceArray

KEY = jax.random.key(2)
IDS = np.ones((1, 4), np.int32)


def mesh(**options):
    return jax.make_mesh((2, 4), ("x", "y"), **options)


def flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x) for p, x in leaves}


@pytest.mark.parametrize("size", ["5GB", 4000])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_tree_is_read_back_bit_for_bit(tmp_path, sharded, size):
    eager = Decoder(layers=2).init(KEY, IDS)
    shard = kernel_sharding(mesh())
    placed = li.materialize(eager, sharding=shard) if sharded else eager
    li.save(placed, tmp_path, max_shard_size=size)
    lazy = li.lazy(Decoder(layers=2)).init(jax.random.key(7), IDS)
    filled, report = li.fill(lazy, tmp_path, on_missing="error", on_unexpected="error")
    assert not report.cast
    assert_same(li.materialize(filled), eager)
    official = {}
    for path in tmp_path.glob("*.safetensors"):
        official |= load_file(path)
    assert {k: v.tobytes() for k, v in official.items()} == {
        k: v.tobytes() for k, v in flat(eager).items()
    }
    assert (len(list(tmp_path.iterdir())) > 1) == (size == 4000)


LEAVES = hnp.arrays(
    st.sampled_from([np.float32, np.float16, np.int8, np.bool_, np.uint32, ml_dtypes.bfloat16]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    elements=st.integers(0, 1),
)
TREES = st.recursive(
    LEAVES,
    lambda below: st.dictionaries(st.text("ab1", min_size=1), below, min_size=1, max_size=3),
    max_leaves=6,
).filter(lambda tree: isinstance(tree, dict))


@given(TREES, st.sampled_from([8, 100, "1GB"]))
def test_what_is_saved_is_loaded_whatever_the_tree(tmp_path_factory, tree, size):
    folder = tmp_path_factory.mktemp("x")
    li.save(tree, folder, max_shard_size=size)
    lazy = jax.tree.map(lambda x: li.LazyParam(x.shape, x.dtype, jnp.zeros), tree)
    filled, _ = li.fill(lazy, folder, on_missing="error", on_unexpected="error")
    for got, want in zip(jax.tree.leaves(filled), jax.tree.leaves(tree), strict=True):
        values = got.source.read(tuple(slice(None) for _ in want.shape))
        assert (values.dtype, values.tobytes()) == (want.dtype, want.tobytes())


def test_rules_are_read_backwards(tmp_path):
    eager = MLP().init(KEY, X)
    li.save(eager, tmp_path, rules=li.TORCH)
    official = load_file(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(official["head.weight"], eager["params"]["head"]["kernel"].T)
    lazy = li.lazy(MLP()).init(jax.random.key(7), X)
    filled, _ = li.fill(lazy, tmp_path, li.TORCH, on_missing="error", on_unexpected="error")
    assert_same(li.materialize(filled), eager)


@pytest.mark.parametrize("at", ["params/head", "params/head/"])
def test_a_subtree_is_saved_alone(tmp_path, at):
    eager = MLP().init(KEY, X)
    li.save(eager, tmp_path, at=at)
    assert set(load_file(tmp_path / "model.safetensors")) == {"bias", "kernel"}
    with pytest.raises(li.errors.PathError, match="params/haed: wanted at= to be the path of"):
        li.save(eager, tmp_path, at="params/haed")


def test_nnx_states_and_boxes_go_by_the_names_of_their_variables(tmp_path):
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    li.save(state, tmp_path / "nnx")
    assert set(load_file(tmp_path / "nnx" / "model.safetensors")) == {"bias", "kernel"}
    box = {"w": nn.Partitioned(jnp.ones((2, 3)), ("x", None))}
    li.save(box, tmp_path / "box")
    assert set(load_file(tmp_path / "box" / "model.safetensors")) == {"w"}


def test_numbers_and_every_dtype_are_kept(tmp_path):
    tree = {
        "step": 3,
        "rate": np.float32(0.5),
        "half": jnp.arange(4, dtype=jnp.bfloat16),
        "eighth": np.arange(4).astype(ml_dtypes.float8_e4m3fn),
        "bool": jnp.array([True, False]),
        "empty": jnp.zeros((0, 3)),
        "scalar": jnp.float16(2),
        "swapped": np.arange(3, dtype=">i4"),
    }
    li.save(tree, tmp_path)
    opened = li.open_checkpoint(tmp_path)
    for name, value in tree.items():
        want = np.asarray(value)
        want = want.astype(want.dtype.newbyteorder("="))
        got = opened[name].read(tuple(slice(None) for _ in want.shape))
        assert (got.dtype, got.shape, got.tobytes()) == (want.dtype, want.shape, want.tobytes())


def test_stored_leaves_go_from_file_to_file_and_no_device_is_asked(tmp_path):
    values = np.random.default_rng(0).random((64, 100), np.float32)
    save_file({"fc.weight": values, "b": values[0]}, tmp_path / "old.safetensors")
    leaves = {"fc": {"kernel": li.LazyParam((100, 64), "bfloat16", jnp.zeros)}}
    tree, _ = li.fill(leaves, tmp_path / "old.safetensors", li.TORCH)
    before = live()
    li.save(tree, tmp_path / "new")
    assert not large_arrays_since(before, size=0)
    (source,) = li.open_checkpoint(tmp_path / "new").values()
    want = values.T.astype(ml_dtypes.bfloat16)
    assert source.read((slice(None), slice(None))).tobytes() == want.tobytes()


def test_lazy_leaves_are_refused_by_name(tmp_path):
    tree = li.materialize(li.lazy(MLP()).init(KEY, X), "params/head")
    with pytest.raises(li.errors.NotMaterializedError) as caught:
        li.save(tree, tmp_path / "new")
    lazy = [path for path, x in li.paths.leaves_with_paths(tree) if isinstance(x, li.LazyParam)]
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == lazy
    assert 'lazyinit.materialize, or let save make it with lazy="make".' in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_lazy_leaves_are_made_one_by_one_and_let_go(tmp_path, monkeypatch):
    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            for n in range(5):
                x = nn.Dense(300, name=f"layer_{n}")(x)
            return x

    x = jnp.ones((1, 300))
    eager = flat(Deep().init(KEY, x))
    before = live()
    tree = li.lazy(Deep()).init(KEY, x)
    stored = {"layer_2": {"kernel": np.ones((200, 300), np.float32)}}
    tree, _ = li.fill(tree, stored, at="params", on_mismatch=li.overlap, on_missing="init")
    most = []
    read = DeviceArray.read

    def counted(self, index):
        most.append(len(large_arrays_since(before)))
        return read(self, index)

    monkeypatch.setattr(DeviceArray, "read", counted)
    li.save(tree, tmp_path, lazy="make", max_shard_size=10**6)
    assert max(most) == 1
    assert not large_arrays_since(before)
    eager["params/layer_2/kernel"] = eager["params/layer_2/kernel"].copy()
    eager["params/layer_2/kernel"][:200] = 1
    for name, source in li.open_checkpoint(tmp_path).items():
        got = source.read(tuple(slice(None) for _ in source.shape))
        np.testing.assert_array_equal(got, eager[name], strict=True)


def test_one_array_at_two_places_is_written_once(tmp_path):
    shared = jnp.ones((4, 4))
    tree = {"embed": shared, "head": shared, "other": jnp.ones((4, 4))}
    li.save(tree, tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == {"embed", "other"}


def test_two_leaves_of_one_tensor_are_written_once_if_they_are_equal(tmp_path):
    rules = [li.Rule("a", "w"), li.Rule("b", "w", tied=True)]
    values = np.arange(5, dtype=np.float32)
    li.save({"a": values, "b": jnp.asarray(values)}, tmp_path, rules=rules)
    before = load_file(tmp_path / "model.safetensors")
    assert list(before) == ["w"]
    np.testing.assert_array_equal(before["w"], values)
    with pytest.raises(li.errors.FillError, match="w: wanted leaves that are equal"):
        li.save({"a": values, "b": values + 1}, tmp_path, rules=rules)
    with pytest.raises(li.errors.FillError, match="b: wanted a tensor of its own"):
        li.save({"a": values, "b": values[:3]}, tmp_path, rules=rules)
    np.testing.assert_array_equal(load_file(tmp_path / "model.safetensors")["w"], values)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        ("text", "x: wanted an array, got str. Leave it out of the tree."),
        (np.ones(2, np.complex128), "x: wanted a dtype that safetensors has (BOOL"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(tmp_path, leaf, message):
    with pytest.raises(li.errors.SaveError, match="^" + re.escape(message)):
        li.save({"x": leaf, "y": np.ones(2)}, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_arrays_without_values_are_refused(tmp_path):
    gone = jnp.ones(3)
    gone.delete()
    with pytest.raises(li.errors.SaveError, match="x: .* got one that was deleted or donated"):
        li.save({"x": gone}, tmp_path)

    def save(x):
        li.save({"x": x}, tmp_path)

    with pytest.raises(li.errors.SaveError, match="x: .* got a tracer. Save outside of jax.jit"):
        jax.jit(save)(jnp.ones(3))


def test_wrong_arguments_say_so(tmp_path):
    with pytest.raises(li.errors.SaveError, match="lazy: wanted one of 'refuse', 'make', got 'no'"):
        li.save({"x": np.ones(2)}, tmp_path, lazy="no")
    with pytest.raises(li.errors.SaveError, match="s3://x: wanted a path on this machine"):
        li.save({"x": np.ones(2)}, "s3://x")
    with pytest.raises(li.errors.PathError, match="save: wanted a tree with leaves"):
        li.save({}, tmp_path)
    with pytest.raises(li.errors.FillError, match="rules"):
        li.save({"x": np.ones(2)}, tmp_path, rules=["x"])
