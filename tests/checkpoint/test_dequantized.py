"""Quantized folders as numbers: the libraries that wrote them are the oracles."""

import re
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines import indices
from quantized_folders import (
    CASES,
    config_of_case,
    everything,
    numbers_of,
    tensors_of,
    write,
    written,
)

import lazyinit as li
from lazyinit import errors
from lazyinit.checkpoint.config import quantization_of
from lazyinit.checkpoint.dequantized import dequantized
from lazyinit.make import limits
from lazyinit.make.read import cut_up
from lazyinit.tensors import quantized
from lazyinit.tensors.memory import HeldTensor, open_tree


def as_numbers(case, tensors=None, **changed):
    """Returns the folder of a case as numbers, some of its tensors and configuration changed."""
    said = {**config_of_case(case)["quantization_config"], **changed}
    return dequantized(open_tree({**tensors_of(case), **(tensors or {})}), said)


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_those_of_the_library_bit_for_bit(case, tmp_path):
    opened = li.open_checkpoint(written(tmp_path, case), dequantize=True)
    name, want = numbers_of(case)
    got = everything(opened[name])
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    if "fp4_" in case and "bnb" in case:  # Its kernel has a zero below zero, its table has none.
        got, want = got + got.dtype.type(0), want + want.dtype.type(0)
    assert got.tobytes() == want.tobytes()
    method = quantization_of(config_of_case(case))["quant_method"]
    assert opened.dequantized == method
    # Of all that lies beside it, only what is no part of a weight is left.
    assert set(opened) - {name} <= {"m.experts.down_proj_bias", "n.weight"}


@pytest.mark.parametrize("case", CASES)
def test_a_part_is_the_part_of_all_however_many_values_are_computed_at_a_time(case, monkeypatch):
    source = as_numbers(case)[numbers_of(case)[0]]
    whole = everything(source)
    monkeypatch.setattr(quantized, "_TOGETHER", 37)

    @settings(max_examples=15, deadline=None)
    @given(indices(source.shape))
    def check(index):
        got = source.read(index)
        assert (got.shape, got.tobytes()) == (whole[index].shape, whole[index].tobytes())

    check()
    assert set(source.names) <= set(tensors_of(case))


class Reads:
    """Counts the elements that are read of each tensor of a checkpoint."""

    def __init__(self, monkeypatch):
        self.counts = {}
        real = HeldTensor.read

        def read(source, index):
            values = real(source, index)
            self.counts[source.name] = self.counts.get(source.name, 0) + values.size
            return values

        monkeypatch.setattr(HeldTensor, "read", read)


# The tensor of values, elements in one of its words, and elements of the weight that share a scale.
SHARES = {
    "ct_int4_group": ("model.layers.0.q_proj.weight_packed", 8, 32),
    "ct_int4_group_zero": ("model.layers.0.q_proj.weight_packed", 8, 16),
    "ct_nvfp4": ("model.layers.0.q_proj.weight_packed", 2, 16),
    "ct_mxfp4": ("model.layers.0.q_proj.weight_packed", 2, 32),
    "ct_int8": ("model.layers.0.q_proj.weight", 1, 64),
    "bnb_nf4_float16": ("l.q.weight", 2, 64),
    "gptq_int4": ("l.q.qweight", 8, 32),
}


