"""Plans of a mesh without devices beside plans of the same mesh with devices, and what lands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lazyinit as li

SHAPES = [(2, 4), (8, 1), (1, 8), (2, 2, 2), (8,)]
KINDS = ["lazy", "orthogonal", "stored", "array", "host"]


def leaf_of(kind, shape):
    match kind:
        case "lazy":
            return li.lazy(lambda key: jax.random.normal(key, shape))(jax.random.key(0))
        case "orthogonal":
            init = jax.nn.initializers.orthogonal()
            square = (*shape, *(1,) * (2 - len(shape)))
            return li.lazy(lambda key: init(key, square, "float32"))(jax.random.key(0))
        case "stored":
            leaf = {"w": jax.ShapeDtypeStruct(shape, "float32")}
            return li.fill(leaf, {"w": np.zeros(shape, np.float32)})[0]["w"]
        case "array":
            return jnp.zeros(shape)
        case "host":
            return np.zeros(shape, np.int8)


@st.composite
def cases(draw):
    shape = draw(st.sampled_from(SHAPES))
    names = "abc"[: len(shape)]
    tree, specs = {}, {}
    for n in range(draw(st.integers(1, 4))):
        size = draw(st.lists(st.sampled_from([8, 16]), min_size=1, max_size=3))
        leaf = leaf_of(draw(st.sampled_from(KINDS)), tuple(size))
        free, spec = list(names), []
        for _ in leaf.shape:
            axes = draw(st.sampled_from([None, *free])) if free else None
            if axes:
                free.remove(axes)
            # One column cannot be cut.
            spec.append(axes)
        if 1 in leaf.shape:
            spec = spec[:1]
        tree[str(n)], specs[str(n)] = leaf, P(*spec)
    return tree, specs, shape, names


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@settings(max_examples=20)
@given(cases())
def test_a_mesh_without_devices_is_planned_as_one_with_devices(axis_type, case):
    tree, specs, shape, names = case
    real = jax.make_mesh(shape, tuple(names), axis_types=(axis_type,) * len(shape))
    text = ",".join(f"{name}={size}" for name, size in zip(names, shape, strict=True))
    wanted = li.plan(tree, li.shard_by_rules(real, specs))
    devices = list(real.devices.flat)
    for mesh in (real.abstract_mesh, text):
        found = li.plan(tree, li.shard_by_rules(mesh, specs))
        for name in ("bytes_per_device", "peak_bytes_per_device"):
            counts = getattr(found, name)
            assert {devices[d.id]: n for d, n in counts.items()} == getattr(wanted, name)
        assert [
            (leaf.action, leaf.bytes_per_device, leaf.repeated_nbytes) for leaf in found.leaves
        ] == [(leaf.action, leaf.bytes_per_device, leaf.repeated_nbytes) for leaf in wanted.leaves]
        assert (found.reads, found.unused_rules) == (wanted.reads, wanted.unused_rules)


@settings(max_examples=10)
@given(cases())
def test_the_bytes_of_a_mesh_without_devices_are_those_that_land(case):
    tree, specs, shape, names = case
    real = jax.make_mesh(shape, tuple(names), axis_types=(AxisType.Auto,) * len(shape))
    planned = li.plan(tree, li.shard_by_rules(real.abstract_mesh, specs))
    made = li.materialize(tree, sharding=li.shard_by_rules(real, specs))
    landed = dict.fromkeys(range(8), 0)
    for array in jax.tree.leaves(made):
        for place, device in enumerate(real.devices.flat):
            shards = (s.data.nbytes for s in array.addressable_shards if s.device == device)
            landed[place] += sum(shards)
    assert {device.id: count for device, count in planned.bytes_per_device.items()} == landed


def test_leaves_on_two_meshes_are_counted_apart():
    large, small = (NamedSharding(li.abstract_meshes.mesh_of(t), P("a")) for t in ("a=4", "a=2"))
    zeros = jax.nn.initializers.zeros
    tree = {name: li.LazyParam((8,), "float32", zeros) for name in ("large", "small", "default")}
    planned = li.plan(tree, {"large": large, "small": small, "default": None})
    by_name = {str(device): count for device, count in planned.bytes_per_device.items()}
    assert by_name == {
        "device 0": 24,
        "device 1": 24,
        "device 2": 8,
        "device 3": 8,
        str(jax.devices()[0]): 32,
    }
