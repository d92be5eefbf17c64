"""What a thunk says when it is taken for an array."""

import copy
import pickle

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest

import lazyinit as li
from lazyinit.errors import NoArrayAttributeError, NotMaterializedError
from lazyinit.params import StoredParam

LEAF = li.lazy(models.MLP()).init(jax.random.key(0), models.X)["params"]["head"]["kernel"]
OF_ARRAYS = sorted(n for n in dir(jax.Array) if not n.startswith("_") and not hasattr(LEAF, n))


@pytest.mark.parametrize("name", OF_ARRAYS)
def test_what_only_an_array_has_names_the_path_and_the_way_out(name):
    with pytest.raises(NoArrayAttributeError) as error:
        getattr(LEAF, name)
    assert str(error.value) == (
        f"params/head/kernel: wanted an array's {name!r}, got {LEAF!r}, which holds no values "
        "yet. Make it with lazyinit.materialize(tree, 'params/head/kernel')."
    )


def test_arrays_have_much_that_a_thunk_has_not():
    assert {"T", "sum", "at", "astype", "reshape", "sharding"} <= set(OF_ARRAYS)


def test_what_it_has_not_is_an_attribute_error_for_those_who_ask():
    assert issubclass(NoArrayAttributeError, AttributeError | NotMaterializedError)
    assert not hasattr(LEAF, "sharding")
    assert getattr(LEAF, "T", 3) == 3
    assert np.ndim(LEAF) == 2


def test_what_no_array_has_is_an_attribute_error_of_python():
    with pytest.raises(AttributeError, match=r"^'LazyParam' object has no attribute 'shap'$"):
        _ = LEAF.shap
    with pytest.raises(AttributeError, match=r"no attribute '__array_interface__'$"):
        _ = LEAF.__array_interface__


def test_a_stored_leaf_says_so_too():
    tree, _ = li.fill({"w": LEAF}, {"w": np.ones(LEAF.shape, "float32")})
    assert isinstance(tree["w"], StoredParam)
    with pytest.raises(NoArrayAttributeError, match=r"^w: wanted an array's 'T', got StoredParam"):
        _ = tree["w"].T


def test_it_is_copied_pickled_and_evaluated_as_a_shape():
    assert copy.deepcopy(LEAF) is LEAF
    assert pickle.loads(pickle.dumps(LEAF)).shape == LEAF.shape
    assert jax.eval_shape(lambda x: x.T.sum(0), LEAF).shape == LEAF.shape[:1]
    assert jax.eval_shape(jnp.zeros_like, LEAF).dtype == LEAF.dtype
