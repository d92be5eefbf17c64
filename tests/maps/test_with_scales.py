"""A ready map for a checkpoint that is quantized: what has scales, what has none, what lacks them."""

import jax
import ml_dtypes
import numpy as np
import pytest

import lazyinit as li
from lazyinit import errors

F8 = ml_dtypes.float8_e4m3fn
BLOCKS = li.Dequantize(block=(2, 2))
RULES = li.maps.quantized(li.maps.LLAMA, BLOCKS, scale="weight_scale_inv")
SCALE = "model.layers.0.mlp.up_proj.weight_scale_inv"


def checkpoint():
    """A layer as DeepSeek has it: a projection in float8, a norm that is not quantized."""
    values = np.arange(12).reshape(4, 3).astype(F8)
    return {
        "model.layers.0.mlp.up_proj.weight": values,
        SCALE: np.array([[1, 2], [3, 4]], np.float32),
        "model.layers.0.input_layernorm.weight": np.full(3, 5, "float32"),
    }


def tree():
    leaves = {
        "mlp": {"up_proj": {"kernel": jax.ShapeDtypeStruct((3, 4), "float32")}},
        "input_layernorm": {"weight": jax.ShapeDtypeStruct((3,), "float32")},
    }
    return {"params": {"model": {"layers": {"0": leaves}}}}


def test_weights_with_scales_are_multiplied_and_others_go_as_they_were():
    filled, report = li.fill(tree(), checkpoint(), RULES, on_unexpected="error")
    assert report.unused_rules == ()
    made = li.materialize(filled)["params"]["model"]["layers"]["0"]
    scales = np.kron([[1, 2], [3, 4]], np.ones((2, 2)))[:4, :3]
    want = (np.arange(12).reshape(4, 3) * scales).T
    np.testing.assert_array_equal(made["mlp"]["up_proj"]["kernel"], want)
    np.testing.assert_array_equal(made["input_layernorm"]["weight"], np.full(3, 5))


def test_scales_that_are_missing_are_an_error_and_no_cast():
    given = checkpoint()
    del given[SCALE]
    with pytest.raises(errors.FillError, match=f"tensor '{SCALE}' is missing") as caught:
        li.fill(tree(), given, RULES)
    assert str(caught.value).startswith("params/model/layers/0/mlp/up_proj/kernel: the model wants")


def test_a_checkpoint_that_is_not_quantized_is_filled_all_the_same():
    given = checkpoint()
    del given[SCALE]
    given["model.layers.0.mlp.up_proj.weight"] = np.arange(12, dtype="float32").reshape(4, 3)
    filled, _ = li.fill(tree(), given, RULES, on_unexpected="error")
    made = li.materialize(filled)["params"]["model"]["layers"]["0"]["mlp"]["up_proj"]["kernel"]
    np.testing.assert_array_equal(made, np.arange(12).reshape(4, 3).T)


def test_packed_weights_have_another_name():
    rules = li.maps.quantized(
        li.maps.LLAMA, li.Dequantize("mxfp4"), scale="weight_scale", weight="weight_packed"
    )
    name = "model.layers.0.mlp.up_proj"
    given = {
        f"{name}.weight_packed": np.full((4, 16), 0x22, np.uint8),
        f"{name}.weight_scale": np.full((4, 1), 128, np.uint8),
    }
    leaf = {"up_proj": {"kernel": jax.ShapeDtypeStruct((32, 4), "float32")}}
    filled, _ = li.fill({"params": {"model": {"layers": {"0": {"mlp": leaf}}}}}, given, rules)
    made = li.materialize(filled)["params"]["model"]["layers"]["0"]["mlp"]["up_proj"]["kernel"]
    np.testing.assert_array_equal(made, np.full((32, 4), 2.0))


def test_another_change_is_refused():
    with pytest.raises(errors.FillError, match="quantized: wanted a change such as Dequantize"):
        li.maps.quantized(li.maps.LLAMA, li.Transpose("a b -> b a"), scale="weight_scale")
