"""What comes along with a checkpoint: all files of a folder that are no weights."""

import json
import os
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from with_torch import run_with_torch

import lazyinit as li
from lazyinit.checkpoint.beside import side_files

TREE = {"w": np.ones((2, 3), np.float32)}
SIDE = {
    "config.json": '{"model_type": "bert"}',
    "vocab.txt": "a\nb\n",
    "README.md": "# A model",
    "tokenizer.model": "\n\x0e\n\x05<unk>",
    "modeling_own.py": "x = 3\n",
    "1_Pooling/config.json": '{"pooling": "mean"}',
}
# No weights by their names, but hidden, or not finished.
LEFT = (".gitattributes", ".cache/x.txt", "__pycache__/x.pyc", "b.json.incomplete", "c.json.tmp")


def fill(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture
def like(tmp_path):
    folder = tmp_path / "like"
    fill(folder, {**SIDE, **dict.fromkeys(LEFT, "x")})
    save_file(TREE, folder / "model.safetensors", {"format": "pt", "step": "7"})
    return folder


def names(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_files_that_are_no_weights_come_along_and_so_does_the_metadata(like, tmp_path):
    target = tmp_path / "new"
    li.save(TREE, target, like=like)
    assert names(target) == {"model.safetensors", *SIDE}
    for name in SIDE:
        assert (target / name).read_bytes() == (like / name).read_bytes()
    assert li.open_checkpoint(target).metadata == {"format": "pt", "step": "7"}
    li.save(TREE, target, like=like, metadata={"step": "8", "by": "me"})
    want = {"format": "pt", "step": "8", "by": "me"}
    assert li.open_checkpoint(target).metadata == want
    assert names(target) == {"model.safetensors", *SIDE}


WITH_PYTORCH = """
import sys, numpy as np, torch, lazyinit as li
from transformers import AutoModel, BertConfig, BertModel
old, new = sys.argv[1:]
sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
model = BertModel(BertConfig(**sizes, intermediate_size=8, vocab_size=9))
model.save_pretrained(old)
tree = {k: np.asarray(v.detach()) for k, v in model.state_dict().items()}
li.save(tree, new, like=old, max_shard_size=500)
again = AutoModel.from_pretrained(new)
ids = torch.arange(4)[None]
with torch.no_grad():
    want, got = (m.eval()(ids).last_hidden_state for m in (model, again))
assert torch.equal(got, want)
"""


def test_what_transformers_saved_is_loaded_by_it_again(tmp_path):
    run_with_torch(WITH_PYTORCH, tmp_path / "old", tmp_path / "new")
    assert not (tmp_path / "new" / "model.safetensors").exists(), "it is sharded"


def weights(folder):
    """Writes checkpoints of many formats, each by its own library, under names of every kind."""
    import torch

    torch.save({"w": torch.ones(2)}, folder / "pytorch_model.bin")
    torch.save({"w": torch.ones(2)}, folder / "archive")
    torch.save({"w": torch.ones(2)}, folder / "old", _use_new_zipfile_serialization=False)
    np.savez(folder / "x.npz", w=np.ones(2))
    os.rename(folder / "x.npz", folder / "numbers")
    np.save(folder / "y.npy", np.ones(2))
    os.rename(folder / "y.npy", folder / "array")
    save_file(TREE, folder / "plain")
    (folder / "keras").write_bytes(b"\x89HDF\r\n\x1a\n")
    (folder / "model.gguf").write_bytes(b"GGUF")
    (folder / "unsuffixed").write_bytes(b"GGUF\3\0\0\0")
    (folder / "flax_model.msgpack").write_bytes(b"\x80")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"x")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))


def test_weights_never_come_along_whatever_their_names(tmp_path):
    like = tmp_path / "like"
    fill(like, {"config.json": "{}", "archive.json": "{}"})
    weights(like)
    found = {file.name for file in side_files(like, tmp_path / "new")}
    assert found == {"config.json", "archive.json"}


def test_orbaxs_folders_are_weights(tmp_path):
    import orbax.checkpoint as checkpointers

    like = tmp_path / "like"
    fill(like, {"config.json": "{}"})
    with checkpointers.StandardCheckpointer() as checkpointer:
        checkpointer.save(like / "0", TREE)
    assert {file.name for file in side_files(like, tmp_path / "new")} == {"config.json"}
    with pytest.raises(li.errors.SaveError, match=r"like=.*0: wanted .* got a folder that Or"):
        li.save(TREE, tmp_path / "new", like=like / "0")


