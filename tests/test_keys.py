"""PRNG keys as values, and where the key of a leaf comes from."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import assert_same

import lazyinit as li
from lazyinit.keys import Key

KEY = jax.random.key(0)


def test_roots_in_another_order_are_equal_and_hash_alike():
    one, two = Key.of(KEY), Key.of(jax.random.key(1))
    a = li.RngPath({"a": one, "b": two})
    b = li.RngPath({"b": two, "a": one})
    assert a == b
    assert hash(a) == hash(b)


def test_the_roots_of_a_path_cannot_be_changed():
    roots = {"params": Key.of(KEY)}
    path = li.RngPath(roots)
    roots["more"] = Key.of(KEY)
    assert list(path.roots) == ["params"]
    with pytest.raises(TypeError):
        path.roots["more"] = Key.of(KEY)


def test_a_rng_path_can_be_copied_and_pickled():
    path = li.RngPath({"params": Key.of(KEY)}, ("head", 1), 7)
    assert pickle.loads(pickle.dumps(path)) == path
    assert copy.deepcopy(path) == path


@pytest.mark.parametrize(
    "make",
    [
        lambda: jax.random.key(3),
        lambda: jax.random.PRNGKey(3),
        lambda: np.array([1, 2], np.uint32),
        lambda: jax.random.key(3, impl="rbg"),
        lambda: jax.random.key(3, impl="unsafe_rbg"),
        lambda: jax.random.PRNGKey(3, impl="rbg"),
    ],
)
def test_a_key_comes_back_as_it_was_given(make):
    key = make()
    again = Key.of(key).array()
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        assert_same(again, key)
    else:
        np.testing.assert_array_equal(again, key)
    assert Key.of(again) == Key.of(key)
    assert hash(Key.of(again)) == hash(Key.of(key))


def test_typed_and_raw_keys_differ():
    assert Key.of(jax.random.key(3)) != Key.of(jax.random.PRNGKey(3))
    assert Key.of(jax.random.key(3, impl="rbg")) != Key.of(jax.random.key(3, impl="unsafe_rbg"))


def test_a_path_folds_into_its_root():
    path = li.RngPath({"params": Key.of(KEY)}, ("head", 1), 7)
    assert_same(path.key(), jax.random.fold_in(KEY, 7))
    assert_same(li.RngPath({"params": Key.of(KEY)}).key(), KEY)
    assert_same(li.RngPath({"params": Key.of(KEY)}, (), 0).key(), jax.random.fold_in(KEY, 0))
    assert_same(li.RngPath({"params": Key.of(KEY)}, (), 2**32 - 1).key(),
                jax.random.fold_in(KEY, np.uint32(2**32 - 1)))  # fmt: skip


def test_a_path_of_a_raw_key_gives_a_raw_key():
    raw = jax.random.PRNGKey(3)
    np.testing.assert_array_equal(
        li.RngPath({"params": Key.of(raw)}, ("a", 1), 7).key(), jax.random.fold_in(raw, 7)
    )


def test_a_path_of_several_roots_gives_a_dict():
    path = li.RngPath({"a": Key.of(KEY), "b": Key.of(jax.random.key(1))})
    assert_same(path.key(), {"a": KEY, "b": jax.random.key(1)})
    assert li.RngPath({}).key() == {}
