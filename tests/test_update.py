"""New values into arrays that are there: where the old ones lie, and nothing twice in memory."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checkpoint_writers import save_safetensors
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from oracles import assert_same
from tunix_trees import TREES, Tree, leaves_of, tensors_of

import lazyinit as li
from lazyinit import _update, paths
from lazyinit.checkpoint import Checkpoint
from lazyinit.tensors.memory import HeldTensor

TYPES = (AxisType.Auto, AxisType.Explicit)


def mesh_of(axis_type, devices):
    return jax.make_mesh(
        (devices,), ("x",), axis_types=(axis_type,), devices=jax.devices()[:devices]
    )


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(8, 16, rngs=rngs)
        self.second = nnx.Linear(16, 8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.second(self.first(x))


def tensors(tree, seed=0):
    """Returns new values for all arrays of a tree, by path."""
    rng = np.random.default_rng(seed)
    return {
        path: rng.standard_normal(leaf.shape).astype(leaf.dtype)
        for path, leaf in paths.leaves_with_paths(tree)
    }


def linen_params(sharding):
    params = nn.Sequential([nn.Dense(16), nn.Dense(8)]).init(jax.random.key(0), jnp.ones((1, 8)))
    return jax.device_put(params, sharding)


@pytest.mark.parametrize("axis_type", TYPES)
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("is_file", [True, False])
def test_arrays_of_a_tree_get_new_values_where_they_lie(axis_type, devices, is_file, tmp_path):
    mesh = mesh_of(axis_type, devices)
    params = linen_params(NamedSharding(mesh, P("x")))
    new = tensors(params)
    checkpoint = new
    if is_file:
        checkpoint = tmp_path / "new.safetensors"
        save_safetensors(new, checkpoint)
    updated, report = li.update(params, checkpoint)
    for path, leaf in paths.leaves_with_paths(updated):
        np.testing.assert_array_equal(leaf, new[path])
        assert leaf.sharding == NamedSharding(mesh, P("x"))
    assert jax.tree.structure(updated) == jax.tree.structure(params)
    assert all(x.is_deleted() for x in jax.tree.leaves(params))
    assert set(report.loaded) == set(new)


@pytest.mark.parametrize("axis_type", TYPES)
def test_a_module_is_changed_in_place(axis_type):
    mesh = mesh_of(axis_type, 8)
    net = Net(nnx.Rngs(0))
    nnx.update(net, jax.device_put(nnx.state(net, nnx.Param), NamedSharding(mesh, P("x"))))
    new = tensors(nnx.state(net, nnx.Param))
    kernel, bias = net.first.kernel, net.first.bias
    updated, report = li.update(net, new)
    assert updated is net
    assert net.first.kernel is kernel
    np.testing.assert_array_equal(kernel[...], new["first/kernel"])
    assert kernel[...].sharding == bias[...].sharding == NamedSharding(mesh, P("x"))
    assert set(report.loaded) == set(new)
    assert report.missing == ()  # No checkpoint has a module's PRNG keys.


def test_a_module_and_its_optimizer_are_changed_together(tmp_path):
    net = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(net, optax.adam(1e-3), wrt=nnx.Param)
    later = Net(nnx.Rngs(1))
    after = nnx.Optimizer(later, optax.adam(1e-3), wrt=nnx.Param)
    after.update(later, jax.tree.map(jnp.ones_like, nnx.state(later, nnx.Param)))
    li.save(nnx.state((later, after)), tmp_path)
    updated, _ = li.update((net, optimizer), tmp_path)
    assert updated[0] is net
    assert_same(nnx.to_pure_dict(nnx.state(net)), nnx.to_pure_dict(nnx.state(later)))
    assert int(optimizer.step[...]) == 1


@pytest.mark.parametrize("axis_type", TYPES)
def test_a_model_in_its_mesh_is_updated_by_a_ready_map_where_its_arrays_lie(axis_type, tmp_path):
    mesh, new = mesh_of(axis_type, 8), tensors_of("qwen3")
    with jax.set_mesh(mesh):
        graphdef, state = li.lazy(Tree)(TREES["qwen3"], rngs=nnx.Rngs(0))
        model = nnx.merge(graphdef, li.materialize(state, sharding=li.shard_fsdp(mesh, "x", 64)))
        old = jax.tree.leaves(nnx.state(model))
        save_safetensors(new, tmp_path / "model.safetensors")
        updated, report = li.update(
            model, tmp_path, li.maps.QWEN3_TUNIX, on_missing="error", on_unexpected="error"
        )
    assert updated is model
    made = dict(paths.leaves_with_paths(nnx.state(model)))
    assert {*report.loaded} == {*made}
    assert all(x.is_deleted() for x in old)
    assert [x.sharding for x in made.values()] == [x.sharding for x in old]
    assert sum(not x.is_fully_replicated for x in made.values()) > len(made) // 2
    for path, x in leaves_of("qwen3", new).items():
        np.testing.assert_array_equal(made[path], x)


def test_rules_are_those_of_fill():
    net = Net(nnx.Rngs(0))
    weight = np.random.default_rng(0).random((16, 8), np.float32)
    li.update(net, {"first.weight": weight}, li.TORCH, on_missing="init")
    np.testing.assert_array_equal(net.first.kernel[...], weight.T)


def test_a_leaf_without_a_tensor_keeps_its_value_and_is_named():
    state = {"a": jnp.ones(2), "b": jnp.arange(3.0)}
    with pytest.warns(li.LazyinitWarning, match=r"^b: 1 of 2 leaves have no tensor in the mapping"):
        updated, report = li.update(state, {"a": np.zeros(2, np.float32)})
    assert updated["b"] is state["b"]
    assert not state["b"].is_deleted()
    assert report.missing == ("b",)


def test_what_does_not_fit_changes_nothing():
    state = {"a": jnp.ones(2), "b": jnp.ones(3)}
    with pytest.raises(li.errors.FillError, match=r"^b: "):
        li.update(state, {"a": np.zeros(2, np.float32), "b": np.zeros(4, np.float32)})
    assert not any(x.is_deleted() for x in state.values())


def test_a_file_that_changed_meanwhile_changes_nothing(tmp_path):
    state = {"a": jnp.ones(2), "b": jnp.ones(3)}
    save_safetensors(tensors(state), tmp_path / "t.safetensors")
    opened = li.open_checkpoint(tmp_path / "t.safetensors")
    save_safetensors({"a": np.zeros(5, np.float32)}, tmp_path / "t.safetensors")
    with pytest.raises(li.errors.CheckpointError, match=r"t\.safetensors"):
        li.update(state, opened)
    assert not any(x.is_deleted() for x in state.values())


def test_without_donation_old_arrays_stay():
    state = {"a": jnp.ones(2)}
    updated, _ = li.update(state, {"a": np.zeros(2, np.float32)}, donate=False)
    assert_same(state["a"], jnp.ones(2))
    assert_same(updated["a"], jnp.zeros(2))


def test_an_array_that_is_still_needed_is_not_deleted():
    shared = jnp.ones(2)
    updated, _ = li.update(
        {"a": shared, "b": shared}, {"a": np.zeros(2, np.float32)}, on_missing="init"
    )
    assert updated["b"] is shared
    assert not shared.is_deleted()
    own, _ = li.update({"a": shared}, {"a": shared})
    assert_same(own["a"], shared)


@dataclasses.dataclass(frozen=True, slots=True, eq=False, repr=False)
class Watched(HeldTensor):
    """A tensor that tells of each reading."""

    told: list = dataclasses.field(default_factory=list)
    fails: bool = False

    def read(self, index):
        self.told.append(self.name)
        if self.fails:
            raise li.errors.CheckpointError(f"{self.name}: the disk is gone")
        return super(Watched, self).read(index)


def watched(new, state, *, failing=()):
    """Returns a checkpoint, and a list to which each reading adds how many old arrays there are."""

    class Told(list):
        def append(self, name):
            super().append(sum(not x.is_deleted() for x in state.values()))

    told = Told()
    found = {n: Watched(n, x, told=told, fails=n in failing) for n, x in new.items()}
    return Checkpoint("the store", found), told


def test_old_arrays_go_while_new_ones_come(monkeypatch):
    monkeypatch.setattr(_update, "TOGETHER", 2 * 4 * 100)
    state = {str(n): jnp.full(100, float(n)) for n in range(8)}
    new = tensors(state)
    checkpoint, told = watched(new, state)
    li.update(state, checkpoint)
    assert list(told) == [8, 8, 6, 6, 4, 4, 2, 2]


@pytest.mark.parametrize("is_module", [False, True])
def test_what_fails_half_way_leaves_new_arrays_and_old_ones(is_module, monkeypatch):
    monkeypatch.setattr(_update, "TOGETHER", 1)
    state = {str(n): jnp.full(100, float(n)) for n in range(4)}
    new = tensors(state)
    checkpoint, _ = watched(new, state, failing=["2"])
    model = nnx.Dict({n: nnx.Param(x) for n, x in state.items()}) if is_module else state
    message = r"^the store: wanted to read 4 leaves, got 2, then: 2: the disk is gone"
    with pytest.raises(li.errors.UpdateError, match=message) as error:
        li.update(model, checkpoint)
    want = {**new, "2": np.full(100, 2.0), "3": np.full(100, 3.0)}
    found = dict(paths.leaves_with_paths(error.value.tree))
    now = {n: model[n][...] for n in state} if is_module else found
    for got in (found, now):
        for name, values in want.items():
            np.testing.assert_array_equal(got[name], np.float32(values))


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_random_trees_have_the_values_of_the_checkpoint_and_their_own_placements(data):
    mesh = mesh_of(data.draw(st.sampled_from(TYPES)), 8)
    state, new = {}, {}
    for n in range(data.draw(st.integers(1, 5))):
        shape = (8, data.draw(st.integers(0, 9)))
        spec = data.draw(st.sampled_from([P(), P("x"), None]))
        dtype = data.draw(st.sampled_from(["float32", "bfloat16", "int32"]))
        old = jnp.zeros(shape, dtype)
        state[f"w{n}"] = old if spec is None else jax.device_put(old, NamedSharding(mesh, spec))
        if data.draw(st.booleans()) or not n:
            new[f"w{n}"] = np.random.default_rng(n).integers(0, 99, shape).astype(old.dtype)
    want = {name: (new.get(name, np.asarray(x)), x.sharding) for name, x in state.items()}
    updated, _ = li.update(state, new, on_missing="init", donate=data.draw(st.booleans()))
    for name, (values, sharding) in want.items():
        np.testing.assert_array_equal(np.asarray(updated[name]), values)
        assert updated[name].sharding == sharding
        assert updated[name].dtype == values.dtype
