"""Recorded placements, pickled and on the devices that there are."""

import pickle

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import lazyinit as li
from lazyinit import meshes

TYPES = (AxisType.Auto, AxisType.Explicit)


def mesh_of(axis_type, devices=None):
    return jax.make_mesh((2, 4), ("a", "b"), axis_types=(axis_type,) * 2, devices=devices)


@pytest.mark.parametrize("axis_type", TYPES)
def test_a_mesh_of_the_recording_is_made_of_this_process_if_none_is_set(axis_type):
    mesh = mesh_of(axis_type, jax.devices()[::-1])
    with jax.set_mesh(mesh):
        assert meshes.concrete(mesh.abstract_mesh, "w") is mesh
    made = meshes.concrete(mesh.abstract_mesh, "w")
    assert made.abstract_mesh == mesh.abstract_mesh
    assert list(made.devices.flat) == jax.devices()


def test_a_mesh_of_more_devices_than_there_are_says_what_to_do():
    large = AbstractMesh((64,), ("a",))
    with pytest.raises(li.errors.ShardingError, match=r"^params/w: .*within jax.set_mesh\(mesh\)"):
        meshes.concrete(large, "params/w")


@pytest.mark.parametrize("axis_type", TYPES)
def test_nothing_runs_under_a_mesh_that_is_set(axis_type):
    def is_none_set():
        return jax.sharding.get_abstract_mesh().empty and jax.sharding.get_mesh().empty

    with jax.set_mesh(mesh_of(axis_type)), jax.default_device(jax.devices()[3]):
        assert meshes.outside(is_none_set)
        assert meshes.outside(lambda: jax.numpy.ones(3).devices()) == {jax.devices()[3]}
        assert jax.jit(lambda: jax.numpy.full(3, meshes.outside(is_none_set)))().all()
        with jax.enable_x64(True):
            assert meshes.outside(lambda: jax.numpy.ones(3, float).dtype) == "float64"
        with meshes.under(None):
            assert is_none_set()
        assert not is_none_set()
    assert meshes.outside(is_none_set)


@pytest.mark.parametrize(
    "sharding",
    [
        None,
        SingleDeviceSharding(jax.devices()[5]),
        *(NamedSharding(mesh_of(t, jax.devices()[::-1]), P("b", None)) for t in TYPES),
        *(NamedSharding(mesh_of(t).abstract_mesh, P(("a", "b"))) for t in TYPES),
        NamedSharding(mesh_of(AxisType.Auto), P("a"), memory_kind="unpinned_host"),
    ],
)
def test_a_pickled_placement_is_equal(sharding):
    pickled = pickle.dumps(meshes.to_pickle(sharding))
    assert meshes.from_pickle(pickle.loads(pickled)) == sharding


def test_a_pickled_placement_on_devices_that_are_gone_has_none():
    mesh = mesh_of(AxisType.Explicit)
    named, *rest = meshes.to_pickle(NamedSharding(mesh, P("a")))
    for gone in ([(platform, n + 100) for platform, n in named], [("tpu", 0)] * 8):
        found = meshes.from_pickle((gone, *rest))
        assert isinstance(found.mesh, AbstractMesh)
        assert meshes.on_devices(found, "w") == NamedSharding(mesh, P("a"))
    assert isinstance(meshes.on_devices(found, "w").mesh, Mesh)
    assert meshes.from_pickle(([("tpu", 0)], None, None, None)) is None
