"""Folders without an index or a usual name: shards, variants, steps; the official writers write."""

import json

import flax.serialization
import flax.training.checkpoints
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
import torch
from checkpoint_writers import quiet
from reading import refused

from lazyinit.checkpoint import open_checkpoint


def write(path, **tensors):
    arrays = {name: np.full(3, value, "float32") for name, value in tensors.items()}
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file(arrays, path)
    elif path.suffix == ".bin":
        torch.save({name: torch.from_numpy(x) for name, x in arrays.items()}, path)
    else:
        path.write_bytes(flax.serialization.to_bytes(arrays))
    return path


def values(checkpoint):
    return {name: float(source.read((slice(0, 1),))[0]) for name, source in checkpoint.items()}


@pytest.mark.parametrize("ending", ["safetensors", "bin", "msgpack"])
def test_shards_without_an_index_are_one_checkpoint(tmp_path, ending):
    for n, name in enumerate("abc", 1):
        write(tmp_path / f"model-{n:05}-of-00003.{ending}", **{name: n})
    (tmp_path / "config.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    assert values(checkpoint) == {"a": 1, "b": 2, "c": 3}
    assert checkpoint.origin == str(tmp_path)


def test_a_shard_that_is_missing_is_named(tmp_path):
    for n in (1, 3):
        write(tmp_path / f"model-{n:05}-of-00003.safetensors", **{f"w{n}": n})
    refused(tmp_path, "wanted 3 shards, got 2: number 2 is missing. Fetch it, or pass one of")


def test_shards_of_two_checkpoints_are_not_mixed(tmp_path):
    for stem in ("model", "other"):
        write(tmp_path / f"{stem}-00001-of-00001.safetensors", w=1)
    refused(tmp_path, "wanted the shards of one checkpoint, got those of 2, such as 'model-00001-")


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    for n in (1, 2):
        write(tmp_path / f"model-{n:05}-of-00002.safetensors", w=n)
    last = tmp_path / "model-00002-of-00002.safetensors"
    refused(tmp_path, "tensor 'w': wanted it in one shard, but .*0000", first=last)


@pytest.mark.parametrize("stem", ["model", "diffusion_pytorch_model"])
def test_the_one_variant_of_a_folder_is_opened(tmp_path, stem):
    write(tmp_path / f"{stem}.fp16.safetensors", w=1)
    write(tmp_path / f"{stem}.fp16.bin", w=2)
    assert values(open_checkpoint(tmp_path)) == {"w": 1}
    write(tmp_path / f"{stem}.safetensors", w=3)
    assert values(open_checkpoint(tmp_path)) == {"w": 3}


def test_a_variant_in_shards_is_opened_by_its_index(tmp_path):
    weight_map = {}
    for n, name in enumerate("ab", 1):
        weight_map[name] = f"model.fp16-{n:05}-of-00002.safetensors"
        write(tmp_path / weight_map[name], **{name: n})
    index = tmp_path / "model.safetensors.index.fp16.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for path in (tmp_path, index):
        assert values(open_checkpoint(path)) == {"a": 1, "b": 2}
    index.unlink()
    assert values(open_checkpoint(tmp_path)) == {"a": 1, "b": 2}


def test_of_several_variants_none_is_chosen(tmp_path):
    write(tmp_path / "model.fp16.safetensors", w=1)
    write(tmp_path / "model.ema.safetensors", w=2)
    refused(
        tmp_path,
        "wanted one checkpoint, got the variants ema, fp16. Pass the file of one itself: 'model.ema",
    )


@pytest.mark.parametrize("index", [False, True])
def test_the_names_of_diffusers_are_known(tmp_path, index):
    file = write(
        tmp_path / ("a.safetensors" if index else "diffusion_pytorch_model.safetensors"), w=1
    )
    if index:
        text = json.dumps({"weight_map": {"w": file.name}})
        (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(text)
    assert values(open_checkpoint(tmp_path)) == {"w": 1}


def test_the_newest_step_of_flax_is_opened(tmp_path):
    for step in (5, 10, 9):
        target = {"w": np.full(3, step, "float32")}
        with quiet():
            flax.training.checkpoints.save_checkpoint_multiprocess(tmp_path, target, step, keep=9)
    (tmp_path / "checkpoint_11.orbax-checkpoint-tmp-1").mkdir()
    assert values(open_checkpoint(tmp_path)) == {"w": 10}


def test_the_newest_step_may_be_one_of_orbax(tmp_path):
    write(tmp_path / "checkpoint_1", w=1)
    with quiet(), ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint_2", {"w": jnp.full(3, 2.0)})
    assert values(open_checkpoint(tmp_path)) == {"w": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "wanted a file of weights, got a pointer of Git LFS. Fetch the file that it stands for: ",
        ),
        ("\n<!DOCTYPE html>\n<html>", "got a page of a web site. The address that it was fetched"),
        ("<html><head>", "got a page of a web site. "),
        ('<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "got a page of a web site. "),
        (
            json.dumps({"architectures": ["LlamaForCausalLM"]}),
            "got a JSON file, which holds settings, such as config.json. Pass the folder that it ",
        ),
        (json.dumps({"hidden_size": 3}, indent=2), "got a JSON file, which holds settings"),
        ("{}", "got a JSON file, which holds settings"),
    ],
)
def test_what_lies_where_weights_should_be_is_called_by_its_name(tmp_path, text, message):
    for name in ("model.safetensors", "config.json", "pytorch_model.bin"):
        (tmp_path / name).write_text(text)
        refused(tmp_path / name, message)


def test_a_header_of_123_bytes_begins_as_json_and_is_none(tmp_path):
    path = write(tmp_path / "w.safetensors", w=1)
    content = path.read_bytes()
    header = content[8 : 8 + content[0]].rstrip()
    path.write_bytes(bytes([123, *[0] * 7]) + header.ljust(123) + content[-12:])
    assert path.read_bytes()[:1] == b"{"
    assert values(open_checkpoint(path)) == {"w": 1}


def test_a_single_array_goes_by_the_name_of_its_file(tmp_path):
    array = np.arange(6.0).reshape(2, 3)
    for order in "CF":
        np.save(tmp_path / "table.npy", np.array(array, order=order))
        source = open_checkpoint(tmp_path / "table.npy")["table"]
        np.testing.assert_array_equal(source.read((slice(1, 2), slice(0, 2))), array[1:2, :2])
        assert not source.read((slice(None), slice(None))).flags.owndata


def test_a_single_array_that_is_cut_short_is_refused(tmp_path):
    np.save(tmp_path / "w.npy", np.ones(3))
    content = (tmp_path / "w.npy").read_bytes()
    (tmp_path / "w.npy").write_bytes(content[:-1])
    refused(tmp_path / "w.npy", r"wanted 24 bytes of values for float64\[3\], got 23")
