"""A digest of values: the same on every mesh, and another for other values."""

import json
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import lazyinit as li
from lazyinit.errors import DigestError, NotMaterializedError

KEY = jax.random.key(3)


def tree():
    w = jax.random.normal(KEY, (264, 520))
    return {
        "w": w,
        "half": w.astype(jnp.bfloat16),
        "eighth": w.astype(jnp.float8_e4m3fn),
        "int4": jnp.arange(-8, 8, dtype=jnp.int4),
        "mask": w > 0,
        "keys": jax.random.split(KEY, 8),
        "empty": jnp.zeros((0, 3)),
        "scalar": jnp.float32(2.5),
        "step": 3,
        "host": np.arange(7, dtype=np.int64),
    }


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("shape", [(8, 1), (2, 4)])
def test_it_is_the_same_on_every_mesh(shape, axis_type):
    mesh = jax.make_mesh(shape, ("x", "y"), axis_types=(axis_type,) * 2)
    specs = {
        "w": ("x", "y"), "half": (None, ("x", "y")), "eighth": ("y",), "int4": (("y", "x"),),
        "mask": (None, "x"), "keys": ("x",), "empty": (), "scalar": (),
    }  # fmt: skip
    spread = tree()
    for name, spec in specs.items():
        spread[name] = jax.device_put(spread[name], NamedSharding(mesh, PartitionSpec(*spec)))
    assert li.digest(spread).differences(li.digest(tree())) == ()
    assert li.digest(spread) == str(li.digest(tree()))


def test_it_is_the_same_for_arrays_of_numpy_in_any_layout_and_order_of_keys():
    plain = {n: x if n in ("keys", "step") else np.asarray(x) for n, x in tree().items()}
    plain["w"] = np.asfortranarray(plain["w"])
    plain["host"] = np.arange(14, dtype=">i8")[:7]
    plain["half"] = plain["half"][::-1].copy()[::-1]
    assert li.digest(dict(reversed(plain.items()))) == li.digest(tree())


def test_a_module_has_the_digest_of_its_state():
    model = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
    assert li.digest(nnx.state(model)) == li.digest(nnx.to_pure_dict(nnx.state(model)))
    assert set(li.digest(nnx.state(model)).leaves) == {"bias", "kernel"}


@pytest.mark.parametrize("device", [0, 5])
def test_an_array_that_several_devices_hold_counts_once(device):
    mesh = Mesh(np.roll(jax.devices(), device), ("x",))
    values = np.arange(5, dtype=np.float32)
    everywhere = jax.device_put(values, NamedSharding(mesh, PartitionSpec()))
    assert li.digest([everywhere]) == li.digest([values])


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({"w": np.zeros(3, "f4")}, "w: float32[3] .*, was float32\\[2\\] .*"),
        ({"w": np.zeros(2, "i4")}, "w: int32[2] .*, was float32\\[2\\] .*"),
        ({"w": np.array([0, -0.0], "f4")}, "w: float32[2] .*, was float32\\[2\\] .*"),
        ({"w": np.zeros((2, 1), "f4")}, "w: float32[2,1] .*, was .*"),
        ({"v": np.zeros(2, "f4")}, "v: float32[2] .*, was no leaf"),
        ({"w": 0.0}, "w: float .*, was float32.*"),
    ],
    ids=str,
)
def test_the_differences_name_each_path(other, line):
    old, new = li.digest({"w": np.zeros(2, "f4")}), li.digest(other)
    assert new != old
    assert new != str(old)
    lines = new.differences(old)
    assert len(lines) == len({**other, "w": 0})
    pattern = line.replace("[", r"\[", 1).replace(r"\\[", r"\[")
    assert any(re.fullmatch(pattern, found) for found in lines), lines


def test_keys_are_told_by_their_implementation_and_words():
    first = li.digest({"k": jax.random.key(0)})
    assert first == li.digest({"k": jax.random.key(0)})
    assert first != li.digest({"k": jax.random.key(1)})
    assert first != li.digest({"k": jax.random.key_data(jax.random.key(0))})
    assert "key<fry>[]" in first.leaves["k"]