def test_files_of_a_cache_are_links_and_links_to_folders_are_not_followed(like, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "config.json").symlink_to(like / "config.json")
    (cache / "around").symlink_to(cache)
    li.save(TREE, tmp_path / "new", like=cache)
    assert names(tmp_path / "new") == {"model.safetensors", "config.json"}
    assert not (tmp_path / "new" / "config.json").is_symlink()


def test_a_target_inside_does_not_come_along_with_itself(like):
    li.save(TREE, like / "new", like=like)
    assert names(like / "new") == {"model.safetensors", *SIDE}
    li.save(TREE, like / "new", like=like)
    assert names(like / "new") == {"model.safetensors", *SIDE}


def test_a_folder_may_be_like_itself(like):
    before = names(like)
    li.save({"w": TREE["w"] + 1}, like, like=like)
    assert names(like) == before
    assert load_file(like / "model.safetensors")["w"][0, 0] == 2
    assert li.open_checkpoint(like).metadata["step"] == "7"


def refused(tmp_path, like, *messages):
    target = tmp_path / "new"
    before = names(target)
    with pytest.raises(li.errors.SaveError) as caught:
        li.save(TREE, target, like=like)
    for line, message in zip(str(caught.value).splitlines(), messages, strict=True):
        assert re.match(message, line), line
    assert names(target) == before


def test_all_that_clashes_is_one_error_and_nothing_is_written(like, tmp_path):
    fill(tmp_path / "new", {"config.json": '{"model_type": "gpt2"}', "1_Pooling": "a file"})
    (tmp_path / "new" / "vocab.txt").mkdir()
    refused(
        tmp_path,
        like,
        rf"{tmp_path}/new/1_Pooling: wanted a folder to copy .*1_Pooling/config.json to, got a fil",
        rf"{tmp_path}/new/config.json: wanted to copy {like}/config.json to this path, but",
        rf"{tmp_path}/new/vocab.txt: wanted to copy {like}/vocab.txt to this path, but",
    )


def test_a_file_that_is_there_already_and_equal_is_no_clash(like, tmp_path):
    fill(tmp_path / "new", {"config.json": SIDE["config.json"]})
    li.save(TREE, tmp_path / "new", like=like)
    assert names(tmp_path / "new") == {"model.safetensors", *SIDE}


def test_pointers_and_links_to_nowhere_are_refused_by_name(like, tmp_path):
    (like / "vocab.txt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (like / "README.md").unlink()
    (like / "README.md").symlink_to(like / "gone")
    os.mkfifo(like / "pipe")
    refused(
        tmp_path,
        like,
        rf"{like}/README.md: wanted a file, got a link to nowhere. Fetch the folder again",
        rf"{like}/pipe: wanted a file, got something else",
        rf"{like}/vocab.txt: wanted a file, got a pointer of Git LFS to it. Run git lfs pull.",
    )


def test_what_is_no_folder_is_refused(like, tmp_path):
    message = "wanted a folder on this machine whose files can be copied, got"
    refused(tmp_path, "hf://bert", rf"like=hf://bert: {message} an address. Download it first.")
    file = like / "config.json"
    refused(tmp_path, file, rf"like={file}: {message} a file. Its folder is {like}.")
    refused(
        tmp_path,
        tmp_path / "liek",
        rf"like={tmp_path}/liek: {message} a path where nothing is; did you mean 'like'\?$",
    )


def test_a_file_that_cannot_be_read_is_refused(like, tmp_path, monkeypatch):
    def failing(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("lazyinit.checkpoint.beside._problem", failing)
    refused(
        tmp_path, like, *[rf"{like}/{name}: it cannot be read: Permission denied." for name in sorted(SIDE)]
    )  # fmt: skip


def test_a_file_that_goes_while_it_is_carried_over_is_an_error(like, tmp_path, monkeypatch):
    def gone(*arguments):
        found = side_files(*arguments)
        (like / "vocab.txt").unlink()
        return found

    monkeypatch.setattr("lazyinit._save.side_files", gone)
    with pytest.raises(
        li.errors.CheckpointError, match=r"vocab.txt: wanted to copy this file, but"
    ):
        li.save(TREE, tmp_path / "new", like=like)
    assert names(tmp_path / "new") == set()
