import functools
import re
import warnings

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles import assert_not_quadratic
from pipelines import nested

import lazyinit as li
from lazyinit import errors
from lazyinit.checkpoint import open_checkpoint
from lazyinit.params import LazyParam, StoredParam
from lazyinit.rules.renames import Rename, strip_prefix
from lazyinit.rules.rule import Rule
from lazyinit.rules.torch import TORCH

fill = functools.partial(li.fill, on_missing="init")  # Most of it is about what is there.
zeros = jax.nn.initializers.zeros


def lazy(*shape, dtype="float32"):
    return LazyParam(shape, dtype, zeros)


def ones(*shape, dtype="float32"):
    return np.ones(shape, dtype)


def raises(message):
    return pytest.raises(errors.FillError, match=re.escape(message))


# Names.


@pytest.mark.parametrize("separator", ["/", "."])
def test_a_name_that_equals_a_path_matches_whichever_way_it_is_joined(separator):
    tree = nested({"params/a/kernel": lazy(2, 3), "params/a/bias": lazy(3)})
    filled, report = fill(tree, {separator.join(("params", "a", "kernel")): ones(2, 3)})
    kernel = filled["params"]["a"]["kernel"]
    assert isinstance(kernel, StoredParam)
    assert kernel.path == "params/a/kernel"
    assert filled["params"]["a"]["bias"] is tree["params"]["a"]["bias"]
    assert report.loaded == ("params/a/kernel",)
    assert report.missing == ("params/a/bias",)
    assert isinstance(tree["params"]["a"]["kernel"], LazyParam)


def test_a_tree_fills_from_another_of_the_same_structure():
    tree = {"b": [lazy(2), lazy(3)], "a": (lazy(4),)}
    arrays = {"b": [ones(2), ones(3)], "a": (ones(4),)}
    filled, report = fill(tree, arrays)
    assert jax.tree.structure(filled) == jax.tree.structure(tree)
    assert list(filled) == ["b", "a"]
    assert report.loaded == ("a/0", "b/0", "b/1")
    np.testing.assert_array_equal(filled["b"][1].source.read((slice(0, 2),)), [1, 1])


def test_two_tensors_that_go_by_one_name_are_refused():
    with raises("the mapping: wanted tensors with different names, got 'a.b' and 'a/b', which"):
        fill({"a": {"b": lazy(2)}}, {"a.b": ones(2), "a/b": ones(2)})


def test_two_leaves_that_go_by_one_name_are_refused():
    message = "a.b: wanted a leaf with a name of its own, but for a tensor it has the same name as "
    with raises(message + "'a/b'"):
        fill({"a": {"b": lazy(2)}, "a.b": lazy(2)}, {"a.b": ones(2)})


def test_a_leaf_in_a_metadata_box_goes_by_the_name_of_the_box():
    box = nn.Partitioned(lazy(2, 3), ("x", None))
    tree = {"params": {"dense": {"kernel": box, "value": lazy(3)}}}
    filled, report = fill(tree, {"params/dense/kernel": ones(2, 3), "params.dense.value": ones(3)})
    assert report.loaded == ("params/dense/kernel/value", "params/dense/value")
    assert filled["params"]["dense"]["kernel"].names == ("x", None)
    _, report = fill(tree, {"params/dense/kernel/value": ones(2, 3)})
    assert report.loaded == ("params/dense/kernel/value",)
    _, report = fill(tree, {"dense.weight": ones(3, 2)}, TORCH)
    assert report.loaded == ("params/dense/kernel/value",)


def test_the_state_of_an_nnx_module_is_filled_and_its_keys_are_left():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs) for _ in range(2)])
            self.norm = nnx.BatchNorm(3, rngs=rngs)
            self.dropout = nnx.Dropout(0.1, rngs=rngs)

    _, state = nnx.split(Net(nnx.Rngs(0)))
    tensors = {
        "layers.0.weight": ones(3, 2),
        "layers.1.weight": ones(3, 2),
        "layers.1.bias": ones(3),
        "norm.running_mean": ones(3),
        "norm.weight": ones(3),
        "dropout.rngs.key": ones(),
    }
    filled, report = fill(state, tensors, TORCH)
    assert report.loaded == (
        "layers/0/kernel",
        "layers/1/bias",
        "layers/1/kernel",
        "norm/mean",
        "norm/scale",
    )
    assert "dropout/rngs/key" in report.kept
    assert report.unexpected == ("dropout.rngs.key",)
    assert filled["layers"][0]["kernel"].get_value().shape == (2, 3)


