"""``reseed`` against recording again, and against eager ``init``, with another key."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from flax import nnx
from oracles import assert_same

import lazyinit as li

KEY, OTHER = jax.random.key(7), jax.random.key(8)
X = models.X


def test_raw_keys_and_nothing_to_replace():
    tree = li.lazy(models.MLP()).init(jax.random.PRNGKey(0), X)
    want = models.MLP().init(jax.random.PRNGKey(1), X)
    assert_same(li.materialize(li.reseed(tree, jax.random.PRNGKey(1))), want)
    assert li.reseed({"a": 1}, KEY) == {"a": 1}


def test_streams_are_replaced_one_by_one():
    def make(a, b):
        return {
            "a": jax.random.normal(a),
            "b": jax.random.normal(b),
            "both": jax.random.normal(a) + jax.random.normal(b),
        }

    tree = li.lazy(make)(KEY, b=KEY)
    assert_same(li.materialize(li.reseed(tree, {"b": OTHER})), make(KEY, OTHER))
    assert_same(li.materialize(li.reseed(tree, {"0": OTHER, "b": OTHER})), make(OTHER, OTHER))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)


def test_nnx_states_take_an_rngs():
    _, state = li.lazy(Net)(rngs=nnx.Rngs(0, dropout=1))
    for rngs in (lambda: nnx.Rngs(5, dropout=6), lambda: nnx.Rngs(dropout=6, default=5)):
        want = nnx.to_pure_dict(nnx.state(Net(rngs())))
        assert_same(nnx.to_pure_dict(li.materialize(li.reseed(state, rngs()))), want)
    want = nnx.to_pure_dict(nnx.state(Net(nnx.Rngs(5, dropout=1))))
    assert_same(nnx.to_pure_dict(li.materialize(li.reseed(state, nnx.Rngs(5)))), want)


def test_what_is_no_lazy_leaf_stays():
    tree = li.lazy(models.MLP()).init(KEY, X)
    made = li.materialize(tree, "params/head")
    again = li.reseed(made, OTHER)
    assert again["params"]["head"]["kernel"] is made["params"]["head"]["kernel"]
    assert again["params"]["layers_0"] != made["params"]["layers_0"]


def test_one_thunk_at_two_places_stays_one():
    tree = li.lazy(models.MLP()).init(KEY, X)["params"]["head"]["kernel"]
    again = li.reseed({"a": tree, "b": tree}, OTHER)
    assert again["a"] is again["b"] is not tree


def test_a_traced_key_reseeds_within_vmap():
    def make(key):
        return jax.random.normal(key, (8, 8)) * 0.3 + 0.1

    tree = li.lazy(make)(KEY)
    keys = jax.random.split(KEY, 3)
    got = jax.vmap(lambda key: li.materialize(li.reseed(tree, key)))(keys)
    assert_same(got, jax.vmap(make)(keys))


def test_a_key_of_another_kind_is_refused():
    tree = li.lazy(models.MLP()).init(KEY, X)
    with pytest.raises(
        li.errors.RngsError, match=r"wanted .* a typed threefry2x32 key of 2 words, got a raw"
    ):
        li.reseed(tree, jax.random.PRNGKey(0))
    with pytest.raises(li.errors.RngsError, match="got a typed rbg key of 4 words"):
        li.reseed(tree, jax.random.key(0, impl="rbg"))
    with pytest.raises(
        li.errors.RngsError, match=r"reseed: rngs\['params'\]: wanted a key such as"
    ):
        li.reseed(tree, {"params": 3})


def test_a_stream_that_the_tree_does_not_use_is_refused_if_it_is_all_there_is():
    tree = li.lazy(models.MLP()).init(KEY, X)
    li.reseed(tree, {"params": OTHER, "dropout": OTHER})
    with pytest.raises(
        li.errors.RngsError, match=r"a stream that the tree uses \('params'\), got keys for 'parms'"
    ):
        li.reseed(tree, {"parms": OTHER})


def test_one_key_for_several_streams_is_refused_where_none_is_params():
    tree = li.lazy(lambda a, b: (jax.random.normal(a), jax.random.normal(b)))(KEY, OTHER)
    with pytest.raises(li.errors.RngsError, match=r"wanted a dict of keys by stream \('0', '1'\)"):
        li.reseed(tree, KEY)


def test_a_model_that_looked_at_a_value_of_its_key_is_recorded_again():
    class Branching(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3 if nn.Dense(2)(x).sum() > 0 else 4)(x)

    tree = li.lazy(Branching()).init(KEY, X)
    with pytest.raises(
        li.errors.RecordError, match=r"^params/Dense_0/bias: .*'params'.*Record the"
    ):
        li.reseed(tree, OTHER)


def test_a_model_that_looked_at_its_input_alone_is_reseeded():
    class Branching(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3 if np.asarray(jnp.tanh(x)).sum() > 0 else 4)(x)

    tree = li.lazy(Branching()).init(KEY, X)
    assert_same(li.materialize(li.reseed(tree, OTHER)), Branching().init(OTHER, X))
