"""``shard_by_metadata`` beside Flax's own: where eager Flax puts each parameter is the oracle."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from oracles import assert_same

import lazyinit as li
from lazyinit import paths
from lazyinit.errors import ShardingError

KEY, X = jax.random.key(0), jnp.ones((1, 8))
MESH = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
NORMAL = nn.initializers.normal(0.02)
BOTH = (("in", "a"), ("out", "b"))

# Names in an NNX variable; rules: of the context, of the argument, of the variable.
NNX = {
    "no names": ((), (), {}),
    "mesh axes": (("a", "b"), (), {}),
    "one axis": ((None, "b"), (), {}),
    "shorter than the rank": (("a",), (), {}),
    "two axes for one dimension": ((("a", "b"), None), (), {}),
    "a spec": (P("b", "a"), (), {}),
    "logical, rules of the context": (("in", "out"), BOTH, {}),
    "a rule that replicates": (("in", "out"), (("in", None), ("out", "a")), {}),
    "a rule with two axes": (("in", None), (("in", ("a", "b")),), {}),
    "names without a rule are mesh axes": (("in", "b"), (("in", "a"),), {}),
    "rules that nothing needs": (("a", None), BOTH, {}),
    "rules of the variable": (("in", "out"), (), {"sharding_rules": BOTH}),
    "rules of both": (("in", "out"), (("in", "a"),), {"sharding_rules": (("out", "b"),)}),
    "a mesh of the variable": (("a", "b"), (), {"mesh": MESH}),
    "rules and a mesh of the variable": (
        ("in", "out"), (), {"mesh": MESH, "sharding_rules": BOTH},
    ),
}  # fmt: skip

# A wrapper of the initializer of a Linen module, and the rules of the context.
LINEN = {
    "no box": (NORMAL, ()),
    "mesh axes": (nn.with_partitioning(NORMAL, ("a", "b")), ()),
    "one axis": (nn.with_partitioning(NORMAL, (None, "b")), ()),
    "a mesh of the box": (nn.with_partitioning(NORMAL, ("b", "a"), MESH), ()),
    "logical": (nn.with_logical_partitioning(NORMAL, ("in", "out")), BOTH),
    "a rule that replicates": (
        nn.with_logical_partitioning(NORMAL, ("in", "out")), (("in", None), ("out", "a")),
    ),
    "a logical name without a rule": (
        nn.with_logical_partitioning(NORMAL, ("in", "out")), (("in", "a"),),
    ),
    "rules of the box": (
        nn.with_logical_partitioning(NORMAL, ("in", "out"), rules=BOTH), (),
    ),
    "mesh axes beside rules": (nn.with_partitioning(NORMAL, ("a", None)), BOTH),
}  # fmt: skip


def unboxed(tree):
    """Returns a tree with what is in each box, where it is."""

    def is_box(node):
        return isinstance(node, nn.meta.AxisMetadata)

    return jax.tree.map(lambda x: x.value if is_box(x) else x, tree, is_leaf=is_box)


def assert_placed(made, want):
    assert_same(made, want)
    pairs = zip(paths.leaves_with_paths(made), paths.leaves_with_paths(want), strict=True)
    for (path, a), (_, b) in pairs:
        assert a.sharding.is_equivalent_to(b.sharding, b.ndim), (path, a.sharding, b.sharding)


@pytest.mark.parametrize("name", NNX)
def test_an_nnx_variable_goes_where_eager_flax_puts_it(name):
    names, rules, metadata = NNX[name]

    def build(rngs):
        init = nnx.with_partitioning(NORMAL, names, **metadata) if names else NORMAL
        return nnx.Linear(8, 16, kernel_init=init, rngs=rngs)

    with jax.set_mesh(MESH), nn.logical_axis_rules(rules):
        want = nnx.state(build(nnx.Rngs(0)))
        _, within = li.lazy(build)(nnx.Rngs(0))
        assert_placed(li.materialize(within), want)
        assert_placed(li.materialize(within, sharding=li.shard_by_metadata()), want)
        assert_placed(li.materialize(within, sharding=li.shard_by_metadata(MESH)), want)
    _, outside = li.lazy(build)(nnx.Rngs(0))
    assert_placed(li.materialize(outside, sharding=li.shard_by_metadata(MESH, rules)), want)


@pytest.mark.parametrize("name", LINEN)
def test_a_linen_box_goes_where_eager_flax_puts_it(name):
    init, rules = LINEN[name]
    model = nn.Dense(16, kernel_init=init)
    with jax.set_mesh(MESH), nn.logical_axis_rules(rules):
        want = model.init(KEY, X)
        tree = li.lazy(model).init(KEY, X)
        assert_placed(li.materialize(tree), want)  # A box holds what it says nothing of, yet.
        want = nn.meta.unbox(want)
        for by_context in (li.shard_by_metadata(), li.shard_by_metadata(MESH)):
            assert_placed(unboxed(li.materialize(tree, sharding=by_context)), want)
    made = li.materialize(li.lazy(model).init(KEY, X), sharding=li.shard_by_metadata(MESH, rules))
    assert_placed(unboxed(made), want)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_layers_of_a_vmap_have_the_axis_that_flax_adds(axis_type):
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(axis_type,) * 2)

    def build(rngs):
        @nnx.split_rngs(splits=4)
        @nnx.vmap(in_axes=(0,), out_axes=0, transform_metadata={nnx.PARTITION_NAME: "a"})
        def layer(rngs):
            init = nnx.with_partitioning(NORMAL, (None, "b"), eager_sharding=False)
            return nnx.Linear(8, 16, kernel_init=init, rngs=rngs)

        return layer(rngs)

    _, tree = li.lazy(build)(nnx.Rngs(0))
    made = li.materialize(tree, sharding=li.shard_by_metadata(mesh))
    assert made["kernel"].get_value().sharding == NamedSharding(mesh, P("a", None, "b"))
    assert_same(made, nnx.state(build(nnx.Rngs(0))))


def refused(sharding, tree):
    with pytest.raises(ShardingError) as error:
        li.materialize(tree, sharding=sharding)
    return str(error.value)


def state_of(names, shape=(8, 16), **metadata):
    thunk = li.LazyParam(shape, "float32", NORMAL)
    return {"q": nnx.Param(thunk, out_sharding=names, eager_sharding=False, **metadata)}


def test_what_does_not_fit_says_the_path_and_what_was_wanted():
    mesh = li.shard_by_metadata(MESH)
    assert refused(mesh, state_of(("a", "c"))).startswith(
        f"q: shard_by_metadata: {P('a', 'c')}: the mesh has no axis 'c'"
    )
    assert refused(mesh, state_of(("a", None, "b"))).startswith(
        f"q: {P('a', None, 'b')} names 3 dimensions, the leaf has 2"
    )
    assert refused(mesh, state_of(("a", "a"))).startswith(f"q: {P('a', 'a')} does not fit its mesh")
    assert refused(mesh, state_of((None, "b"), (8, 6))).startswith("q: dimension 1 of shape (8, 6)")
    assert refused(mesh, state_of(7)).startswith("q: wanted metadata that says where the")
    clash = state_of(("in", None), sharding_rules=(("in", "b"),))
    assert refused(li.shard_by_metadata(MESH, {"in": "a"}), clash).startswith(
        "q: wanted metadata that says where the leaf goes, got some that Flax cannot read: Incons"
    )


def test_without_any_mesh_it_says_where_to_get_one():
    assert refused(li.shard_by_metadata(), state_of(("a", None))) == (
        "q: wanted a mesh, got none: the leaf's metadata has no mesh, and no mesh is set. Call "
        "shard_by_metadata(mesh), or set a mesh with jax.set_mesh."
    )