def test_a_weight_made_on_a_mesh_has_the_digest_of_eager_init(tmp_path):
    import flax.linen as nn

    model, x = nn.Dense(16), jnp.ones((1, 8))
    lazy = li.lazy(model).init(KEY, x)
    mesh = jax.make_mesh((8,), ("x",))
    made = li.materialize(lazy, sharding=li.shard_fsdp(mesh, "x", min_size=1))
    assert li.digest(made) == li.digest(model.init(KEY, x))


def test_it_can_be_written_and_read():
    found = li.digest(tree())
    assert li.Digest.from_json(found.to_json()) == found
    assert li.Digest.from_json(found.to_json()).leaves == found.leaves
    assert hash(found) == hash(str(found))
    assert found != 3
    assert repr(found) == f"Digest(10 leaves, {found})"


def test_it_is_what_it_was_in_the_first_version():
    """Written down, since files hold it: a change of the bits wants another version."""
    values = {"w": np.arange(6, dtype="float32").reshape(2, 3), "step": 3}
    assert li.digest(values) == "lazyinit-digest-1:1a3c761f5177f161e687d335f46a10a4"


@pytest.mark.parametrize(
    "text", ["nonsense", "[]", '{"digest": "x"}', '{"leaves": 3, "digest": 1}']
)
def test_other_text_is_refused(text):
    with pytest.raises(DigestError, match="^from_json: wanted what Digest.to_json wrote, got "):
        li.Digest.from_json(text)


def test_changed_text_is_refused():
    said = json.loads(li.digest({"w": np.ones(3)}).to_json())
    said["leaves"]["w"] = "float64[3] 00"
    wanted = "^from_json: wanted leaves with the digest that the text names, lazyinit-digest-1:"
    with pytest.raises(DigestError, match=wanted):
        li.Digest.from_json(json.dumps(said))


def test_what_is_not_made_is_refused_by_its_path():
    lazy = li.lazy(lambda key: {"a": jax.random.normal(key, (3,)), "b": jnp.zeros(2)})(KEY)
    with pytest.raises(NotMaterializedError) as caught:
        li.digest(lazy | {"c": jax.ShapeDtypeStruct((2,), "float32"), "d": np.ones(2)})
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["a", "b", "c"]
    assert lines[0].startswith("a: wanted values, got LazyParam(float32[3]")
    assert lines[0].endswith(
        "Make it with lazyinit.materialize(tree, 'a'), or leave it out of the tree."
    )


def test_what_has_no_digest_is_refused_by_its_path():
    gone = jnp.ones(3)
    gone.delete()
    leaves = {
        "deleted": gone,
        "long": np.ones(2, np.longdouble),
        "text": "words",
        "texts": np.array(["a"]),
        "when": np.array([0], "datetime64[s]"),
    }
    with pytest.raises(DigestError) as caught:
        li.digest(leaves)
    assert str(caught.value).splitlines() == [
        "deleted: wanted an array with values, got one that was deleted or donated. Pass the array "
        "that took its place.",
        f"long: wanted an array with values, got dtype {np.dtype(np.longdouble)}, which JAX does "
        "not have. Leave it out of the tree.",
        "text: wanted an array with values, got str. Leave it out of the tree.",
        "texts: wanted an array with values, got dtype <U1, which JAX does not have. Leave it out "
        "of the tree.",
        "when: wanted an array with values, got dtype datetime64[s], which JAX does not have. Leave "
        "it out of the tree.",
    ]


def test_a_tracer_is_refused():
    with pytest.raises(
        DigestError, match="^w: wanted .* got a tracer. Call lazyinit.digest outside"
    ):
        jax.jit(lambda w: li.digest({"w": w}))(jnp.ones(3))


def test_two_leaves_at_one_path_are_refused():
    with pytest.raises(
        DigestError, match="^a/b: wanted one leaf at this path, got two. Rename one"
    ):
        li.digest({"a/b": np.ones(2), "a": {"b": np.ones(2)}})


@pytest.mark.parametrize("dtype", [ml_dtypes.int2, ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e5m2])
def test_small_dtypes_are_told_apart(dtype):
    a, b = np.array([0, 1], dtype), np.array([1, 0], dtype)
    assert li.digest([a]) != li.digest([b])
