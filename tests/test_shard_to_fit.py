"""Axes chosen from shapes and metadata: they divide, they fit, and the rules say the same."""

import tempfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from models import MLP, X
from oracles import assert_same

import lazyinit as li
from lazyinit import paths, spec_text

KEY = jax.random.key(0)
TYPES = (AxisType.Auto, AxisType.Explicit)


def struct(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


def decoder(layers=3, width=64):
    block = {
        "attention": {"q": struct(width, width), "o": struct(width, width)},
        "mlp": {"up": struct(width, 4 * width), "down": struct(4 * width, width)},
        "norm": struct(width),
    }
    return {"embed": struct(512, width), **{f"layers_{n}": block for n in range(layers)}}


def bytes_on_each(tree, sharding):
    (count,) = set(li.plan(tree, sharding).bytes_per_device.values())
    return count


def test_all_axes_are_taken_where_nothing_says_what_fits():
    shard = li.shard_auto("data=2,model=4")
    assert str(shard.rules(decoder())) == (
        "{\n"
        ' "embed": ["model", "data"],\n'
        ' "layers_*/attention/o": ["data", "model"],\n'
        ' "layers_*/attention/q": ["data", "model"],\n'
        ' "layers_*/mlp/down": ["model", "data"],\n'
        ' "layers_*/mlp/up": ["data", "model"]\n'
        "}"
    )


def test_no_more_axes_are_taken_than_it_takes():
    tree = decoder()
    whole = bytes_on_each(tree, li.shard_auto("data=1"))
    wanted = {whole: "", whole - 1: "tp", whole * 2 // 5: "tp fsdp", whole // 5: "tp fsdp data"}
    for hbm, axes in wanted.items():
        rules = li.shard_auto("data=2,fsdp=2,tp=2", hbm).rules(tree).rules
        assert {*jax.tree.leaves([tuple(spec) for _, spec in rules])} == set(axes.split())


def test_what_does_not_fit_is_an_error_that_names_the_largest_leaf():
    message = (
        r"^embed: wanted at most 1,000 bytes of leaves on each device, got [\d,]+, although leaves "
        r"are cut over all axes of {'model': 2}\. This leaf takes the most of them, 65,536\. Take a"
    )
    with pytest.raises(li.errors.ShardingError, match=message):
        li.plan(decoder(), li.shard_auto("model=2", hbm=1000))
    with pytest.raises(li.errors.ShardingError, match=r"^hbm: wanted a number of bytes"):
        li.shard_auto("model=2", hbm="much")
    with pytest.raises(li.errors.ShardingError, match=r"^mesh 'model': wanted axes"):
        li.shard_auto("model")


@pytest.mark.parametrize("axis_type", TYPES)
def test_what_metadata_says_is_kept_and_names_that_the_mesh_lacks_say_nothing(axis_type):
    class Net(nnx.Module):
        def __init__(self, rngs):
            init = nnx.initializers.normal()
            rows = nnx.with_partitioning(init, ("model", None))
            other = nnx.with_partitioning(init, (None, "heads"))
            self.rows = nnx.Linear(64, 256, kernel_init=rows, rngs=rngs)
            self.other = nnx.Linear(64, 256, kernel_init=other, rngs=rngs)

    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(axis_type,) * 2)
    _, state = li.lazy(Net)(nnx.Rngs(0))
    made = li.materialize(state, sharding=li.shard_auto(mesh))
    assert made["rows"]["kernel"][...].sharding == NamedSharding(mesh, P("model", "data"))
    assert made["other"]["kernel"][...].sharding == NamedSharding(mesh, P("data", "model"))


@pytest.mark.parametrize("axis_type", TYPES)
def test_what_is_made_has_the_bits_of_eager(axis_type):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(axis_type,) * 2)
    tree = li.lazy(MLP()).init(KEY, X)
    made = li.materialize(tree, sharding=li.shard_auto(mesh, min_size=8))
    assert_same(made, MLP().init(KEY, X))
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(made))


def test_linen_boxes_are_read_too():
    def init(key, shape):
        return nn.with_partitioning(nn.initializers.ones, ("model", None))(key, shape)

    class Boxed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x @ self.param("w", init, (64, 64))

    tree = li.lazy(Boxed()).init(KEY, jnp.ones((1, 64)))
    (rule,) = li.shard_auto("data=2,model=4").rules(tree).rules
    assert rule == ("params/w/value", P("model", "data"))


KEYS = st.sampled_from(["a", "b1", "b2", "0", "1", "12", "x*", "[y]", "q?"])
LEAVES = st.builds(
    lambda shape, dtype: struct(*shape, dtype=dtype),
    st.lists(st.sampled_from([1, 3, 8, 12, 64, 100]), max_size=3),
    st.sampled_from(["float32", "bfloat16"]),
)
TREES = st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, min_size=1, max_size=4))
MESHES = st.sampled_from(["data=2,model=4", "x=3", "dp=2,fsdp=2,tp=2", "tp=8", "a=1,b=4"])


@given(TREES, MESHES, st.sampled_from([None, "1KB", "10KB", "1GB"]), st.sampled_from([1, 64]))
@settings(max_examples=60, deadline=None)
def test_random_trees_are_cut_evenly_and_fit_and_their_rules_say_the_same(
    tree, mesh, hbm, min_size
):
    tree = {"root": tree}
    shard = li.shard_auto(mesh, hbm, min_size=min_size)
    try:
        rules = shard.rules(tree)
    except li.errors.ShardingError:
        most = li.shard_auto(mesh, min_size=min_size)
        assert bytes_on_each(tree, most) > {"1KB": 1e3, "10KB": 1e4}[hbm]
        return
    planned = li.plan(tree, shard)  # Refuses what does not divide.
    assert hbm is None or planned.fits(hbm)
    again = li.shard_by_rules(mesh, read_again(rules))
    assert [leaf.sharding for leaf in li.plan(tree, again).leaves] == [
        leaf.sharding for leaf in planned.leaves
    ]
    assert not again.unused([path for path, _ in paths.leaves_with_paths(tree)])


def read_again(rules):
    """Returns rules that were written as text and read."""
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(str(rules))
        file.flush()
        return spec_text.read(file.name)