RECORDS = {
    "lazy": lambda make: li.lazy(make)(nnx.Rngs(0, noise=1)),
    "shapes": lambda make: nnx.eval_shape(lambda: make(nnx.Rngs(0, noise=1))),
    "arrays": lambda make: make(nnx.Rngs(0, noise=1)),
}


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
@pytest.mark.parametrize("on_missing", ["error", "warn"])
def test_the_streams_of_an_nnx_module_are_not_missed(record, on_missing):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(2, 3, use_bias=False, rngs=rngs)
            self.dropout = nnx.Dropout(0.1, rngs=rngs)
            self.rngs = rngs

    made = record(lambda rngs: nnx.state(Net(rngs)))
    _, report = fill(made, {"linear.kernel": ones(2, 3)}, on_missing=on_missing)
    assert report.missing == ()
    assert {"dropout/rngs/count", "rngs/noise/count", "rngs/noise/key"} <= set(report.kept)


def test_only_thunks_and_arrays_are_filled():
    tree = {"a": jnp.zeros(2), "b": np.zeros(2), "c": "text", "d": None, "e": np.float32(1)}
    filled, report = fill(tree, {"a": ones(2), "c": ones(2), "d": ones(2), "x": ones(2)})
    assert isinstance(filled["a"], StoredParam)
    assert (filled["b"] is tree["b"], filled["c"], filled["d"]) == (True, "text", None)
    assert report.kept == ("b", "e")
    assert report.missing == ()
    assert report.unexpected == ("c", "d", "x")


def test_a_second_checkpoint_fills_what_the_first_left():
    tree = {"a": lazy(2), "b": lazy(2)}
    tree, _ = fill(tree, {"a": ones(2)})
    tree, report = fill(tree, {"b": ones(2)}, on_missing="error")
    assert report.kept == ("a",)
    assert {type(leaf) for leaf in tree.values()} == {StoredParam}


def test_prng_keys_are_left_and_are_no_error():
    key = jax.random.key(0)
    lazy_key = LazyParam((), key.dtype, lambda key: key)
    tree = {"a": lazy(2), "key": key, "lazy_key": lazy_key}
    filled, report = fill(tree, {"a": ones(2), "key": ones()}, on_missing="error")
    assert filled["key"] is key
    assert report.kept == ("key", "lazy_key")
    assert report.missing == ()
    assert "key<fry>[]" in str(report)


def test_frozen_dicts_stay_frozen():
    filled, _ = fill(flax.core.freeze({"params": {"a": lazy(2)}}), {"params.a": ones(2)})
    assert isinstance(filled, flax.core.FrozenDict)


# Where the checkpoint hangs.


def test_at_hangs_the_checkpoint_below_a_path():
    tree = nested({"params/bert/x": lazy(2), "params/x": lazy(2), "params/bertha/x": lazy(2)})
    for at in ("params/bert", "params/bert/"):
        _, report = fill(tree, {"x": ones(2)}, at=at)
        assert report.loaded == ("params/bert/x",)


@pytest.mark.parametrize("at", ["params/brt", "params/bert/x", "x"])
def test_an_at_that_names_no_subtree_suggests_the_nearest(at):
    tree = nested({"params/bert/x": lazy(2)})
    with pytest.raises(errors.PathError) as caught:
        fill(tree, {"x": ones(2)}, at=at)
    assert str(caught.value).startswith(f"{at}: wanted at= to be the path of a subtree")
    assert ("did you mean 'params/bert'?" in str(caught.value)) == (at != "x")


# PyTorch.

TORCH_TREE = nested(
    {
        "params/bert/fc/kernel": lazy(4, 3),
        "params/bert/fc/bias": lazy(3),
        "params/bert/conv/kernel": lazy(5, 7, 4, 3),
        "params/bert/norm/scale": lazy(3),
        "params/bert/old/scale": lazy(3),
        "params/bert/old/bias": lazy(3),
        "params/bert/embed/embedding": lazy(9, 3),
        "params/bert/cls_token": lazy(1, 3),
        "params/bert/bn/scale": lazy(3),
        "batch_stats/bert/bn/mean": lazy(3),
        "batch_stats/bert/bn/var": lazy(3),
    }
)
TORCH_TENSORS = {
    "fc.weight": np.arange(12, dtype="float32").reshape(3, 4),
    "fc.bias": ones(3),
    "conv.weight": np.arange(3 * 4 * 5 * 7, dtype="float32").reshape(3, 4, 5, 7),
    "norm.weight": ones(3),
    "old.gamma": ones(3),
    "old.beta": ones(3),
    "embed.weight": ones(9, 3),
    "cls_token": ones(1, 3),
    "bn.weight": ones(3),
    "bn.running_mean": ones(3),
    "bn.running_var": ones(3),
    "bn.num_batches_tracked": np.int64(7),
}


