"""A quantized folder without rules: read as numbers, kept by a tree that has its scales, or refused."""

import json
import re

import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from quantized_folders import config_of_case, numbers_of, tensors_of, write, written
from tunix_trees import TREES, Tree, leaves_of
from tunix_trees import tensors_of as tensors_of_tunix

import lazyinit as li
from lazyinit import errors

FP8 = {"quant_method": "fp8", "weight_block_size": [8, 16]}
STEM = "model.layers.0.q_proj"


def quantized(tensors):
    """Returns a model's tensors with those of linear layers in float8, and what they stand for."""
    made, numbers = {}, {}
    for name, x in tensors.items():
        if "_proj" not in name:
            made[name] = numbers[name] = x
            continue
        rng = np.random.default_rng(len(made))
        values = x.astype(ml_dtypes.float8_e4m3fn)
        scales = rng.random([-(-n // b) for n, b in zip(x.shape, (8, 16), strict=True)], "float32")
        made |= {name: values, f"{name}_scale_inv": scales}
        spread = np.kron(scales, np.ones((8, 16), "float32"))[: x.shape[0], : x.shape[1]]
        numbers[name] = values.astype("float32") * spread
    return made, numbers


def llama(folder, **config):
    made, numbers = quantized(tensors_of_tunix("llama"))
    return write(folder, made, {"model_type": "llama", **config}), numbers


def test_a_model_of_tunix_is_loaded_from_float8_without_rules_and_the_report_says_so(tmp_path):
    folder, numbers = llama(tmp_path, quantization_config=FP8)
    model, report = li.from_pretrained(
        Tree, folder, nnx.Rngs(0), TREES["llama"], on_missing="error", on_unexpected="error"
    )
    assert (report.ready_map, report.dequantized) == ("LLAMA_TUNIX", "fp8")
    assert "by lazyinit.maps.LLAMA_TUNIX, dequantized from fp8" in report.summary()
    for path, leaf in leaves_of("llama", numbers).items():
        made = nnx.state(model)
        for key in path.split("/"):
            made = made[int(key) if key.isdigit() else key]
        np.testing.assert_array_equal(made.get_value(), leaf)


def test_values_whose_scales_nothing_explains_are_an_error_without_a_configuration(tmp_path):
    folder, _ = llama(tmp_path)
    with pytest.raises(errors.FillError):
        li.from_pretrained(Tree, folder, nnx.Rngs(0), TREES["llama"])
    with pytest.raises(errors.FillError, match="its values are to be multiplied by") as caught:
        li.from_pretrained(Tree, folder, nnx.Rngs(0), TREES["llama"], rules=li.maps.LLAMA_TUNIX)
    assert "lazyinit.open_checkpoint(folder, dequantize=True)" in str(caught.value)


@pytest.mark.parametrize("method", ["hqq", "aqlm", "modelopt", "torchao", None])
def test_a_method_that_is_not_dequantized_is_an_error_before_anything_is_made(method, tmp_path):
    folder, _ = llama(tmp_path, quantization_config={"quant_method": method, "bits": 4})
    message = f"config.json says quant_method {method!r}: wanted a method among awq, bitsandbytes"
    with pytest.raises(errors.CheckpointError, match=re.escape(message)):
        li.from_pretrained(Tree, folder, nnx.Rngs(0), TREES["llama"])


class Plain(nnx.Module):
    def __init__(self, shapes, *, rngs):
        for name, (shape, dtype) in shapes.items():
            setattr(self, name, nnx.Param(np.zeros(shape, dtype)))


def test_a_tree_that_has_leaves_for_scales_keeps_all_as_it_is(tmp_path):
    values = np.arange(12).reshape(4, 3).astype(ml_dtypes.float8_e4m3fn)
    tensors = {"weight": values, "weight_scale_inv": np.full((1, 1), 2, "float32")}
    folder = write(tmp_path, tensors, {"quantization_config": {"quant_method": "fp8"}})
    shapes = {"weight": ((4, 3), values.dtype), "weight_scale_inv": ((1, 1), "float32")}
    model, report = li.from_pretrained(Plain, folder, nnx.Rngs(0), shapes, on_missing="error")
    assert report.dequantized == ""
    assert np.asarray(model.weight.get_value()).tobytes() == values.tobytes()
    model, report = li.from_pretrained(Plain, folder, nnx.Rngs(0), {"weight": ((4, 3), "float32")})
    assert report.dequantized == "fp8"
    np.testing.assert_array_equal(model.weight.get_value(), np.arange(12).reshape(4, 3) * 2)


@pytest.mark.parametrize(
    ("case", "problem"),
    [
        ("ct_int4_group", "it holds 'model.layers.0.q_proj.weight', quantized. To read it, open a"),
        ("ct_nvfp4", "it holds 'model.layers.0.q_proj.weight', quantized. To read it, open a"),
        ("gptq_int4", "it holds 'l.q.weight', quantized. To read it, open a folder whose config"),
        ("awq", "it holds 'l.q.weight', quantized. To read it, open a folder whose config.json"),
        ("mxfp4", "it holds 'm.experts.down_proj', quantized. To read it, open a folder whose"),
        ("ct_int8", "holds int8[8,64]; its values are to be multiplied by"),
        ("ct_float8", "holds float8_e4m3fn[8,64]; its values are to be multiplied by"),
        ("fp8", "holds float8_e4m3fn[8,24]; its values are to be multiplied by"),
        ("bnb_int8", "holds int8[8,48]; its values are to be multiplied by 'l.q.SCB'"),
        ("bnb_nf4_float16", "its values are to be multiplied by 'l.q.weight.absmax'"),
    ],
)
def test_a_quantized_folder_is_never_filled_as_if_it_were_not(case, problem, tmp_path):
    folder = written(tmp_path, case)
    name, want = numbers_of(case)
    ways = [("leaf", [li.Rule("leaf", name)]), (name, ())]
    if ".0." in name:
        ways += [("leaf", [li.Rule("leaf", name.replace(".0.", ".{x}."), li.Stack(0))])]
    for path, rules in ways:
        with pytest.raises(errors.FillError) as caught:
            li.fill({path: li.LazyParam(want.shape, "float32", None)}, folder, rules)
        assert str(caught.value).startswith(f"{path}: the model wants float32[{want.shape[0]},")
        assert problem in str(caught.value)


def test_where_the_cache_alone_is_quantized_weights_are_plain_and_its_scales_are_listed(tmp_path):
    scheme = {"num_bits": 8, "type": "float", "strategy": "tensor"}
    said = {"quant_method": "compressed-tensors", "config_groups": {}, "kv_cache_scheme": scheme}
    tensors = tensors_of_tunix("llama")
    layers = range(sum(name.endswith("k_proj.weight") for name in tensors))
    scales = [f"model.layers.{n}.self_attn.{x}_scale" for n in layers for x in "kv"]
    beside = {name: np.ones(1, "float32") for name in scales}
    config = {"model_type": "llama", "quantization_config": said}
    folder = write(tmp_path, {**tensors, **beside}, config)
    model, report = li.from_pretrained(
        Tree, folder, nnx.Rngs(0), TREES["llama"], on_missing="error"
    )
    assert (report.ready_map, report.dequantized) == ("LLAMA_TUNIX", "")
    assert sorted(report.unexpected) == sorted(scales)
    for path, leaf in leaves_of("llama", tensors).items():
        made = nnx.state(model)
        for key in path.split("/"):
            made = made[int(key) if key.isdigit() else key]
        np.testing.assert_array_equal(made.get_value(), leaf)


def test_plain_numbers_are_not_saved_beside_a_configuration_that_says_otherwise(tmp_path):
    folder = written(tmp_path / "from", "fp8")
    opened = li.open_checkpoint(folder, dequantize=True)
    tree = {name: li.LazyParam(source.shape, "float32", None) for name, source in opened.items()}
    filled, _ = li.fill(tree, opened)
    message = (
        f"like={folder}: its config.json says that weights are quantized, by 'fp8', but the tree "
        "has plain numbers, which readers would then take for quantized ones. Pass a copy of that "
    )
    with pytest.raises(errors.SaveError, match=re.escape(message)):
        li.save(filled, tmp_path / "to", like=folder)
    assert not (tmp_path / "to").exists()
    li.save(tensors_of("fp8"), tmp_path / "to", like=folder)  # As it is, it says the truth.
    assert json.loads((tmp_path / "to" / "config.json").read_text()) == config_of_case("fp8")
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "config.json").write_text(json.dumps({"model_type": "llama"}))
    li.save(filled, tmp_path / "other", like=plain)
    assert li.open_checkpoint(tmp_path / "other")["l.q.weight"].dtype == "float32"
