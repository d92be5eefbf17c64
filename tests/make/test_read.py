import itertools
import math
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file

import lazyinit as li
from lazyinit import sharding as shardings
from lazyinit.checkpoint import open_checkpoint
from lazyinit.make import read
from lazyinit.make.shards import size_of
from lazyinit.tensors import tiles
from lazyinit.tensors.joined import Joined
from lazyinit.tensors.memory import HeldTensor
from lazyinit.tensors.views import reshaped, transposed

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]
SMALL_TILES = {"TILE": 512, "_READ": 16, "_WRITTEN": 8, "_SHORT": 8, "_SMALL": 64}


def stored(tmp_path, values):
    path = tmp_path / "model.safetensors"
    save_file({"w": values}, path)
    leaf = li.LazyParam(values.shape, values.dtype, jax.nn.initializers.zeros)
    return li.fill({"w": leaf}, path)[0], path


def mesh():
    return jax.make_mesh((2, 4), ("x", "y"))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.bool_])
@pytest.mark.parametrize("spec", [P(), P("x"), P(None, "y"), P("y", "x"), P(("x", "y"))])
def test_each_device_gets_its_own_part(tmp_path, dtype, spec):
    values = (np.arange(16 * 8).reshape(16, 8) % 5).astype(dtype)
    tree, _ = stored(tmp_path, values)
    array = li.materialize(tree, sharding=NamedSharding(mesh(), spec))["w"]
    assert array.sharding == NamedSharding(mesh(), spec)
    np.testing.assert_array_equal(np.asarray(array), values)
    for shard in array.addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), values[shard.index])


def test_a_cast_is_that_of_jax(tmp_path):
    values = np.random.default_rng(0).standard_normal((32, 8)).astype(np.float32)
    tree, _ = stored(tmp_path, values)
    array = li.materialize(tree, dtype="bfloat16")["w"]
    np.testing.assert_array_equal(np.asarray(array), np.asarray(jnp.asarray(values, "bfloat16")))


def test_an_array_does_not_change_with_its_file(tmp_path):
    values = np.arange(4096, dtype=np.float32)
    tree, path = stored(tmp_path, values)
    array = li.materialize(tree)["w"]
    with open(path, "r+b") as file:
        file.seek(-4096 * 4, os.SEEK_END)
        file.write(b"\xff" * 4096 * 4)
    np.testing.assert_array_equal(np.asarray(array), values)


def test_a_file_that_has_changed_is_noticed_before_anything_is_made(tmp_path):
    tree, path = stored(tmp_path, np.ones(8, np.float32))
    tree["lazy"] = li.LazyParam((8,), "float32", lambda key: jnp.zeros(8))
    save_file({"w": np.zeros(16, np.float32)}, path)
    before = len(jax.live_arrays())
    with pytest.raises(li.errors.CheckpointError, match=r"model\.safetensors: the file has"):
        li.materialize(tree)
    assert len(jax.live_arrays()) == before


def test_64_bit_leaves_are_read_where_64_bit_types_are_on(tmp_path):
    values = np.arange(4, dtype=np.float64) / 3
    with jax.enable_x64(True):
        tree, _ = stored(tmp_path, values)
        array = li.materialize(tree, sharding=NamedSharding(mesh(), P("y")))["w"]
        assert array.dtype == np.float64
        np.testing.assert_array_equal(np.asarray(array), values)


def test_the_default_device_is_that_of_the_caller(tmp_path):
    tree, _ = stored(tmp_path, np.ones(4, np.float32))
    with jax.default_device(jax.devices()[3]):
        array = li.materialize(tree)["w"]
    assert array.device == jax.devices()[3]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_of_the_file_are_given_back(tmp_path):
    values = np.random.default_rng(0).random((2048, 4096), np.float32)
    tree, path = stored(tmp_path, values)

    def resident():
        """Returns the bytes of this file, and of no other, that are in the process's memory."""
        is_its, size = False, 0
        with open("/proc/self/smaps") as areas:
            for line in areas:
                if "-" in line.split(" ", 1)[0]:  # An area begins: its addresses, its file.
                    is_its = line.rstrip().endswith(str(path))
                elif is_its and line.startswith("Rss:"):
                    size += int(line.split()[1]) * 1024
        return size

    held = tree["w"].source.read((slice(None), slice(None)))
    assert held.sum() > 0
    assert resident() >= held.nbytes
    made = li.materialize(tree)
    assert resident() < held.nbytes / 8
    np.testing.assert_array_equal(made["w"], values)


