"""What training holds, beside what the optimizer itself makes, eagerly, on eight devices."""

import functools

import jax
import jax.numpy as jnp
import models
import nnx_models
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lazyinit as li
from lazyinit.errors import PathError, PlanError

OPTIMIZERS = {
    "adamw": optax.adamw(1e-3),
    "adamw in bfloat16": optax.adamw(1e-3, mu_dtype=jnp.bfloat16),
    "sgd": optax.sgd(1e-2),
    "momentum": optax.sgd(1e-2, momentum=0.9),
    "adafactor": optax.adafactor(1e-3, min_dim_size_to_factor=16),
    "lion, clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.lion(1e-4)),
    "a mean of steps": optax.MultiSteps(optax.adam(1e-3), 4),
    "two of them": optax.multi_transform(
        {"wide": optax.adam(1e-3), "rest": optax.sgd(1e-2)},
        lambda params: jax.tree.map(lambda x: "wide" if x.ndim > 1 else "rest", params),
    ),
}
TYPES = [AxisType.Auto, AxisType.Explicit]


@functools.cache
def linen():
    tree = li.lazy(models.Decoder(layers=2)).init(jax.random.key(0), models.TOKENS)
    return tree, lambda made: made["params"]


@functools.cache
def flax_nnx():
    _, state = li.lazy(nnx_models.Decoder)(2, rngs=nnx.Rngs(0))
    return state, lambda made: made


def landed(tree, mesh):
    """Returns the bytes on each device; an array that was never placed is replicated."""
    counts = dict.fromkeys(mesh.devices.flat, 0)
    for array in jax.tree.leaves(tree):
        if not isinstance(array.sharding, NamedSharding):
            array = jax.device_put(array, NamedSharding(mesh, P()))
        for shard in array.addressable_shards:
            counts[shard.device] += shard.data.nbytes
    return counts


def mesh_of(axis_type):
    return jax.make_mesh((2, 4), ("x", "y"), axis_types=(axis_type,) * 2)


@functools.cache
def made_on(model, axis_type):
    """Returns a model's leaves on a mesh: no optimizer changes them."""
    shard = li.shard_fsdp(mesh_of(axis_type), ("x", "y"), min_size=1)
    return li.materialize(model()[0], sharding=shard)


@pytest.mark.parametrize("model", [linen, flax_nnx])
@pytest.mark.parametrize(
    ("name", "axis_type"),
    # On Explicit axes, JAX cuts adafactor's factors, or does not make them (0.10.2): see below.
    [(n, t) for n in OPTIMIZERS for t in TYPES if (n, t) != ("adafactor", AxisType.Explicit)],
)
def test_the_state_has_the_bytes_that_land_when_it_is_made(name, model, axis_type):
    optimizer, (tree, params_of) = OPTIMIZERS[name], model()
    mesh = mesh_of(axis_type)
    shard = li.shard_fsdp(mesh, ("x", "y"), min_size=1)
    planned, made = li.plan(tree, shard, optimizer=optimizer), made_on(model, axis_type)
    state = optimizer.init(params_of(made))
    shapes = jax.eval_shape(optimizer.init, params_of(li.abstract(tree)))
    assert planned.bytes_of("optimizer") == sum(
        x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes)
    )
    wanted = {d: n + landed(made, mesh)[d] for d, n in landed(state, mesh).items()}
    assert planned.bytes_per_device == wanted
    text = li.plan(tree, li.shard_fsdp("x=2,y=4", ("x", "y"), min_size=1), optimizer=optimizer)
    assert list(text.bytes_per_device.values()) == list(wanted.values())
    # Without it, nothing is other than it was.
    assert li.plan(tree, shard).leaves == planned.leaves


@pytest.mark.parametrize("model", [linen, flax_nnx])
def test_factors_are_counted_on_explicit_axes_as_they_land_on_others(model):
    optimizer, (tree, params_of) = OPTIMIZERS["adafactor"], model()
    explicit, auto = map(mesh_of, (AxisType.Explicit, AxisType.Auto))
    planned = li.plan(tree, li.shard_fsdp(explicit, ("x", "y"), min_size=1), optimizer=optimizer)
    made = made_on(model, AxisType.Auto)
    state = landed(optimizer.init(params_of(made)), auto)
    assert planned.bytes_per_device == {d: n + state[d] for d, n in landed(made, auto).items()}


