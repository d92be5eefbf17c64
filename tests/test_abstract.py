"""Shapes and shardings of what would be made; trees of shapes that a checkpoint fills."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from oracles import assert_same

import lazyinit as li
from lazyinit import paths

KEY, X = jax.random.key(0), jnp.ones((1, 8))
TYPES = [AxisType.Auto, AxisType.Explicit]


def mesh_of(axis_type):
    return jax.make_mesh((2, 4), ("a", "b"), axis_types=(axis_type,) * 2)


def build(rngs):
    init = nnx.with_partitioning(nnx.initializers.normal(0.02), ("a", "b"))
    return nnx.Linear(8, 16, kernel_init=init, rngs=rngs)


@pytest.mark.parametrize("axis_type", TYPES)
@pytest.mark.parametrize("sharding", [None, "b"])
def test_it_says_where_materialize_puts_each_leaf(axis_type, sharding):
    mesh = mesh_of(axis_type)
    sharding = None if sharding is None else NamedSharding(mesh, P(sharding))
    with jax.set_mesh(mesh):
        _, state = li.lazy(build)(nnx.Rngs(0))
    found = paths.leaves_with_paths(li.abstract(state, sharding))
    made = paths.leaves_with_paths(li.materialize(state, sharding=sharding))
    assert [p for p, _ in found] == ["bias", "kernel"]
    for (_, struct), (_, array) in zip(found, made, strict=True):
        assert isinstance(struct, jax.ShapeDtypeStruct)
        assert (struct.shape, struct.dtype) == (array.shape, array.dtype)
        assert struct.sharding == array.sharding


def test_it_is_what_jax_lowers_and_what_is_no_array_stays():
    tree = li.lazy(lambda key: {"w": jax.random.normal(key, (3,)), "k": key, "n": 3})(KEY)
    tree["made"] = jax.device_put(np.ones(2), jax.devices()[3])
    found = li.abstract(tree)
    assert found["n"] == 3
    assert found["k"].dtype == KEY.dtype
    assert found["w"].sharding is None
    assert found["made"].sharding == SingleDeviceSharding(jax.devices()[3])
    assert jax.jit(lambda t: t["w"] * 2).lower(found).out_info.shape == (3,)
    assert jax.tree.map(lambda x: x, li.abstract(found)) == found


TREES = {
    "jax.eval_shape": lambda: jax.eval_shape(nn.Dense(16).init, KEY, X),
    "nnx.eval_shape": lambda: nnx.state(
        nnx.eval_shape(lambda: nnx.Linear(8, 16, rngs=nnx.Rngs(0)))
    ),
    "li.abstract": lambda: li.abstract(li.lazy(nn.Dense(16)).init(KEY, X)),
}
KERNEL, BIAS = np.arange(128, dtype=np.float32).reshape(8, 16), np.ones(16, np.float32)


@pytest.mark.parametrize("name", TREES)
def test_a_tree_of_shapes_is_filled(name):
    prefix = "" if name == "nnx.eval_shape" else "params."
    tensors = {f"{prefix}kernel": KERNEL, f"{prefix}bias": BIAS}
    tree, report = li.fill(TREES[name](), tensors, on_missing="error")
    assert len(report.loaded) == 2
    made = li.materialize(tree)
    assert_same(jax.tree.leaves(made), [jnp.asarray(BIAS), jnp.asarray(KERNEL)])


@pytest.mark.parametrize("axis_type", TYPES)
def test_a_shape_that_says_where_it_goes_is_loaded_there(axis_type):
    mesh = mesh_of(axis_type)
    with jax.set_mesh(mesh):
        abstract = li.abstract(li.lazy(build)(nnx.Rngs(0))[1])
    tree, _ = li.fill(abstract, {"kernel": KERNEL, "bias": BIAS})
    made = li.materialize(tree)
    assert made["kernel"].get_value().sharding == NamedSharding(mesh, P("a", "b"))
    assert_same(made["kernel"].get_value(), jnp.asarray(KERNEL))


def test_a_shape_without_a_tensor_is_missing_and_cannot_be_made():
    tree = TREES["jax.eval_shape"]()
    with pytest.raises(li.errors.FillError, match="params/bias"):
        li.fill(tree, {"params.kernel": KERNEL}, on_missing="error")
    tree, report = li.fill(tree, {"params.kernel": KERNEL}, on_missing="init")
    assert report.missing == ("params/bias",)
    with pytest.raises(li.errors.AbstractInputError, match=r"^params/bias: wanted a leaf that"):
        li.materialize(tree)
    made = li.materialize(tree, "params/kernel")
    assert_same(made["params"]["kernel"], jnp.asarray(KERNEL))
