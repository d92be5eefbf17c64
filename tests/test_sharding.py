"""The sharding argument in all of its forms, and its builders."""

import flax.linen as nn
import jax
import models
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import lazyinit as li
from lazyinit import paths
from lazyinit.errors import ShardingError
from lazyinit.sharding import describe, resolve

MESH = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
TREE = {
    "params": {
        "head": {"kernel": jax.ShapeDtypeStruct((16, 8), "float32"),
                 "bias": jax.ShapeDtypeStruct((8,), "float32")},
        "body": [jax.ShapeDtypeStruct((4, 6), "float32"), jax.ShapeDtypeStruct((), "float32")],
    },
    "step": 3,
}  # fmt: skip
LEAVES = paths.leaves_with_paths(TREE)
ALL = [True] * len(LEAVES)


def on(*spec):
    return NamedSharding(MESH, P(*spec))


def resolved(sharding, tree=TREE, selected=None):
    leaves = paths.leaves_with_paths(tree)
    found = resolve(sharding, tree, leaves, selected or [True] * len(leaves))
    return {path: s for (path, _), s in zip(leaves, found, strict=True) if s is not None}


def refused(sharding, tree=TREE, selected=None):
    with pytest.raises(ShardingError) as error:
        resolved(sharding, tree, selected)
    return str(error.value)


# The forms.


def test_none_asks_for_nothing():
    assert resolved(None) == {}


def test_one_sharding_is_for_all_arrays():
    assert resolved(on()) == {
        "params/body/0": on(),
        "params/body/1": on(),
        "params/head/bias": on(),
        "params/head/kernel": on(),
    }


def test_a_callable_sees_path_and_leaf_of_the_selected_alone():
    seen = []

    def shard(path, leaf):
        seen.append(path)
        return on("a") if leaf.ndim == 2 and path.endswith("kernel") else None

    selected = [path.startswith("params/head") for path, _ in LEAVES]
    assert resolved(shard, selected=selected) == {"params/head/kernel": on("a")}
    assert seen == ["params/head/bias", "params/head/kernel"]


def test_a_prefix_tree_covers_what_is_below_it():
    prefix = {"params": {"head": on("b"), "body": None}, "step": None}
    assert resolved(prefix) == {"params/head/kernel": on("b"), "params/head/bias": on("b")}
    assert resolved({"params": on(), "step": None}).keys() == {p for p, _ in LEAVES} - {"step"}


def test_a_prefix_tree_may_be_a_full_tree():
    prefix = {
        "params": {
            "head": {"kernel": on("a", "b"), "bias": on("b")},
            "body": [on("b"), None],
        },
        "step": None,
    }
    assert resolved(prefix) == {
        "params/head/kernel": on("a", "b"),
        "params/head/bias": on("b"),
        "params/body/0": on("b"),
    }


def test_a_prefix_tree_may_have_other_containers():
    import flax

    prefix = flax.core.freeze({"params": {"head": on("b"), "body": (on("b"), on())}, "step": None})
    assert resolved(prefix)["params/body/0"] == on("b")


def test_a_prefix_tree_may_leave_out_what_is_not_selected():
    selected = [path.startswith("params/head") for path, _ in LEAVES]
    assert resolved({"params": {"head": on()}}, selected=selected).keys() == {
        "params/head/kernel",
        "params/head/bias",
    }


def test_a_prefix_tree_says_nothing_of_a_number():
    assert "step" not in resolved({"params": None})


def test_a_leaf_without_an_entry_is_named():
    assert refused({"params": {"head": on()}}) == (
        "params/body/0: the sharding pytree has no entry for this leaf nor for a tree above it. "
        "Add one (None leaves the leaf on the default device), or pass a callable."
    )


def test_an_entry_without_a_leaf_suggests_the_nearest():
    message = refused({"params": None, "step": None, "parms": on()})
    assert message == (
        "parms: this pattern matches none of the tree's 5 leaves; did you mean 'params'?"
    )


@given(st.sets(st.sampled_from(["params/head", "params/body", "params/head/kernel"])))
def test_the_nearest_entry_above_a_leaf_decides(chosen):
    tree = {"params": {"head": {"kernel": on("a"), "bias": on("b")}, "body": on()}}
    prefix = {"params": dict(tree["params"])}
    if "params/head" in chosen:
        prefix["params"]["head"] = on("a")
    if "params/body" in chosen:
        prefix["params"]["body"] = [on("a"), on()]
    found = resolved(prefix)
    assert found["params/head/bias"] == (on("a") if "params/head" in chosen else on("b"))
    assert found["params/body/0"] == (on("a") if "params/body" in chosen else on())


# What does not fit.


def test_shards_that_do_not_divide_are_named():
    assert refused(lambda p, x: on(None, "b") if "body/0" in p else None) == (
        "params/body/0: dimension 1 of shape (4, 6) is 6, which mesh axis 'b' of size 4 does not "
        "divide. Leave this dimension whole, or use a mesh that divides it."
    )


