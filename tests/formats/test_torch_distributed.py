"""Folders of torch.distributed.checkpoint: torch writes and loads them, and is what judges."""

import argparse
import dataclasses
import io
import pickle
import re
import zipfile

import jax
import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from checkpoint_writers import quiet, write_distributed
from reading import everything, refused
from torch.distributed.checkpoint import filesystem, metadata

import lazyinit as li
from lazyinit import errors
from lazyinit.checkpoint import open_checkpoint
from lazyinit.formats import torch_distributed

WHOLE = torch.arange(60.0).reshape(6, 10)


def described(tensor, chunks):
    properties = metadata.TensorProperties(dtype=tensor.dtype)
    parts = [metadata.ChunkStorageMetadata(*map(torch.Size, chunk)) for chunk in chunks]
    return metadata.TensorStorageMetadata(properties, tensor.size(), parts)


def write(folder, chunks, change=lambda said: said, tensor=WHOLE, keep=torch.clone):
    """Writes one tensor in pieces, as several ranks do, into two files."""
    folder.mkdir(exist_ok=True)
    files, storage = {}, {}
    for n, (offset, sizes) in enumerate(chunks):
        name = f"__{n % 2}_0.distcp"
        file = files.setdefault(name, io.BytesIO())
        start = file.tell()
        part = tensor[tuple(slice(o, o + s) for o, s in zip(offset, sizes, strict=True))]
        held = io.BytesIO()
        torch.save(keep(part), held)
        file.write(held.getvalue())
        index = metadata.MetadataIndex("model.w", torch.Size(offset), n)
        storage[index] = filesystem._StorageInfo(name, start, file.tell() - start)
    said = metadata.Metadata(
        {"model.w": described(tensor, chunks)}, {"model.w": ("model", "w")}, storage
    )
    for name, file in files.items():
        (folder / name).write_bytes(file.getvalue())
    (folder / ".metadata").write_bytes(pickle.dumps(change(said)))
    return folder


def loaded(folder):
    """Returns what torch itself loads."""
    state = {"model": {"w": torch.zeros_like(WHOLE)}}
    with quiet():
        dcp.load(state, checkpoint_id=folder)
    return state["model"]["w"].numpy()


ROWS = [((0, 0), (2, 10)), ((2, 0), (3, 10)), ((5, 0), (1, 10))]
TILES = [((r, c), (h, w)) for r, h in ((0, 4), (4, 2)) for c, w in ((0, 3), (3, 7))]


@pytest.mark.parametrize("chunks", [ROWS, TILES, TILES[::-1]], ids=["rows", "tiles", "reversed"])
def test_pieces_of_several_ranks_are_one_tensor_and_read_by_ranges(tmp_path, chunks):
    folder = write(tmp_path / "saved", chunks)
    source = open_checkpoint(folder)["model.w"]
    assert source.names == ("model.w",)
    np.testing.assert_array_equal(everything(source), loaded(folder))
    np.testing.assert_array_equal(everything(source), WHOLE.numpy())
    index = (slice(3, 6), slice(2, 5))
    np.testing.assert_array_equal(source.read(index), WHOLE.numpy()[index])
    assert not source.read((slice(0, 1), slice(0, 3))).flags.owndata


def test_a_model_is_filled_and_spread_over_eight_devices(tmp_path):
    tensor = torch.arange(128.0).reshape(16, 8)
    rows = [((n, 0), (4, 8)) for n in range(0, 16, 4)]
    folder = write(tmp_path / "saved", rows, tensor=tensor)
    tree = {"model": {"w": li.LazyParam((16, 8), "float32", None)}}
    sharding = jax.NamedSharding(jax.make_mesh((8,), ("x",)), jax.P("x"))
    made = li.materialize(li.fill(tree, folder, on_unexpected="error")[0], sharding=sharding)
    np.testing.assert_array_equal(made["model"]["w"], tensor.numpy())


def test_numbers_are_read_and_other_objects_are_passed_over(tmp_path):
    state = {"w": torch.ones(2), "opt": {"step": 5, "name": "adam", "lr": 0.5, "betas": (1, 2)}}
    state["args"] = argparse.Namespace(a=1)
    with quiet():
        dcp.save(state, checkpoint_id=tmp_path / "saved")
    got = {name: everything(x).tolist() for name, x in open_checkpoint(tmp_path / "saved").items()}
    assert {"w": [1, 1], "opt.step": 5, "opt.lr": 0.5}.items() <= got.items()
    assert "opt.name" not in got


@pytest.mark.parametrize(
    "chunks",
    [
        ROWS[:2],
        ROWS[1:],
        [((0, 0), (3, 10)), ((2, 0), (4, 10))],
        [((0, 0), (6, 3)), ((0, 3), (3, 7)), ((3, 4), (3, 6))],
        [((0, 0), (6, 9))],
        [],
    ],
)
def test_pieces_that_leave_a_gap_or_overlap_are_refused_by_name(tmp_path, chunks):
    source = open_checkpoint(write(tmp_path / "saved", chunks))["model.w"]
    with pytest.raises(errors.CheckpointError, match="'model.w': wanted pieces that form a grid"):
        everything(source)