@pytest.mark.parametrize("case", SHARES)
def test_a_shard_reads_the_words_and_the_scales_of_its_own_blocks(case, monkeypatch):
    values, per_word, per_scale = SHARES[case]
    source = as_numbers(case)[numbers_of(case)[0]]
    rows, _ = source.shape
    reads = Reads(monkeypatch)
    for row in range(0, rows, rows // 4):
        reads.counts.clear()
        got = source.read((slice(row, row + rows // 4), slice(0, per_scale)))
        assert reads.counts[values] == got.size // per_word
        scales = [n for n in reads.counts if n.endswith(("weight_scale", "absmax", ".scales"))]
        assert [reads.counts[n] for n in scales] == [rows // 4]


LARGE = {
    "fp8": {
        "l.q.weight": np.zeros((2048, 2048), ml_dtypes.float8_e4m3fn),
        "l.q.weight_scale_inv": np.ones((512, 256), "float32"),
    },
    "gptq_int4": {
        "l.q.qweight": np.zeros((256, 2048), "int32"),
        "l.q.qzeros": np.zeros((64, 256), "int32"),
        "l.q.scales": np.ones((64, 2048), "float16"),
        "l.q.g_idx": np.arange(2048, dtype="int32") // 32,
    },
    "ct_mxfp4": {
        "model.layers.0.q_proj.weight_packed": np.zeros((2048, 1024), "uint8"),
        "model.layers.0.q_proj.weight_scale": np.full((2048, 64), 127, "uint8"),
    },
}


@pytest.mark.parametrize("case", LARGE)
def test_a_piece_takes_little_memory_beside_its_numbers(case):
    source = as_numbers(case, LARGE[case])[numbers_of(case)[0]]
    (piece,) = cut_up(source, "l")
    to = {piece.block: np.ones(source.shape, "float32")}
    assert to[piece.block].nbytes == limits.PIECE
    piece.read_into(to)  # What is remembered by now is not counted.
    tracemalloc.start()
    try:
        piece.read_into(to)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < limits.READ_BYTES


def stacked_experts(folder):
    """Writes experts of two layers in words of four bits; returns the folder and their numbers."""
    rng = np.random.default_rng(0)
    tensors, want = {}, np.zeros((2, 4, 64, 16), "float32")
    for layer in range(2):
        for expert in range(4):
            q = rng.integers(0, 16, (16, 64))
            words = (
                q.reshape(16, 8, 8).astype("uint32") << (4 * np.arange(8, dtype="uint32"))
            ).sum(-1, dtype="uint32")
            scales = rng.random((16, 2)).astype(ml_dtypes.bfloat16)
            stem = f"layers.{layer}.experts.{expert}.up"
            tensors |= {
                f"{stem}.weight_packed": words.view("int32"),
                f"{stem}.weight_scale": scales,
                f"{stem}.weight_shape": np.array([16, 64]),
            }
            product = (q - 8) * np.repeat(scales.astype("float32"), 32, 1)
            want[layer, expert] = product.T.astype(ml_dtypes.bfloat16)
    return write(folder, tensors, config_of_case("ct_int4_group")), want


@pytest.mark.parametrize("axis_type", jax.sharding.AxisType.__members__.values(), ids=str)
def test_layers_of_experts_are_stacked_turned_and_spread_over_eight_devices(tmp_path, axis_type):
    folder, want = stacked_experts(tmp_path)
    layout = [li.Transpose("o i -> i o"), li.Stack(0), li.Stack(1)]
    rule = li.Rule("up", tuple(f"layers.{{n}}.experts.{e}.up.weight" for e in range(4)), layout)
    tree = {"up": li.LazyParam((2, 4, 64, 16), "float32", None)}
    opened = li.open_checkpoint(folder, dequantize=True)
    filled, report = li.fill(tree, opened, [rule], on_unexpected="error")
    assert "dequantized from compressed-tensors" in str(report)
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(axis_type,) * 2)
    sharding = jax.NamedSharding(mesh, jax.P(None, "x", None, "y"))
    made = li.materialize(filled, sharding=sharding)["up"]
    assert made.sharding == sharding
    np.testing.assert_array_equal(np.asarray(made), want)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        ("ct_int4_group", "int4"),
        ("ct_int8", "int8"),
        ("ct_float8", "float8_e4m3fn"),
        ("ct_nvfp4", "float4_e2m1fn"),
        ("fp8", "float8_e4m3fn"),
        ("mxfp4", "float4_e2m1fn"),
        ("bnb_int8", "int8"),
        ("gptq_int4", "uint4"),
        ("awq", "uint4"),
    ],
)
def test_a_leaf_of_the_dtype_of_the_values_keeps_them_as_they_are(case, dtype):
    opened = as_numbers(case)
    name, want = numbers_of(case)
    tree = {"w": li.LazyParam(want.shape[::-1], dtype, None)}
    axes = "a b c"[: 2 * want.ndim - 1]
    rules = [li.Rule("w", name, li.Transpose(f"{axes} -> {axes[::-1]}"))]
    filled, report = li.fill(tree, opened, rules, on_cast="error")
    assert report.cast == ()
    held = everything(filled["w"].source)
    assert held.dtype == jnp.dtype(dtype)
    # Each number is its value times a scale: of values that are zero none is anything else.
    numbers = held.astype("float32") != 0
    if "gptq" not in case and "awq" not in case:
        np.testing.assert_array_equal(numbers, want.T.astype("float32") != 0)
    assert len(np.unique(held.astype("float32"))) <= 256


def test_groups_in_an_order_of_their_own_are_those_of_compressed_tensors_before_0_14():
    # weight_g_idx says of each column which group it is of; -1 anywhere, that there is no order.
    order = np.random.default_rng(1).permutation(np.arange(64) // 32).astype("int32")
    stem = "model.layers.0.q_proj.weight"
    plain, tensors = everything(as_numbers("ct_int4_group")[stem]), tensors_of("ct_int4_group")
    scales = tensors[f"{stem}_scale"].astype("float32")
    values = plain.astype("float32") / np.repeat(scales, 32, 1)
    got = everything(as_numbers("ct_int4_group", {f"{stem}_g_idx": order})[stem])
    want = np.round(values) * scales[:, order]
    np.testing.assert_array_equal(got, want.astype(ml_dtypes.bfloat16))
    for none in (np.full(64, -1, "int32"), np.arange(64, dtype="int64") // 32):
        same = everything(as_numbers("ct_int4_group", {f"{stem}_g_idx": none})[stem])
        assert same.tobytes() == plain.tobytes()


def test_zero_points_of_gptq_v2_are_stored_as_they_are():
    v1, v2 = (as_numbers("gptq_int4", checkpoint_format=form) for form in ("gptq", "gptq_v2"))
    zeros = tensors_of("gptq_int4")["l.q.qzeros"].view("uint32")
    scales = np.repeat(tensors_of("gptq_int4")["l.q.scales"].astype("float32"), 32, 0).T
    fields = (zeros[:, :, None] >> (4 * np.arange(8, dtype="uint32"))) & 15
    less = np.repeat(((fields + 1) % 16).astype(int) - fields, 32, 0).reshape(64, 32).T
    difference = everything(v2["l.q.weight"]).astype("float32") - everything(
        v1["l.q.weight"]
    ).astype("float32")
    np.testing.assert_allclose(difference, less * scales, atol=2e-4)


def test_nested_scales_of_many_blocks_are_read_by_rows():
    # https://github.com/bitsandbytes-foundation/bitsandbytes, functional.py, dequantize_blockwise.
    rng = np.random.default_rng(2)
    case, name = "bnb_nf4_nested_float16", "l.q.weight"
    tensors, rows, columns = tensors_of(case), 40, 640
    state_name = f"{name}.quant_state.bitsandbytes__nf4"
    state = tensors[state_name].tobytes().replace(b"[8, 64]", b"[40, 640]")
    codes = rng.integers(0, 256, rows * columns // 2, np.uint8)
    absmax = rng.integers(0, 256, rows * columns // 64, np.uint8)
    nested = rng.random(2, np.float32)
    changed = {
        name: codes[:, None],
        f"{name}.absmax": absmax,
        f"{name}.nested_absmax": nested,
        state_name: np.frombuffer(state, np.uint8),
    }
    source = as_numbers(case, changed)[name]
    offset = np.float32(eval(state.decode().replace("null", "None"))["nested_offset"])
    table, fine = tensors[f"{name}.quant_map"], tensors[f"{name}.nested_quant_map"]
    scales = fine[absmax] * np.repeat(nested, 256)[: absmax.size] + offset
    flat = table[np.stack([codes >> 4, codes & 15], -1).ravel()] * np.repeat(scales, 64)
    want = flat.reshape(rows, columns).astype(np.float16)
    index = (slice(3, 17), slice(65, 400))
    assert source.read(index).tobytes() == want[index].tobytes()
    assert everything(source).tobytes() == want.tobytes()


def test_scales_of_activations_and_of_the_cache_are_left_out():
    extra = {"model.layers.0.q_proj.input_scale": np.ones(1, "float32")}
    extra |= {"model.layers.0.self_attn.k_scale": np.ones(1, "float32")}
    assert list(as_numbers("ct_float8", extra)) == ["model.layers.0.q_proj.weight"]


def test_modules_of_groups_that_differ_are_told_by_name_then_pattern_then_class():
    said = config_of_case("ct_int4_group")["quantization_config"]
    group = said["config_groups"]["group_0"]
    other = {**group, "weights": {**group["weights"], "group_size": 16}}
    stem = "model.layers.0.q_proj"

    def numbers(**targets):
        groups = {n: {**(group if "g" in n else other), "targets": t} for n, t in targets.items()}
        return as_numbers("ct_int4_group", config_groups=groups)[f"{stem}.weight"]

    for targets in (
        {"o": ["Linear"], "g": [stem]},
        {"o": ["re:.*q_proj"], "g": [stem]},
        {"o": ["Linear"], "g": ["re:.*q_proj"]},
        {"g": ["Linear"], "o": ["re:.*k_proj"]},
        {"g": ["Linear"], "g2": ["Embedding"]},
    ):
        assert numbers(**targets).shape == (8, 64)
    for targets, count in (({"g": ["Linear"], "o": ["Embedding"]}, 2), ({"g": ["re:.*k"]}, 0)):
        with pytest.raises(errors.CheckpointError) as caught:
            numbers(**targets)
        assert f"how '{stem}' is quantized, got '{count} that fit'. Fetch" in str(caught.value)


STEM = "model.layers.0.q_proj.weight"
STATE = "l.q.weight.quant_state.bitsandbytes__nf4"
# Signaling ones, of which a comparison or a cast in NumPy warns.
_NANS = np.full(64, 0x7FA00000, "u4").view("f4")


def state(**changed):
    import json

    held = json.loads(tensors_of("bnb_nf4_float16")[STATE].tobytes())
    return np.frombuffer(json.dumps({**held, **changed}).encode(), np.uint8)


WRONG = [
    # A tensor that is missing, or of another shape or dtype.
    ("ct_int4_group", {f"{STEM}_scale": None}, {}, "wanted its 'weight_scale' beside it"),
    ("ct_int4_group", {f"{STEM}_shape": None}, {}, "wanted its 'weight_shape' beside it"),
    ("ct_nvfp4", {f"{STEM}_global_scale": None}, {}, "wanted its 'weight_global_scale' beside it"),
    ("fp8", {"l.q.weight_scale_inv": None}, {}, "wanted its 'scale_inv' beside it, got no other"),
    ("ct_float8", {f"{STEM}_scale": None}, {}, "wanted its 'weight_scale' beside it, got no other"),
    ("ct_int8", {f"{STEM}_scale": None}, {}, "wanted its 'weight_scale' beside it, got no other"),
    ("mxfp4", {"m.experts.down_proj_scales": None}, {}, "wanted its 'scales' beside it"),
    ("gptq_int4", {"l.q.qzeros": None}, {}, "wanted its 'qzeros' beside it"),
    ("gptq_int4", {"l.q.g_idx": _NANS}, {}, "wanted int32 or int64, got float32[64]"),
    ("ct_int4_group", {f"{STEM}_g_idx": _NANS}, {}, "wanted int32 or int64, got float32[64]"),
    ("bnb_nf4_float16", {STATE: _NANS}, {}, "wanted uint8, got float32[64]"),
    ("bnb_int8", {"l.q.weight_format": _NANS}, {}, "wanted uint8 or int8, got float32[64]"),
    ("awq", {"l.q.scales": None}, {}, "wanted its 'scales' beside it"),
    ("bnb_nf4_float16", {"l.q.weight.absmax": None}, {}, "wanted its 'absmax' beside it"),
    ("bnb_nf4_float16", {STATE: None}, {}, "wanted its 'quant_state.bitsandbytes__nf4' beside it"),
    ("bnb_int8", {"l.q.SCB": None}, {}, "wanted its 'SCB' beside it"),
    ("fp8", {"l.q.weight_scale_inv": np.ones((2, 2), "f4")}, {}, "wanted scales of shape [2, 3]"),
    ("ct_int4_group", {f"{STEM}_scale": np.ones((8, 3), "f2")}, {}, "scales of shape [8, 2]"),
    (
        "ct_int4_group",
        {f"{STEM}_scale": np.ones((8, 2), "i4")},
        {},
        "wanted floats, got int32[8,2]",
    ),
    ("ct_int8", {f"{STEM}_scale": np.ones((8, 1), "u1")}, {}, "wanted floats, got uint8[8,1]"),
    ("ct_int4_group", {f"{STEM}_shape": np.array([8, 80])}, {}, "wanted the shape of values in"),
    (
        "ct_int4_group_zero",
        {f"{STEM}_zero_point": np.ones((16, 4), "i1")},
        {},
        "wanted int32[2, 4]",
    ),
    (
        "ct_int4_group",
        {f"{STEM}_zero_point": np.ones((1, 2), "i4")},
        {},
        "wanted no such tensor, as",
    ),
    ("ct_int4_group", {f"{STEM}_g_idx": np.ones(3, "i4")}, {}, "wanted int32 or int64[64], got"),
    ("ct_int4_group", {f"{STEM}_g_idx": np.full(64, 2, "i4")}, {}, "wanted groups from 0 to 1"),
    (
        "ct_int4_group",
        {f"{STEM}_packed": np.ones((8, 8), "u1")},
        {},
        "wanted values in words, int32",
    ),
    ("ct_int4_group", {STEM: np.ones((8, 64), "f4")}, {}, "wanted it to be the only tensor f"),
    ("ct_nvfp4", {f"{STEM}_scale": np.ones((8, 4), "f4")}, {}, "wanted float8_e4m3fn[8, 4], got f"),
    ("ct_nvfp4", {f"{STEM}_global_scale": np.ones(2, "f4")}, {}, "wanted one number, float32[1]"),
    ("ct_nvfp4", {f"{STEM}_packed": np.ones((8, 8), "i4")}, {}, "wanted two values to a byte"),
    ("ct_mxfp4", {f"{STEM}_scale": np.ones((8, 1), "u1")}, {}, "wanted uint8 or float8_e8m0fnu[8,"),
    ("ct_int8", {STEM: np.ones((8, 64), "f4")}, {}, "wanted values of float8 or int8, got float32"),
    (
        "fp8",
        {"l.q.weight": np.ones((8, 24), "f4")},
        {},
        "wanted values of float8, got float32[8,24]",
    ),
    (
        "fp8",
        {"l.q.weight": np.ones(8, "V1").view("i1").view(ml_dtypes.float8_e4m3fn)},
        {},
        "two axes",
    ),
    ("mxfp4", {"m.experts.down_proj_blocks": np.ones((2, 6, 32), "u1")}, {}, "blocks of 16 bytes"),
    ("bnb_int8", {"l.q.weight": np.ones((8, 2, 2), "i1")}, {}, "wanted values int8[rows, columns]"),
    ("bnb_int8", {"l.q.weight_format": np.array(1, "u1")}, {}, "stands for values in rows, got 1"),
    ("bnb_nf4_float16", {"l.q.weight": np.ones((255, 1), "u1")}, {}, "wanted 256 bytes for values"),
    ("bnb_nf4_float16", {"l.q.weight.quant_map": np.ones(15, "f4")}, {}, "wanted float32[16], got"),
    ("bnb_nf4_float16", {STATE: np.zeros(9, "u1")}, {}, "wanted bytes of JSON"),
    ("bnb_nf4_float16", {STATE: np.frombuffer(b"[]", "u1")}, {}, "wanted a JSON object, got []"),
    ("bnb_nf4_float16", {STATE: state(quant_type="fp4")}, {}, "wanted the quant_type in its name"),
    ("bnb_nf4_float16", {STATE: state(shape=[-1])}, {}, "wanted a shape, got [-1]"),
    ("bnb_nf4_float16", {STATE: state(shape=[1 << 62])}, {}, "wanted a shape of fewer than 2**60"),
    ("bnb_nf4_float16", {STATE: state(dtype="int8")}, {}, "wanted dtype float32, float16 or bfl"),
    ("bnb_nf4_float16", {STATE: state(blocksize=0)}, {}, "even number above 0 as blocksize, got 0"),
    (
        "bnb_nf4_float16",
        {STATE: state(nested_offset="x", nested_blocksize=2)},
        {},
        "wanted a number as nested_offset",
    ),
    (
        "bnb_nf4_float16",
        {STATE: state(nested_offset=1, nested_blocksize=2)},
        {},
        "if and only if there is ne",
    ),
    (
        "gptq_int4",
        {"l.q.qweight": np.ones((8, 32), "f4")},
        {},
        "words, int32[in, out], got float32",
    ),
    (
        "awq",
        {"l.q.qweight": np.ones((8, 2), "f4")},
        {},
        "wanted values in words, int32[in, out / 8]",
    ),
    ("gptq_int4", {"l.q.g_idx": np.full(64, 9, "i4")}, {}, "wanted groups from 0 to 1, got 9"),
    # A configuration that lies.
    ("fp8", {}, {"weight_block_size": [8, 8]}, "wanted scales of shape [1, 3] for values [8, 24]"),
    ("fp8", {}, {"weight_block_size": "x"}, "wanted a weight_block_size of two sizes, got 'x'"),
    ("fp8", {}, {"expert_dtype": "fp4"}, "experts are of 'fp4'"),
    (
        "gptq_int4",
        {},
        {"bits": 8},
        "wanted float16 or bfloat16 or float32[1, 32], got float16[2,32]",
    ),
    ("gptq_int4", {}, {"bits": 3}, "wanted bits among 2, 4, 8, got 3"),
    ("gptq_int4", {}, {"group_size": "x"}, "wanted a group_size, got 'x'"),
    ("gptq_int4", {}, {"format": "marlin"}, "the format 'marlin' is not among gptq, gptq_v2"),
    ("gptq_int4", {}, {"dynamic": {"a": {}}}, "modules differ in how they are quantized"),
    ("awq", {}, {"version": "gemv"}, "the format 'gemv' is not among gemm"),
    ("awq", {}, {"zero_point": False}, "wanted zero points, got zero_point false"),
    ("ct_int8", {}, {"config_groups": 3}, "to say how weights are quantized, got 3"),
    ("ct_int8", {}, {"format": "marlin-24"}, "the format 'marlin-24' is not among"),
    ("ct_int8", {}, {"sparsity_config": {"format": "sparse-bitmask"}}, "weights are sparse"),
    ("ct_int8", {}, {"transform_config": {"u": 1}}, "weights are rotated"),
    (
        "ct_int8",
        {},
        {"format": "pack-quantized"},
        "the tensor of a weight in the format 'pack-quan",
    ),
    ("ct_int8", {}, {"quant_method": "hqq"}, "says quant_method 'hqq': wanted a method among awq"),
    ("ct_int8", {}, {"quant_method": ["a"]}, "says quant_method ['a']: wanted a method among awq"),
    ("ct_int8", {}, {"quant_method": "mxfp4"}, "is quantized in another way. Fetch the folder a"),
    (
        "gptq_int4",
        {},
        {"quant_method": "fp8"},
        "tensor 'l.q.qweight', int32[8,32], is quantized in",
    ),
]


@pytest.mark.parametrize(("case", "tensors", "changed", "message"), WRONG)
def test_what_does_not_go_together_is_one_error_that_names_it(case, tensors, changed, message):
    held = {n: x for n, x in {**tensors_of(case), **tensors}.items() if x is not None}
    said = {**config_of_case(case)["quantization_config"], **changed}
    with pytest.raises(errors.CheckpointError, match=f"^the mapping: (.|\n)*{re.escape(message)}"):
        dequantized(open_tree(held), said)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_bits": 3}, "wanted config.json to say num_bits of 2, 4 or 8, got 3"),
        ({"type": "float"}, "wanted config.json to say weights of 4 bits, int, as the tensor is"),
        ({"strategy": "token"}, "wanted config.json to say a strategy among tensor, channel, gro"),
        ({"group_size": 16}, "wanted scales of shape [8, 4] for values [8, 64], got bfloat16[8,2]"),
        ({"num_bits": 8}, "wanted the shape of values in [8, 8], got (8, 64)"),
    ],
)
def test_weights_that_the_groups_of_a_configuration_describe_wrongly_are_named(changed, message):
    said = config_of_case("ct_int4_group")["quantization_config"]
    group = said["config_groups"]["group_0"]
    groups = {"group_0": {**group, "weights": {**group["weights"], **changed}}}
    with pytest.raises(errors.CheckpointError, match=f"{re.escape(STEM)}_.*{re.escape(message)}"):
        as_numbers("ct_int4_group", config_groups=groups)


@pytest.mark.parametrize("targets", [["re:("], 3, [3]])
def test_targets_that_are_none_are_refused(targets):
    group = config_of_case("ct_int4_group")["quantization_config"]["config_groups"]["group_0"]
    with pytest.raises(errors.CheckpointError, match="wanted config.json to say"):
        as_numbers("ct_int4_group", config_groups={"g": {**group, "targets": targets}})


def test_a_configuration_that_says_quantized_of_plain_tensors_is_refused():
    plain = open_tree({"l.q.weight": np.ones((2, 3), "float32")})
    message = (
        "the mapping: config.json says quant_method 'gptq', but none of the 1 tensors is quantized "
        "in that way. If they are plain numbers, remove quantization_config from config.json. If "
    )
    with pytest.raises(errors.CheckpointError, match=re.escape(message)):
        dequantized(plain, config_of_case("gptq_int4")["quantization_config"])


CACHE = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
ATTENTION = {"targets": ["LlamaAttention"], "weights": None, "input_activations": CACHE}


@pytest.mark.parametrize(
    "groups",
    [
        {"config_groups": {}},
        {},
        {"config_groups": {"group_0": ATTENTION}},
        {"config_groups": {"group_0": ATTENTION}, "kv_cache_scheme": None},
    ],
)
def test_where_the_cache_or_activations_alone_are_quantized_all_is_as_it_is(groups, tmp_path):
    said = {"quant_method": "compressed-tensors", "format": "dense", "kv_cache_scheme": CACHE}
    tensors = {"l.q.weight": np.ones((2, 3), "float32")}
    tensors |= {f"l.self_attn.{x}_scale": np.ones(1, "float32") for x in "kv"}
    folder = write(tmp_path / "f", tensors, {"quantization_config": {**said, **groups}})
    opened = li.open_checkpoint(folder, dequantize=True)
    assert (set(opened), opened.dequantized) == (set(tensors), "")
    li.save(tensors, tmp_path / "again", like=folder)  # Its configuration is true of them.
    packed = {"l.q.weight_packed": np.ones((2, 3), "int32")}
    with pytest.raises(errors.CheckpointError, match="'l.q.weight_packed'.*is quantized in anoth"):
        dequantized(open_tree({**tensors, **packed}), {**said, **groups})


def test_groups_that_quantize_no_weights_say_nothing_of_weights():
    said = config_of_case("ct_int4_group")["quantization_config"]
    groups = {"group_1": ATTENTION, **said["config_groups"]}
    source = as_numbers("ct_int4_group", config_groups=groups)[STEM]
    assert everything(source).tobytes() == numbers_of("ct_int4_group")[1].tobytes()


def test_all_weights_that_are_wrong_are_named_at_once():
    tensors = {f"{n}.q.qweight": np.ones((8, 32), "i4") for n in "ab"}
    with pytest.raises(errors.CheckpointError) as caught:
        dequantized(open_tree(tensors), {"quant_method": "gptq", "bits": 4, "group_size": 32})
    assert "'a.q.qweight'" in str(caught.value)
    assert "'b.q.qweight'" in str(caught.value)


def test_a_folder_without_a_configuration_is_not_guessed(tmp_path):
    folder = written(tmp_path / "f", "gptq_int4")
    (folder / "config.json").write_text("{}")
    message = f"{folder}/model.safetensors: dequantize=True wants a folder on this machine whose config.json has a q"
    with pytest.raises(errors.CheckpointError, match=re.escape(message)):
        li.open_checkpoint(folder, dequantize=True)


def test_a_configuration_may_lie_within_another_and_be_old():
    said = {"quant_method": "fp8"}
    assert quantization_of({"text_config": {"quantization_config": said}}) == said
    assert quantization_of({"compression_config": {"config_groups": {}}}) == {"config_groups": {}}
    assert quantization_of({"quantization_config": "fp8"}) == {"quant_method": "fp8"}
    assert quantization_of({"model_type": "llama", "rope": {"a": 1}}) == {}
    case = config_of_case("bnb_int8")["quantization_config"]
    old = {key: value for key, value in case.items() if key != "quant_method"}
    assert dequantized(open_tree(tensors_of("bnb_int8")), old).dequantized == "bitsandbytes"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 70) | st.sampled_from(["", "group", "x", 0.5, 1e9]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=3,
)


@st.composite
def mutants(draw):
    """Returns the tensors and the configuration of a case, one or the other changed somewhere."""
    case = draw(st.sampled_from(CASES))
    tensors, said = tensors_of(case), config_of_case(case)["quantization_config"]
    for _ in range(draw(st.integers(1, 2))):
        if draw(st.booleans()):
            name = draw(st.sampled_from(sorted(tensors)))
            kind = draw(st.sampled_from(["gone", "shape", "dtype", "bytes", "name"]))
            held = tensors.pop(name)
            if kind == "name":
                tensors[name.rpartition(".")[0] + draw(st.sampled_from([".x", "_scale"]))] = held
            elif kind == "shape":
                shape = draw(st.lists(st.integers(0, 70), max_size=3))
                tensors[name] = np.resize(held, shape).astype(held.dtype)
            elif kind == "dtype":
                to = draw(st.sampled_from(["u1", "i1", "i4", "i8", "f2", "f4", "f8"]))
                tensors[name] = np.ones(held.shape, to)
            elif kind == "bytes":
                fill = np.random.default_rng(draw(st.integers(0, 99))).bytes(held.nbytes)
                tensors[name] = np.frombuffer(fill, np.uint8).view(held.dtype).reshape(held.shape)
        else:
            where = said
            while inner := [v for v in where.values() if isinstance(v, dict) and v]:
                if draw(st.booleans()):
                    break
                where = draw(st.sampled_from(inner))
            where[draw(st.sampled_from(sorted(where)))] = draw(JSON)
        if not tensors:
            break
    return tensors, said


def survives(mutant):
    tensors, said = mutant
    try:
        opened = dequantized(open_tree(tensors), said)
    except errors.CheckpointError as error:
        assert str(error).startswith("the mapping: ")
        return
    for source in opened.values():
        try:
            assert everything(source).shape == source.shape
        except errors.CastError as error:  # Scales that were changed may be too large.
            assert str(error).startswith("the mapping: ")


@settings(max_examples=40, deadline=None)
@given(mutants())
def test_a_folder_that_is_changed_anywhere_is_read_or_refused(mutant):
    survives(mutant)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None)
@given(mutants())
def test_a_folder_that_is_changed_in_many_ways_is_read_or_refused(mutant):
    survives(mutant)
