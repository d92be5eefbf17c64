import json
import math
import os
import pickle
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from reading import everything
from safetensors.numpy import load_file, save_file

from lazyinit import errors, save
from lazyinit.checkpoint import open_checkpoint
from lazyinit.formats import sharded
from lazyinit.tensors import mapped

DTYPES = [
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
    "float16", "bfloat16", "float32", "float64", "complex64",
    "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu",
]  # fmt: skip


def write(path, header, values=b"", length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + values)
    return path


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@st.composite
def trees(draw):
    names = draw(st.sets(st.text(min_size=1, max_size=8).filter(_is_utf8), max_size=4))
    tree = {}
    for name in names:
        shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
        size = math.prod(shape)
        dtype = np.dtype(draw(st.sampled_from(DTYPES)))
        words = draw(st.binary(min_size=size, max_size=size))
        values = np.frombuffer(words, np.uint8).reshape(shape) % (2 if dtype.kind == "b" else 100)
        tree[name] = np.array(values, dtype)  # Not astype, which makes scalars of 0-d arrays.
    return tree


def _is_utf8(text):
    return text != "__metadata__" and text.encode("utf-8", "replace").decode() == text


@settings(max_examples=100)
@given(tree=trees(), data=st.data())
def test_what_the_official_writer_wrote_is_read_back_in_full_and_in_part(
    tmp_path_factory, tree, data
):
    path = tmp_path_factory.mktemp("st") / "t.safetensors"
    save_file(tree, path)
    checkpoint = open_checkpoint(path)
    assert set(checkpoint) == set(tree)
    for name, wanted in tree.items():
        source = checkpoint[name]
        assert (source.shape, source.dtype) == (wanted.shape, wanted.dtype)
        whole = everything(source)
        assert whole.tobytes() == wanted.tobytes()
        index = tuple(
            slice(*sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2)))) for n in whole.shape
        )
        assert source.read(index).tobytes() == wanted[(*index, ...)].tobytes()


def test_reading_is_a_view_of_one_read_only_map(tmp_path):
    path = tmp_path / "t.safetensors"
    save_file({"a": np.ones((4, 4), ml_dtypes.bfloat16), "b": np.ones(3, np.float32)}, path)
    checkpoint = open_checkpoint(path)
    read = checkpoint["a"].read((slice(1, 3), slice(None)))
    assert type(read) is np.ndarray
    assert not read.flags.owndata
    assert not read.flags.writeable
    maps = []
    for name in "ab":
        base = everything(checkpoint[name])
        while not isinstance(base, np.memmap):
            base = base.base
        maps.append(base)
    assert maps[0] is maps[1]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e5m2", "int32"])
@pytest.mark.parametrize("padding", [0, 1])
def test_reading_is_a_whole_loader_for_sharded_arrays(tmp_path, dtype, padding):
    values = np.arange(64).reshape(8, 8).astype(dtype)
    code = {"bfloat16": "BF16", "float16": "F16", "float8_e5m2": "F8_E5M2", "int32": "I32"}[dtype]
    header = json.dumps({"w": entry([8, 8], 0, values.nbytes, code)}).encode() + b" " * padding
    path = write(tmp_path / "t.safetensors", header, values.tobytes())
    source = open_checkpoint(path)["w"]
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    sharding = NamedSharding(mesh, PartitionSpec("x", "y"))
    array = jax.make_array_from_callback(source.shape, sharding, source.read)
    np.testing.assert_array_equal(np.asarray(array), values)
    assert array.dtype == jnp.dtype(dtype)


def test_a_source_is_a_value_that_names_file_and_tensor(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a.b": np.ones(3, np.float32)}, path)
    source = open_checkpoint(path)["a.b"]
    assert repr(source) == "model.safetensors:a.b"
    assert (source.names, source.origin) == (("a.b",), str(path))
    assert source == open_checkpoint(path)["a.b"]
    assert hash(source) == hash(open_checkpoint(path)["a.b"])
    copy = pickle.loads(pickle.dumps(source))
    assert copy == source
    np.testing.assert_array_equal(everything(copy), np.ones(3))


def test_a_relative_path_outlives_a_change_of_folder(tmp_path, monkeypatch):
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "t.safetensors")
    monkeypatch.chdir(tmp_path)
    source = open_checkpoint("t.safetensors")["a"]
    monkeypatch.chdir("/")
    assert everything(source).sum() == 3


