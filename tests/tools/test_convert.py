"""What is converted is read by the target format's own library, in bounded memory."""

import os
import re
import shutil
import subprocess
import sys

import flax.serialization
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import lazyinit as li
from lazyinit.formats import flax_msgpack
from lazyinit.tools.convert import convert

TENSORS = {
    "layers/0/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
    "layers/0/bias": np.arange(4, dtype=np.float16),
    "layers/1/kernel": np.ones((3, 4), np.float64),
    "step": np.array(7, np.int32),
    "empty": np.zeros((0, 5), np.float32),
    "mask": np.array([True, False]),
    "half": np.arange(6).astype(ml_dtypes.bfloat16),
}
NAMES = ("safetensors", "npz", "msgpack", "folder")


def opened(tensors=TENSORS):
    return li.open_checkpoint(dict(tensors))


def flat(tree, above=""):
    for key, child in tree.items():
        if isinstance(child, dict):
            yield from flat(child, f"{above}{key}/")
        else:
            yield above + key, np.asarray(child)


def official(path):
    """Reads a file as the library of its format does."""
    if path.suffix == ".npz":
        with np.load(path) as archive:
            return dict(archive)
    if path.suffix == ".msgpack":
        return dict(flat(flax.serialization.msgpack_restore(path.read_bytes())))
    if path.is_dir():
        return {k: v for file in path.glob("*.safetensors") for k, v in load_file(file).items()}
    return load_file(path)


def assert_equal(got, want):
    assert set(got) == set(want)
    for name, array in want.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape), name
        assert got[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("name", NAMES)
def test_the_formats_own_library_reads_what_is_written(tmp_path, name):
    path = tmp_path / f"x.{name}" if name != "folder" else tmp_path / "x"
    # NumPy has no bfloat16: the official readers of npz and safetensors give something else.
    tensors = {k: v for k, v in TENSORS.items() if name == "msgpack" or k != "half"}
    convert(opened(tensors), path, max_shard_size=100)
    assert_equal(official(path), tensors)


@pytest.mark.parametrize("source", NAMES)
@pytest.mark.parametrize("target", NAMES)
def test_from_each_format_to_each_every_bit_is_kept(tmp_path, source, target):
    paths = [
        tmp_path / (f"{n}.{name}" if name != "folder" else f"{n}")
        for n, name in enumerate((source, target))
    ]
    convert(opened(), paths[0], max_shard_size=100)
    convert(li.open_checkpoint(paths[0]), paths[1])
    got = li.open_checkpoint(paths[1])
    assert_equal({n: x.read(tuple(slice(None) for _ in x.shape)) for n, x in got.items()}, TENSORS)


@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=3),
        hnp.arrays(
            st.sampled_from([np.float32, np.int8, np.bool_, np.uint64, np.complex64]),
            hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_tensors_survive_any_format(tmp_path_factory, tensors):
    folder = tmp_path_factory.mktemp("x")
    for suffix in ("npz", "msgpack", "safetensors"):
        convert(opened(tensors), folder / f"x.{suffix}")
        assert_equal(official(folder / f"x.{suffix}"), tensors)


def test_pytorch_and_orbax_are_sources_too(tmp_path):
    import orbax.checkpoint as checkpointers
    import torch

    tensors = {k: v for k, v in TENSORS.items() if k != "half" and v.size}
    torch.save({k: torch.tensor(v) for k, v in tensors.items()}, tmp_path / "x.bin")
    with checkpointers.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "orbax", {k: jnp.asarray(v) for k, v in {"a": tensors["layers/0/kernel"], "b": tensors["step"]}.items()})  # fmt: skip
    np.savez_compressed(tmp_path / "x.npz", **tensors)
    for n, name in enumerate(("x.bin", "x.npz")):
        convert(li.open_checkpoint(tmp_path / name), tmp_path / f"{n}.safetensors")
        assert_equal(load_file(tmp_path / f"{n}.safetensors"), tensors)
    convert(li.open_checkpoint(tmp_path / "orbax"), tmp_path / "o.safetensors")
    want = {"a": tensors["layers/0/kernel"], "b": tensors["step"]}
    assert_equal(load_file(tmp_path / "o.safetensors"), want)


