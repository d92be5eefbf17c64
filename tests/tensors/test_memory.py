import types

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import save_file

from lazyinit import errors, fill
from lazyinit.checkpoint import open_checkpoint
from lazyinit.params import LazyParam
from lazyinit.tensors.memory import HeldTensor

X, Y = np.arange(6.0).reshape(2, 3), np.ones(3, "float16")


@pytest.mark.parametrize(
    "tree",
    [
        {"a": {"b": X}, "c": [Y]},
        {"a/b": X, "c/0": Y},
        flax.core.freeze({"a": {"b": X}, "c": {"0": Y}}),
        types.MappingProxyType({"a": types.MappingProxyType({"b": X}), "c": (Y,)}),
        {"a": {"b": nn.Partitioned(X, ("x", None))}, "c": {0: Y}},
    ],
)
def test_trees_and_flat_mappings_go_by_their_paths(tree):
    checkpoint = open_checkpoint(tree)
    assert list(checkpoint) == ["a/b", "c/0"]
    assert (checkpoint["a/b"].shape, checkpoint["c/0"].dtype) == ((2, 3), np.float16)
    assert repr(checkpoint) == "Checkpoint(the mapping, 2 tensors)"


def test_the_state_of_an_nnx_module_goes_by_its_paths():
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    assert sorted(open_checkpoint(state)) == ["bias", "kernel"]


def test_numpy_is_read_without_a_copy_and_jax_by_slices():
    mesh = jax.make_mesh((2,), ("x",))
    sharded = jax.device_put(jnp.arange(8.0), NamedSharding(mesh, PartitionSpec("x")))
    checkpoint = open_checkpoint({"n": X, "j": sharded, "k": jnp.float32(3), "s": 2.5})
    assert np.shares_memory(checkpoint["n"].read((slice(0, 1), slice(None))), X)
    np.testing.assert_array_equal(checkpoint["j"].read((slice(3, 6),)), [3, 4, 5])
    for name in "ks":
        read = checkpoint[name].read(())
        assert isinstance(read, np.ndarray)
        assert read.shape == ()
    checkpoint["n"].check()


@pytest.mark.parametrize("spec", [("x", "y"), ("y",), (None, "x"), ()])
def test_a_sharded_array_is_read_across_its_shards(spec):
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    whole = np.arange(64.0, dtype="float32").reshape(8, 8)
    source = open_checkpoint(
        {"x": jax.device_put(whole, NamedSharding(mesh, PartitionSpec(*spec)))}
    )["x"]
    for index in [(slice(None),) * 2, (slice(1, 7), slice(3, 5)), (slice(2, 2), slice(0, 8))]:
        np.testing.assert_array_equal(source.read(index), whole[index])


def test_what_another_process_holds_is_refused():
    array = types.SimpleNamespace(shape=(4,), dtype=np.dtype("float32"), addressable_shards=[])
    with pytest.raises(errors.CheckpointError, match="'x': wanted an array that this process"):
        HeldTensor("x", array).read((slice(None),))


def test_a_tensor_is_equal_to_itself_under_the_same_name():
    a, b = (open_checkpoint({"x": X})["x"] for _ in range(2))
    assert a == b
    assert hash(a) == hash(b)
    assert a != open_checkpoint({"x": X.copy()})["x"]
    assert (a.names, a.origin, repr(a)) == (("x",), "the mapping", "the mapping:x")


@pytest.mark.parametrize("leaf", ["text", object(), LazyParam((2,), "float32", jnp.zeros)])
def test_a_leaf_that_is_no_array_is_refused(leaf):
    with pytest.raises(errors.CheckpointError, match="the mapping: tensor 'a/b': wanted an array"):
        open_checkpoint({"a": {"b": leaf}})


def test_two_arrays_of_one_path_are_refused():
    with pytest.raises(errors.CheckpointError, match="two arrays are called 'a/b'"):
        open_checkpoint({"a": {"b": X}, "a/b": Y})


def test_what_is_neither_path_nor_mapping_is_refused():
    with pytest.raises(errors.CheckpointError, match="checkpoint: wanted a path, a mapping"):
        open_checkpoint(3)  # pyright: ignore


def test_an_opened_checkpoint_is_itself():
    checkpoint = open_checkpoint({"x": X})
    assert open_checkpoint(checkpoint) is checkpoint


def test_a_state_dict_of_pytorch_is_a_mapping():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).to(torch.bfloat16)
    state = {"model": model.state_dict(), "epoch": 3}
    opened = open_checkpoint(state)
    for name, tensor in model.state_dict().items():
        source = opened[f"model/{name}"]
        assert source.dtype.name == str(tensor.dtype).removeprefix("torch.")
        got = source.read((slice(None),) * tensor.ndim)
        assert got.tobytes() == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    assert opened["epoch"].read(()) == 3


def test_a_tensor_of_pytorch_in_any_order_is_read_as_it_is():
    base = torch.arange(24.0).reshape(2, 3, 4).requires_grad_()
    views = {"turned": base.permute(2, 0, 1), "cut": base[:, 1:], "one": base[0, 0, 0]}
    views["conjugated"] = torch.tensor([1 + 2j, 3j]).conj()
    for name, source in open_checkpoint(views).items():
        want = views[name].detach().resolve_conj().numpy()
        np.testing.assert_array_equal(source.read((slice(None),) * want.ndim), want)
    held = base.detach()
    read = open_checkpoint({"w": held})["w"].read((slice(None),) * 3)
    assert np.shares_memory(read, held.numpy())


@pytest.mark.parametrize(
    ("tensor", "what"),
    [
        (torch.eye(3).to_sparse(), "torch.sparse_coo, torch.float32, on cpu"),
        (torch.empty(3, device="meta"), "torch.strided, torch.float32, on meta"),
        (torch.zeros(4, dtype=torch.uint8).view(torch.bits8), "torch.strided, torch.bits8, on cpu"),
    ],
)
def test_a_tensor_of_pytorch_without_dense_values_is_refused(tensor, what):
    message = f"the mapping: tensor 'a/b': wanted a dense tensor .*, got {what}. Convert it to such a tensor"
    with pytest.raises(errors.CheckpointError, match=message):
        open_checkpoint({"a": {"b": tensor}})


def test_what_another_checkpoint_holds_may_get_other_names(tmp_path):
    save_file({"a.b": X, "a/b": X + 1, "a.c": X + 2}, tmp_path / "m.safetensors")
    opened = open_checkpoint(tmp_path / "m.safetensors")
    tree = {
        "a": {"c": jax.ShapeDtypeStruct((2, 3), "float64")},
        "b": jax.ShapeDtypeStruct((2, 3), "float64"),
    }
    with pytest.raises(errors.FillError) as error:
        fill(tree, opened)
    assert str(error.value) == (
        f"{tmp_path}/m.safetensors: wanted tensors with different names, got 'a.b' and 'a/b', "
        "which are both read as 'a/b', because '.' and '/' mean the same. Give one of them another "
        "name in a mapping: {new: tensor for name, tensor in "
        "lazyinit.open_checkpoint(...).items()}."
    )
    renamed = {"b" if name == "a/b" else name: tensor for name, tensor in opened.items()}
    filled, report = fill(tree, {**renamed, "more": X})
    assert report.unexpected == ("a.b", "more")
    assert filled["b"].source is opened["a/b"]
    np.testing.assert_array_equal(filled["b"].source.read((slice(0, 2), slice(0, 3))), X + 1)
    assert open_checkpoint({"deep": {"er": opened["a.b"]}})["deep/er"] is opened["a.b"]