def test_gradients_and_a_copy_are_counted_as_asked():
    tree, _ = linen()
    shard = li.shard_fsdp("x=8", "x", min_size=1)
    alone = li.plan(tree, shard)
    one = alone.bytes_of("initialize")
    planned = li.plan(tree, shard, gradients=True, copy="bfloat16")
    assert planned.bytes_of("gradients") == one
    assert planned.bytes_of("copy") == one // 2
    paths = [leaf.path for leaf in alone.leaves]
    assert [leaf.path for leaf in planned.training] == [
        *(f"gradients/{path}" for path in paths),
        *(f"copy/{path}" for path in paths),
    ]
    assert [leaf.sharding for leaf in planned.training] == [
        leaf.sharding for leaf in alone.leaves
    ] * 2
    assert li.plan(tree, shard, gradients="bfloat16").bytes_of("gradients") == one // 2


def test_a_dtype_for_the_leaves_is_that_of_their_state():
    tree, _ = linen()
    planned = li.plan(tree, dtype="bfloat16", optimizer=optax.sgd(1e-2, momentum=0.9))
    assert planned.bytes_of("optimizer") == planned.bytes_of("initialize")


def test_parameters_are_trained_and_nothing_else():
    variables = {
        "params": {"w": li.LazyParam((8, 4), "float32", jax.nn.initializers.zeros)},
        "batch_stats": {"mean": li.LazyParam((4,), "float32", jax.nn.initializers.zeros)},
    }
    planned = li.plan(variables, gradients=True)
    assert [leaf.path for leaf in planned.training] == ["gradients/params/w"]
    _, state = li.lazy(nnx_models.Block)(nnx.Rngs(0))
    trained = {leaf.path for leaf in li.plan(state, gradients=True).training}
    assert trained == {
        f"gradients/{p}" for p in ("linear/bias", "linear/kernel", "norm/bias", "norm/scale")
    }
    plain = {
        "w": li.LazyParam((8,), "float32", jax.nn.initializers.zeros),
        "step": 3,
        "n": jnp.ones(2, int),
    }
    assert [leaf.path for leaf in li.plan(plain, gradients=True).training] == ["gradients/w"]


@pytest.mark.parametrize("model", [linen, flax_nnx])
def test_what_is_trained_can_be_said(model):
    tree, _ = model()
    pattern = "**/layers*/**/kernel" if model is flax_nnx else "params/layers_1"
    planned = li.plan(tree, optimizer=optax.adamw(1e-3), gradients=True, trainable=pattern)
    chosen = li.plan(tree, paths=pattern)
    kept = [leaf.nbytes for leaf in chosen.leaves if leaf.action == "initialize"]
    assert planned.bytes_of("gradients") == sum(kept) < planned.bytes_of("initialize")
    assert planned.bytes_of("optimizer") == 2 * sum(kept) + 4
    with pytest.raises(PathError, match="^nowhere: this pattern matches none"):
        li.plan(tree, gradients=True, trainable="nowhere")


def test_arrays_that_are_there_are_trained_where_they_are():
    mesh = jax.make_mesh((8,), ("x",))
    array = jax.device_put(jnp.ones((64, 2)), NamedSharding(mesh, P("x")))
    planned = li.plan({"w": array}, optimizer=optax.sgd(1e-2, momentum=0.9))
    assert planned.bytes_per_device == dict.fromkeys(jax.devices(), 64)


def test_one_array_alone_has_a_state():
    leaf = li.LazyParam((64, 2), "float32", jax.nn.initializers.zeros)
    planned = li.plan(leaf, li.shard_fsdp("x=8", "x", 1), optimizer=optax.adam(1e-3))
    assert set(planned.bytes_per_device.values()) == {3 * 64 + 4}


def test_an_optimizer_or_a_dtype_that_is_none_is_refused():
    tree, _ = linen()
    with pytest.raises(PlanError, match=r"^optimizer: wanted an object with an init function,"):
        li.plan(tree, optimizer=optax.adamw)

    def fails(params):
        raise KeyError("no such parameter")

    with pytest.raises(PlanError) as caught:
        li.plan(tree, optimizer=optax.GradientTransformation(fails, fails))
    assert str(caught.value) == (
        "optimizer: its init failed on the 21 leaves that are trained: 'no such parameter'. "
        "If other leaves are trained, say which: trainable=..."
    )
    for word in ("gradients", "copy"):
        with pytest.raises(
            PlanError, match=f"^{word}: wanted a dtype such as 'bfloat16', got 'bf'"
        ):
            li.plan(tree, **{word: "bf"})


def test_planning_a_state_allocates_nothing_under_a_mesh():
    tree, _ = flax_nnx()
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    wanted = li.plan(tree, mesh, optimizer=optax.adamw(1e-3)).bytes_per_device
    with jax.set_mesh(mesh):
        assert li.plan(tree, mesh, optimizer=optax.adamw(1e-3)).bytes_per_device == wanted
