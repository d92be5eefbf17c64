"""Quantized tensors times their scales; torch and transformers are the oracles."""

import json
import math
import pickle
import re

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines import Counting, indices
from reading import everything
from with_torch import run_with_torch

import lazyinit as li
from lazyinit import errors
from lazyinit.rules.change import Frame, Grid
from lazyinit.tensors.memory import HeldTensor
from lazyinit.tensors.quantized import Scaled

zeros = jax.nn.initializers.zeros
TRANSFORMERS = """
import sys, numpy as np, torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
given, made = np.load(sys.argv[1]), {}
for name in {key.partition(" ")[0] for key in given}:
    parts = [torch.from_numpy(given[f"{name} {part}"]) for part in ("blocks", "scales")]
    for dtype in (torch.float32, torch.bfloat16):
        values = convert_moe_packed_tensors(*parts, dtype=dtype)
        made[f"{name} {dtype}"] = values.contiguous().view(torch.uint8).numpy()
np.savez(sys.argv[2], **made)
"""
FLOAT8 = (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3fnuz)


def made(change, *arrays):
    """Returns the source that a change makes of values and scales."""
    rows = tuple((HeldTensor(name, x),) for name, x in zip("vs", arrays, strict=True))
    ((source,),) = change.forward(Grid(rows), (None,)).rows
    return source


