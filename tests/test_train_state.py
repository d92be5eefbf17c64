"""Whole training states, keys and counters with them: saved, filled into a recording, and equal."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from oracles import assert_same
from processes import two_processes

import lazyinit as li
from lazyinit.errors import FillError

TYPES = [AxisType.Auto, AxisType.Explicit]
IMPLS = ["threefry2x32", "rbg"]


def mesh_of(shape, axis_type):
    devices = jax.devices()[: int(np.prod(shape))]
    names = ("a", "b")
    return jax.make_mesh(shape, names, axis_types=(axis_type,) * 2, devices=devices)


class Net(nnx.Module):
    def __init__(self, rngs):
        init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("a", "b"))
        self.first = nnx.Linear(8, 16, kernel_init=init, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)


class Training(nnx.Module):
    """A model, its optimizer's moments, a moving average, a step and dropout's keys."""

    def __init__(self, rngs):
        self.net = Net(rngs)
        self.optimizer = nnx.Optimizer(self.net, optax.adamw(1e-3), wrt=nnx.Param)
        average = jax.tree.map(lambda x: x * 1, nnx.state(self.net, nnx.Param))
        self.average = nnx.data(average)


@pytest.mark.parametrize("axis_type", TYPES)
@pytest.mark.parametrize("impl", IMPLS)
def test_a_state_comes_back_equal_on_another_mesh(tmp_path, axis_type, impl):
    with jax.set_mesh(mesh_of((4, 2), axis_type)):
        trained = nnx.state(Training(nnx.Rngs(jax.random.key(0, impl=impl))))
        li.save(trained, tmp_path)
    other = mesh_of((2, 2), axis_type)
    with jax.set_mesh(other):
        _, fresh = li.lazy(Training)(nnx.Rngs(jax.random.key(7, impl=impl)))
        filled, report = li.fill(fresh, tmp_path, on_missing="error", on_unexpected="error")
        assert not report.missing
        assert not report.kept
        made = li.materialize(filled)
    assert_same(made, trained)
    assert made["net"]["first"]["kernel"].get_value().sharding.spec == P("a", "b")
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(made)} == {4}


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_keys_are_saved_as_words_and_filled(tmp_path, impl, shape):
    keys = jax.random.split(jax.random.key(5, impl=impl), shape)
    li.save({"rngs": {"key": keys}, "w": np.ones(2, np.float32)}, tmp_path)
    held = li.open_checkpoint(tmp_path)
    assert sorted(held) == [f"rngs/key/key_data/{impl}", "w"]
    tree = {
        "rngs": {"key": jax.random.split(jax.random.key(1, impl=impl), shape)},
        "w": np.zeros(2, "f"),
    }
    for sharding in (None, jax.NamedSharding(mesh_of((4, 2), AxisType.Auto), P())):
        filled, report = li.fill(tree, tmp_path)
        assert report.loaded == ("rngs/key", "w")
        li.save(filled, tmp_path / "again")
        assert_same(li.materialize(filled, sharding=sharding)["rngs"]["key"], keys)
    again, _ = li.fill(tree, tmp_path / "again")
    assert_same(li.materialize(again)["rngs"]["key"], keys)


def test_a_lazy_key_is_made_and_saved(tmp_path):
    tree = li.lazy(lambda key: {"k": jax.random.split(key, 2), "w": jnp.ones(3)})(jax.random.key(3))
    li.save(tree, tmp_path, lazy="make")
    filled, _ = li.fill(tree, tmp_path)
    assert_same(li.materialize(filled)["k"], jax.random.split(jax.random.key(3), 2))


@pytest.mark.parametrize("name", ["dropout.key", "dropout/key/key_data", "dropout.key.value"])
def test_words_of_others_fill_a_key(name):
    tree = {"dropout": nnx.State({"key": nnx.RngKey(jax.random.key(0), tag="x")}), "w": np.ones(1)}
    words = np.asarray(jax.random.key_data(jax.random.key(9)))
    filled, report = li.fill(tree, {name: words, "w": np.ones(1)})
    assert report.loaded == ("dropout/key", "w")
    assert_same(li.materialize(filled)["dropout"]["key"].get_value(), jax.random.key(9))


def test_keys_that_do_not_fit_say_so_with_their_path():
    tree = {"k": jax.random.key(0), "w": np.ones(1)}
    rbg = np.asarray(jax.random.key_data(jax.random.key(9, impl="rbg")))
    with pytest.raises(FillError, match=r"^k: the model wants keys of threefry2x32, tensor 'k/key"):
        li.fill(tree, {"k/key_data/rbg": rbg, "w": np.ones(1)})
    with pytest.raises(
        FillError, match=r"^k: .* uint32\[2\] as words, tensor 'k' holds uint32\[4\]"
    ):
        li.fill(tree, {"k": rbg, "w": np.ones(1)})


def test_a_key_that_no_checkpoint_has_is_not_missed():
    tree = {"k": jax.random.key(0), "w": np.ones(1)}
    filled, report = li.fill(tree, {"w": np.ones(1)}, on_missing="error")
    assert report.kept == ("k",)
    assert filled["k"] is tree["k"]


def test_the_step_of_a_train_state_is_filled(tmp_path):
    def make(key):
        params = {"w": jax.random.normal(key, (8, 16))}
        return TrainState.create(apply_fn=None, params=params, tx=optax.adam(1e-3))

    trained = make(jax.random.key(0)).replace(step=7)
    li.save(trained, tmp_path)
    fresh = li.lazy(make)(jax.random.key(1))
    filled, report = li.fill(fresh, tmp_path, on_missing="error", on_unexpected="error")
    assert "step" in report.loaded
    made = li.materialize(filled)
    assert int(made.step) == 7
    assert_same(made.params, trained.params)
    assert_same(made.opt_state, trained.opt_state)


ACROSS = """
import flax.linen as nn, jax.numpy as jnp, optax
from flax.training.train_state import TrainState
from jax.sharding import NamedSharding, PartitionSpec as P
import lazyinit as li

