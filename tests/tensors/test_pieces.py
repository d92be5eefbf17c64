"""Pieces of a source, put together, are the source; a piece is bounded, and so is what is mapped."""

import itertools
import os

import forked
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from safetensors.numpy import save_file

import lazyinit as li
from lazyinit.tensors.as_dtype import AsDtype
from lazyinit.tensors.memory import HeldTensor
from lazyinit.tensors.pieces import indices, nbytes, pieces
from lazyinit.tensors.views import transposed

SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@given(SHAPES, st.integers(1, 64))
def test_indices_cut_an_array_into_runs_in_order(shape, limit):
    array = np.arange(np.prod(shape, dtype=int), dtype=np.int32).reshape(shape)
    parts = [array[(*index, ...)] for index in indices(shape, 4, limit)]
    assert all(0 < part.nbytes <= max(limit, 4) for part in parts)
    whole = np.concatenate([part.ravel() for part in parts]) if parts else array.ravel()
    np.testing.assert_array_equal(whole, array.ravel())


@given(SHAPES, st.integers(1, 64), st.randoms())
def test_pieces_are_the_values_in_order(shape, limit, random):
    array = np.arange(np.prod(shape, dtype=int), dtype=np.int32).reshape(shape)
    axes = random.sample(range(len(shape)), len(shape))
    source = transposed(HeldTensor("x", array), tuple(axes))
    got = b"".join(piece.tobytes() for piece in pieces(source, limit))
    assert got == array.transpose(axes).tobytes()


@pytest.mark.parametrize("limit", [1, 7, 64, 2**20])
def test_pieces_of_a_file_are_its_bytes(tmp_path, limit):
    tensors = {
        "a": np.arange(77, dtype=np.float32).reshape(7, 11),
        "b": np.zeros((0, 3)),
        "c": np.array(3, np.float16),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    for name, source in li.open_checkpoint(tmp_path / "x.safetensors").items():
        assert b"".join(p.tobytes() for p in pieces(source, limit)) == tensors[name].tobytes()
        assert nbytes(source) == tensors[name].nbytes


def test_a_cast_is_numpys(tmp_path):
    array = np.random.default_rng(0).normal(size=(33, 5)).astype(np.float32) * 1e30
    source = AsDtype(HeldTensor("x", array), np.dtype(ml_dtypes.bfloat16))
    want = array.astype(ml_dtypes.bfloat16)
    assert b"".join(p.tobytes() for p in pieces(source, 16)) == want.tobytes()
    np.testing.assert_array_equal(source.read((slice(2, 4), slice(None))), want[2:4])
    assert (source.shape, source.names, source.origin) == ((33, 5), ("x",), "the mapping")
    assert repr(source) == "the mapping:x.astype(bfloat16)"
    with np.errstate(all="raise"):
        halves = AsDtype(HeldTensor("x", array), np.dtype(np.float16), overflow=True)
        assert np.isinf(halves.read((slice(0, 1), slice(0, 1)))).all()
        with pytest.raises(li.errors.CastError, match="^the mapping: tensor 'x': wanted values"):
            list(pieces(AsDtype(HeldTensor("x", array), np.dtype(np.float16)), 16))


def test_a_file_cut_short_is_an_error(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": np.ones(100, np.float32)}, path)
    source = li.open_checkpoint(path)["a"]
    stream = pieces(source, 64)
    next(stream)
    os.truncate(path, os.path.getsize(path) - 200)
    with pytest.raises(li.errors.CheckpointError, match="tensor 'a': the file was cut short"):
        list(stream)
    with pytest.raises(li.errors.CheckpointError, match="has changed since it was opened"):
        list(pieces(source))


PEAK = """
import sys, numpy as np, lazyinit as li
from lazyinit.rules.layout import Transpose
from lazyinit.tensors.pieces import pieces
def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024
source = li.open_checkpoint(sys.argv[1])["a"]
before = peak()
source = Transpose("a b -> b a")(source) if sys.argv[2] == "T" else source
total = sum(piece.nbytes for piece in pieces(source))
assert total == 2**28, total
print(peak() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's own accounts")
@pytest.mark.parametrize("layout", ["plain", "T"])
def test_a_large_tensor_is_never_resident_as_a_whole(tmp_path, layout):
    path = tmp_path / "x.safetensors"
    save_file({"a": np.ones((2**14, 2**12), np.float32)}, path)
    assert int(forked.run(PEAK, path, layout)) < 128, "MiB, for a tensor of 256"


def test_shapes_of_many_small_rows_are_read_in_large_pieces():
    assert len(list(indices((10**6, 3), 4, 2**20))) == 12
    assert sum(1 for _ in itertools.islice(indices((2, 10**6), 4, 2**20), 100)) == 8