def test_a_file_that_changed_is_not_read(tmp_path):
    path = tmp_path / "t.safetensors"
    save_file({"a": np.ones(3000, np.float32)}, path)
    source = open_checkpoint(path)["a"]
    everything(source)
    os.truncate(path, 100)
    with pytest.raises(errors.CheckpointError, match=r"t\.safetensors: the file has changed"):
        everything(source)
    path.unlink()
    with pytest.raises(errors.CheckpointError, match="opened but can no longer be read"):
        source.check()


ONE = entry([1], 0, 4)


@pytest.mark.parametrize(
    ("header", "values", "message"),
    [
        (b"[]", b"", r"header that is a JSON object, got one that starts with b'\[\]'"),
        (b"{", b"", "wanted JSON in UTF-8, got something else"),
        (b'{"\xff": 1}', b"", "wanted JSON in UTF-8, got something else"),
        (b'{"a":' + b"[" * 100_000, b"", "wanted JSON in UTF-8, got something else"),
        (b'{"a":' + b"9" * 10_000 + b"}", b"", "wanted JSON in UTF-8, got something else"),
        (b'{"a": 1, "a": 2}', b"", "the name 'a' stands twice"),
        ({"__metadata__": {"a": 1}}, b"", "'__metadata__' to map strings to strings"),
        ({"a": 1}, b"", "tensor 'a': wanted an object with dtype, shape and data_offsets, got 1"),
        ({"a": {"dtype": "F32", "shape": []}}, b"", "wanted an object with dtype, shape"),
        ({"a": entry([1], 0, 4, "F3")}, b"", "tensor 'a': wanted a dtype among BOOL, .*, got 'F3'"),
        ({"a": entry([1], 0, 4, ["F32"])}, b"", "tensor 'a': wanted a dtype among"),
        ({"a": entry([-1], 0, 4)}, b"", r"non-negative integers, got \[-1\]"),
        ({"a": entry([1.0], 0, 4)}, b"", r"non-negative integers, got \[1.0\]"),
        ({"a": entry([True], 0, 4)}, b"", r"non-negative integers, got \[True\]"),
        ({"a": entry(1, 0, 4)}, b"", "a shape of at most 64 non-negative integers, got 1"),
        ({"a": entry([1] * 65, 0, 4)}, b"", "a shape of at most 64 non-negative integers"),
        ({"a": entry([2**62, 0], 0, 0)}, b"", "whose bytes can be counted in 63 bits"),
        ({"a": entry([2**40, 2**40], 0, 4)}, b"", "whose bytes can be counted in 63 bits"),
        ({"a": entry([1], 0, 4.0)}, b"", "data_offsets that are two non-negative integers"),
        ({"a": {**ONE, "data_offsets": [0]}}, b"", "data_offsets that are two non-negative"),
        ({"a": entry([1], 4, 0)}, b"0" * 4, r"data_offsets that span 4 bytes for float32\[1\]"),
        ({"a": entry([1], 0, 8)}, b"0" * 8, r"data_offsets that span 4 bytes for float32\[1\]"),
        ({"a": ONE}, b"0", "tensor 'a': its values end 3 bytes past the end of the file"),
        ({"a": ONE, "b": entry([1], 2, 6)}, b"0" * 6, "tensor 'b': .* overlaps 'a'"),
        ({"a": ONE, "b": ONE}, b"0" * 4, "tensor 'b': .* overlaps 'a'"),
        ({"a": ONE, "b": entry([1], 5, 9)}, b"0" * 9, "tensor 'b': .* leaves a hole after 'a'"),
        ({"a": entry([1], 1, 5)}, b"0" * 5, "tensor 'a': .* leaves a hole after the header"),
        ({"a": ONE}, b"0" * 6, "2 bytes after 'a' belong to no tensor"),
        (b'{"\\ud800": 1}', b"", "wanted a name that is UTF-8 text"),
    ],
)
def test_what_the_format_forbids_is_refused_before_anything_is_read(
    tmp_path, header, values, message
):
    path = write(tmp_path / "t.safetensors", header, values)
    with pytest.raises(errors.CheckpointError, match=message) as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_file_shorter_than_its_own_lengths_is_refused(tmp_path):
    path = tmp_path / "t.safetensors"
    path.write_bytes(b"abc")
    with pytest.raises(errors.CheckpointError, match="starts with 8 bytes, got 3"):
        open_checkpoint(path)
    write(path, b"{}", length=50)
    with pytest.raises(
        errors.CheckpointError, match="header of 50 bytes, but the file ends after 10"
    ):
        open_checkpoint(path)
    write(path, b"{}", length=2**63)
    with pytest.raises(
        errors.CheckpointError, match="at most 100000000 bytes, got a length of 9223"
    ):
        open_checkpoint(path)


