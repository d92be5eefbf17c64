"""Which format a path is taken for, and what is said where it is none."""

import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from checkpoint_writers import FORMATS
from reading import refused

from lazyinit import errors
from lazyinit.checkpoint import open_checkpoint

OF_ONE_FILE = ("safetensors", "msgpack", "npz", "npz-compressed", "torch", "torch-legacy")
W = {"w": np.arange(3, dtype="float32")}


def first(folder):
    return open_checkpoint(folder)["w"].read((slice(None),)).tolist()


@pytest.mark.parametrize("format", [f for f in FORMATS if f.name in OF_ONE_FILE], ids=str)
def test_the_format_of_a_file_is_told_by_its_content(tmp_path, format):
    values = format.tensors()
    path = format.write(tmp_path, values)
    names = ["x.bin", "x.npz", "x.msgpack", "x.pt", "x"]
    # PyTorch's own torch.load goes by this ending.
    names += [] if format.name.startswith("torch") else ["model.safetensors"]
    for name in names:
        copy = tmp_path / "copy" / name
        copy.parent.mkdir(exist_ok=True)
        assert sorted(open_checkpoint(shutil.copy(path, copy))) == sorted(values)


def test_an_opened_checkpoint_is_handed_back():
    opened = open_checkpoint(W)
    assert open_checkpoint(opened) is opened


@pytest.mark.parametrize("path", [str, os.fspath, lambda path: path])
def test_a_path_may_be_text_or_an_object(tmp_path, path):
    safetensors.numpy.save_file(W, tmp_path / "w.safetensors")
    assert list(open_checkpoint(path(tmp_path / "w.safetensors"))) == ["w"]


@pytest.mark.parametrize("value", [3, None, [1], np.ones(2)])
def test_what_is_no_path_and_no_mapping_is_refused(value):
    message = (
        "wanted a path, a mapping from names to arrays, or what open_checkpoint returns, got "
        f"{type(value).__name__}."
    )
    with pytest.raises(errors.CheckpointError, match=f"^checkpoint: {message}"):
        open_checkpoint(value)


def test_safetensors_come_before_pytorch_and_both_before_orbax(tmp_path):
    torch.save({"w": torch.full((3,), 2.0)}, tmp_path / "pytorch_model.bin")
    assert first(tmp_path) == [2, 2, 2]
    safetensors.numpy.save_file({"w": np.ones(3)}, tmp_path / "model.safetensors")
    (tmp_path / "_METADATA").write_text("{}")
    assert first(tmp_path) == [1, 1, 1]


def test_a_whole_file_comes_before_an_index_to_shards(tmp_path):
    safetensors.numpy.save_file(W, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text("{")
    assert first(tmp_path) == [0, 1, 2]


def test_shards_of_an_index_may_be_of_any_format(tmp_path):
    torch.save({"w": torch.ones(3)}, tmp_path / "a.bin")
    safetensors.numpy.save_file({"v": np.ones(2)}, tmp_path / "b.safetensors")
    np.savez(tmp_path / "c.npz", u=np.ones(1))
    weight_map = {"w": "a.bin", "v": "b.safetensors", "u": "c.npz"}
    index = tmp_path / "own.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    got = open_checkpoint(index)
    assert {name: source.shape for name, source in got.items()} == {"w": (3,), "v": (2,), "u": (1,)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x93NUMPY\x01\x00", "wanted a member that starts as NumPy's arrays do, got"),
        (
            b"\x89HDF\r\n\x1a\n",
            "wanted an HDF5 file, got one that h5py does not read: .*It is damaged",
        ),
        (b"GGUF\x03\0\0\0", "wanted a GGUF header with at most 0 bytes more, got 8. It is damaged"),
        (b"", "wanted a safetensors file, which starts with 8 bytes, got 0"),
        (b"PK\x03\x04" + b"0" * 50, "wanted a zip archive, got a damaged one"),
        (
            b"\x80\x02}",
            "wanted a file of torch.save, got a pickle that cannot be read: .* it goes on to byte 4 of 3",
        ),
    ],
    ids=str,
)
def test_a_file_that_is_not_read_says_what_it_is(tmp_path, content, message):
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    refused(path, message)


def test_a_path_with_a_null_byte_is_refused(tmp_path):
    refused(
        tmp_path / "a\0b", "the checkpoint cannot be read: embedded null|no such file or folder"
    )


def test_a_path_through_a_file_is_refused(tmp_path):
    (tmp_path / "x").touch()
    refused(tmp_path / "x" / "y", "there is no such file or folder")


def test_a_file_that_may_not_be_read_is_refused():
    with tempfile.TemporaryDirectory() as folder:  # Others than its owner may look into it.
        os.chmod(folder, 0o755)
        path = Path(folder, "w.safetensors")
        safetensors.numpy.save_file(W, path)
        path.chmod(0)
        user = os.geteuid()
        os.seteuid(user or 65534)  # The superuser may read everything: be nobody meanwhile.
        try:
            refused(path, "the checkpoint cannot be read: Permission denied")
        finally:
            os.seteuid(user)


def test_a_folder_of_many_files_names_five(tmp_path):
    for n in range(7):
        (tmp_path / f"{n}.txt").touch()
    message = refused(tmp_path, "wanted model.safetensors, .* or what Orbax writes in this folder")
    assert message.endswith("it holds '0.txt', '1.txt', '2.txt', '3.txt', '4.txt', ....")


def test_an_empty_zip_is_an_empty_checkpoint(tmp_path):
    zipfile.ZipFile(tmp_path / "x", "w").close()
    assert list(open_checkpoint(tmp_path / "x")) == []


def test_msgpack_whose_ninth_byte_is_a_brace_is_not_taken_for_safetensors(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"\x81\xa6params{")  # {"params": 123}
    assert open_checkpoint(path)["params"].read(()) == 123
