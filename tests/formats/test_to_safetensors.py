"""What is planned and streamed is what the official library reads."""

import json
import re

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import lazyinit as li
from lazyinit.checkpoint.folder import planned, write_folder
from lazyinit.tensors.as_dtype import AsDtype
from lazyinit.tensors.memory import open_tree

TENSORS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "flag": np.array([True, False, True]),
    "ünïcode/名": np.arange(5, dtype=np.int64),
    "half": np.ones((2, 2), np.float16),
    "empty": np.zeros((0, 7), np.float32),
    "scalar": np.float64(3.5).reshape(()),
    "complex": np.array([1 + 2j], np.complex64),
    "byte": np.arange(3, dtype=np.uint8),
}


def write(folder, tensors, size="5GB", metadata=(("format", "pt"),)):
    plans = planned(open_tree(tensors), metadata=dict(metadata), max_shard_size=size)
    write_folder(folder, plans)
    return plans


def test_one_file_reads_back_by_the_official_library(tmp_path):
    (plan,) = write(tmp_path, TENSORS)
    path = tmp_path / "model.safetensors"
    assert path.stat().st_size == plan.size
    assert len(plan.header) % 64 == 0
    got = load_file(path)
    assert set(got) == set(TENSORS)
    for name, want in TENSORS.items():
        assert (got[name].dtype, got[name].shape) == (want.dtype, want.shape)
        assert got[name].tobytes() == want.tobytes()
    with safe_open(path, "np") as official:
        assert official.metadata() == {"format": "pt"}


def test_our_own_reader_has_the_dtypes_that_numpy_has_not(tmp_path):
    types = ("bfloat16", "float8_e4m3fn", "float8_e5m2")
    tensors = {name: np.arange(6).astype(getattr(ml_dtypes, name)) for name in types}
    write(tmp_path, tensors)
    for name, source in li.open_checkpoint(tmp_path).items():
        assert source.dtype == tensors[name].dtype
        assert source.read((slice(None),)).tobytes() == tensors[name].tobytes()


def test_shards_are_named_as_hugging_face_names_them(tmp_path):
    tensors = {f"layer.{n}": np.full((10,), n, np.float32) for n in range(5)}
    write(tmp_path, tensors, 80)
    names = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert sorted(p.name for p in tmp_path.iterdir()) == [*names, "model.safetensors.index.json"]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 200
    assert [index["weight_map"][f"layer.{n}"] for n in range(5)] == [
        names[n // 2] for n in range(5)
    ]
    got = {k: v for name in names for k, v in load_file(tmp_path / name).items()}
    for name, want in tensors.items():
        np.testing.assert_array_equal(got[name], want)
    opened = li.open_checkpoint(tmp_path)
    assert set(opened) == set(tensors)


def test_a_tensor_larger_than_a_shard_has_its_own(tmp_path):
    plans = planned(
        open_tree({"a": np.ones(3), "b": np.ones(100), "c": np.ones(2)}),
        metadata={},
        max_shard_size=64,
    )
    assert [[name for name, _ in plan.tensors] for plan in plans] == [["a"], ["b"], ["c"]]


def test_a_tensor_under_two_names_is_written_once(tmp_path):
    shared = np.ones((4, 4), np.float32)
    tensors = open_tree({"embed": shared, "other": np.ones(2)})
    tied = dict(tensors) | {"head": tensors["embed"]}
    write_folder(tmp_path, planned(tied, metadata={"format": "pt"}, max_shard_size="1GB"))
    assert set(load_file(tmp_path / "model.safetensors")) == {"embed", "other"}
    with safe_open(tmp_path / "model.safetensors", "np") as official:
        assert json.loads(official.metadata()["lazyinit.tied"]) == {"head": "embed"}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x": np.ones(2, np.complex128)}, "x: wanted a dtype that safetensors has (BOOL, U8"),
        ({"__metadata__": np.ones(2)}, "'__metadata__': wanted a name that is UTF-8 text"),
        ({"a\udc80": np.ones(2)}, "'a\\udc80': wanted a name that is UTF-8 text"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_and_nothing_is_written(tmp_path, tensors, message):
    with pytest.raises(li.errors.SaveError, match=re.escape(message)):
        write(tmp_path / "new", tensors)
    assert not (tmp_path / "new").exists()


def test_problems_are_collected(tmp_path):
    with pytest.raises(li.errors.SaveError) as caught:
        write(tmp_path, {"x": np.ones(2, "c16"), "y": np.ones(2, "c16")}, metadata=(("step", 3),))
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["x", "y", "metadata"]
    assert "wanted keys and values that are text, got 'step': 3" in str(caught.value)


def test_a_header_beyond_the_formats_limit_is_refused(monkeypatch):
    monkeypatch.setattr("lazyinit.formats.to_safetensors.HEADER_LIMIT", 100)
    with pytest.raises(li.errors.SaveError, match="wanted a header of at most 100 bytes, got"):
        planned(open_tree({"x" * 100: np.ones(2)}), metadata={}, max_shard_size=10)


def test_a_source_that_is_gone_is_noticed_before_anything_is_touched(tmp_path):
    write(tmp_path / "old", {"x": np.ones(3)})
    opened = li.open_checkpoint(tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").unlink()
    with pytest.raises(li.errors.CheckpointError, match="can no longer be read"):
        write_folder(tmp_path / "new", planned(opened, metadata={}, max_shard_size=100))
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_can_be_written_over_itself(tmp_path):
    write(tmp_path, {"x": np.arange(100.0), "y": np.ones(50)})
    opened = {n: AsDtype(s, np.dtype("float32")) for n, s in li.open_checkpoint(tmp_path).items()}
    write_folder(tmp_path, planned(opened, metadata={}, max_shard_size=400))
    again = li.open_checkpoint(tmp_path)
    np.testing.assert_array_equal(again["x"].read((slice(None),)), np.arange(100, dtype="float32"))
    assert len(list(tmp_path.iterdir())) == 3