def test_shards_over_several_axes_that_do_not_divide_are_named():
    message = refused(lambda p, x: on(("a", "b")) if "body/0" in p else None)
    assert "dimension 0 of shape (4, 6) is 4, which mesh axis ('a', 'b') of size 8" in message


def test_a_spec_longer_than_the_dimensions_is_named():
    assert refused(lambda p, x: on(None, "b") if p.endswith("bias") else None) == (
        f"params/head/bias: {P(None, 'b')} names 2 dimensions, the leaf has 1 "
        "(shape (8,)). Shorten the spec for this leaf."
    )


def test_a_spec_without_a_mesh_says_to_add_one():
    message = refused({"params": {"head": P("a"), "body": None}})
    assert message.splitlines()[0] == (
        f"params/head/bias: wanted a jax.sharding.Sharding, got {P('a')!r}. "
        "Put the mesh beside it: NamedSharding(mesh, spec)."
    )


def test_one_spec_without_a_mesh_says_to_add_one():
    assert "Put the mesh beside it: NamedSharding(mesh, spec)." in refused(P("a"))


@pytest.mark.parametrize("wrong", ["a", 3, MESH, jax.devices()[0], ("a", "b")])
def test_another_value_says_what_to_pass(wrong):
    assert "Pass None, a Sharding, a prefix pytree, or a callable" in refused(lambda p, x: wrong)


def test_a_mesh_without_devices_says_to_pass_one():
    abstract = NamedSharding(AbstractMesh((2, 4), ("a", "b")), P("a"))
    message = refused(abstract, {"x": jax.ShapeDtypeStruct((4, 4), "float32")})
    assert message.startswith("x: wanted devices, got AbstractMesh(")
    assert message.endswith("Pass a jax.sharding.Mesh.")


def test_all_problems_are_collected():
    lines = refused(lambda p, x: on(("a", "b"), None, None)).split("\n")
    assert [line.split(":")[0] for line in lines] == [
        "params/body/0",
        "params/body/1",
        "params/head/bias",
        "params/head/kernel",
    ]


def test_a_sharding_that_is_not_named_is_checked_by_its_own_rule():
    device = SingleDeviceSharding(jax.devices()[3])
    assert resolved(device)["params/head/bias"] == device


# Builders.


def test_rules_take_the_first_pattern_that_matches():
    shard = li.shard_by_rules(
        MESH, [("params/head", P("b")), ("**/kernel", P("a")), ("**/0", P("a"))]
    )
    assert resolved(shard) == {
        "params/head/kernel": on("b"),
        "params/head/bias": on("b"),
        "params/body/0": on("a"),
        "params/body/1": on(),
    }


def test_rules_may_be_a_mapping():
    pairs = [("params/head", P("b")), ("**/kernel", P("a"))]
    assert li.shard_by_rules(MESH, dict(pairs)) == li.shard_by_rules(MESH, pairs)


def test_rules_know_which_of_them_match_nothing():
    shard = li.shard_by_rules(MESH, [("params/head", P("b")), ("params/hed", P())])
    assert shard.unused([p for p, _ in LEAVES]) == ["params/hed"]


def test_a_rule_of_an_unknown_axis_suggests_the_nearest():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    with pytest.raises(ShardingError) as error:
        li.shard_by_rules(mesh, [("**/kernel", P(None, "modle"))])
    assert str(error.value) == (
        f"**/kernel: {P(None, 'modle')}: the mesh has no axis 'modle', only "
        "('data', 'model'); did you mean 'model'?"
    )
    with pytest.raises(ShardingError, match="the mesh has no axis 'modle'"):
        li.shard_by_rules(mesh, [("**/kernel", P(("data", "modle")))])


def test_fsdp_cuts_the_largest_dimension_that_divides_evenly():
    shard = li.shard_fsdp(MESH, "b", min_size=8)
    assert resolved(shard) == {
        "params/head/kernel": on("b"),
        "params/head/bias": on("b"),
        "params/body/0": on("b"),
        "params/body/1": on(),
    }
    both = li.shard_fsdp(MESH, ("a", "b"), min_size=0)
    assert resolved(both)["params/head/kernel"] == on(("a", "b"))
    assert resolved(both)["params/body/0"] == on()


shapes = st.lists(st.integers(0, 12), max_size=4).map(tuple)


@given(shapes, st.sampled_from(["a", "b", ("a", "b")]), st.integers(0, 100))
def test_fsdp_always_fits(shape, axis, min_size):
    leaf = jax.ShapeDtypeStruct(shape, "float32")
    shard = li.shard_fsdp(MESH, axis, min_size)
    found = resolved(shard, {"x": leaf})["x"]
    parts = np.prod([MESH.shape[a] for a in (axis if isinstance(axis, tuple) else (axis,))])
    cut = found.shard_shape(shape)
    if np.prod(shape) < min_size:
        assert cut == shape
    elif any(n % parts == 0 and n for n in shape):
        assert np.prod(cut) * parts == np.prod(shape)