def make(key):
    params = {"w": jax.random.normal(key, (16, 64)), "b": jnp.zeros(64)}
    state = TrainState.create(apply_fn=None, params=params, tx=optax.adam(1e-3))
    return {"state": state, "dropout": jax.random.fold_in(key, 7)}

mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
def place(path, leaf):
    return NamedSharding(mesh, P("x") if leaf.shape and leaf.shape[0] % 8 == 0 else P())
made = li.materialize(li.lazy(make)(jax.random.key(3)), sharding=place)
made["state"] = made["state"].replace(step=7)
li.save(made, args[0])
fresh, report = li.fill(li.lazy(make)(jax.random.key(9)), args[0], on_missing="error")
turned = jax.make_mesh((4, 2), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
def other(path, leaf):
    return NamedSharding(turned, P(None, "y") if len(leaf.shape) == 2 else P())
again = li.materialize(fresh, sharding=other)
want = make(jax.random.key(3))
def equal(a, b):
    if jnp.issubdtype(b.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    b = np.asarray(b)
    return all(np.array_equal(s.data, b[s.index]) for s in a.addressable_shards)
same = {
    jax.tree_util.keystr(p, simple=True, separator="/"): equal(a, b)
    for (p, a), b in zip(jax.tree_util.tree_leaves_with_path(again), jax.tree.leaves(want), strict=True)
    if hasattr(b, "dtype")
}
say([same, len(report.loaded), int(again["state"].step)])
"""


@pytest.mark.slow
def test_a_train_state_comes_back_equal_in_two_processes(tmp_path):
    for same, loaded, step in two_processes(ACROSS, str(tmp_path / "saved")):
        assert all(same.values()), same
        assert loaded == 9
        assert step == 7
