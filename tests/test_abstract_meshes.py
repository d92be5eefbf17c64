"""Meshes without devices: as text, as values, and as what a mesh means as ``sharding``."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lazyinit as li
from lazyinit import abstract_meshes
from lazyinit.errors import PlanError, ShardingError

TEXT = "a=2,b=4"
TYPES = (AxisType.Auto, AxisType.Explicit)
NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,4}", fullmatch=True)


@given(
    st.dictionaries(NAMES, st.integers(1, 512), min_size=1, max_size=4), st.sampled_from(["", " "])
)
def test_text_is_read_as_it_is_written(axes, space):
    text = f",{space}".join(f"{name}{space}={space}{size}" for name, size in axes.items())
    mesh = abstract_meshes.mesh_of(text)
    assert (mesh.axis_names, mesh.axis_sizes) == (tuple(axes), tuple(axes.values()))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "''"),
        ("data", "'data'"),
        ("data=4,", "''"),
        ("data=4;model=8", "'data=4;model=8'"),
        ("data=0", "'data=0'"),
        ("data=-1", "'data=-1'"),
        ("data=four", "'data=four'"),
        ("4=data", "'4=data'"),
        ("data=4,data=2", "the axis 'data' twice"),
    ],
)
def test_text_that_is_no_mesh_is_refused(text, fault):
    with pytest.raises(ShardingError) as caught:
        li.plan({"w": jax.ShapeDtypeStruct((8,), "float32")}, text)
    assert str(caught.value) == (
        f"mesh {text!r}: wanted axes and their sizes, such as 'data=4,model=8', got {fault}."
    )


def test_what_is_no_mesh_is_refused_by_every_builder():
    for build in (
        lambda mesh: li.shard_by_rules(mesh, []),
        lambda mesh: li.shard_fsdp(mesh, "a"),
        li.shard_by_metadata,
    ):
        with pytest.raises(ShardingError, match=r"^mesh: wanted a jax.sharding.Mesh, an Abstract"):
            build(8)


@pytest.mark.parametrize("axis_type", TYPES)
def test_builders_say_the_same_of_every_form_of_a_mesh(axis_type):
    real = jax.make_mesh((2, 4), ("a", "b"), axis_types=(axis_type,) * 2)
    tree = {"w": jax.ShapeDtypeStruct((16, 64), "float32"), "b": jax.ShapeDtypeStruct((3,), "int8")}
    for build in (
        lambda mesh: li.shard_by_rules(mesh, {"w": P("b", "a")}),
        lambda mesh: li.shard_fsdp(mesh, ("a", "b")),
        li.shard_by_metadata,
        lambda mesh: mesh,
    ):
        specs = [
            {path: struct.sharding.spec for path, struct in li.abstract(tree, build(mesh)).items()}
            for mesh in (real, real.abstract_mesh, TEXT)
        ]
        assert specs[0] == specs[1] == specs[2]


def test_an_axis_that_the_text_lacks_is_named_by_every_builder():
    with pytest.raises(ShardingError, match=r"^w: .*the mesh has no axis 'c', only \('a', 'b'\)"):
        li.shard_by_rules(TEXT, {"w": P("c")})
    with pytest.raises(ShardingError, match=r"^shard_fsdp: the mesh has no axis 'c'"):
        li.shard_fsdp(TEXT, "c")
    boxed = {"w": nn.Partitioned(jax.ShapeDtypeStruct((8,), "float32"), ("c",))}
    for sharding in (TEXT, li.shard_by_metadata(TEXT)):
        with pytest.raises(ShardingError, match=r"^w: shard_by_metadata: .* has no axis 'c'"):
            li.plan(boxed, sharding)


class Net(nnx.Module):
    def __init__(self, rngs):
        init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("a", "b"))
        self.cut = nnx.Linear(8, 16, kernel_init=init, rngs=rngs)
        self.plain = nnx.Linear(16, 8, rngs=rngs)


def linen(key):
    init = nn.with_partitioning(nn.initializers.lecun_normal(), ("a", "b"))
    layers = nn.Sequential([nn.Dense(16, kernel_init=init), nn.Dense(8)])
    return li.lazy(layers).init(key, jax.ShapeDtypeStruct((1, 8), "float32"))


def spec_of(planned, end):
    (leaf,) = (leaf for leaf in planned.leaves if leaf.path.endswith(end))
    return leaf.sharding.spec


def test_on_a_mesh_leaves_go_where_their_metadata_says_or_are_replicated():
    with nnx.use_eager_sharding(False):
        _, state = li.lazy(Net)(nnx.Rngs(0))
    planned = li.plan(state, TEXT)
    assert spec_of(planned, "cut/kernel") == P("a", "b")
    assert spec_of(planned, "plain/kernel") == P()
    planned = li.plan(linen(jax.random.key(0)), TEXT)
    assert spec_of(planned, "layers_0/kernel/value") == P("a", "b")
    assert spec_of(planned, "layers_1/kernel") == P()


@pytest.mark.parametrize("axis_type", TYPES)
def test_on_a_mesh_leaves_go_where_their_recording_placed_them(axis_type):
    small = jax.make_mesh(
        (1, 2), ("a", "b"), axis_types=(axis_type,) * 2, devices=jax.devices()[:2]
    )
    with jax.set_mesh(small):
        _, state = li.lazy(Net)(nnx.Rngs(0))
    for mesh in (TEXT, AbstractMesh((2, 4), ("a", "b")), jax.make_mesh((2, 4), ("a", "b"))):
        planned = li.plan(state, mesh)
        assert spec_of(planned, "cut/kernel") == P("a", "b")
        assert set(planned.bytes_per_device.values()) == {8 * 16 * 4 // 8 + (16 + 16 * 8 + 8) * 4}
    with pytest.raises(ShardingError, match=r"^cut/kernel: .* the mesh has no axis 'a', only"):
        li.plan(state, "data=8")


def test_an_array_keeps_its_spec_on_another_mesh():
    mesh = jax.make_mesh((8,), ("x",))
    array = jax.device_put(jnp.ones((64, 2)), NamedSharding(mesh, P("x")))
    (leaf,) = li.plan({"w": array}, "x=32").leaves
    assert (leaf.action, leaf.bytes_per_device, leaf.sharding.spec) == ("move", 16, P("x"))


def test_materialize_takes_a_mesh_and_refuses_one_without_devices():
    tree = linen(jax.random.key(0))
    mesh = jax.make_mesh((2, 4), ("a", "b"))
    made = li.materialize(tree, sharding=mesh)
    kernels = [made["params"][f"layers_{n}"]["kernel"] for n in range(2)]
    assert kernels[0].value.sharding == NamedSharding(mesh, P("a", "b"))
    assert kernels[1].sharding == NamedSharding(mesh, P())
    np.testing.assert_array_equal(
        kernels[0].value, li.materialize(tree)["params"]["layers_0"]["kernel"].value
    )
    for absent in (TEXT, mesh.abstract_mesh, li.shard_fsdp(TEXT, "a")):
        with pytest.raises(ShardingError, match=r"^params/.*: wanted devices, got AbstractMesh\("):
            li.materialize(tree, sharding=absent)


def test_a_recording_under_a_large_mesh_is_planned_there():
    small = jax.make_mesh((8,), ("a",))
    leaf = li.LazyParam((1024, 2), "float32", jax.nn.initializers.zeros)
    large = NamedSharding(AbstractMesh((512,), ("a",)), P("a"))
    tree = {"w": li.LazyParam(leaf.shape, leaf.dtype, leaf.init_fn, sharding=large)}
    planned = li.plan(tree)
    assert planned.bytes_per_device == dict.fromkeys(abstract_meshes.devices_of(large), 16)
    with pytest.raises(ShardingError, match="Call materialize within jax.set_mesh"):
        li.materialize(tree)
    assert set(li.plan(tree, small).bytes_per_device) == set(jax.devices())


def test_devices_are_places_in_the_mesh_on_hosts_of_equal_size():
    sharding = NamedSharding(AbstractMesh((2, 4), ("a", "b")), P("a"))
    devices = abstract_meshes.devices_of(sharding, 4)
    assert [d.id for d in devices] == list(range(8))
    assert [d.process_index for d in devices] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert str(devices[5]) == "device 5"


@pytest.mark.parametrize("hosts", [0, -1, 3, 16])
def test_hosts_that_do_not_divide_the_devices_are_refused(hosts):
    with pytest.raises(PlanError) as caught:
        li.plan({"w": li.LazyParam((8,), "int8", jax.nn.initializers.zeros)}, TEXT, hosts=hosts)
    assert str(caught.value) == (
        "hosts: wanted a number that divides the 8 devices of the mesh {'a': 2, 'b': 4}, "
        f"got {hosts}."
    )


def test_a_mesh_may_say_of_what_devices_it_would_be():
    kind = jax.sharding.AbstractDevice("TPU v5e", 1, "tpu")
    mesh = AbstractMesh((64,), ("a",), abstract_device=kind)
    tree = li.lazy(lambda key: {"w": jax.random.normal(key, (64, 1024))})(jax.random.key(0))
    planned = li.plan(tree, NamedSharding(mesh, P("a")))
    assert set(planned.peak_bytes_per_device.values()) == {4 * 4096}  # By a program of its own.
