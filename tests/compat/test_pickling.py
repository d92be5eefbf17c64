"""Lazy trees as bytes: what is read back makes the same bits, in another process too."""

import copy
import pickle

import forked
import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from flax import nnx
from oracles import assert_same

import lazyinit as li
from lazyinit.make.executable import compiler
from lazyinit.program import equations

KEY = jax.random.key(7)
X = models.X


def test_what_is_read_back_shares_compiled_programs():
    tree = li.lazy(models.MLP()).init(KEY, X)
    li.materialize(tree)
    count = len(compiler._kept)
    li.materialize(pickle.loads(pickle.dumps(tree)))
    assert len(compiler._kept) == count


def test_another_process_makes_the_same_bits(tmp_path):
    tree = li.lazy(models.MLP()).init(KEY, X)
    (tmp_path / "tree").write_bytes(pickle.dumps(tree))
    code = (
        "import pickle, sys, numpy as np, lazyinit as li\n"
        "tree = li.materialize(pickle.load(open(sys.argv[1] + '/tree', 'rb')), 'params/head')\n"
        "np.save(sys.argv[1] + '/kernel.npy', tree['params']['head']['kernel'])\n"
    )
    forked.run(code, tmp_path)
    want = models.MLP().init(KEY, X)["params"]["head"]["kernel"]
    np.testing.assert_array_equal(np.load(tmp_path / "kernel.npy"), want)


def test_states_of_nnx_and_functions_too():
    _, state = li.lazy(nnx.Linear)(3, 4, rngs=nnx.Rngs(0))
    want = nnx.to_pure_dict(nnx.state(nnx.Linear(3, 4, rngs=nnx.Rngs(0))))
    assert_same(nnx.to_pure_dict(li.materialize(pickle.loads(pickle.dumps(state)))), want)

    def make(key):
        return jax.random.lognormal(key, shape=(3,))

    again = pickle.loads(pickle.dumps(li.lazy(make)(KEY)))
    assert_same(li.materialize(li.reseed(again, jax.random.key(1))), make(jax.random.key(1)))


def test_a_filled_tree_reads_its_file_from_where_it_was(tmp_path):
    from safetensors.numpy import save_file

    save_file({"w": np.arange(6, dtype="float32")}, tmp_path / "model.safetensors")
    tree = {"w": li.LazyParam((6,), "float32", jnp.zeros)}
    filled, _ = li.fill(tree, tmp_path / "model.safetensors")
    again = pickle.loads(pickle.dumps(filled))
    assert again == filled
    np.testing.assert_array_equal(li.materialize(again)["w"], np.arange(6))


def test_thunks_are_compared_hashed_and_copied():
    tree = li.lazy(models.MLP()).init(KEY, X)
    leaf = tree["params"]["head"]["kernel"]
    assert copy.deepcopy(tree)["params"]["head"]["kernel"] is leaf
    assert copy.copy(leaf) is leaf
    assert len({leaf, leaf, tree["params"]["head"]["bias"]}) == 2
    assert jax.tree.map(lambda x: x, tree) == tree


def test_a_leaf_that_cannot_be_pickled_is_named_and_the_others_can_be():
    def make(key):
        called = jax.pure_callback(
            lambda: np.ones(3, "float32"), jax.ShapeDtypeStruct((3,), "float32")
        )
        return {"good": jax.random.normal(key, (3,)), "local": called + 1.0}

    tree = li.lazy(make)(KEY)
    with pytest.raises(li.errors.PicklingError, match=r"^local: wanted an initializer that can be"):
        pickle.dumps(tree)
    good = pickle.loads(pickle.dumps({"good": tree["good"]}))
    assert_same(li.materialize(good)["good"], make(KEY)["good"])


def test_a_leaf_made_by_hand_is_pickled_by_its_initializers_name():
    rng_path = li.RngPath({"params": li.keys.Key.of(KEY)})
    by_name = li.LazyParam((), "float32", jax.random.normal, rng_path, path="a")
    again = pickle.loads(pickle.dumps(by_name))
    assert again == by_name
    local = li.LazyParam((), "float32", lambda key: jax.random.normal(key), rng_path, path="a/b")
    with pytest.raises(li.errors.PicklingError, match=r"^a/b: .*at the top of a module"):
        pickle.dumps(local)


def test_a_traced_key_cannot_be_pickled():
    def record(key):
        with pytest.raises(pickle.PicklingError, match=r"^params/.*its key is traced"):
            pickle.dumps(li.lazy(models.MLP()).init(key, X))
        return key

    jax.jit(record)(KEY)


def test_another_version_of_jax_is_refused():
    with pytest.raises(
        li.errors.PicklingError, match="wanted one that jax .*, got one of jax 0.1.0"
    ):
        equations._unpickled("0.1.0", b"")