def test_empty_tensors_scalars_and_metadata_are_read(tmp_path):
    header = {
        "__metadata__": {"format": "pt"},
        "empty": entry([0, 3], 0, 0),
        "scalar": entry([], 0, 4),
        "last": entry([0], 4, 4),
    }
    checkpoint = open_checkpoint(write(tmp_path / "t", header, struct.pack("<f", 2.5)))
    assert {name: everything(source).tolist() for name, source in checkpoint.items()} == {
        "empty": [],
        "scalar": 2.5,
        "last": [],
    }


@settings(max_examples=150)
@given(data=st.data())
def test_a_corrupt_file_opens_or_is_refused_and_nothing_else(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    save_file({"a": np.ones((2, 3), np.float32), "b.c": np.ones(4, ml_dtypes.bfloat16)}, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(
        content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    )
    try:
        checkpoint = open_checkpoint(path)
    except errors.CheckpointError:
        return
    for source in checkpoint.values():
        everything(source)


def shards(folder, weight_map=None):
    save_file({"a": np.ones(2, np.float32)}, folder / "model-1.safetensors")
    save_file({"b": np.zeros(3, np.float32)}, folder / "model-2.safetensors")
    weight_map = weight_map or {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 20}, "weight_map": weight_map}))
    return index


def test_a_folder_with_an_index_is_one_checkpoint(tmp_path):
    index = shards(tmp_path)
    for path in (tmp_path, index):
        checkpoint = open_checkpoint(path)
        assert {name: everything(t).tolist() for name, t in checkpoint.items()} == {
            "a": [1, 1],
            "b": [0, 0, 0],
        }
        assert checkpoint.origin == str(tmp_path)


def test_a_shard_that_is_a_link_into_a_cache_is_read(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    shards(snapshot)
    for name in ("model-1.safetensors", "model-2.safetensors"):
        os.rename(snapshot / name, blobs / name[:7])
        os.symlink(f"../../blobs/{name[:7]}", snapshot / name)
    assert set(open_checkpoint(snapshot)) == {"a", "b"}


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/passwd",
        "//etc/passwd",
        "a/../../x",
        "..",
        "",
        "C:x",
        "a\\..\\x",
        "a\0b",
    ],
)
def test_a_shard_that_climbs_out_of_its_folder_is_refused(tmp_path, name):
    index = shards(tmp_path, {"a": name})
    with pytest.raises(errors.CheckpointError, match="wanted shards inside the folder") as caught:
        open_checkpoint(tmp_path)
    assert str(caught.value).startswith(f"{index}: ")
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "wanted JSON in UTF-8"),
        ("[]", "wanted a JSON object, got list"),
        ("{}", "wanted 'weight_map' to map tensor names to file names, got None"),
        ('{"weight_map": {"a": 1}}', r"wanted 'weight_map' .*, got \{'a': 1\}"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "the name 'a' stands twice"),
        (
            '{"weight_map": {"a": "model-3.safetensors"}}',
            r"the shard 'model-3.safetensors' is missing .*did you mean 'model-\d.safetensors'\?",
        ),
        (
            '{"weight_map": {"a": "model-2.safetensors"}}',
            "tensor 'a': wanted it in 'model-2.safetensors', which does not hold it",
        ),
    ],
)
def test_a_broken_index_is_refused(tmp_path, text, message):
    index = shards(tmp_path)
    index.write_text(text)
    with pytest.raises(errors.CheckpointError, match=message) as caught:
        open_checkpoint(tmp_path)
    assert str(caught.value).startswith(f"{index}: ")