def test_a_piece_that_is_changed_on_its_way_is_refused_by_name(tmp_path):
    def change(said):
        for index, info in said.storage_data.items():
            said.storage_data[index] = dataclasses.replace(info, transform_descriptors=["zstd"])
        return said

    source = open_checkpoint(write(tmp_path / "saved", ROWS, change))["model.w"]
    with pytest.raises(
        errors.CheckpointError, match="got a compressed piece. Save the checkpoint again without"
    ):
        everything(source)


def test_a_dtype_that_jax_has_not_is_refused_by_name(tmp_path):
    def change(said):
        said.state_dict_metadata["model.w"].properties.dtype = torch.bits8
        return said

    source = open_checkpoint(write(tmp_path / "saved", ROWS, change))["model.w"]
    with pytest.raises(
        errors.CheckpointError, match="wanted a dtype among .*, got bits8. Save it in"
    ):
        everything(source)


def test_a_file_that_is_missing_is_named(tmp_path):
    folder = write(tmp_path / "saved", ROWS)
    (folder / "__1_0.distcp").unlink()
    refused(
        folder, "tensor 'model.w': wanted a piece in the file '__1_0.distcp' of this folder, got"
    )


@pytest.mark.parametrize("place", ["../x", "/etc/passwd", "a/b", ""])
def test_a_file_outside_of_the_folder_is_refused(tmp_path, place):
    def change(said):
        for index, info in said.storage_data.items():
            said.storage_data[index] = dataclasses.replace(info, relative_path=place)
        return said

    folder = write(tmp_path / "saved", ROWS, change)
    refused(folder, f"wanted a piece in the file {re.escape(repr(place))} of this folder, got none")


@pytest.mark.parametrize("members", [[], ["x.npy"]])
def test_a_piece_that_torch_did_not_write_is_refused(tmp_path, members):
    folder = write(tmp_path / "saved", [((0, 0), (6, 10))])
    with zipfile.ZipFile(folder / "__0_0.distcp", "w") as archive:
        for name in members:
            archive.writestr(name, b"")
    refused(
        folder,
        r"tensor 'model.w': wanted a piece that torch.save wrote, got \[",
        first=folder / "__0_0.distcp",
    )


def test_a_piece_of_another_shape_is_refused(tmp_path):
    def change(said):
        infos = list(said.storage_data.values())
        return dataclasses.replace(
            said,
            storage_data=dict(zip(said.storage_data, [infos[1], infos[0], infos[2]], strict=True)),
        )

    message = r"tensor 'model.w': wanted a piece of float32\[2, 10\] at \[0, 0\], got __1_0"
    folder = write(tmp_path / "saved", ROWS, change)
    refused(folder, message, first=folder / ".metadata")


@pytest.mark.parametrize("content", [{}, [1], {"state_dict_metadata": {"w": 3}}, None])
def test_metadata_of_something_else_is_refused(tmp_path, content):
    (tmp_path / ".metadata").write_bytes(pickle.dumps(content))
    message = "wanted the metadata of torch.distributed.checkpoint, got something else"
    refused(tmp_path, message, first=tmp_path / ".metadata")


def test_metadata_that_runs_code_is_refused_and_does_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    (tmp_path / ".metadata").write_bytes(pickle.dumps({"state_dict_metadata": Bomb()}))
    message = "got a pickle that asks for code: exec. Nothing was run"
    refused(tmp_path, message, first=tmp_path / ".metadata")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("strides", [(0, 0), (1, 1), (0, 1), (16, 0)])
def test_a_piece_that_promises_more_than_is_stored_is_refused(tmp_path, strides, pieces):
    rows, columns = 2**20, 2**22
    whole = torch.zeros(1).expand(pieces * rows, columns)
    chunks = [((n * rows, 0), (rows, columns)) for n in range(pieces)]

    def repeated(part):
        size = 1 + sum((n - 1) * step for n, step in zip(part.shape, strides, strict=True))
        return torch.zeros(size, dtype=torch.float32).as_strided(part.shape, strides)

    folder = write(tmp_path / "hostile", chunks, tensor=whole, keep=repeated)
    message = rf"bytes that are stored, got .*float32\[{rows},{columns}\]"
    refused(folder, message, first=folder / "__0_0.distcp")


def test_a_tensor_that_is_expanded_is_written_in_full_and_read(tmp_path):
    with quiet():
        dcp.save({"w": torch.arange(3.0)[:, None].expand(3, 5)}, checkpoint_id=tmp_path)
    wanted = np.repeat(np.arange(3, dtype="float32")[:, None], 5, axis=1)
    np.testing.assert_array_equal(everything(open_checkpoint(tmp_path)["w"]), wanted)


def test_metadata_beyond_the_limit_is_refused(tmp_path, monkeypatch):
    folder = write_distributed(tmp_path, {"w": np.ones(2, "float32")})
    monkeypatch.setattr(torch_distributed, "HEADER_LIMIT", 10)
    message = r"wanted metadata of at most 10 bytes, got \d+"
    refused(folder, message, first=folder / ".metadata")
