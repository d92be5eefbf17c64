"""What a leaf is before it is an array."""

import copy
import dataclasses
import operator
import pickle

import flax
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import models
import numpy as np
import optax
import pytest
import safetensors.flax
import safetensors.numpy
from jax.sharding import PartitionSpec as P

import lazyinit as li
from lazyinit.errors import NoArrayAttributeError, NotMaterializedError
from lazyinit.keys import Key
from lazyinit.params import label
from lazyinit.sources import describe

KEY = jax.random.key(0)
X = jnp.ones((2, 8))


@pytest.fixture(scope="module")
def tree():
    return li.lazy(models.MLP()).init(KEY, X)


@pytest.fixture(scope="module")
def shapes():
    return jax.eval_shape(models.MLP().init, KEY, X)


@pytest.fixture(scope="module")
def leaf(tree):
    return tree["params"]["head"]["kernel"]


# The duck type of jax.ShapeDtypeStruct.


def test_a_leaf_has_the_facts_of_a_shape_dtype_struct(tree, shapes):
    assert jax.tree.structure(tree) == jax.tree.structure(shapes)
    for leaf, shape in zip(jax.tree.leaves(tree), jax.tree.leaves(shapes), strict=True):
        for fact in ("shape", "dtype", "ndim", "size", "weak_type"):
            assert getattr(leaf, fact) == getattr(shape, fact)
        assert len(leaf) == len(shape)
        assert leaf.nbytes == shape.size * shape.dtype.itemsize
        assert isinstance(leaf.dtype, np.dtype)


def test_len_of_a_scalar_is_a_type_error():
    with pytest.raises(TypeError, match=r"len\(\) of a thunk with no dimensions"):
        len(li.LazyParam((), "float32", jnp.zeros))


def test_a_leaf_is_a_pytree_leaf(leaf):
    assert jax.tree.leaves(leaf) == [leaf]
    assert jax.tree.map(lambda x: x.shape, {"a": leaf}) == {"a": (16, 8)}


def test_eval_shape_takes_a_tree_of_leaves(tree, shapes):
    module = models.MLP()
    out = jax.eval_shape(module.apply, tree, X)
    assert (out.shape, out.dtype) == ((2, 8), jnp.float32)
    grads = jax.eval_shape(jax.grad(lambda v: module.apply(v, X).sum()), tree)
    assert jax.tree.map(lambda x: x.shape, grads) == jax.tree.map(lambda x: x.shape, shapes)


def test_optax_takes_a_tree_of_leaves_under_eval_shape(tree, shapes):
    adam = optax.adam(1e-3)
    assert jax.eval_shape(adam.init, tree) == jax.eval_shape(adam.init, shapes)


def test_flax_takes_a_tree_of_leaves(tree, leaf):
    flat = flax.traverse_util.flatten_dict(tree, sep="/")
    assert flat["params/head/kernel"] is leaf
    assert flax.traverse_util.unflatten_dict(flat, sep="/") == tree
    assert flax.core.unfreeze(flax.core.freeze(tree)) == tree
    assert nn.get_partition_spec(tree)["params"]["head"]["kernel"] == P()
    assert isinstance(nn.meta.unbox(tree)["params"]["head"]["kernel"], li.LazyParam)


def test_jit_lowers_for_leaves(tree):
    lowered = jax.jit(models.MLP().apply).lower(tree, X)
    assert lowered.out_info.shape == (2, 8)


def test_device_memory_and_shapes_read_the_facts(leaf):
    assert jnp.shape(leaf) == (16, 8)
    assert jnp.ndim(leaf) == 2
    assert jnp.result_type(leaf) == jnp.float32
    assert jax.typeof(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)).shape == (16, 8)
    assert jax.eval_shape(jnp.zeros_like, leaf).shape == (16, 8)


# Refusals.

UNARY = [float, int, bool, complex, operator.index, operator.neg, operator.pos, abs,
         operator.invert, round, iter, list, np.asarray, np.array, np.sin, jnp.asarray, jnp.array,
         lambda x: x[0], lambda x: x[...], lambda x: 0 in x, reversed]  # fmt: skip
BINARY = [operator.add, operator.sub, operator.mul, operator.matmul, operator.truediv,
          operator.floordiv, operator.mod, operator.pow, operator.and_, operator.or_, operator.xor,
          operator.lt, operator.le, operator.gt, operator.ge, operator.lshift, operator.rshift,
          divmod]  # fmt: skip
MESSAGE = "params/head/kernel: wanted an array, got LazyParam(float32[16,8], variance_scaling"
WAY_OUT = "Make it with lazyinit.materialize(tree, 'params/head/kernel')."


def refused(call):
    with pytest.raises(NotMaterializedError) as error:
        call()
    assert str(error.value).startswith(MESSAGE)
    assert str(error.value).endswith(WAY_OUT)


@pytest.mark.parametrize("use", UNARY, ids=lambda f: getattr(f, "__name__", "f"))
def test_a_leaf_used_as_an_array_names_its_path_and_the_way_out(use, leaf):
    refused(lambda: use(leaf))


