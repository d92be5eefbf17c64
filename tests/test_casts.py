"""What each leaf is cast to: one dtype, by path, by filter, as the file has it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles import assert_same

import lazyinit as li
from lazyinit import paths
from lazyinit.errors import PathError, WordError

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
