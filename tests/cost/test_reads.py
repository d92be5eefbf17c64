"""The bytes that hosts read, beside what shardings of real devices say."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file

import lazyinit as li


@pytest.fixture
def folder(tmp_path):
    tensors = {f"layers.{n}.weight": np.zeros((16, 8), np.float16) for n in range(4)}
    li.save(tensors | {"bias": np.zeros(24, np.float32)}, tmp_path, max_shard_size=600)
    return tmp_path


def filled(source, tree=None, rules=()):
    opened = li.open_checkpoint(source)
    tree = tree or {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in opened.items()}
    return li.fill(tree, source, rules)[0]


def test_one_host_reads_each_byte_of_each_file_once(folder):
    tree = filled(folder)
    for sharding in (None, "a=2,b=4", li.shard_fsdp("a=2,b=4", "b", min_size=1)):
        ((host, files),) = li.plan(tree, sharding).reads.items()
        assert host == 0
        assert sum(files.values()) == 4 * 16 * 8 * 2 + 24 * 4
        found = {file.rpartition("/")[2]: n for file, n in files.items()}
        assert set(found) == {path.name for path in folder.glob("*.safetensors")}
        assert len(found) > 1


SPECS = st.permutations(["a", "b", None]).map(lambda axes: P(*axes[:2]))


@settings(max_examples=30)
@given(SPECS, st.sampled_from([1, 2, 4, 8]))
def test_a_host_reads_what_its_devices_need(spec, hosts):
    mesh = jax.make_mesh((2, 4), ("a", "b"))
    tree = {"w": np.zeros((8, 16), np.float32)}
    tree = li.fill({"w": jax.ShapeDtypeStruct((8, 16), "float32")}, tree)[0]
    planned = li.plan(tree, li.shard_by_rules(mesh.abstract_mesh, {"w": spec}), hosts=hosts)
    at = jax.NamedSharding(mesh, spec).devices_indices_map((8, 16))
    wanted = {}
    for host, devices in enumerate(np.split(mesh.devices.reshape(-1), hosts)):
        needed = np.zeros((8, 16), bool)
        for device in devices:
            needed[at[device]] = True
        wanted[host] = {"the mapping": int(needed.sum()) * 4}
    assert planned.reads == wanted


def test_a_leaf_of_several_files_counts_each_alike(folder):
    stacked = {"layers": jax.ShapeDtypeStruct((4, 16, 8), "float32")}
    rule = li.Rule("layers", "layers.{n}.weight", li.Stack(axis=0))
    tree = li.fill(stacked, folder, [rule])[0]
    shard = li.shard_by_rules("a=4", {"layers": P("a")})
    planned = li.plan(tree, shard, hosts=2)
    assert [sum(files.values()) for files in planned.reads.values()] == [2 * 256] * 2
    assert len({tuple(files) for files in planned.reads.values()}) == 1


def test_a_part_of_a_tensor_counts_as_that_part(tmp_path):
    save_file({"qkv": np.zeros((24, 8), np.float32)}, tmp_path / "x.safetensors")
    tree = {name: jax.ShapeDtypeStruct((8, 8), "float32") for name in "qkv"}
    rules = [li.Rule(["q", "k", "v"], "qkv", li.Split(axis=0))]
    tree = li.fill(tree, tmp_path / "x.safetensors", rules)[0]
    only = li.plan(tree, paths="k").reads[0]
    assert list(only.values()) == [8 * 8 * 4]


def test_what_is_shared_kept_or_made_is_not_read(folder):
    tree = filled(folder)
    tree["again"] = tree["bias"]
    tree["made"] = li.LazyParam((8,), "float32", jax.nn.initializers.zeros)
    assert sum(li.plan(tree).reads[0].values()) == 4 * 256 + 96
    assert sum(li.plan(tree, paths="bias").reads[0].values()) == 96
    assert li.plan(tree, paths="made").reads == {}