@pytest.mark.parametrize("shape", [(1000, 700), (4, 520, 300), (2, 4, 260, 300)])
@pytest.mark.parametrize("spec", [P(), P("y"), P(None, "y"), P("x", "y")])
def test_a_transposed_tensor_is_read_in_pieces_and_tiles(tmp_path, monkeypatch, shape, spec):
    monkeypatch.setattr(read, "PIECE", 100_000)
    values = np.random.default_rng(0).random(shape, np.float32)
    tree, _ = stored(tmp_path, values)
    source = transposed(tree["w"].source, tuple(reversed(range(len(shape)))))
    leaf = li.StoredParam(source.shape, np.dtype("bfloat16"), source)
    made = li.materialize({"w": leaf}, sharding=NamedSharding(mesh(), spec))["w"]
    np.testing.assert_array_equal(made, values.astype("bfloat16").transpose())


@hypothesis.settings(max_examples=30)
@hypothesis.given(st.data())
def test_any_layout_on_any_mesh_has_the_bits_of_numpy(tmp_path_factory, data):
    """Heads split off, axes in any order, layers stacked, another dtype, pieces of any size."""
    dtype, to = (np.dtype(data.draw(st.sampled_from(DTYPES))) for _ in range(2))
    heads, width, inputs = (8 * data.draw(st.integers(1, 4)) for _ in range(3))
    sides = data.draw(st.permutations([(heads, width), (inputs,)]))
    shape, split = tuple(map(math.prod, sides)), sides[0] + sides[1]
    layers = data.draw(st.integers(1, 3))
    axes = tuple(data.draw(st.permutations(range(3))))
    values = np.random.default_rng(heads).standard_normal((layers, *shape)).astype(dtype)
    want = values.reshape(layers, *split).transpose(0, *(axis + 1 for axis in axes)).astype(to)

    path = tmp_path_factory.mktemp("layouts") / "model.safetensors"
    save_file({str(n): layer for n, layer in enumerate(values)}, path)
    parts = [
        transposed(reshaped(open_checkpoint(path)[str(n)], split), axes) for n in range(layers)
    ]
    axis = data.draw(st.integers(0, 3))
    source, want = Joined(tuple(parts), axis, is_stacked=True), np.moveaxis(want, 0, axis)
    spec = [()] * 4
    for name in data.draw(st.permutations(mesh().axis_names)):
        cut = data.draw(st.sampled_from([None, *(n for n in range(4) if n != axis)]))
        if cut is not None:
            spec[cut] += (name,)
    leaf = li.StoredParam(source.shape, to, source)
    piece = data.draw(st.integers(values.nbytes // 40, 2 * values.nbytes))
    with mock.patch.object(read, "PIECE", piece), mock.patch.multiple(tiles, **SMALL_TILES):
        made = li.materialize({"w": leaf}, sharding=NamedSharding(mesh(), P(*spec)))["w"]
    found, wanted = (np.ascontiguousarray(array).view(np.uint8) for array in (made, want))
    np.testing.assert_array_equal(found, wanted)


@hypothesis.given(st.data())
def test_no_piece_is_larger_than_a_piece_may_be(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    axes = tuple(data.draw(st.permutations(range(len(shape)))))
    tensors = [HeldTensor("w", np.empty(shape, np.int16)) for _ in range(2)]
    source = Joined(tuple(transposed(t, axes) for t in tensors), 0, is_stacked=True)
    limit = data.draw(st.integers(2, 4 * tensors[0].array.nbytes))
    with mock.patch.object(read, "PIECE", limit):
        pieces = read.cut_up(source, "w")
    assert sum(size_of(piece.block) for piece in pieces) == 2 * tensors[0].array.size
    assert max(size_of(piece.block) for piece in pieces) * 2 <= limit


class Counted:
    """A source in memory that notes how much is read."""

    def __init__(self, values):
        self.values, self.shape, self.dtype = values, values.shape, values.dtype
        self.read_sizes = []

    def read(self, index):
        found = self.values[index]
        self.read_sizes.append(found.size)
        return found


@hypothesis.given(st.data())
def test_pieces_fill_the_shards_that_are_held_and_read_no_more(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 9), max_size=3)))
    values = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    cuts = [sorted({0, n, *data.draw(st.sets(st.integers(1, n)))}) for n in shape]
    everywhere = list(itertools.product(*(itertools.pairwise(c) for c in cuts)))
    held = data.draw(st.lists(st.sampled_from(everywhere), unique=True))
    buffers = {at: np.empty([stop - start for start, stop in at], np.float16) for at in held}
    source = Counted(values)
    with mock.patch.object(read, "PIECE", data.draw(st.integers(1, 4 * values.size))):
        for piece in read.cut_up(source, "w"):
            piece.read_into(buffers)
    for at, buffer in buffers.items():
        np.testing.assert_array_equal(buffer, values[tuple(slice(*bounds) for bounds in at)])
    assert sum(source.read_sizes) == sum(buffer.size for buffer in buffers.values())


