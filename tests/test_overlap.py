"""What leaf and tensor have in common is the checkpoint's; the rest has eager init's bits."""

import pickle
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from oracles import assert_same_array, kernel_sharding
from safetensors.numpy import save_file

import lazyinit as li
from lazyinit.tensors.memory import HeldTensor
from lazyinit.tensors.views import cut

KEY = jax.random.key(5)
X = jax.ShapeDtypeStruct((1, 2), "int32")
EMBED = nn.Embed(16, 8)
PATH = "params/embedding"


def tensor(*shape):
    return np.random.default_rng(sum(shape)).random(shape, dtype=np.float32)


def filled(stored, **options):
    tree = li.lazy(EMBED).init(KEY, X)
    checkpoint = {"embedding": stored}
    return li.fill(tree, checkpoint, at="params", on_mismatch=li.overlap, **options)


def oracle(stored, key=KEY, dtype="float32"):
    want = np.array(EMBED.init(key, jnp.zeros((1, 2), jnp.int32))["params"]["embedding"])
    common = tuple(slice(0, min(a, b)) for a, b in zip(want.shape, stored.shape, strict=True))
    want = np.array(jnp.asarray(want).astype(dtype))
    want[common] = np.array(jnp.asarray(stored).astype(dtype))[common]
    return jnp.asarray(want)


MESHES = {
    "one device": lambda: None,
    "8 over rows": lambda: NamedSharding(jax.make_mesh((8,), ("x",)), PartitionSpec("x")),
    "2x4": lambda: kernel_sharding(jax.make_mesh((2, 4), ("x", "y"))),
    "8 columns": lambda: NamedSharding(jax.make_mesh((8,), ("x",)), PartitionSpec(None, "x")),
    "replicated": lambda: NamedSharding(jax.make_mesh((8,), ("x",)), PartitionSpec()),
}
SHAPES = {
    "grown": (11, 8),
    "grown and longer": (11, 5),
    "shrunk in one": (20, 5),
    "shrunk": (20, 9),
    "empty": (0, 8),
}


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_common_part_is_stored_and_the_rest_is_eager_init(shape, mesh):
    stored = tensor(*SHAPES[shape])
    tree, report = filled(stored)
    assert report.adapted == (PATH,)
    sharding = MESHES[mesh]()
    made = li.materialize(tree, sharding=sharding)["params"]["embedding"]
    assert_same_array(made, oracle(stored), shape)
    if sharding is not None and not callable(sharding):
        assert made.sharding == sharding


@pytest.mark.parametrize("mesh", ["one device", "2x4"])
def test_a_dtype_is_that_of_both_parts(mesh):
    tree, _ = filled(tensor(11, 8))
    made = li.materialize(tree, sharding=MESHES[mesh](), dtype="bfloat16")
    assert_same_array(made["params"]["embedding"], oracle(tensor(11, 8), dtype="bfloat16"))


def test_through_a_layout_and_a_cast_too():
    x = jax.ShapeDtypeStruct((1, 8), "float32")
    tree = li.lazy(nn.Dense(16)).init(KEY, x)
    stored = np.random.default_rng(0).random((5, 12)).astype(np.float16)  # [out, in], both other.
    filled, _ = li.fill(
        tree, {"weight": stored}, li.TORCH, on_mismatch=li.overlap, on_missing="init"
    )
    want = np.array(nn.Dense(16).init(KEY, jnp.ones((1, 8)))["params"]["kernel"])
    want[:, :5] = stored.T[:8]
    made = li.materialize(filled, sharding=MESHES["2x4"]())["params"]["kernel"]
    np.testing.assert_array_equal(made, want, strict=True)


def test_without_a_sharding_the_array_may_be_moved_as_that_of_eager_init():
    made = li.materialize(filled(tensor(11, 8))[0])["params"]["embedding"]
    elsewhere = jax.device_put(jnp.ones(8), jax.devices()[3])
    assert (made + elsewhere).devices() == {jax.devices()[3]}


def test_under_a_mesh_with_explicit_axes_too():
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    sharding = NamedSharding(mesh, PartitionSpec("x", "y"))
    with jax.set_mesh(mesh):
        made = li.materialize(filled(tensor(11, 5))[0], sharding=sharding)
    assert_same_array(made["params"]["embedding"], oracle(tensor(11, 5)))


def test_values_of_64_bits_keep_them():
    with jax.enable_x64(True):
        tree = {"w": li.LazyParam((4,), "float64", lambda key: jnp.full(4, 0.1, "float64"))}
        tree, _ = li.fill(tree, {"w": np.array([np.pi])}, on_mismatch=li.overlap)
        made = li.materialize(tree)["w"]
    np.testing.assert_array_equal(made, [np.pi, 0.1, 0.1, 0.1], strict=True)


