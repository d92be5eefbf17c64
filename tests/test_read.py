import os
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file

import lazyinit as li
from lazyinit.making import read
from lazyinit.sources.single import Transposed


def stored(tmp_path, values):
    path = tmp_path / "model.safetensors"
    save_file({"w": values}, path)
    leaf = li.LazyParam(values.shape, values.dtype, jax.nn.initializers.zeros)
    return li.fill({"w": leaf}, path)[0], path


def mesh():
    return jax.make_mesh((2, 4), ("x", "y"))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.bool_])
@pytest.mark.parametrize("spec", [P(), P("x"), P(None, "y"), P("y", "x"), P(("x", "y"))])
def test_each_device_gets_its_own_part(tmp_path, dtype, spec):
    values = (np.arange(16 * 8).reshape(16, 8) % 5).astype(dtype)
    tree, _ = stored(tmp_path, values)
    array = li.materialize(tree, sharding=NamedSharding(mesh(), spec))["w"]
    assert array.sharding == NamedSharding(mesh(), spec)
    np.testing.assert_array_equal(np.asarray(array), values)
    for shard in array.addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), values[shard.index])


def test_a_cast_is_that_of_jax(tmp_path):
    values = np.random.default_rng(0).standard_normal((32, 8)).astype(np.float32)
    tree, _ = stored(tmp_path, values)
    array = li.materialize(tree, dtype="bfloat16")["w"]
    np.testing.assert_array_equal(np.asarray(array), np.asarray(jnp.asarray(values, "bfloat16")))


def test_an_array_does_not_change_with_its_file(tmp_path):
    values = np.arange(4096, dtype=np.float32)
    tree, path = stored(tmp_path, values)
    array = li.materialize(tree)["w"]
    with open(path, "r+b") as file:
        file.seek(-4096 * 4, os.SEEK_END)
        file.write(b"\xff" * 4096 * 4)
    np.testing.assert_array_equal(np.asarray(array), values)


def test_a_file_that_has_changed_is_noticed_before_anything_is_made(tmp_path):
    tree, path = stored(tmp_path, np.ones(8, np.float32))
    tree["lazy"] = li.LazyParam((8,), "float32", lambda key: jnp.zeros(8))
    save_file({"w": np.zeros(16, np.float32)}, path)
    before = len(jax.live_arrays())
    with pytest.raises(li.errors.CheckpointError, match=r"model\.safetensors: the file has"):
        li.materialize(tree)
    assert len(jax.live_arrays()) == before


def test_64_bit_leaves_are_read_where_64_bit_types_are_on(tmp_path):
    values = np.arange(4, dtype=np.float64) / 3
    with jax.enable_x64(True):
        tree, _ = stored(tmp_path, values)
        array = li.materialize(tree, sharding=NamedSharding(mesh(), P("y")))["w"]
        assert array.dtype == np.float64
        np.testing.assert_array_equal(np.asarray(array), values)


def test_the_default_device_is_that_of_the_caller(tmp_path):
    tree, _ = stored(tmp_path, np.ones(4, np.float32))
    with jax.default_device(jax.devices()[3]):
        array = li.materialize(tree)["w"]
    assert array.device == jax.devices()[3]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_of_the_file_are_given_back(tmp_path):
    def mapped():
        with open("/proc/self/status") as status:
            return next(int(x.split()[1]) * 1024 for x in status if x.startswith("RssFile"))

    values = np.random.default_rng(0).random((2048, 4096), np.float32)
    tree, _ = stored(tmp_path, values)
    li.materialize(tree)  # Maps the code that reads, too.
    before = mapped()
    made = li.materialize(tree)
    assert mapped() - before < 2**21
    np.testing.assert_array_equal(made["w"], values)


@pytest.mark.parametrize("shape", [(1000, 700), (4, 520, 300), (2, 4, 260, 300)])
@pytest.mark.parametrize("spec", [P(), P("y"), P(None, "y"), P("x", "y")])
def test_a_transposed_tensor_is_read_in_pieces_and_tiles(tmp_path, monkeypatch, shape, spec):
    monkeypatch.setattr(read, "PIECE", 100_000)
    values = np.random.default_rng(0).random(shape, np.float32)
    tree, _ = stored(tmp_path, values)
    source = Transposed(tree["w"].source, tuple(reversed(range(len(shape)))))
    leaf = li.StoredParam(source.shape, np.dtype("bfloat16"), source)
    made = li.materialize({"w": leaf}, sharding=NamedSharding(mesh(), spec))["w"]
    np.testing.assert_array_equal(made, values.astype("bfloat16").transpose())