@pytest.mark.parametrize(
    ("at", "prefix"), [("params/bert", ""), ("", "bert."), ("params", "bert.")]
)
def test_torch_fills_every_leaf_that_has_a_counterpart(at, prefix):
    tensors = {prefix + name: tensor for name, tensor in TORCH_TENSORS.items()}
    filled, report = fill(TORCH_TREE, tensors, TORCH, at=at, on_missing="error")
    assert len(report.loaded) == 11
    assert report.unexpected == (prefix + "bn.num_batches_tracked",)
    assert report.unused_rules == ()
    mean = report.sources["batch_stats/bert/bn/mean"]
    assert mean.tensor == prefix + "bn.running_mean"
    bert = filled["params"]["bert"]
    np.testing.assert_array_equal(
        bert["fc"]["kernel"].source.read((slice(1, 3), slice(0, 3))),
        TORCH_TENSORS["fc.weight"].T[1:3],
    )
    np.testing.assert_array_equal(
        bert["conv"]["kernel"].source.read((slice(None),) * 4),
        TORCH_TENSORS["conv.weight"].transpose(2, 3, 1, 0),
    )


def test_a_square_kernel_is_transposed_though_its_shape_does_not_tell():
    square = np.arange(4, dtype="float32").reshape(2, 2)
    filled, _ = fill({"fc": {"kernel": lazy(2, 2)}}, {"fc.weight": square}, TORCH)
    whole = filled["fc"]["kernel"].source.read((slice(None), slice(None)))
    np.testing.assert_array_equal(whole, square.T)


def test_an_identical_name_wins_over_a_rule():
    tensors = {"fc.kernel": ones(2, 3), "fc.weight": ones(3, 2)}
    _, report = fill({"fc": {"kernel": lazy(2, 3)}}, tensors, TORCH)
    assert report.sources["fc/kernel"].tensor == "fc.kernel"
    assert report.unexpected == ("fc.weight",)


@pytest.mark.parametrize("name", ["params/fc/kernel", "params.fc.kernel"])
def test_a_rule_for_the_tensor_of_that_very_name_says_its_layout(name):
    square = np.arange(4, dtype="float32").reshape(2, 2)
    tree = nested({"params/fc/kernel": lazy(2, 2), "params/fc/bias": lazy(2)})
    tensors = {name: square, name.replace("kernel", "bias"): ones(2)}
    rules = [Rule("**/kernel", "**/kernel", li.Transpose("o i -> i o"))]
    filled, report = fill(tree, tensors, rules)
    held = filled["params"]["fc"]["kernel"].source.read((slice(None), slice(None)))
    np.testing.assert_array_equal(held, square.T)
    assert set(report.loaded) == {"params/fc/kernel", "params/fc/bias"}
    assert not report.unused_rules


def test_a_typed_key_of_a_mapping_fills_a_key_and_one_of_another_kind_is_an_error():
    lazy_key = LazyParam((), jax.random.key(0).dtype, lambda key: key)
    tree = {"a": lazy(2), "key": lazy_key}
    filled, report = fill(tree, {"a": ones(2), "key": jax.random.key(5)})
    assert report.loaded == ("a", "key")
    made = li.materialize(filled, "key")["key"]
    assert jax.random.key_data(made).tolist() == [0, 5]
    with pytest.raises(errors.FillError) as raised:
        fill(tree, {"a": ones(2), "key": jax.random.key(5, impl="rbg")})
    assert str(raised.value) == (
        "key: the model wants keys of threefry2x32, tensor 'key' holds keys of rbg. Make the model "
        "with such keys, or leave the tensor out of the checkpoint."
    )


def test_the_first_key_counts_as_nothing_only_in_a_tree_that_has_params():
    _, report = fill(
        nested({"decoder/fc/bias": lazy(2), "fc/bias": lazy(2)}), {"fc.bias": ones(2)}, TORCH
    )
    assert report.loaded == ("fc/bias",)
    _, report = fill(nested({"buffers/a": lazy(2), "params/b": lazy(2)}), {"a": ones(2)}, TORCH)
    assert report.loaded == ("buffers/a",)


# Rules.