def finite_bytes(shape, dtype, seed=0):
    """Returns all kinds of values of a dtype of eight bits."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, shape, np.uint8).view(dtype)
    return np.where(np.isfinite(values.astype(np.float32)), values, np.ones((), dtype))


def spread(scales, block, shape):
    """Repeats scales over their blocks, as torch users write it."""
    held = torch.from_numpy(np.asarray(scales, np.float32))
    for axis, size in enumerate(block):
        held = held.repeat_interleave(size, axis)
    return held[tuple(slice(0, size) for size in shape)]


@pytest.mark.parametrize("values", [*FLOAT8, np.int8], ids=lambda x: np.dtype(x).name)
@pytest.mark.parametrize("to", ["float32", "bfloat16", "float16"])
def test_blocks_of_128_by_128_are_multiplied_as_deepseek_does(values, to):
    # https://github.com/deepseek-ai/DeepSeek-V3, inference/kernel.py, weight_dequant: the product
    # is one of float32, stored in the dtype of the result. The last blocks have fewer rows.
    shape, block = (300, 257), (128, 128)
    held = finite_bytes(shape, values)
    scales = np.random.default_rng(1).random((3, 3), np.float32)
    got = everything(made(li.Dequantize(block=block, dtype=to), held, scales))
    product = torch.from_numpy(held.astype(np.float32)) * spread(scales, block, shape)
    want = product.to(getattr(torch, to))
    assert got.dtype.name == to
    assert got.tobytes() == want.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("values", [*FLOAT8, np.int8], ids=lambda x: np.dtype(x).name)
@pytest.mark.parametrize("scale_dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(
    ("shape", "scales", "block", "given"),
    [
        ((4, 6), (), (4, 6), ()),
        ((4, 6), (1,), (4, 6), ()),
        ((4, 6), (1, 1), (4, 6), ()),
        ((4, 6), (4, 1), (1, 6), ()),
        ((4, 6), (4,), (1, 6), ()),
        ((4, 4), (4,), (1, 4), ()),
        ((4, 6), (1, 6), (4, 1), ()),
        ((4, 6), (4, 3), (1, 2), (2,)),
        ((4, 6), (4, 2), (1, 4), (4,)),
        ((3, 4, 6), (3, 4, 1), (1, 1, 6), ()),
        ((3, 4, 6), (3,), (1, 4, 6), ()),
        ((3, 4, 6), (3, 2, 3), (1, 3, 2), (3, 2)),
        ((5,), (1,), (5,), ()),
        ((), (), (), ()),
        ((0, 6), (1, 1), (1, 6), ()),
    ],
)
def test_scales_of_a_tensor_a_channel_a_group_or_a_block_are_told_by_their_shape(
    values, scale_dtype, shape, scales, block, given
):
    held = finite_bytes(shape, values, seed=2)
    by = np.asarray(np.random.default_rng(3).random(scales)).astype(scale_dtype)
    got = everything(made(li.Dequantize(block=given, dtype=scale_dtype), held, by))
    aligned = by.reshape(() if scales == (1,) else scales)
    aligned = aligned.reshape(aligned.shape + (1,) * (len(shape) - aligned.ndim))
    # As compressed-tensors computes it: in the dtype of the scales.
    kind = getattr(torch, scale_dtype)
    times = spread(aligned.astype(np.float32), block, shape).to(kind)
    want = torch.from_numpy(held.astype(np.float32)).to(kind) * times
    assert got.shape == shape
    assert got.tobytes() == want.reshape(-1).view(torch.uint8).numpy().tobytes()


@settings(max_examples=100)
@given(st.data())
def test_a_part_reads_its_own_values_and_the_scales_of_its_blocks(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    block = tuple(data.draw(st.integers(1, 4)) for _ in shape)
    counts = tuple(-(-n // b) for n, b in zip(shape, block, strict=True))
    values = Counting("v", finite_bytes(shape, np.int8, seed=4))
    scales = Counting("s", np.random.default_rng(5).random(counts, np.float32))
    source = Scaled(values, scales, block, np.dtype("float32"))
    index = data.draw(indices(shape))
    want = everything(source)[index]
    values.read_count = scales.read_count = 0
    got = source.read(index)
    assert got.tobytes() == want.tobytes()
    assert values.read_count == want.size
    touched = [
        len({place // b for place in range(part.start, part.stop)})
        for part, b in zip(index, block, strict=True)
    ]
    assert scales.read_count == (math.prod(touched) if want.size else 0)


@pytest.fixture(scope="module")
def gpt_oss():
    """Blocks and scales as GPT-OSS has them: experts, outputs, groups of 32."""
    rng = np.random.default_rng(6)
    blocks = rng.integers(0, 256, (2, 5, 3, 16), np.uint8)
    # Not 255: the specification says that it is NaN, and transformers makes infinity of it.
    scales = rng.integers(0, 255, (2, 5, 3), np.uint8)
    scales[0, 0] = [0, 127, 254]
    return blocks, scales


@pytest.fixture(scope="module")
def experts():
    """Blocks and scales of four experts, for each of two layers."""
    rng = np.random.default_rng(7)
    return [
        (
            rng.integers(0, 256, (4, 16, 2, 16), np.uint8),
            rng.integers(110, 140, (4, 16, 2), np.uint8),
        )
        for _ in range(2)
    ]


@pytest.fixture(scope="module")
def by_transformers(gpt_oss, experts, tmp_path_factory):
    """The bytes of what transformers makes of all these, by name and dtype: one process, once."""
    folder = tmp_path_factory.mktemp("transformers")
    given = {"one": gpt_oss, "expert0": experts[0], "expert1": experts[1]}
    named = {
        f"{name} {part}": x
        for name, pair in given.items()
        for part, x in zip(("blocks", "scales"), pair, strict=True)
    }
    np.savez(folder / "in.npz", **named)
    run_with_torch(TRANSFORMERS, folder / "in.npz", folder / "out.npz")
    return np.load(folder / "out.npz")


@pytest.mark.parametrize("to", ["float32", "bfloat16"])
def test_mxfp4_has_the_bits_that_transformers_makes(gpt_oss, to, by_transformers):
    blocks, scales = gpt_oss
    want = by_transformers[f"one torch.{to}"]
    source = made(li.Dequantize("mxfp4", dtype=to), blocks, scales)
    assert source.shape == (2, 5, 96)
    got = everything(source).transpose(0, 2, 1)  # transformers turns it so.
    assert got.tobytes() == want.tobytes()


def test_an_exponent_of_255_is_no_number(gpt_oss):
    blocks, scales = gpt_oss
    got = everything(made(li.Dequantize("mxfp4"), blocks, np.full_like(scales, 255)))
    assert np.isnan(got).all()


def test_mxfp4_with_flat_blocks_or_values_of_their_own_dtype_is_the_same(gpt_oss):
    blocks, scales = gpt_oss
    want = everything(made(li.Dequantize("mxfp4"), blocks, scales))
    flat = blocks.reshape(2, 5, 48)
    values = np.stack([flat & 15, flat >> 4], -1).view(ml_dtypes.float4_e2m1fn).reshape(2, 5, 96)
    exponents = scales.view(ml_dtypes.float8_e8m0fnu)
    for change, *arrays in (
        (li.Dequantize("mxfp4"), flat, scales),
        (li.Dequantize("mxfp4"), values, scales),
        (li.Dequantize("mxfp4"), values, exponents),
        (li.Dequantize(block=(32,)), values, exponents),
    ):
        assert everything(made(change, *arrays)).tobytes() == want.tobytes()


@given(st.data())
def test_a_part_of_mxfp4_is_the_part_of_all(gpt_oss, data):
    source = made(li.Dequantize("mxfp4"), *gpt_oss)
    index = data.draw(indices(source.shape))
    assert source.read(index).tobytes() == everything(source)[index].tobytes()


def test_layers_of_experts_are_stacked_turned_and_spread_over_eight_devices(
    experts, by_transformers, tmp_path
):
    tensors, path = {}, tmp_path / "t.safetensors"
    for n, (blocks, scales) in enumerate(experts):  # As GPT-OSS has them.
        tensors |= {f"h.{n}.up_blocks": blocks, f"h.{n}.up_scales": scales}
    safetensors.numpy.save_file(tensors, path)
    want = np.stack([by_transformers[f"expert{n} torch.float32"].view("f") for n in range(2)])
    change = [li.Dequantize("mxfp4"), li.Transpose("e o i -> e i o"), li.Stack(axis=0)]
    rules = [li.Rule("up", ("h.{n}.up_blocks", "h.{n}.up_scales"), change)]
    tree = {"up": li.LazyParam((2, 4, 64, 16), "float32", zeros)}
    filled, report = li.fill(tree, path, rules, on_unexpected="error")
    assert report.loaded == ("up",)
    sharding = jax.NamedSharding(jax.make_mesh((2, 4), ("x", "y")), jax.P(None, "x", None, "y"))
    array = li.materialize(filled, sharding=sharding)["up"]
    assert array.sharding == sharding
    np.testing.assert_array_equal(np.asarray(array), want)


def test_pairs_are_fused_to_one_kernel():
    arrays = {}
    for n, name in enumerate("qkv"):
        arrays[f"{name}.w"] = finite_bytes((4, 6), ml_dtypes.float8_e4m3fn, seed=n)
        arrays[f"{name}.s"] = np.float32(n + 0.5)
    change = [li.Dequantize(), li.Concat(axis=0)]
    rules = [li.Rule("qkv", ("q.w", "q.s", "k.w", "k.s", "v.w", "v.s"), change)]
    filled, _ = li.fill({"qkv": li.LazyParam((12, 6), "float32", zeros)}, arrays, rules)
    want = [arrays[f"{name}.w"].astype(np.float32) * arrays[f"{name}.s"] for name in "qkv"]
    np.testing.assert_array_equal(np.asarray(li.materialize(filled)["qkv"]), np.concatenate(want))


WEIGHTS = {
    "up.weight": np.arange(12).reshape(4, 3).astype(ml_dtypes.float8_e4m3fn),
    "up.weight_scale": np.array([[1], [2], [3], [4]], np.float32),
}
PAIR = ("**.weight", "**.weight_scale")
RULES = [li.Rule("**/kernel", PAIR, [li.Dequantize(), li.Transpose("o i -> i o")])]


def kernel(dtype, shape=(3, 4)):
    return {"up": {"kernel": li.LazyParam(shape, dtype, zeros)}}


def test_a_leaf_of_the_dtype_of_the_values_keeps_them_as_they_are():
    filled, report = li.fill(kernel("float8_e4m3fn"), WEIGHTS, RULES, on_cast="error")
    assert report.loaded == ("up/kernel",)
    got = np.asarray(li.materialize(filled)["up"]["kernel"])
    assert got.tobytes() == np.ascontiguousarray(WEIGHTS["up.weight"].T).tobytes()


@pytest.mark.parametrize("layers", [1, 2])
def test_a_leaf_of_four_bits_keeps_values_that_lie_in_bytes(gpt_oss, layers):
    tensors = {}
    for n in range(layers):
        tensors |= {f"{n}_blocks": gpt_oss[0] + np.uint8(n), f"{n}_scales": gpt_oss[1]}
    change = [li.Dequantize("mxfp4"), li.Transpose("e o i -> e i o"), li.Stack(0)]
    rules = [li.Rule("up", ("{n}_blocks", "{n}_scales"), change)]
    tree = {"up": li.LazyParam((layers, 2, 96, 5), "float4_e2m1fn", zeros)}
    filled, report = li.fill(tree, tensors, rules, on_cast="error")
    assert report.loaded == ("up",)
    got = everything(filled["up"].source).view(np.uint8)
    for n in range(layers):
        flat = tensors[f"{n}_blocks"].reshape(2, 5, 48)
        want = np.stack([flat & 15, flat >> 4], -1).reshape(2, 5, 96).transpose(0, 2, 1)
        np.testing.assert_array_equal(got[n], want)


def test_two_leaves_of_one_rule_are_kept_and_multiplied_each_by_its_own_dtype():
    tensors = ("up.weight", "up.weight_scale")
    rules = [li.Rule(("a", "b"), tensors, [li.Dequantize(), li.Split(axis=0)])]
    tree = {
        "a": li.LazyParam((2, 3), "float8_e4m3fn", zeros),
        "b": li.LazyParam((2, 3), "float32", zeros),
    }
    made = li.materialize(li.fill(tree, WEIGHTS, rules)[0])
    assert np.asarray(made["a"]).tobytes() == WEIGHTS["up.weight"][:2].tobytes()
    np.testing.assert_array_equal(made["b"], np.arange(6, 12).reshape(2, 3) * [[3], [4]])


def refused(rules, tensors=WEIGHTS, tree=None):
    with pytest.raises(errors.FillError) as caught:
        li.fill(tree or kernel("float32"), tensors, rules)
    return str(caught.value)


def test_missing_scales_are_named():
    message = refused(RULES, {"up.weight": WEIGHTS["up.weight"]})
    assert message.startswith("up/kernel: the model wants float32[3,4], tensor 'up.weight' holds")
    assert "; tensor 'up.weight_scale' is missing. " in message


@pytest.mark.parametrize("name", ["up.weight_scale", "up.weight_scale_inv", "up.weight_scales"])
@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, np.int8, ml_dtypes.float4_e2m1fn])
def test_quantized_values_are_never_taken_without_the_scales_that_lie_beside_them(name, dtype):
    tensors = {"up.weight": np.ones((4, 3), dtype), name: np.ones((4, 1), np.float32)}
    message = refused(li.TORCH, tensors)
    assert (
        f"; its values are to be multiplied by '{name}'. Take both tensors in one rule, with "
        "lazyinit.Dequantize, or open a folder whose config.json says how with "
        "lazyinit.open_checkpoint(folder, dequantize=True). " in message
    )
    filled, _ = li.fill(kernel(dtype), tensors, li.TORCH)  # A leaf that keeps them needs none.
    assert np.asarray(li.materialize(filled)["up"]["kernel"]).all()


def test_values_of_eight_bits_that_have_no_scales_are_only_cast():
    tensors = {"up.weight": WEIGHTS["up.weight"], "up.weight.more_scale.s": np.ones(3)}
    filled, _ = li.fill(kernel("float32"), tensors, li.TORCH)
    want = np.arange(12).reshape(4, 3).T
    np.testing.assert_array_equal(li.materialize(filled)["up"]["kernel"], want)


@pytest.mark.parametrize(
    ("change", "values", "scales", "message"),
    [
        (
            li.Dequantize(),
            np.ones((4, 6), np.int8),
            np.ones((2, 3), np.float32),
            "Dequantize(): wanted scales with one place, or as many, along each axis for the "
            "mapping:v of shape [4, 6], got [2, 3] in the mapping:s. Say how many values share one: "
            "block=(128, 128)",
        ),
        (
            li.Dequantize(block=(2, 2)),
            np.ones((4, 6), np.int8),
            np.ones((2, 2), np.float32),
            "Dequantize(block=(2, 2)): wanted scales of shape [2, 3] for the mapping:v of shape "
            "[4, 6], got [2, 2] in the mapping:s",
        ),
        (
            li.Dequantize(block=(2, 2)),
            np.ones(6, np.int8),
            np.ones(3, np.float32),
            "Dequantize(block=(2, 2)): wanted scales of 2 axes for the mapping:v of shape [6], got "
            "[3] in the mapping:s",
        ),
        (
            li.Dequantize(),
            np.ones((4, 6), np.int8),
            np.ones((4, 6, 1), np.float32),
            "Dequantize(): wanted scales with one place, or as many, along each axis for the "
            "mapping:v of shape [4, 6], got [4, 6, 1] in the mapping:s. Say how many values share "
            "one: block=(128, 128)",
        ),
        (
            li.Dequantize(),
            np.ones((4, 6), np.int8),
            np.ones((4, 1), np.int32),
            "Dequantize(): wanted scales of float32, float16, bfloat16, float64, float8_e4m3fn or "
            "float8_e8m0fnu, or exponents of uint8, got int32[4,1] in the mapping:s",
        ),
        (
            li.Dequantize(),
            np.ones((4, 6), np.uint8),
            np.ones((4, 1), np.float32),
            "Dequantize(): wanted values of float8, float4 or int8, got uint8[4,6] in the mapping:v",
        ),
        (
            li.Dequantize(),
            np.ones((4, 6), np.float32),
            np.ones((4, 1), np.float32),
            "Dequantize(): wanted values of float8, float4 or int8, got float32[4,6] in the "
            "mapping:v",
        ),
        (
            li.Dequantize("mxfp4"),
            np.ones((4, 15), np.uint8),
            np.ones((4, 1), np.uint8),
            "Dequantize('mxfp4'): wanted blocks of uint8[..., n, 16] or uint8[..., 16 n] for scales "
            "of shape [4, 1] in the mapping:s, got uint8[4,15] in the mapping:v",
        ),
        (
            li.Dequantize("mxfp4"),
            np.ones((4, 16), np.int8),
            np.ones((4, 1), np.uint8),
            "Dequantize('mxfp4'): wanted blocks of uint8[..., n, 16] or uint8[..., 16 n] for scales "
            "of shape [4, 1] in the mapping:s, got int8[4,16] in the mapping:v",
        ),
    ],
)
def test_values_and_scales_that_do_not_go_together_are_refused(change, values, scales, message):
    with pytest.raises(errors.FillError, match=f"^{re.escape(message)}$"):
        made(change, values, scales)


def test_scales_of_another_shape_are_a_mismatch_of_the_leaf():
    tensors = {**WEIGHTS, "up.weight_scale": np.ones((3, 1), np.float32)}
    message = refused(RULES, tensors)
    assert message.startswith("up/kernel: the model wants float32[3,4], tensors 'up.weight', 'up.")
    assert "wanted scales with one place, or as many, along each axis" in message


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: li.Dequantize("mxfp"),
            "Dequantize: wanted a format among 'scaled', 'mxfp4', got 'mxfp'; did you mean 'mxfp4'",
        ),
        (
            lambda: li.Dequantize(block=(0, 2)),
            "Dequantize('scaled'): wanted block= to say for 'scaled' how many values along each of "
            "the last axes share a scale, as in block=(128, 128), got (0, 2)",
        ),
        (lambda: li.Dequantize("mxfp4", block=(32,)), "Dequantize('mxfp4'): wanted block= to say"),
        (
            lambda: li.Dequantize(dtype="int8"),
            "Dequantize: wanted a dtype of floats, such as 'bfloat16', got 'int8'",
        ),
        (lambda: li.Dequantize(dtype="quick"), "Dequantize: wanted a dtype of floats"),
        (
            lambda: li.Rule("a", "b", li.Dequantize()),
            "wanted pairs of tensors, values and scales, got 1. List both patterns in the rule: "
            "('**.weight', '**.weight_scale')",
        ),
    ],
)
def test_a_change_that_is_written_wrongly_says_so(make, message):
    with pytest.raises(errors.FillError, match=re.escape(message)):
        make()


def test_it_is_not_read_backwards():
    for leaf in ("float32", "float8_e4m3fn"):
        tree = {"up": {"kernel": np.ones((3, 4), leaf)}}
        with pytest.raises(
            errors.FillError, match="which would need new scales, and a leaf does not tell"
        ):
            li.save(tree, "nowhere", rules=RULES)
    change = li.Dequantize()
    for each in (change, change.kept()):
        with pytest.raises(errors.FillError, match="can be read backwards, got Dequantize"):
            each.backward(Grid(()), Frame(2, False))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (li.Dequantize(), "Dequantize()"),
        (li.Dequantize(block=[128, 128]), "Dequantize(block=(128, 128))"),
        (li.Dequantize("mxfp4", dtype="bfloat16"), "Dequantize('mxfp4', dtype='bfloat16')"),
    ],
)
def test_it_is_a_value_that_prints_as_it_is_written(change, text):
    assert repr(change) == text
    assert eval(text, {"Dequantize": li.Dequantize}) == change == pickle.loads(pickle.dumps(change))
    assert len({change, pickle.loads(pickle.dumps(change))}) == 1


def test_what_a_leaf_is_made_of_says_so():
    filled, report = li.fill(kernel("float32"), WEIGHTS, RULES)
    leaf = filled["up"]["kernel"]
    assert repr(leaf.source) == "(the mapping:up.weight * the mapping:up.weight_scale).T"
    assert leaf.source.names == ("up.weight", "up.weight_scale")
    assert report.provenance["up/kernel"].stored[0].tensors == leaf.source.names
    assert json.loads(report.provenance.to_json())
