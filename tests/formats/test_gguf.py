"""GGUF files: the package gguf writes them, dequantizes them whole, and judges the parts."""

import re
import struct
import sys
import tracemalloc

import gguf
import jax
import numpy as np
import pytest
from checkpoint_writers import write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines import indices
from reading import everything

import lazyinit as li
from lazyinit import errors
from lazyinit.checkpoint import open_checkpoint
from lazyinit.formats import gguf as blocks_of_gguf
from lazyinit.make import limits
from lazyinit.make.read import cut_up

Types = gguf.GGMLQuantizationType


def can_dequantize(kind):
    try:
        gguf.quants.dequantize(np.zeros(gguf.GGML_QUANT_SIZES[kind][1], np.uint8), kind)
    except NotImplementedError:
        return False
    return gguf.GGML_QUANT_SIZES[kind][0] > 1


QUANTIZED = [kind for kind in gguf.GGML_QUANT_SIZES if can_dequantize(kind)]


def write(path, kind, content):
    """Writes a tensor of a type as its bytes, between two plain ones."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_token_list(["a", "ß"] * 50)
    writer.add_token_scores([0.5] * 100)
    writer.add_tensor("first", np.arange(3, dtype=np.float32))
    writer.add_tensor("blk.0.attn_q.weight", content, raw_dtype=kind)
    writer.add_tensor("last", np.arange(5, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_blocks(kind, rows=(2, 3), blocks=4):
    size = gguf.GGML_QUANT_SIZES[kind][1]
    return np.random.default_rng(0).integers(0, 256, (*rows, blocks * size), np.uint8)


def dequantized(content, kind):
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(content, kind)


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("together", [2**17, 100], ids=["at once", "bit by bit"])
def test_every_type_is_dequantized_as_the_package_does_and_in_any_part(
    tmp_path, kind, together, monkeypatch
):
    monkeypatch.setattr(blocks_of_gguf, "_TOGETHER", together)
    content = random_blocks(kind)
    opened = open_checkpoint(write(tmp_path / "t.gguf", kind, content))
    source, want = opened["blk.0.attn_q.weight"], dequantized(content, kind)
    assert (source.shape, source.dtype) == (want.shape, np.float32)
    assert everything(source).tobytes() == want.tobytes()
    (extent,) = source.extents
    assert extent.stop - extent.start == content.nbytes
    np.testing.assert_array_equal(everything(opened["last"]), np.arange(5))

    @settings(max_examples=15)
    @given(indices(source.shape))
    def check(index):
        assert source.read(index).tobytes() == want[index].tobytes()

    check()


def test_a_shard_dequantizes_its_own_blocks_and_no_more(tmp_path, monkeypatch):
    content = random_blocks(Types.Q8_0, rows=(64,), blocks=8)
    path = write(tmp_path / "t.gguf", Types.Q8_0, content)
    tree = {"blk": {"0": {"attn_q": {"weight": li.LazyParam((64, 256), "float32", None)}}}}
    filled, _ = li.fill(tree, path)
    want = dequantized(content, Types.Q8_0)
    real, seen = gguf.quants.dequantize, []
    monkeypatch.setattr(
        gguf.quants, "dequantize", lambda data, kind: seen.append(data.size) or real(data, kind)
    )
    sharding = jax.NamedSharding(jax.make_mesh((2, 4), ("x", "y")), jax.P("x", "y"))
    made = li.materialize(filled, sharding=sharding)["blk"]["0"]["attn_q"]["weight"]
    assert np.asarray(made).tobytes() == want.tobytes()
    assert sum(seen) == content.size
    seen.clear()
    filled["blk"]["0"]["attn_q"]["weight"].source.read((slice(3, 4), slice(40, 50)))
    assert seen == [34]


def test_a_piece_takes_little_memory_beside_its_values(tmp_path):
    content = random_blocks(Types.Q8_0, rows=(2048,), blocks=64)
    opened = open_checkpoint(write(tmp_path / "t.gguf", Types.Q8_0, content))
    (piece,) = cut_up(opened["blk.0.attn_q.weight"], "blk.0.attn_q.weight")
    to = {piece.block: np.ones((2048, 2048), "float32")}
    piece.read_into(to)
    tracemalloc.start()
    try:
        piece.read_into(to)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < limits.READ_BYTES


def test_metadata_is_text(tmp_path):
    path = write(tmp_path / "t.gguf", Types.Q8_0, random_blocks(Types.Q8_0))
    metadata = open_checkpoint(path).metadata
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.context_length"] == "4096"
    assert metadata["tokenizer.ggml.tokens"] == "a list of 100"
    assert metadata["tokenizer.ggml.scores"] == "a list of 100"


def test_plain_types_need_no_package(tmp_path, monkeypatch):
    arrays = {name: np.arange(6).reshape(2, 3).astype(name) for name in ("float32", "int8")}
    path = write_gguf(tmp_path, arrays)
    quantized = write(tmp_path / "q", Types.Q8_0, random_blocks(Types.Q8_0))
    monkeypatch.setitem(sys.modules, "gguf", None)
    for name, source in open_checkpoint(path).items():
        np.testing.assert_array_equal(everything(source), arrays[name])
        assert not everything(source).flags.owndata
    message = r"wanted the package gguf, .* got none. Run pip install 'lazyinit-jax\[gguf\]'"
    with pytest.raises(errors.CheckpointError, match=message):
        everything(open_checkpoint(quantized)["blk.0.attn_q.weight"])


def changed(path, old, new):
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    return path


@pytest.mark.parametrize("kind", [999, Types.Q8_K.value, Types.Q8_1.value, 4])
def test_a_type_that_the_package_does_not_know_is_refused_alone(tmp_path, kind):
    path = write(tmp_path / "t", Types.Q8_0, random_blocks(Types.Q8_0))
    entry = b"blk.0.attn_q.weight" + struct.pack("<IQQQ", 3, 128, 3, 2)
    changed(path, entry + struct.pack("<I", 8), entry + struct.pack("<I", kind))
    opened = open_checkpoint(path)
    np.testing.assert_array_equal(everything(opened["first"]), np.arange(3))
    message = (
        f"wanted a type that the package gguf dequantizes, got type {kind}. Get a newer gguf, o"
    )
    with pytest.raises(
        errors.CheckpointError, match=f"^{path}: tensor 'blk.0.attn_q.weight': {message}"
    ):
        everything(opened["blk.0.attn_q.weight"])
    leaf = jax.ShapeDtypeStruct((2, 3, 128), "float32")
    with pytest.raises(errors.FillError, match=message) as caught:
        li.fill({"blk": {"0": {"attn_q": {"weight": leaf}}}}, path)
    assert str(caught.value).startswith("blk/0/attn_q/weight: the model wants float32[2,3,128], ")
    tree, _ = li.fill({"first": np.zeros(3, "float32")}, path)
    np.testing.assert_array_equal(li.materialize(tree)["first"], np.arange(3))


HEAD = b"GGUF" + struct.pack("<I", 3)


def text(value):
    return struct.pack("<Q", len(value)) + value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF" + struct.pack(">I", 3), "with version 2 or 3, got 50331648"),
        (b"GGUF" + struct.pack("<I", 1), "with version 2 or 3, got 1"),
        (b"GGUF", "with at most 0 bytes more, got 4"),
        (
            HEAD + struct.pack("<QQ", 2**60, 0),
            "with at most 1000000 entries, got 1152921504606846976",
        ),
        (
            HEAD + struct.pack("<QQ", 0, 2**60),
            "with at most 1000000 entries, got 1152921504606846976",
        ),
        (
            HEAD + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 2**60),
            "with at most 0 bytes more, got",
        ),
        (
            HEAD + struct.pack("<QQ", 0, 1) + text(b"k") + struct.pack("<I", 13),
            "from 0 to 12, got 13",
        ),
        (
            HEAD + struct.pack("<QQ", 0, 1) + text(b"k") + struct.pack("<IIQ", 9, 8, 2**50),
            "with at most 1000000 entries, got 1125899906842624",
        ),
        (
            HEAD + struct.pack("<QQ", 0, 1) + text(b"k") + struct.pack("<IIQ", 9, 0, 2**50),
            "with at most 0 bytes more, got 1125899906842624",
        ),
        (
            HEAD
            + struct.pack("<QQ", 0, 1)
            + text(b"k")
            + struct.pack("<I", 9)
            + struct.pack("<IQ", 9, 1) * 20,
            "with a type of metadata from 0 to 12, got 9",
        ),
        (
            HEAD
            + struct.pack("<QQ", 0, 1)
            + text(b"general.alignment")
            + struct.pack("<II", 4, 33),
            "with an alignment that is a power of two, got '33'",
        ),
        (
            HEAD + struct.pack("<QQ", 1, 0) + text(b"w") + struct.pack("<I", 5),
            "'w': wanted at most 4 sizes",
        ),
        (
            HEAD + struct.pack("<QQ", 1, 0) + text(b"w") + struct.pack("<IQIQ", 1, 2, 0, 0),
            r"tensor 'w': its values end \d+ bytes past the end of the file",
        ),
        (
            HEAD + struct.pack("<QQ", 1, 0) + text(b"w") + struct.pack("<IQIQ", 1, 2**62, 0, 0),
            "tensor 'w': wanted a shape whose bytes can be counted in 63 bits",
        ),
        (
            HEAD + struct.pack("<QQ", 1, 0) + text(b"w") + struct.pack("<IQIQ", 1, 33, 8, 0),
            r"tensor 'w': wanted a last axis that blocks of 32 values fill, got \[33\]",
        ),
        (
            HEAD
            + struct.pack("<QQ", 2, 0)
            + (text(b"w") + struct.pack("<IQIQ", 1, 0, 0, 0)) * 2
            + bytes(99),
            "the name 'w' stands twice",
        ),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, content, message):
    path = tmp_path / "t.gguf"
    path.write_bytes(content)
    with pytest.raises(errors.CheckpointError, match=message) as caught:
        open_checkpoint(path)
    assert re.match(f"{path}: (wanted a GGUF header|tensor 'w'|the name)", str(caught.value))


@settings(max_examples=150)
@given(st.data())
def test_a_quantized_file_that_is_broken_opens_or_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("broken") / "t"
    write(path, Types.Q4_K, random_blocks(Types.Q4_K, rows=(2,), blocks=1))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.sampled_from([0, 1, 8, 9, 0x7F, 0x80, 0xFF]))
    path.write_bytes(content[: data.draw(st.sampled_from([None, -1, len(content) // 2]))])
    try:
        for source in open_checkpoint(path).values():
            assert everything(source).shape == source.shape
    except errors.CheckpointError as error:
        assert str(error).startswith(str(path))