def test_rules_take_part_in_order_and_compose_with_renames():
    tree = nested({"params/layers_0/mlp/kernel": lazy(2, 3), "params/head/kernel": lazy(3, 4)})
    tensors = {
        "model.h.0.mlp.weight": ones(3, 2),
        "model.cls": ones(3, 4),
        "head.weight": ones(4, 3),
    }
    rules = [
        strip_prefix("model."),
        Rename("h.*.**", "layers_*.**"),
        Rule("params/head/kernel", "cls"),
        *TORCH,
    ]
    _, report = fill(tree, tensors, rules)
    assert {path: entry.tensor for path, entry in report.sources.items()} == {
        "params/head/kernel": "model.cls",
        "params/layers_0/mlp/kernel": "model.h.0.mlp.weight",
    }
    assert report.unexpected == ("head.weight",)
    assert report.unused_rules == ()


def test_one_tensor_may_make_several_leaves():
    rules = [Rule("out/kernel", "in/embedding")]
    tree = nested({"in/embedding": lazy(2), "out/kernel": lazy(2)})
    filled, report = fill(tree, {"in.embedding": ones(2)}, rules)
    assert len(report.loaded) == 2
    assert filled["in"]["embedding"].source == filled["out"]["kernel"].source


def test_a_rule_with_nothing_to_do_is_reported_unless_optional():
    used, idle = Rule("a", "x"), Rule("b", "y")
    gone = strip_prefix("model.")
    _, report = fill({"a": lazy(2)}, {"x": ones(2)}, [used, idle, gone, *TORCH])
    assert report.unused_rules == (idle, gone)
    assert str(report).endswith("unused: Rule('b', 'y')\nunused: Rename('model.**', '**')")


def test_what_is_no_rule_is_refused():
    with raises("rules[0]: wanted a sequence of Rule or Rename values, got tuple"):
        fill({"a": lazy(2)}, {"a": ones(2)}, [TORCH])


# What does not fit.


@pytest.mark.parametrize(
    ("wanted", "stored"),
    [("float32", "float16"), ("bfloat16", "float64"), ("int32", "uint8"), ("float32", "bfloat16")],
)
def test_another_dtype_of_the_same_kind_is_a_cast(wanted, stored):
    filled, report = fill({"a": lazy(2, dtype=wanted)}, {"a": ones(2, dtype=stored)})
    assert filled["a"].dtype == jnp.dtype(wanted)
    assert report.cast == ("a",)
    assert report.loaded == ("a",)
    entry = report.sources["a"]
    assert (entry.dtype, entry.stored_dtype) == (jnp.dtype(wanted), jnp.dtype(stored))
    assert f"loaded, cast from {stored}" in str(report)


@pytest.mark.parametrize("stored", ["int32", "complex64", "bool"])
def test_a_dtype_of_another_kind_is_a_mismatch(stored):
    with raises(f"a: the model wants float32[2], tensor 'a' holds {stored}[2]."):
        fill({"a": lazy(2)}, {"a": ones(2, dtype=stored)})


def test_a_shape_that_differs_names_path_wanted_got_and_way_out():
    tree = nested({"params/head/kernel": lazy(768, 3)})
    with pytest.raises(errors.FillError) as caught:
        fill(
            tree, {"classifier.weight": ones(2, 768)}, [Rename("classifier.**", "head.**"), *TORCH]
        )
    assert str(caught.value) == (
        "params/head/kernel: the model wants float32[768,3], tensor 'classifier.weight' holds "
        'float32[2,768]. Drop it with on_mismatch="init", or map it in rules.'
    )


def test_all_mismatches_are_collected_ten_are_shown():
    tree = {f"x{i}": lazy(2) for i in range(13)}
    with pytest.raises(errors.FillError) as caught:
        fill(tree, {name: ones(3) for name in tree})
    lines = str(caught.value).splitlines()
    assert len(lines) == 11
    assert lines[-1] == "... and 3 more"


def test_a_mismatch_may_be_left_to_be_initialized():
    tree = {"a": lazy(2), "b": lazy(3)}
    filled, report = fill(tree, {"a": ones(2), "b": ones(4)}, on_mismatch="init")
    assert filled["b"] is tree["b"]
    assert report.mismatched == ("b",)
    assert (report.missing, report.unexpected) == ((), ())
    assert report.sources["b"].stored_shape == (4,)
    assert "mismatched with float32[4]" in str(report)


