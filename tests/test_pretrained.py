"""One call does what lazy, fill and materialize do, and allocates nothing before all fits."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from models import MLP, X
from oracles import assert_same, large_arrays_since, live

import lazyinit as li

KEY = jax.random.key(3)


def kernel():
    return np.random.default_rng(0).random((3, 4), dtype=np.float32)


class Net(nnx.Module):
    def __init__(self, features, rngs, *, out=2):
        self.first = nnx.Linear(3, features, rngs=rngs)
        self.second = nnx.Linear(features, out, rngs=rngs)

    def __call__(self, x):
        return self.second(self.first(x))


def test_a_linen_module_comes_back_as_the_tree_of_init_with_the_checkpoint_in_it():
    eager = MLP().init(KEY, X)
    stored = {"head": {"kernel": np.ones_like(eager["params"]["head"]["kernel"])}}
    params, report = li.from_pretrained(MLP(), stored, KEY, X, at="params", on_missing="init")
    eager["params"]["head"]["kernel"] = jnp.asarray(stored["head"]["kernel"])
    assert_same(params, eager)
    assert report.loaded == ("params/head/kernel",)
    assert report.provenance["params/head/kernel"].kind == "stored"
    assert report.provenance["params/head/bias"].kind == "lazy"


@pytest.mark.parametrize("rngs", [nnx.Rngs(3), KEY])
def test_an_nnx_class_comes_back_as_a_module(rngs):
    stored = {"first.weight": kernel().T}
    module, report = li.from_pretrained(Net, stored, rngs, 4, rules=li.TORCH, on_missing="init")
    assert isinstance(module, Net)
    eager = Net(4, nnx.Rngs(3))
    np.testing.assert_array_equal(module.first.kernel[...], kernel())
    assert_same(module.second.kernel[...], eager.second.kernel[...])
    x = np.ones((1, 3), np.float32)
    eager.first.kernel[...] = jnp.asarray(kernel())
    np.testing.assert_array_equal(module(x), eager(x))
    assert report.loaded == ("first/kernel",)


def test_a_function_that_makes_an_nnx_module_takes_rngs_by_keyword():
    def build(features, *, rngs, out):
        return Net(features, rngs, out=out)

    module, _ = li.from_pretrained(
        build,
        {"first/kernel": kernel()},
        nnx.Rngs(3),
        4,
        out=5,
        dtype="bfloat16",
        on_missing="init",
    )
    assert module.second.bias[...].shape == (5,)
    assert module.first.kernel[...].dtype == jnp.bfloat16


def test_a_pure_function_takes_the_key_first():
    def init(key, n):
        return {"w": jax.random.normal(key, (n,)), "b": jnp.zeros(n)}

    params, _ = li.from_pretrained(init, {"b": np.ones(2, np.float32)}, KEY, 2, on_missing="init")
    assert_same(params, {"w": init(KEY, 2)["w"], "b": jnp.ones(2)})


def test_sharding_goes_to_every_leaf():
    mesh = jax.make_mesh((8,), ("x",))
    sharding = NamedSharding(mesh, PartitionSpec())
    params, _ = li.from_pretrained(
        nn.Dense(4),
        {"kernel": kernel()},
        KEY,
        jnp.ones((1, 3)),
        at="params",
        sharding=sharding,
        on_missing="init",
    )
    assert {x.sharding for x in jax.tree.leaves(params)} == {sharding}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"on_missing": "error"}, li.errors.FillError),
        ({"on_unexpected": "error"}, li.errors.FillError),
        ({"at": "params/nowhere"}, li.errors.PathError),
        ({"sharding": "x"}, li.errors.ShardingError),
    ],
)
def test_nothing_is_allocated_before_all_is_known_to_fit(options, error):
    x = jax.ShapeDtypeStruct((1, 300), "float32")
    stored = {"kernel": np.ones((300, 400), np.float32), "other": np.ones(3)}
    before = live()
    with pytest.raises(error):
        li.from_pretrained(
            nn.Dense(400), stored, KEY, x, **({"at": "params", "on_missing": "init"} | options)
        )
    assert not large_arrays_since(before)