def test_a_key_with_a_value_makes_a_value_within_a_jit():
    tree, _ = filled(tensor(11, 8))
    sharding, want = MESHES["8 columns"](), oracle(tensor(11, 8))

    def f(x):
        made = [li.materialize(tree, sharding=s)["params"]["embedding"] for s in (None, sharding)]
        assert_same_array(made[0], want)
        return x + made[0].sum(), made[1]  # With a sharding, it is a constraint of the trace.

    _, made = jax.jit(f)(1.0)
    assert_same_array(made, want)
    assert made.sharding.is_equivalent_to(sharding, 2)


def test_within_a_jit_too():
    stored = tensor(11, 8)

    def make(key):
        tree = li.lazy(EMBED).init(key, X)
        tree, _ = li.fill(tree, {"params/embedding": stored}, on_mismatch=li.overlap)
        return li.materialize(tree)["params"]["embedding"]

    np.testing.assert_allclose(jax.jit(make)(KEY), oracle(stored), rtol=1e-6)


def test_another_key_changes_the_rest_alone():
    stored = tensor(11, 8)
    tree, _ = filled(stored)
    other = jax.random.key(6)
    made = li.materialize(li.reseed(tree, other))["params"]["embedding"]
    assert_same_array(made, oracle(stored, other))


def test_a_plan_counts_both_parts():
    tree, _ = filled(tensor(11, 8))
    plan = li.plan(tree)
    assert [leaf.action for leaf in plan.leaves] == ["overlap"]
    assert plan.bytes_of("overlap") == plan.bytes_of("initialize") == 16 * 8 * 4
    assert plan.bytes_of("load") == 11 * 8 * 4
    assert "the mapping over variance_scaling" in str(plan)
    assert [leaf.action for leaf in li.plan(tree, paths=[]).leaves] == ["keep"]


def test_inspect_and_provenance_name_both_parts():
    tree, _ = filled(tensor(11, 5))
    assert re.search(r"params/embedding +1 +overlap +the mapping over var", str(li.inspect(tree)))
    (record,) = li.provenance(tree).values()
    assert record.kind == "overlap"
    assert record.stored[0].shape == (11, 5)
    assert record.lazy[0].keys[0].words == (0, 5)


def test_it_can_be_pickled(tmp_path):
    stored = tensor(11, 8)
    save_file({"embedding": stored}, tmp_path / "model.safetensors")
    tree = li.lazy(EMBED).init(KEY, X)
    tree, _ = li.fill(tree, tmp_path, at="params", on_mismatch=li.overlap)
    again = pickle.loads(pickle.dumps(tree))
    assert_same_array(li.materialize(again)["params"]["embedding"], oracle(stored))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(li.errors.CheckpointError, match="can no longer be read"):
        li.materialize(again)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (tensor(16), "wants a tensor with 2 dimensions of float32 or its kind"),
        (np.ones((11, 8), np.int32), "'embedding' holds int32[11,8]"),
    ],
)
def test_another_rank_or_kind_is_refused_with_the_other_problems(stored, message):
    with pytest.raises(li.errors.FillError, match=f"^{PATH}: .*{re.escape(message)}") as caught:
        filled(stored)
    assert f'on_mismatch={{"{PATH}": "init", "**": lazyinit.overlap}}' in str(caught.value)


def test_a_leaf_that_is_made_already_cannot_grow():
    with pytest.raises(li.errors.FillError, match="w: .*wants a leaf that is not made yet"):
        li.fill({"w": np.ones(5)}, {"w": np.ones(3)}, on_mismatch=li.overlap)


def test_a_tensor_that_covers_all_is_stored():
    tree, _ = li.fill({"w": np.ones(3)}, {"w": np.arange(5.0)}, on_mismatch=li.overlap)
    assert isinstance(tree["w"], li.StoredParam)
    assert repr(tree["w"].source) == "the mapping:w[:3]"


def test_a_corner_reads_what_its_source_has_there():
    whole = tensor(6, 7)
    corner = cut(HeldTensor("w", whole), {0: (0, 4), 1: (0, 3)})
    everything = (slice(None), slice(None))
    np.testing.assert_array_equal(corner.read(everything), whole[:4, :3])
    np.testing.assert_array_equal(corner.read((slice(1, 3), slice(None))), whole[1:3, :3])
    assert (corner.names, corner.origin, corner.extents) == (("w",), "the mapping", ())
    corner.check()