class Chunked(Counted):
    """A source in chunks that notes each chunk that has to be decoded."""

    def __init__(self, values, chunk):
        super().__init__(values)
        self.chunk, self.decoded = chunk, []

    def read(self, index):
        along = zip(index, self.chunk, strict=True)
        chunks = [range(part.start // side, -(-part.stop // side)) for part, side in along]
        self.decoded += itertools.product(*chunks)
        return super().read(index)


@hypothesis.given(st.data())
def test_each_chunk_is_decoded_once_for_all_shards(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    chunk = tuple(data.draw(st.integers(1, n)) for n in shape)
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    source = Chunked(values, chunk)
    axes = tuple(data.draw(st.permutations(range(len(shape)))))
    turned = values.transpose(axes)
    cuts = [sorted({0, n, *data.draw(st.sets(st.integers(1, n)))}) for n in turned.shape]
    held = list(itertools.product(*(itertools.pairwise(c) for c in cuts)))
    buffers = {at: np.empty([stop - start for start, stop in at], np.float32) for at in held}
    limit = data.draw(st.integers(4, 4 * values.size))
    with mock.patch.object(read, "PIECE", limit):
        pieces = read.cut_up(transposed(source, axes), "w")
        for piece in pieces:
            piece.read_into(buffers)
    for at, buffer in buffers.items():
        np.testing.assert_array_equal(buffer, turned[tuple(slice(*bounds) for bounds in at)])
    counts = [range(-(-n // side)) for n, side in zip(shape, chunk, strict=True)]
    assert sorted(source.decoded) == list(itertools.product(*counts))
    largest = max(limit, 4 * math.prod(chunk))
    assert all(4 * size_of(piece.block) <= largest for piece in pieces)


def test_large_chunks_are_decoded_no_more_at_a_time_than_a_plan_counts(monkeypatch):
    monkeypatch.setattr(read, "PIECE", 64)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    held, most, lock = 0, 0, threading.Lock()

    class Slow(Chunked):
        def read(self, index):
            nonlocal held, most
            found = super().read(index)
            with lock:
                held += found.nbytes
                most = max(most, held)
            time.sleep(0.01)
            with lock:
                held -= found.nbytes
            return found

    for chunk, room in (((8,), 128), ((20,), 128), ((64,), 256)):
        most = 0
        source = Slow(np.arange(320, dtype=np.float32), chunk)
        buffer = np.zeros(320, np.float32)
        with ThreadPoolExecutor(8) as threads:
            pieces = read.cut_up(source, "w")
            list(threads.map(lambda piece, b=buffer: piece.read_into({((0, 320),): b}), pieces))
        np.testing.assert_array_equal(buffer, source.values)
        counted = read.decoded_bytes(source)
        assert counted == (room if chunk != (8,) else 0)
        assert most <= (counted or 8 * 64)


def test_all_shards_of_a_piece_are_one_read():
    source = Counted(np.zeros((8, 8)))
    bounds = [(n, n + 2) for n in range(0, 8, 2)]
    (piece,) = read.cut_up(source, "w")
    piece.read_into({at: np.empty((2, 2)) for at in itertools.product(bounds, bounds)})
    assert source.read_sizes == [64]


def test_a_leaf_of_many_pieces_is_read_by_all_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "PIECE", 4096)
    values = np.arange(2**15, dtype=np.float32).reshape(128, 256)
    tree, _ = stored(tmp_path, values)
    threads = set()
    real = read.Piece.read_into

    def noted(piece, buffers):
        threads.add(threading.get_ident())
        met.wait(timeout=60)
        real(piece, buffers)

    met = threading.Barrier(2)  # Two pieces are read at once, or else this breaks.
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(read.Piece, "read_into", noted)
    np.testing.assert_array_equal(li.materialize(tree)["w"], values)
    assert len(threads) == 2


@pytest.mark.parametrize("spec", [None, P(), P("x"), P(None, "y")])
def test_other_devices_than_cpu_get_their_parts_through_blocks(tmp_path, monkeypatch, spec):
    """With CPU devices that say they are none: there is no other here."""
    monkeypatch.setattr(read, "PIECE", 4096)
    values = np.random.default_rng(0).random((64, 128), np.float32)
    tree, _ = stored(tmp_path, values)
    monkeypatch.setattr(shardings, "platform_of", lambda _: "gpu")
    sharding = spec if spec is None else NamedSharding(mesh(), spec)
    with jax.default_device(jax.devices()[3]):
        made = li.materialize(tree, sharding=sharding, dtype="bfloat16")["w"]
    np.testing.assert_array_equal(made, values.astype("bfloat16"))
    assert made.sharding == sharding if sharding else made.device == jax.devices()[3]
