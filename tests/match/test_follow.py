"""What is computed from a leaf follows it when it is filled; a leaf at two places is one leaf."""

import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from oracles import assert_not_quadratic, assert_same

import lazyinit as li
from lazyinit.errors import FillError

KEY = jax.random.key(0)
COPIES = {
    "copy": jnp.copy,
    "cast": lambda x: x.astype(jnp.bfloat16),
    "transpose": jnp.transpose,
    "average": lambda x: 0.5 * x + 0.25,
    "jit": jax.jit(lambda x: x * 2 + 1),
    "norm": jnp.linalg.norm,
}


def tensor(*shape, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def state(key, change):
    """Returns parameters, and what is computed of them."""
    first, second = jax.random.split(key)
    params = {
        "w": jax.random.normal(first, (64, 128)),
        "b": jnp.zeros((128,)),
        "scale": jax.random.uniform(first),
        "head": jax.random.normal(second, (128, 4)),
    }
    return {"params": params, "ema": jax.tree.map(change, params)}


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("dtype", ["float32", ml_dtypes.bfloat16])
def test_what_is_computed_of_a_filled_leaf_follows_it(name, dtype):
    tree = li.lazy(lambda key: state(key, COPIES[name]))(KEY)
    held = {"w": tensor(64, 128, dtype=dtype), "b": tensor(128), "scale": np.float32(3)}
    held = {f"params/{path}": x for path, x in held.items()}
    filled, report = li.fill(tree, held, on_missing="init")
    followed = [f"params/{n}" for n in ("b", "scale", "w")]
    assert report.derived == tuple(p.replace("params", "ema") for p in followed)
    assert report.missing == ("ema/head", "params/head")
    entries = {x.path: x for x in report.entries}
    assert entries["ema/w"].follows == ("params/w",)
    assert "derived from params/w" in str(report)
    made = li.materialize(filled)
    eager = state(KEY, lambda x: x)["params"]
    params = {
        path: jnp.asarray(held.get(f"params/{path}", x)).astype(x.dtype)
        for path, x in eager.items()
    }
    want = {"params": params, "ema": jax.tree.map(COPIES[name], params)}
    assert_same(made, want)
    mesh = jax.make_mesh((8,), ("a",), axis_types=(AxisType.Auto,))

    def place(path, leaf):
        return NamedSharding(mesh, P("a") if leaf.ndim and leaf.shape[0] % 8 == 0 else P())

    assert_same(li.materialize(filled, sharding=place), want)
    for path in ("w", "head"):
        alone = li.materialize(filled, f"ema/{path}")["ema"]
        assert_same(alone[path], want["ema"][path])
        assert isinstance(alone["b"], li.StoredParam | li.DerivedParam)


def test_where_both_are_found_each_takes_its_own():
    tree = li.lazy(lambda key: state(key, jnp.copy))(KEY)
    held = {"params/w": tensor(64, 128), "ema/w": tensor(64, 128, seed=1)}
    filled, report = li.fill(tree, held, on_missing="init")
    assert report.loaded == ("ema/w", "params/w")
    assert not report.derived
    assert_same(li.materialize(filled)["ema"]["w"], jnp.asarray(held["ema/w"]))


def test_what_follows_is_not_missing():
    tree = li.lazy(lambda key: state(key, jnp.copy))(KEY)
    shapes = jax.tree.map(lambda x: tensor(*x.shape), tree["params"])
    _, report = li.fill(tree, {"params": shapes}, on_missing="error", on_unexpected="error")
    assert len(report.derived) == 4
    assert not report.missing


def test_a_cast_of_a_filled_leaf_is_read_from_the_same_tensor():
    tree = li.lazy(lambda key: state(key, COPIES["cast"]))(KEY)
    filled, _ = li.fill(tree, {"params/w": tensor(64, 128)}, on_missing="init")
    assert isinstance(filled["ema"]["w"], li.StoredParam)
    assert filled["ema"]["w"].source.names == ("params/w",)


def test_the_rest_of_a_program_keeps_its_own_keys():
    def noisy(key):
        first, second = jax.random.split(key)
        w = jax.random.normal(first, (64, 128))
        return {"w": w, "noisy": w + jax.random.normal(second, (64, 128))}

    tree = li.lazy(noisy)(KEY)
    held = {"w": tensor(64, 128)}
    filled, _ = li.fill(tree, held, on_missing="init")
    noise = jax.random.normal(jax.random.split(KEY)[1], (64, 128))
    assert_same(li.materialize(filled)["noisy"], held["w"] + noise)
    other = jax.random.key(5)
    noise = jax.random.normal(jax.random.split(other)[1], (64, 128))
    again = li.reseed(filled, other)
    assert_same(li.materialize(again)["noisy"], held["w"] + noise)


def test_a_leaf_filled_in_part_is_followed():
    tree = li.lazy(lambda key: state(key, COPIES["average"]))(KEY)
    held = {"params/w": tensor(32, 128)}
    filled, report = li.fill(tree, held, on_missing="init", on_mismatch=li.overlap)
    assert report.adapted == ("params/w",)
    assert report.derived == ("ema/w",)
    made = li.materialize(filled)
    assert_same(made["ema"]["w"], COPIES["average"](made["params"]["w"]))


def test_filling_again_is_followed_again():
    tree = li.lazy(lambda key: state(key, COPIES["average"]))(KEY)
    filled, _ = li.fill(tree, {"params/w": tensor(64, 128)}, on_missing="init")
    held = {"params/w": tensor(64, 128, seed=1), "params/b": tensor(128)}
    again, report = li.fill(filled, held, on_missing="init")
    assert report.derived == ("ema/b", "ema/w")
    made = li.materialize(again)
    assert_same(made["ema"]["w"], COPIES["average"](jnp.asarray(held["params/w"])))
    _, report = li.fill(filled, {"params/b": tensor(128)}, on_missing="init")
    assert report.kept == ("ema/w", "params/w")


def test_what_a_function_computed_of_thunks_follows_these():
    tree = li.lazy(lambda key: state(key, lambda x: x)["params"])(KEY)
    both = li.lazy(lambda t: {"t": t, "merged": t["w"] @ t["head"], "half": t["w"] / 2})(tree)
    held = {"t/w": tensor(64, 128)}
    filled, report = li.fill(both, held, on_missing="init")
    assert report.derived == ("half", "merged")
    made = li.materialize(filled)
    assert_same(made["half"], jnp.asarray(held["t/w"]) / 2)
    assert_same(made["merged"], jnp.asarray(held["t/w"]) @ made["t"]["head"])
    own = {"t/w": tensor(64, 128), "merged": tensor(64, 4)}
    filled, report = li.fill(both, own, on_missing="init")
    assert report.derived == ("half",)
    chained = li.lazy(lambda t: {**t, "quarter": t["half"] / 2})(both)
    filled, report = li.fill(chained, {"half": tensor(64, 128)}, on_missing="init")
    assert report.derived == ("quarter",)
    filled, report = li.fill(chained, held, on_missing="init")
    assert report.derived == ("half", "merged", "quarter")
    assert_same(li.materialize(filled)["quarter"], jnp.asarray(held["t/w"]) / 2 / 2)


def test_keys_and_counts_lead_nothing():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.layer = nnx.Linear(8, 4, rngs=rngs)

    _, lazy = li.lazy(Net)(nnx.Rngs(0))
    held = {"dropout/rngs/count": np.uint32(7), "layer/bias": tensor(4)}
    filled, report = li.fill(lazy, held, on_missing="init")
    assert (report.missing, report.kept) == (("layer/kernel",), ("dropout/rngs/key",))
    assert_same(
        li.materialize(filled)["layer"]["kernel"], nnx.state(Net(nnx.Rngs(0)))["layer"]["kernel"]
    )


def test_nnx_and_linen_averages_follow():
    class Average(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(8, 4, rngs=rngs)
            params = nnx.state(self.layer, nnx.Param)
            self.average = nnx.data(jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))

    class Kept(nn.Module):
        @nn.compact
        def __call__(self, x):
            w = self.param("w", nn.initializers.normal(), (8, 4))
            self.variable("ema", "w", jnp.copy, w)
            return x @ w

    held = {"kernel": tensor(8, 4), "bias": tensor(4)}
    _, tree = li.lazy(Average)(nnx.Rngs(0))
    filled, report = li.fill(tree, {"layer": held}, on_missing="error")
    assert report.derived == ("average/bias", "average/kernel")
    assert_same(
        li.materialize(filled)["average"]["kernel"].get_value(),
        jnp.asarray(held["kernel"]).astype("bfloat16"),
    )
    tree = li.lazy(Kept()).init(KEY, jnp.ones((1, 8)))
    filled, report = li.fill(tree, {"params/w": tensor(8, 4)}, on_missing="error")
    assert report.derived == ("ema/w",)
    assert_same(li.materialize(filled)["ema"]["w"], jnp.asarray(tensor(8, 4)))


# What comes out of one jit or scan.


def pairs(key):
    """Returns what is computed of a parameter beside it, and what is not."""
    first, second = jax.random.split(key)
    wide = jax.random.normal(first, (64, 128))
    w = wide.astype(jnp.bfloat16)
    return {
        "w": w,
        "master": w.astype(jnp.float32),
        "average": w * 0.5 + 0.25,
        "same": w,
        "before": wide,
        "head": jax.random.normal(second, (128, 4)),
    }


def in_scan(key):
    def layer(count, key):
        return count + 1, pairs(key) | {"counted": count * pairs(key)["w"]}

    return jax.lax.scan(layer, jnp.bfloat16(0), jax.random.split(key, 3))[1]


FOLLOWED = {
    "jit": jax.jit(pairs),
    "jit in jit": jax.jit(lambda key: jax.jit(pairs)(key)),
    "vmap": lambda key: jax.vmap(jax.jit(pairs))(jax.random.split(key, 3)),
    "scan": in_scan,
    "scan in jit": jax.jit(in_scan),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_comes_out_of_one_equation_follows_what_it_is_computed_from(name):
    tree = li.lazy(FOLLOWED[name])(KEY)
    w = tensor(*tree["w"].shape, dtype=ml_dtypes.bfloat16)
    filled, report = li.fill(tree, {"w": w}, on_missing="init")
    # What stands before w, or is computed of the steps before, cannot be told from it.
    left = {"before", "head", "counted"} & set(tree)
    assert set(report.missing) == left
    followed = {"average", "master", "same"} & set(report.derived + report.loaded)
    assert followed >= {"average", "master"}
    made, eager = li.materialize(filled), FOLLOWED[name](KEY)
    want = {
        "w": jnp.asarray(w),
        "master": jnp.asarray(w).astype("float32"),
        "average": jax.jit(lambda w: w * 0.5 + 0.25)(jnp.asarray(w)),
        "same": jnp.asarray(w),
    }
    want = {n: want[n] if n in want else eager[n] for n in eager}
    assert_same(made, want)
    assert_same(li.materialize(pickle.loads(pickle.dumps(filled))), want)


def test_an_optimizer_made_in_nnx_jit_beside_its_model_follows_it():
    class Both(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(8, 4, rngs=rngs)
            params = nnx.state(self.layer, nnx.Param)
            self.average = nnx.data(jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))

    _, tree = li.lazy(lambda: nnx.jit(lambda: Both(nnx.Rngs(0)))())()
    held = {"kernel": tensor(8, 4), "bias": tensor(4)}
    filled, report = li.fill(tree, {"layer": held}, on_missing="error")
    assert report.derived == ("average/bias", "average/kernel")
    assert_same(
        li.materialize(filled)["average"]["kernel"].get_value(),
        jnp.asarray(held["kernel"]).astype("bfloat16"),
    )


# A leaf at two places.


def tied(key):
    w = jax.random.normal(key, (64, 128))
    return {"embed": w, "head": {"w": w}}


@pytest.mark.parametrize("names", [("embed",), ("head/w",), ("embed", "head/w")])
def test_a_leaf_at_two_places_is_filled_at_both(names):
    tree = li.lazy(tied)(KEY)
    held = {name: tensor(64, 128) for name in names}
    filled, report = li.fill(tree, held, on_missing="error")
    assert filled["embed"] is filled["head"]["w"]
    assert len(report.loaded) == len(names)
    made = li.materialize(filled)
    assert made["embed"] is made["head"]["w"]
    assert_same(made["embed"], jnp.asarray(tensor(64, 128)))


def test_a_leaf_at_two_places_that_two_tensors_would_fill_is_an_error():
    tree = li.lazy(tied)(KEY)
    held = {"embed": tensor(64, 128), "head/w": tensor(64, 128, seed=1)}
    with pytest.raises(FillError) as raised:
        li.fill(tree, held)
    assert str(raised.value) == (
        "head/w: wanted the same values as at 'embed', because both paths are one leaf, got the "
        "mapping:head/w, which holds other values than the mapping:embed. Make this path a leaf of "
        "its own, with jax.numpy.copy in the recorded function, or fill from a checkpoint that has "
        "only one of the two tensors."
    )
    copied = li.lazy(lambda key: {**(t := tied(key)), "embed": jnp.copy(t["embed"])})(KEY)
    made = li.materialize(li.fill(copied, held)[0])
    assert_same(made["head"]["w"], jnp.asarray(held["head/w"]))


def test_a_leaf_of_another_seed_follows_nothing():
    tree = li.lazy(lambda key: state(key, COPIES["average"]))(KEY)
    both = {"one": tree["params"], "two": li.reseed(tree, jax.random.key(3))["ema"]}
    _, report = li.fill(both, {"one/w": tensor(64, 128)}, on_missing="init")
    assert not report.derived


def test_what_is_left_is_looked_at_in_linear_time():
    def filling(size):
        def make(key):
            halves = {f"a{n}": jax.random.normal(jax.random.fold_in(key, n)) for n in range(size)}
            return {
                **halves,
                **{f"b{n}": jax.random.normal(key, (n % 8 + 1,)) for n in range(size)},
            }

        tree = li.lazy(make)(KEY)
        held = {f"a{n}": np.float32(n) for n in range(size)}
        return lambda: li.fill(tree, held, on_missing="init")

    assert_not_quadratic(filling)