def test_fsdp_of_an_unknown_axis_says_which_there_are():
    with pytest.raises(ShardingError) as error:
        li.shard_fsdp(MESH, "fsdp")
    assert str(error.value).startswith("shard_fsdp: the mesh has no axis 'fsdp', only ('a', 'b')")


class Boxed(nn.Module):
    @nn.compact
    def __call__(self, x):
        kernel = nn.with_partitioning(nn.initializers.normal(), (None, "b"))
        logical = nn.with_logical_partitioning(nn.initializers.normal(), ("embed", "mlp"))
        x = nn.Dense(8, kernel_init=kernel, name="plain")(x)
        return nn.Dense(8, kernel_init=logical, name="logical")(x)


def test_metadata_gives_the_specs_of_boxes():
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x):
            kernel = nn.with_partitioning(nn.initializers.normal(), (None, "b"))
            return nn.Dense(8, kernel_init=kernel, name="plain")(x)

    tree = li.lazy(Plain()).init(jax.random.key(0), models.X)
    assert resolved(li.shard_by_metadata(MESH), tree) == {
        "params/plain/kernel/value": on(None, "b"),
        "params/plain/bias": on(),
    }


@pytest.mark.parametrize("rules", [[("embed", "a"), ("mlp", None)], {"embed": "a", "mlp": None}])
def test_metadata_translates_logical_names(rules):
    tree = li.lazy(Boxed()).init(jax.random.key(0), models.X)["params"]["logical"]
    found = resolved(li.shard_by_metadata(MESH, rules), tree)
    assert found["kernel/value"].is_equivalent_to(on("a"), 2)
    assert found["bias"].is_equivalent_to(on(), 1)


def test_metadata_with_logical_rules_keeps_mesh_axes_that_boxes_name():
    tree = li.lazy(Boxed()).init(jax.random.key(0), models.X)["params"]
    rules = [("embed", "a"), ("mlp", "b"), ("b", "b")]
    found = resolved(li.shard_by_metadata(MESH, rules), tree)
    assert found["plain/kernel/value"].spec == P(None, "b")
    assert found["logical/kernel/value"].spec == P("a", "b")


def test_metadata_of_an_unknown_axis_says_which_there_are():
    tree = li.lazy(Boxed()).init(jax.random.key(0), models.X)
    assert refused(li.shard_by_metadata(MESH), tree).startswith(
        f"params/logical/kernel: shard_by_metadata: {P('embed', 'mlp')}: the mesh has no axis 'embed'"
    )


# The rest.


def test_shardings_are_described_for_people():
    assert isinstance(describe(None), str)
    assert "b" in describe(on("a", "b"))


KINDS = {
    "auto": lambda: MESH,
    "explicit": lambda: jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Explicit,) * 2),
    "mixed": lambda: jax.make_mesh(
        (2, 4), ("a", "b"), axis_types=(AxisType.Explicit, AxisType.Auto)
    ),
    "default": lambda: jax.make_mesh((2, 4), ("a", "b")),
    "by hand": lambda: Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b")),
    "reversed": lambda: Mesh(np.array(jax.devices())[::-1].reshape(2, 4), ("a", "b")),
    "part": lambda: Mesh(np.array(jax.devices())[:4].reshape(2, 2), ("a", "b")),
    "one": lambda: Mesh(np.array(jax.devices())[5:6].reshape(1, 1), ("a", "b")),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spec", [P("a", "b"), P(("a", "b")), P()])
def test_every_kind_of_mesh_gives_the_bits_of_eager_init(kind, spec):
    def body(self, x):
        self.param("kernel", nn.initializers.lecun_normal(), (8, 8))
        self.param("gram", lambda key: x.T @ x * 0.3 + 0.1)

    module = models.Wrap(body)
    want = module.init(models.KEY, models.X)["params"]
    tree = li.lazy(module).init(models.KEY, models.X)["params"]
    sharding = NamedSharding(KINDS[kind](), spec)
    made = li.materialize(tree, sharding=sharding)
    for name in want:
        assert made[name].sharding == sharding
        assert {s.data.shape for s in made[name].addressable_shards} == {
            sharding.shard_shape((8, 8))
        }
        assert np.asarray(made[name]).tobytes() == np.asarray(want[name]).tobytes()


@pytest.mark.parametrize("kind", ["auto", "explicit"])
def test_a_mesh_that_is_set_for_the_program_changes_nothing(kind):
    mesh = KINDS[kind]()
    want = models.MLP().init(models.KEY, models.X)
    with jax.set_mesh(mesh):
        tree = li.lazy(models.MLP()).init(models.KEY, models.X)
        made = li.materialize(tree, "**/kernel", NamedSharding(mesh, P("a", "b")))
        plain = li.materialize(tree)
    kernel = want["params"]["head"]["kernel"]
    for tree in (made, plain):
        assert (
            np.asarray(tree["params"]["head"]["kernel"]).tobytes() == np.asarray(kernel).tobytes()
        )
