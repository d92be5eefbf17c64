"""Keys and scalars that are evaluated once, however many leaves need them."""

import jax
import pytest
from oracles import assert_same

import lazyinit as li


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_one_key_that_is_split_by_both_forms_of_threefry_has_the_bits_of_each(make_key):
    def fn(key):
        with jax.threefry_partitionable(False):
            one, first = jax.random.split(key, 3), jax.random.normal(key, ())
        other, second = jax.random.split(key, 3), jax.random.normal(key, ())
        drawn = [jax.random.normal(keys[1], (4, 128)) for keys in (one, other)]
        return {"keys": (one, other), "scalars": (first, second), "sum": drawn[0] + drawn[1]}

    assert_same(li.materialize(li.lazy(fn)(make_key(0))), fn(make_key(0)))