def test_an_index_larger_than_the_limit_is_refused(tmp_path, monkeypatch):
    shards(tmp_path)
    monkeypatch.setattr(sharded, "HEADER_LIMIT", 10)
    with pytest.raises(errors.CheckpointError, match="an index of at most 10 bytes"):
        open_checkpoint(tmp_path)


def test_a_folder_with_a_single_file_is_that_file(tmp_path):
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    assert list(open_checkpoint(str(tmp_path))) == ["a"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "it is empty"),
        (["weights.pt", "config.json"], "'weights.pt' is there. Pass that file"),
        (["adapter_model.safetensors"], "'adapter_model.safetensors' is there. Pass that file"),
        (["config.json"], "it holds 'config.json'"),
    ],
)
def test_a_folder_without_a_checkpoint_says_what_is_there(tmp_path, files, message):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(errors.CheckpointError, match=message) as caught:
        open_checkpoint(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: ")


def test_a_path_with_nothing_there_suggests_the_nearest_file(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(errors.CheckpointError, match=r"no such file .* 'model\.safetensors'"):
        open_checkpoint(tmp_path / "modle.safetensors")
    with pytest.raises(errors.CheckpointError, match=r"no such file or folder$"):
        open_checkpoint(tmp_path / "x" / "y")


def test_a_path_that_the_system_refuses_is_a_checkpoint_error(tmp_path):
    with pytest.raises(errors.CheckpointError, match="cannot be read: File name too long"):
        open_checkpoint(tmp_path / ("a" * 300))


def test_the_extents_of_a_tensor_are_its_bytes_in_the_file(tmp_path):
    values = np.arange(6, dtype="float32").reshape(2, 3)
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(5, "int8"), "b": values}, path)
    (extent,) = open_checkpoint(path)["b"].extents
    assert path.read_bytes()[extent.start : extent.stop] == values.tobytes()
    assert extent.file == str(path)


@pytest.mark.parametrize("change", [lambda path: os.truncate(path, 9), os.unlink])
def test_a_file_that_shrinks_or_goes_before_it_is_mapped_is_an_error(tmp_path, monkeypatch, change):
    path = tmp_path / "t.safetensors"
    save_file({"a": np.ones(3000, np.float32)}, path)
    source = open_checkpoint(path)["a"]
    change(path)
    monkeypatch.setattr(mapped.File, "check", lambda _: None)  # It happens just after the look.
    with pytest.raises(errors.CheckpointError, match="cannot be mapped into memory") as caught:
        everything(source)
    assert str(caught.value).startswith(f"{path}: ")


def test_metadata_is_what_no_two_shards_say_differently(tmp_path):
    index = shards(tmp_path)
    said = ({"format": "pt", "part": "1", "first": "x"}, {"format": "pt", "part": "2"})
    for path, metadata in zip(sorted(tmp_path.glob("*.safetensors")), said, strict=True):
        save_file(load_file(path), path, metadata)
        assert open_checkpoint(path).metadata == metadata
    assert open_checkpoint(index).metadata == {"format": "pt", "first": "x"}


def test_the_note_of_ties_is_no_metadata(tmp_path):
    shared = np.ones(3)
    save({"a": shared, "b": shared}, tmp_path, metadata={"step": "3"})
    assert open_checkpoint(tmp_path).metadata == {"step": "3"}