@pytest.mark.parametrize("operation", BINARY, ids=lambda f: f.__name__)
@pytest.mark.parametrize("other", [2, 2.0, np.ones((16, 8), np.float32), jnp.ones((16, 8)), np.float32(2)],
                         ids=["int", "float", "numpy", "jax", "numpy scalar"])  # fmt: skip
def test_a_leaf_in_arithmetic_names_its_path_and_the_way_out(operation, other, leaf):
    refused(lambda: operation(leaf, other))
    refused(lambda: operation(other, leaf))


@pytest.mark.parametrize(
    "use", [jnp.sin, jnp.sum, jax.device_put, jax.jit(lambda x: x), jax.lax.sin]
)
def test_a_leaf_handed_to_jax_is_a_type_error_that_says_lazyparam(use, leaf):
    with pytest.raises(TypeError, match="LazyParam"):
        use(leaf)


def test_apply_with_leaves_names_the_path(tree):
    with pytest.raises(NotMaterializedError, match=r"params/layers_0/kernel: wanted an array"):
        models.MLP().apply(tree, X)


WRITERS = {
    "flax.serialization": flax.serialization.to_bytes,
    "flax.serialization.to_state_dict": flax.serialization.to_state_dict,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("kind", ["lazy", "stored", "derived", "overlap"])
def test_a_serializer_that_gets_a_leaf_fails_with_its_path(name, kind):
    lazy = li.lazy(nn.Dense(3)).init(KEY, X)["params"]
    held = {"kernel": np.ones((8, 3), "f")}
    stored, _ = li.fill(lazy, held, on_missing="init")
    part = {"kernel": np.ones((4, 3), "f")}
    overlap, _ = li.fill(lazy, part, on_missing="init", on_mismatch=li.overlap)
    derived = li.lazy(lambda tree: {"kernel": tree["kernel"] * 2})(stored)
    tree = {"lazy": lazy, "stored": stored, "derived": derived, "overlap": overlap}[kind]
    with pytest.raises(NotMaterializedError, match="kernel: wanted an array"):
        WRITERS[name]({"kernel": tree["kernel"]})


def test_a_state_is_restored_over_leaves():
    lazy, eager = li.lazy(nn.Dense(3)).init(KEY, X), nn.Dense(3).init(KEY, X)
    restored = flax.serialization.from_bytes(lazy, flax.serialization.to_bytes(eager))
    jax.tree.map(np.testing.assert_array_equal, restored, eager)


def test_a_leaf_without_a_path_is_refused_too():
    with pytest.raises(NotMaterializedError, match=r"^a leaf: wanted .*materialize\(tree, None\)"):
        float(li.LazyParam((), "float32", jnp.zeros))


def test_the_error_is_a_type_error():
    assert issubclass(NotMaterializedError, TypeError)


def test_a_leaf_has_no_jax_array(leaf):
    assert not hasattr(leaf, "__jax_array__")


# Values.


def test_a_leaf_is_frozen(leaf):
    with pytest.raises(dataclasses.FrozenInstanceError):
        leaf.shape = (1,)
    with pytest.raises((AttributeError, TypeError)):
        leaf.other = 1
    assert dataclasses.replace(leaf, shape=(1, 2)).shape == (1, 2)
    assert leaf.shape == (16, 8)


def test_a_leaf_takes_its_shape_and_dtype_in_any_form():
    leaf = li.LazyParam([3, np.int64(4)], "bfloat16", jnp.zeros)
    assert leaf.shape == (3, 4)
    assert leaf.dtype == jnp.bfloat16
    assert leaf.nbytes == 24


def test_equal_leaves_are_equal_and_hash_alike():
    init = nn.initializers.normal(0.02)
    path = li.RngPath({"params": Key.of(KEY)}, ("head", 1), 7)
    same = li.RngPath({"params": Key.of(jax.random.key(0))}, ("head", 1), 7)
    a = li.LazyParam((3,), "float32", init, path)
    b = li.LazyParam((3,), np.float32, init, same, path="elsewhere")
    assert a == b
    assert hash(a) == hash(b)
    for other in (
        dataclasses.replace(a, shape=(4,)),
        dataclasses.replace(a, dtype=jnp.bfloat16),
        dataclasses.replace(a, weak_type=True),
        dataclasses.replace(a, init_fn=nn.initializers.normal(0.02)),
        dataclasses.replace(
            a, rng_path=li.RngPath({"params": Key.of(jax.random.key(1))}, ("head", 1), 7)
        ),
        dataclasses.replace(a, rng_path=li.RngPath({"other": Key.of(KEY)}, ("head", 1), 7)),
    ):
        assert a != other
    assert a != jax.ShapeDtypeStruct((3,), "float32")


def test_leaves_are_keys_of_dicts(tree):
    leaves = jax.tree.leaves(tree)
    assert len(set(leaves)) == len(leaves)


def test_a_leaf_with_a_global_initializer_can_be_pickled():
    leaf = li.LazyParam((3,), "float32", nn.initializers.ones, li.RngPath({"params": Key.of(KEY)}))
    assert pickle.loads(pickle.dumps(leaf)) == leaf


# For people to read.


def test_a_leaf_is_shown_by_shape_initializer_and_rng_path(tree):
    params = tree["params"]
    assert repr(params["head"]["kernel"]) == (
        "LazyParam(float32[16,8], variance_scaling(1.0, truncated_normal, fan_in), params/head#1)"
    )
    assert repr(params["head"]["bias"]) == "LazyParam(float32[8], zeros, params/head#2)"


@pytest.mark.parametrize(
    ("init_fn", "shown"),
    [
        (nn.initializers.normal(0.02), "normal(0.02)"),
        (nn.initializers.zeros, "zeros"),
        (nn.initializers.constant(3.0), "constant(3.0)"),
        (lambda key: 0, "<lambda>"),
        (models.normal(0.5), "normal(0.5)"),
        (jnp.zeros, "zeros"),
    ],
)
def test_an_initializer_is_called_by_its_maker_and_numbers(init_fn, shown):
    assert label(init_fn) == shown


def test_a_callable_object_is_called_by_its_class():
    class Ones:
        def __call__(self, key):
            return jnp.ones(3)

    assert label(Ones()).endswith("Ones")


def test_a_partial_initializer_has_a_name():
    import functools

    assert label(functools.partial(nn.initializers.ones, shape=(3,)))


def test_shapes_are_shown_as_xla_has_them():
    assert describe((768, 2), np.dtype("float32")) == "float32[768,2]"
    assert describe((), jnp.dtype("bfloat16")) == "bfloat16[]"


def test_key_leaves_have_their_dtype():
    leaf = li.LazyParam((), KEY.dtype, lambda key: key, li.RngPath({"params": Key.of(KEY)}))
    assert leaf.dtype == KEY.dtype
    assert leaf.nbytes == KEY.dtype.itemsize
    assert "key<fry>[]" in repr(leaf)


# What a thunk says when it is taken for an array.

LEAF = li.lazy(models.MLP()).init(jax.random.key(0), models.X)["params"]["head"]["kernel"]
OF_ARRAYS = sorted(
    name
    for name in {*dir(jax.Array), *dir(np.ndarray)}
    if not name.startswith("_") and not hasattr(LEAF, name)
)


@pytest.mark.parametrize("name", OF_ARRAYS)
def test_what_only_an_array_has_names_the_path_and_the_way_out(name):
    with pytest.raises(NoArrayAttributeError) as error:
        getattr(LEAF, name)
    assert str(error.value) == (
        f"params/head/kernel: wanted an array's {name!r}, got {LEAF!r}, which holds no values "
        "yet. Make it with lazyinit.materialize(tree, 'params/head/kernel')."
    )


def test_arrays_have_much_that_a_thunk_has_not():
    assert {"T", "sum", "at", "astype", "reshape"} <= set(OF_ARRAYS)


def test_what_it_has_not_is_an_attribute_error_for_those_who_ask():
    assert issubclass(NoArrayAttributeError, AttributeError | NotMaterializedError)
    assert not hasattr(LEAF, "addressable_shards")
    assert getattr(LEAF, "T", 3) == 3
    assert np.ndim(LEAF) == 2


def test_what_no_array_has_is_an_attribute_error_of_python():
    with pytest.raises(AttributeError, match=r"^'LazyParam' object has no attribute 'shap'$"):
        _ = LEAF.shap
    with pytest.raises(AttributeError, match=r"no attribute '__array_interface__'$"):
        _ = LEAF.__array_interface__


def test_a_stored_leaf_says_so_too():
    tree, _ = li.fill({"w": LEAF}, {"w": np.ones(LEAF.shape, "float32")})
    assert isinstance(tree["w"], li.StoredParam)
    with pytest.raises(NoArrayAttributeError, match=r"^w: wanted an array's 'T', got StoredParam"):
        _ = tree["w"].T


SERIALIZERS = {
    "np.savez": lambda tree, path: np.savez(path, **tree),
    "safetensors.numpy": lambda tree, path: safetensors.numpy.save_file(tree, path),
    "safetensors.flax": lambda tree, path: safetensors.flax.save_file(tree, path),
    "jax.device_get": lambda tree, path: jax.device_get(tree),
}


@pytest.mark.parametrize("name", SERIALIZERS)
def test_what_writes_arrays_of_other_libraries_fails_with_the_path(name, tmp_path):
    with pytest.raises(NotMaterializedError, match=r"^params/head/kernel: wanted an array"):
        SERIALIZERS[name]({"kernel": LEAF}, tmp_path / "file")


def test_it_is_copied_pickled_and_evaluated_as_a_shape():
    assert copy.deepcopy(LEAF) is LEAF
    assert pickle.loads(pickle.dumps(LEAF)).shape == LEAF.shape
    assert jax.eval_shape(lambda x: x.T.sum(0), LEAF).shape == LEAF.shape[:1]
    assert jax.eval_shape(jnp.zeros_like, LEAF).dtype == LEAF.dtype