def test_missing_leaves_may_be_an_error():
    tree = nested({"params/a": lazy(2), "params/b/kernel": lazy(2)})
    with pytest.raises(errors.FillError) as caught:
        fill(tree, {"params.a": ones(2)}, on_missing="error")
    assert str(caught.value) == (
        "params/b/kernel: the model wants float32[2], the mapping holds no tensor called "
        "'params/b/kernel'. Make it with on_missing=\"init\", or map it in rules."
    )
    with raises("called 'params/b/kernel' or 'params/b/weight' or 'b/weight' or 'b/kernel'."):
        fill(tree, {"params.a": ones(2)}, TORCH, on_missing="error")
    with raises("holds no tensor for it, because the leaf lies outside of at='params/b'."):
        fill(tree, {"kernel": ones(2)}, at="params/b", on_missing="error")


def test_unexpected_tensors_may_be_an_error_or_ignored():
    tree, tensors = {"a": lazy(2)}, {"a": ones(2), "b": ones(3)}
    with raises("b: wanted a leaf for this tensor, float32[3], but the tree has none. Pass"):
        fill(tree, tensors, on_unexpected="error")
    _, report = fill(tree, tensors, on_unexpected="ignore")
    assert report.unexpected == ()


def test_every_kind_of_problem_is_told_at_once():
    tree = {"a": lazy(2), "b": lazy(2)}
    with pytest.raises(errors.FillError) as caught:
        fill(tree, {"a": ones(3), "c": ones(1)}, on_missing="error", on_unexpected="error")
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["a", "b", "c"]


@pytest.mark.parametrize("policy", ["on_missing", "on_unexpected", "on_mismatch"])
def test_a_policy_that_is_none_says_which_there_are(policy):
    with pytest.raises(
        errors.FillError,
        match=f"{policy}: wanted one of '.*', a callable, or a mapping .*, got 'x'",
    ):
        fill({"a": lazy(2)}, {"a": ones(2)}, **{policy: "x"})


def test_an_empty_checkpoint_is_an_error():
    with raises("the mapping: wanted a checkpoint with tensors, got one without any."):
        fill({"a": lazy(2)}, {})


def test_a_tree_with_nothing_to_fill_reports_every_tensor():
    filled, report = fill({"a": "text"}, {"b": ones(2)})
    assert filled == {"a": "text"}
    assert report.unexpected == ("b",)


def test_filling_costs_in_proportion_to_the_tree():
    def filling(layers):
        layers = range(layers)
        tree = nested(
            {f"params/l_{i}/fc/{leaf}": lazy(2, 2) for i in layers for leaf in ("kernel", "w")}
        )
        checkpoint = open_checkpoint(
            {f"l_{i}.fc.{name}": ones(2, 2) for i in layers for name in ("weight", "w")}
        )

        def run():
            _, report = fill(tree, checkpoint, TORCH)
            assert f"params/l_{{0..{layers[-1]}}}/fc/kernel" in str(report)
            assert len(report.loaded) == 2 * len(layers)

        return run

    assert_not_quadratic(filling)


# Leaves without a tensor are said, once.


def test_leaves_without_a_tensor_are_said_in_one_warning():
    tree = {"a": lazy(2), **{f"layer_{n:02}": lazy(3) for n in range(12)}}
    with pytest.warns(errors.LazyinitWarning) as caught:
        _, report = li.fill(tree, {"a": ones(2)})
    assert len(report.missing) == 12
    (warning,) = caught
    assert str(warning.message) == (
        "layer_00: 12 of 13 leaves have no tensor in the mapping and keep their initial values: "
        "layer_00, layer_01, layer_02, layer_03, layer_04, layer_05, layer_06, layer_07, layer_08, "
        'layer_09 and 2 more. If you mean this, say so with on_missing="init"; if not, map the '
        "leaves in rules."
    )
    assert warning.filename == __file__


@pytest.mark.parametrize(
    "policy", ["init", {"b": "init"}, {"b": "init", "**": "warn"}, lambda path, leaf: "init"]
)
def test_who_says_that_it_is_meant_is_not_warned(policy):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        li.fill({"a": lazy(2), "b": lazy(2)}, {"a": ones(2)}, on_missing=policy)
        li.fill({"a": lazy(2)}, {"a": ones(2)})
        li.fill({"enc": {"a": lazy(2)}, "head": lazy(2)}, {"a": ones(2)}, at="enc")


def test_a_word_of_a_callable_or_a_mapping_warns_too():
    tree = {"a": lazy(2), "b": lazy(2), "c": lazy(2)}
    policies = [{"b": "warn", "**": "init"}, lambda path, _: "warn" if path == "b" else "init"]
    for policy in policies:
        with pytest.warns(errors.LazyinitWarning, match="^b: 1 of 3 leaves .* values: b. If"):
            li.fill(tree, {"a": ones(2)}, on_missing=policy)
