"""What each leaf is cast to: one dtype, by path, by filter, as the file has it."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from oracles import assert_same
from safetensors.numpy import save_file

import lazyinit as li
from lazyinit import paths
from lazyinit import sharding as shardings
from lazyinit.checkpoint import Checkpoint
from lazyinit.errors import CastError, PathError, WordError
from lazyinit.tensors.memory import HeldTensor
from lazyinit.tools.convert import convert

KEY, X = jax.random.key(0), jnp.ones((1, 4))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.BatchNorm(use_running_average=False, name="norm")(nn.Dense(8, name="dense")(x))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)


def linen():
    return li.lazy(Linen()).init(KEY, X)


def state():
    return li.lazy(Net)(nnx.Rngs(0))[1]


def dtypes(tree, dtype):
    """Returns the dtypes of floats by path, of which ``plan`` says the same."""
    made = paths.leaves_with_paths(li.materialize(tree, dtype=dtype))
    planned = {leaf.path: leaf.dtype for leaf in li.plan(tree, dtype=dtype).leaves}
    for path, leaf in made:
        assert planned[path] == leaf.dtype, path
    return {p: str(x.dtype) for p, x in made if jnp.issubdtype(x.dtype, jnp.floating)}


def test_one_dtype_leaves_the_statistics_of_a_batch_norm():
    assert dtypes(linen(), "bfloat16") == {
        "batch_stats/norm/mean": "float32",
        "batch_stats/norm/var": "float32",
        "params/dense/bias": "bfloat16",
        "params/dense/kernel": "bfloat16",
        "params/norm/bias": "bfloat16",
        "params/norm/scale": "bfloat16",
    }
    found = dtypes(state(), jnp.bfloat16)
    assert {p for p, dtype in found.items() if dtype == "float32"} == {"norm/mean", "norm/var"}


def test_a_mapping_decides_by_path_and_filter_and_the_first_one_wins():
    found = dtypes(state(), {"dense": "float16", nnx.BatchStat: "bfloat16"})
    assert found == {
        "dense/bias": "float16",
        "dense/kernel": "float16",
        "norm/bias": "float32",
        "norm/mean": "bfloat16",
        "norm/scale": "float32",
        "norm/var": "bfloat16",
    }
    found = dtypes(linen(), {"params/norm/**": None, "params": "float16"})
    assert set(found.values()) == {"float16", "float32"}
    assert found["params/norm/scale"] == "float32"
    assert found["params/dense/kernel"] == "float16"


def test_what_is_cast_has_the_values_of_a_cast():
    want = Linen().init(KEY, X)["params"]["dense"]["kernel"].astype("bfloat16")
    made = li.materialize(linen(), dtype={"**/kernel": "bfloat16"})
    assert_same(made["params"]["dense"]["kernel"], want)


def test_file_keeps_what_the_checkpoint_has():
    kernel = np.arange(32, dtype=np.float16).reshape(4, 8)
    tensors = {
        "dense.kernel": kernel,
        "norm.mean": np.ones(8, np.float16),
        "dense.bias": np.ones(8),
    }
    tree, _ = li.fill(state(), tensors, on_missing="init")
    found = dtypes(tree, "file")
    assert found == {
        "dense/bias": "float32",  # Not float64, which JAX has off.
        "dense/kernel": "float16",
        "norm/bias": "float32",
        "norm/mean": "float16",
        "norm/scale": "float32",
        "norm/var": "float32",
    }
    made = li.materialize(tree, dtype={"dense/kernel": "file"})
    assert_same(made["dense"]["kernel"].get_value(), jnp.asarray(kernel))
    assert made["norm"]["mean"].get_value().dtype == "float32"


@pytest.mark.parametrize("dtype", ["bfloat61", 7, {"params/dense": "x"}])
def test_what_is_no_dtype_is_refused_with_the_path(dtype):
    with pytest.raises(WordError, match="^params/dense/bias: wanted dtype to be a dtype"):
        li.materialize(linen(), dtype=dtype)


def test_a_pattern_that_selects_nothing_is_an_error():
    with pytest.raises(PathError, match="did you mean 'params/dense'"):
        li.materialize(linen(), dtype={"params/dens": "bfloat16"})


# Values that a dtype cannot hold: nothing is made of them, unless somebody asks for it.

LARGE = np.full((8, 4), 1e6, "float32")
NARROW = [("float32", "float16", 1e6, np.inf), ("int64", "int8", 300, 44)]
MESH = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
ROWS = NamedSharding(MESH, P("x"))
TURNED = li.Rule("w", "w", li.Transpose("i o -> o i"))


def stored(dtype="float32", wanted="float16", value=1e6, shape=(8, 4)):
    """Returns a tree, and a checkpoint of which one value has no place in the tree."""
    values = np.ones(shape, dtype)
    values[5, 2] = value
    tree = {name: li.LazyParam(shape, wanted, jax.nn.initializers.zeros) for name in "vw"}
    return tree, {"v": np.ones(shape, dtype), "w": values}


def bits(array):
    return np.ascontiguousarray(array).view(np.uint8)


def said(origin, dtype, to, value, made):
    return (
        f"{origin}: tensor 'w': wanted values that {to} holds, got {value} ({dtype}), which would "
        f"become {made}. Choose a dtype that holds it, or let it overflow, with "
        f"on_cast=\"overflow\" or with Cast('{to}', overflow=True) in rules."
    )


@pytest.mark.parametrize("case", NARROW)
@pytest.mark.parametrize("sharding", [None, ROWS])
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_a_value_that_a_leaf_cannot_hold_is_named(case, sharding, platform, monkeypatch, tmp_path):
    monkeypatch.setattr(shardings, "platform_of", lambda _: platform)
    dtype, to, value, made = case
    tree, tensors = stored(dtype, to, value)
    file = str(tmp_path / "m.safetensors")
    save_file(tensors, file)
    filled, report = li.fill(tree, file)
    assert report.cast == ("v", "w")
    with pytest.raises(CastError) as error:
        li.materialize(filled, None, sharding)
    assert str(error.value) == "w: " + said(file, dtype, to, np.dtype(dtype).type(value), made)
    assert isinstance(error.value, OverflowError)
    good = li.materialize(filled, "v", sharding)  # The other leaf is no worse for it.
    np.testing.assert_array_equal(good["v"], np.ones((8, 4)))
    asked, _ = li.fill(tree, file, on_cast={"w": "overflow", "**": "report"})
    with np.errstate(all="ignore"):
        want = tensors["w"].astype(to)
    np.testing.assert_array_equal(bits(li.materialize(asked, None, sharding)["w"]), bits(want))


def test_what_is_asked_for_is_asked_for_where_a_rule_casts_too():
    tree, tensors = stored("int64", "float16", 300)
    other = li.Rule("v", "v", li.Cast("float16"))
    rule = li.Rule("w", "w", [li.Cast("int8"), li.Cast("float16")])
    filled, _ = li.fill(tree, tensors, [other, rule])
    with pytest.raises(CastError, match="w: the mapping: tensor 'w': wanted values that int8"):
        li.materialize(filled)
    rule = li.Rule("w", "w", [li.Cast("int8", overflow=True), li.Cast("float16")])
    assert str(rule.layout[0]) == "Cast('int8', overflow=True)"
    filled, _ = li.fill(tree, tensors, [other, rule])
    assert li.materialize(filled)["w"][5, 2] == 44


@pytest.mark.parametrize("dtype", ["float16", {"**": "float16"}])
def test_a_dtype_that_is_asked_for_does_not_ask_for_what_overflows(dtype):
    tree, tensors = stored("float32", "float32")
    filled, _ = li.fill(tree, tensors)
    with pytest.raises(CastError, match="^w: the mapping: tensor 'w': wanted values that float16"):
        li.materialize(filled, dtype=dtype)
    made = li.materialize(filled, dtype={"w": "bfloat16", "**": "float16"})
    assert made["w"][5, 2] == jnp.bfloat16(1e6)


def test_what_a_program_casts_overflows_as_the_program_says():
    tree = {"w": li.LazyParam((8, 4), "float32", jax.nn.initializers.zeros)}
    tensors = {"w": np.full((8, 4), np.finfo("float32").max)}
    half = li.lazy(lambda t: t["w"].astype("bfloat16").T)(tree)
    filled, _ = li.fill({**tree, "half": half}, tensors)
    assert isinstance(filled["half"], li.StoredParam)
    made = li.materialize(filled)
    np.testing.assert_array_equal(made["half"].astype("float32"), np.full((4, 8), np.inf))
    # What fill itself casts, before the program sees it, is refused.
    tree, tensors = stored()
    doubled = li.lazy(lambda t: t["w"] * 2)(tree)
    filled, _ = li.fill({**tree, "doubled": doubled}, tensors)
    with pytest.raises(CastError, match="^w: "):
        li.materialize(filled, "doubled")


@pytest.mark.parametrize("sharding", [None, ROWS])
def test_the_stored_part_of_a_grown_leaf_is_no_exception(sharding):
    tree = {"w": li.LazyParam((16, 4), "float16", lambda _: jnp.zeros((16, 4), "float16"))}
    filled, _ = li.fill(tree, {"w": LARGE}, on_mismatch=li.overlap)
    with pytest.raises(CastError, match="^w: the mapping: tensor 'w': wanted values that float16"):
        li.materialize(filled, None, sharding)
    made = li.materialize(filled, None, sharding, dtype="bfloat16")["w"]
    np.testing.assert_array_equal(made[:8], LARGE.astype(jnp.bfloat16))


def test_from_pretrained_makes_no_model_of_what_overflows():
    model, tensors = nn.Dense(4, param_dtype="float16"), {"kernel": LARGE, "bias": LARGE[0]}
    with pytest.raises(CastError, match="^params/(bias|kernel): the mapping: tensor"):
        li.from_pretrained(model, tensors, KEY, jnp.ones((1, 8)), at="params")
    params, _ = li.from_pretrained(
        model, tensors, KEY, jnp.ones((1, 8)), at="params", on_cast="overflow"
    )
    assert jnp.isinf(params["params"]["kernel"]).all()


@pytest.mark.parametrize("donate", [False, True])
@pytest.mark.parametrize("first", ["a", "z"])
def test_an_update_changes_nothing_if_a_value_overflows(first, donate, monkeypatch):
    monkeypatch.setattr("lazyinit._update.TOGETHER", 1)  # A leaf at a time.
    arrays = {first: jnp.zeros((8, 4), "float16"), "w": jnp.zeros((8, 4), "float16")}
    tensors = {first: np.ones((8, 4), "float32"), "w": LARGE}
    with pytest.raises(CastError, match="^w: the mapping: tensor 'w'"):
        li.update(arrays, tensors, donate=donate)
    for array in arrays.values():
        np.testing.assert_array_equal(array, np.zeros((8, 4)))
    made, _ = li.update(arrays, tensors, donate=donate, on_cast="overflow")
    assert jnp.isinf(made["w"]).all()
    assert (made[first] == 1).all()


def test_an_update_reads_twice_only_what_may_overflow():
    reads = []

    @dataclasses.dataclass(frozen=True)
    class Noting(HeldTensor):
        def read(self, index):
            reads.append(self.name)
            return super().read(index)

    tensors = {"a": np.ones(3, jnp.bfloat16), "b": np.ones(3, "float32")}
    arrays = {"a": jnp.zeros(3, "float32"), "b": jnp.zeros(3, "float16")}
    checkpoint = Checkpoint("the mapping", {n: Noting(n, x) for n, x in tensors.items()})
    li.update(arrays, checkpoint)
    assert sorted(reads) == ["a", "b", "b"]


def test_nothing_is_saved_of_what_overflows(tmp_path):
    tree, tensors = stored()
    filled, _ = li.fill(tree, tensors)
    li.save({"v": np.ones(3)}, tmp_path)
    before = (
        sorted(p.name for p in tmp_path.iterdir()),
        (tmp_path / "model.safetensors").read_bytes(),
    )
    with pytest.raises(CastError) as error:
        li.save(filled, tmp_path)
    assert str(error.value) == said("the mapping", "float32", "float16", 1e6, "inf")
    after = (
        sorted(p.name for p in tmp_path.iterdir()),
        (tmp_path / "model.safetensors").read_bytes(),
    )
    assert before == after
    asked, _ = li.fill(tree, tensors, on_cast="overflow")
    li.save(asked, tmp_path)
    assert np.isinf(li.open_checkpoint(tmp_path)["w"].read((slice(5, 6), slice(2, 3)))).all()


@pytest.mark.parametrize("target", ["made.safetensors", "made.npz", "made.msgpack", "folder"])
def test_nothing_is_converted_of_what_overflows(target, tmp_path):
    checkpoint = li.open_checkpoint(stored()[1])
    with pytest.raises(CastError, match="^the mapping: tensor 'w': wanted values that float16"):
        convert(checkpoint, tmp_path / target, dtype="float16")
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
    convert(checkpoint, tmp_path / target, dtype="bfloat16")
    assert li.open_checkpoint(tmp_path / target)["w"].dtype == jnp.bfloat16


def test_what_dequantizes_to_more_than_its_dtype_holds_is_named():
    tensors = {"w": np.full((2, 2), 100, "int8"), "s": np.full((1,), 1e4, "float32")}
    tree = {"w": li.LazyParam((2, 2), "float32", jax.nn.initializers.zeros)}
    rule = li.Rule("w", ("w", "s"), [li.Dequantize(dtype="float16")])
    filled, _ = li.fill(tree, tensors, [rule])
    with pytest.raises(CastError, match="^w: the mapping: tensors 'w', 's': wanted values that"):
        li.materialize(filled)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_what_is_loaded_is_what_numpy_casts_or_nothing(data):
    """Any dtypes of one kind, any layout, with and without shards: numpy and Python judge."""
    kind = data.draw(st.sampled_from([INTEGERS, FLOATS]))
    dtype, to = (jnp.dtype(data.draw(st.sampled_from(kind))) for _ in range(2))
    seed = data.draw(st.integers(0, 9))
    values = np.random.default_rng(seed).integers(0, 256, 32 * dtype.itemsize, np.uint8)
    values = values.view(dtype).reshape(8, 4)
    if data.draw(st.booleans()):
        values = np.arange(32, dtype="float32").reshape(8, 4).astype(dtype)
    with np.errstate(all="ignore"):
        want = values.astype(to)
        exact = np.float64 if kind is FLOATS else object
        one, other = values.astype(exact), want.astype(exact)
    if kind is FLOATS:
        is_held = bool(
            ((np.isinf(one) == np.isinf(other)) & (np.isnan(one) == np.isnan(other))).all()
        )
    else:
        is_held = bool((one == other).all())
    is_turned, sharding = data.draw(st.booleans()), data.draw(st.sampled_from([None, ROWS]))
    tree = {"w": li.LazyParam((8, 4), to, jax.nn.initializers.zeros)}
    rules = [TURNED] if is_turned else []
    filled, _ = li.fill(tree, {"w": values.T if is_turned else values}, rules)
    if is_held:
        np.testing.assert_array_equal(bits(li.materialize(filled, None, sharding)["w"]), bits(want))
    else:
        with pytest.raises(CastError):
            li.materialize(filled, None, sharding)


INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32"]
FLOATS = ["float16", "bfloat16", "float32", "float8_e4m3fn", "float8_e5m2"]
