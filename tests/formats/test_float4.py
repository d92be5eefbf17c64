"""Floats of four and eight bits in safetensors: torch and the official library are the oracles."""

import json
import re
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from pipelines import indices
from reading import everything

import lazyinit as li
from lazyinit import errors
from lazyinit.tensors.memory import HeldTensor
from lazyinit.tensors.packed import Packed
from lazyinit.tensors.pieces import pieces

FLOAT4 = ml_dtypes.float4_e2m1fn
# What the specification of MX formats says that the sixteen are.
VALUES = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]


def float4(shape, seed=0):
    values = np.random.default_rng(seed).integers(0, 16, shape, np.uint8)
    return values.view(FLOAT4)


def packed(values):
    flat = values.reshape(-1).view(np.uint8)
    return flat[::2] | flat[1::2] << 4


def raw_file(path, shape, content):
    """Writes a file by hand: the official library writes no odd last axis."""
    entry = {"dtype": "F4", "shape": list(shape), "data_offsets": [0, len(content)]}
    text = json.dumps({"w": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)
    return path


def test_what_torch_writes_as_f4_and_f8_e8m0_is_read(tmp_path):
    pairs = torch.arange(256, dtype=torch.uint8).reshape(16, 16)
    scales = torch.arange(256, dtype=torch.uint8)
    tensors = {
        "w": pairs.view(torch.float4_e2m1fn_x2),
        "s": scales.clone().view(torch.float8_e8m0fnu),
        "e4m3": scales.clone().view(torch.float8_e4m3fn),
        "e5m2": scales.clone().view(torch.float8_e5m2),
    }
    safetensors.torch.save_file(tensors, tmp_path / "t.safetensors")
    opened = li.open_checkpoint(tmp_path / "t.safetensors")
    assert opened["w"].shape == (16, 32)
    assert opened["w"].dtype == FLOAT4
    want = [[VALUES[b & 15], VALUES[b >> 4]] for b in range(256)]
    got = everything(opened["w"]).astype(np.float32)
    assert got.tobytes() == np.array(want, np.float32).tobytes()
    (extent,) = opened["w"].extents
    assert extent.stop - extent.start == 256
    for name, dtype in (
        ("s", "float8_e8m0fnu"),
        ("e4m3", "float8_e4m3fn"),
        ("e5m2", "float8_e5m2"),
    ):
        assert opened[name].dtype.name == dtype
        assert everything(opened[name]).tobytes() == bytes(range(256))


@pytest.mark.parametrize("shape", [(6,), (2, 3), (4, 8), (3, 2, 5), (5, 0), (0, 3), (2, 1)])
def test_any_part_is_read_as_it_was_written(tmp_path, shape):
    values = float4(shape)
    source = li.open_checkpoint(raw_file(tmp_path / "t", shape, packed(values).tobytes()))["w"]
    assert (source.shape, source.dtype) == (shape, FLOAT4)

    @given(indices(shape))
    def check(index):
        got = source.read(index)
        assert (got.shape, got.tobytes()) == (values[index].shape, values[index].tobytes())

    check()
    assert "t:w" in repr(source)


@pytest.mark.parametrize("shape", [(6,), (4, 8), (2, 3), (3, 2, 5), (5, 0)])
def test_what_is_saved_is_what_the_official_library_reads_and_what_is_read_back(tmp_path, shape):
    values, scales = float4(shape, seed=1), np.arange(3, dtype=np.uint8)
    tree = {"w": values, "s": scales.view(ml_dtypes.float8_e8m0fnu), "x": np.ones(3, "float32")}
    li.save(tree, tmp_path)
    got = li.open_checkpoint(tmp_path)
    assert {name: got[name].dtype.name for name in got} == {
        n: x.dtype.name for n, x in tree.items()
    }
    for name, array in tree.items():
        assert everything(got[name]).tobytes() == array.tobytes(), name
    if shape[-1] % 2 == 0:
        theirs = safetensors.torch.load_file(tmp_path / "model.safetensors")
        assert theirs["w"].dtype == torch.float4_e2m1fn_x2
        assert theirs["w"].view(torch.uint8).numpy().tobytes() == packed(values).tobytes()


@given(st.integers(0, 40), st.integers(1, 9))
def test_a_piece_of_any_size_is_packed_alike(count, limit):
    values = float4((2, count), seed=2)
    written = b"".join(piece.tobytes() for piece in pieces(Packed(HeldTensor("w", values)), limit))
    assert written == packed(values).tobytes()


def test_sixteen_values_make_an_array_on_a_device(tmp_path):
    path = raw_file(tmp_path / "t", (2, 8), packed(np.arange(16, dtype=np.uint8)).tobytes())
    tree = {"w": li.LazyParam((2, 8), "float32", None)}
    made = li.materialize(li.fill(tree, path)[0])
    np.testing.assert_array_equal(made["w"], np.array(VALUES).reshape(2, 8))


def test_an_odd_number_is_refused_on_reading_and_on_writing(tmp_path):
    path = raw_file(tmp_path / "t", (3, 1), b"12")
    message = (
        f"{path}: tensor 'w': wanted an even number of F4, of which a byte holds two, got (3, 1)"
    )
    with pytest.raises(errors.CheckpointError, match=f"^{re.escape(message)}"):
        li.open_checkpoint(path)
    message = (
        "w: wanted an even number of F4, of which a byte holds two, got float4_e2m1fn[3]. Cast"
    )
    with pytest.raises(errors.SaveError, match=f"^{re.escape(message)}"):
        li.save({"w": float4(3)}, tmp_path / "new")


def test_bytes_that_are_too_many_are_refused(tmp_path):
    path = raw_file(tmp_path / "t", (2, 2), b"1234")
    with pytest.raises(
        errors.CheckpointError, match="wanted data_offsets that span 2 bytes for flo"
    ):
        li.open_checkpoint(path)


@pytest.mark.parametrize("kind", ["F6_E2M3", "F6_E3M2"])
def test_values_of_six_bits_are_refused_by_name_and_the_others_read(tmp_path, kind):
    # safetensors 0.6 counts them by bits, and says nothing of how they lie in bytes.
    entries = {
        "six": {"dtype": kind, "shape": [2, 4], "data_offsets": [0, 6]},
        "w": {"dtype": "U8", "shape": [2], "data_offsets": [6, 8]},
    }
    text = json.dumps(entries).encode()
    path = tmp_path / "t.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(range(8)))
    opened = li.open_checkpoint(path)
    np.testing.assert_array_equal(everything(opened["w"]), [6, 7])
    assert opened["six"].shape == (2, 4)
    assert (
        opened["six"].dtype.name == {"F6_E2M3": "float6_e2m3fn", "F6_E3M2": "float6_e3m2fn"}[kind]
    )
    message = f"got {kind}: the format does not say how such values lie in bytes. Save it in ano"
    with pytest.raises(errors.CheckpointError, match=f"tensor 'six': .*{message}"):
        everything(opened["six"])
    tree = {"six": li.LazyParam((2, 4), "float32", None)}
    with pytest.raises(errors.FillError, match=f"^six: the model wants float32.*{message}"):
        li.fill(tree, path)
    entries["six"]["shape"] = [2, 3]
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(range(8)))
    with pytest.raises(errors.CheckpointError, match="wanted as many values of six bits as fill"):
        li.open_checkpoint(path)