def test_an_array_above_flaxs_limit_is_written_in_pieces_as_flax_does(tmp_path, monkeypatch):
    array = np.arange(100, dtype=np.float32).reshape(10, 10)
    monkeypatch.setattr(flax_msgpack, "_CHUNK", 64)
    convert(opened({"a/b": array, "c": np.ones(3)}), tmp_path / "x.msgpack")
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 64)
    assert_equal(official(tmp_path / "x.msgpack"), {"a/b": array, "c": np.ones(3)})
    want = flax.serialization.msgpack_serialize({"a": {"b": array}, "c": np.ones(3)})
    assert len((tmp_path / "x.msgpack").read_bytes()) - len(want) in range(200)
    again = li.open_checkpoint(tmp_path / "x.msgpack")
    convert(again, tmp_path / "x.npz")
    assert_equal(official(tmp_path / "x.npz"), {"a/b": array, "c": np.ones(3)})


def test_many_keys_and_long_names_nest_in_msgpack(tmp_path):
    tensors = {f"{'k' * 300}/{n}": np.full(2, n, np.int32) for n in range(70_000)}
    convert(opened(tensors), tmp_path / "x.msgpack")
    restored = flax.serialization.msgpack_restore((tmp_path / "x.msgpack").read_bytes())
    assert len(restored["k" * 300]) == 70_000


def test_rules_give_names_and_layouts_and_are_read_backwards(tmp_path):
    rules = [li.Rule("**/kernel", "**.weight", li.Transpose("o i -> i o")), li.Rule("**", "**")]
    torch = {"fc.weight": TENSORS["layers/0/kernel"], "fc.bias": TENSORS["layers/0/bias"]}
    convert(opened(torch), tmp_path / "flax.npz", rules=rules)
    want = {"fc/kernel": torch["fc.weight"].T.copy(), "fc/bias": torch["fc.bias"]}
    assert_equal(official(tmp_path / "flax.npz"), want)
    back = li.open_checkpoint(tmp_path / "flax.npz")
    convert(back, tmp_path / "torch.safetensors", rules=rules, reverse=True)
    assert_equal(load_file(tmp_path / "torch.safetensors"), torch)


def test_a_dtype_is_for_floats_alone(tmp_path):
    convert(opened(), tmp_path / "x.msgpack", dtype=np.dtype("float16"))
    got = official(tmp_path / "x.msgpack")
    assert got["step"].dtype == np.int32
    assert got["mask"].dtype == np.bool_
    want = TENSORS["layers/0/kernel"].astype(np.float16)
    np.testing.assert_array_equal(got["layers/0/kernel"], want, strict=True)


def test_a_file_may_take_the_place_of_its_own_source(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": np.arange(5, dtype=np.float64)}, path)
    convert(li.open_checkpoint(path), path, dtype=np.dtype("float32"))
    np.testing.assert_array_equal(load_file(path)["a"], np.arange(5, dtype="float32"), strict=True)
    assert os.listdir(tmp_path) == ["x.safetensors"]


@pytest.mark.parametrize(
    ("tensors", "target", "message"),
    [
        ({"a": np.ones(2)}, "x.pt", "x.pt: wanted a folder, or a file that ends in .safetensors"),
        ({}, "x.npz", "the mapping: wanted tensors to convert, got none."),
        ({"a": np.ones(2), "a/b": np.ones(2)}, "x.msgpack", "a/b: wanted a place of its own in"),
        ({"a/b": np.ones(2), "a": np.ones(2)}, "x.msgpack", "a: wanted a place of its own in"),
        ({"../a": np.ones(2)}, "x.npz", "'../a': wanted a name that is a plain path in an archive"),
        (
            {"a": np.ones(2).astype(ml_dtypes.float8_e5m2)},
            "x.npz",
            "a: wanted a dtype that .npz can hold, got float8_e5m2[2]. Cast it",
        ),
        ({"a": np.ones(2, "c16")}, "x.safetensors", "a: wanted a dtype that safetensors has"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_and_nothing_is_written(
    tmp_path, tensors, target, message
):
    with pytest.raises(li.errors.SaveError, match=re.escape(message)):
        convert(opened(tensors), tmp_path / target)
    assert not list(tmp_path.iterdir())


PEAK = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-m", "lazyinit", *sys.argv[1:]], stdout=sys.stderr)
_, status, usage = os.wait4(child.pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss // 1024)
"""


def peak(*arguments):
    """Returns the most memory that a command held, mapped pages and imports too, in MiB."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    code, most = map(int, done.stdout.split())
    assert code == 0, done.stderr
    return most


@pytest.fixture
def gigabyte(tmp_path):
    """Yields a folder with a checkpoint of 1 GiB in three formats, one tensor a quarter of it."""
    import torch

    rng = np.random.default_rng(0)
    shapes = [(2**13, 2**13)] + [(2**12, 2**12)] * 12
    tensors = {
        f"layers.{n}.dense.weight": rng.random(shape, np.float32) for n, shape in enumerate(shapes)
    }
    save_file(tensors, tmp_path / "x.safetensors")
    np.savez_compressed(tmp_path / "c.npz", **{n: np.ones_like(x) for n, x in tensors.items()})
    torch.save({name: torch.from_numpy(x) for name, x in tensors.items()}, tmp_path / "x.bin")
    (tmp_path / "rules.py").write_text(
        "from lazyinit import Rule, Transpose\n"
        "FLAX = [Rule('**/kernel', '**.weight', Transpose('o i -> i o'))]\n"
    )
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
def test_a_gibibyte_goes_through_every_format_below_300_mib(gigabyte, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(gigabyte), *sys.path]))
    steps = [
        "convert x.safetensors x.npz",
        "convert x.npz x.msgpack",
        "convert x.msgpack x --max-shard-size 300MB",
        "diff --values x.safetensors x",
        "convert c.npz x.msgpack --dtype bfloat16",
        "convert x.safetensors x.npz --rules rules:FLAX",
        "convert x.npz x --rules rules:FLAX --reverse",
        "diff --values x.safetensors x",
    ]
    monkeypatch.chdir(gigabyte)
    peaks = {step: peak(*step.split()) for step in steps}
    assert max(peaks.values()) < 300, peaks
    # PyTorch and JAX have more than that between them once they are imported.
    floor = peak("inspect", "x.bin")
    assert peak("convert", "x.bin", "x") < floor + 64
    assert peak("diff", "--values", "x.bin", "x.safetensors") < floor + 64


@pytest.mark.parametrize("target", ["x", "x.safetensors"])
def test_metadata_is_kept_and_format_says_pt_where_rules_change_names(tmp_path, target):
    save_file({"a.b": np.ones(2)}, tmp_path / "old.safetensors", {"step": "7", "format": "flax"})
    old = li.open_checkpoint(tmp_path / "old.safetensors")
    assert old.metadata == {"step": "7", "format": "flax"}
    convert(old, tmp_path / target)
    assert metadata_of(tmp_path / target) == {"step": "7", "format": "flax"}
    convert(old, tmp_path / target, rules=[li.Rename("a.*", "c.*")])
    assert metadata_of(tmp_path / target) == {"step": "7", "format": "pt"}
    convert(opened({"a": np.ones(2)}), tmp_path / target)
    assert metadata_of(tmp_path / target) == {"format": "pt"}


def metadata_of(path):
    """Returns the metadata of a file or of a folder with one, as the official library reads it."""
    with safe_open(path / "model.safetensors" if path.is_dir() else path, "numpy") as file:
        return file.metadata()
