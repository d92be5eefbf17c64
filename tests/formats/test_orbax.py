"""Orbax's folders: what is told apart, what is refused; Orbax writes, and judges what is read."""

import collections
import json
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore
from checkpoint_writers import orbax_handler, orbax_sharded, orbax_v1, quiet
from reading import everything, refused

from lazyinit import errors
from lazyinit.checkpoint import open_checkpoint
from lazyinit.formats import chunked, orbax

ZARR = orbax_handler(use_ocdbt=False)
ZARR3 = orbax_handler(use_ocdbt=False, use_zarr3=True)
OCDBT = orbax_handler()
ALL = {"zarr": ZARR, "zarr3": ZARR3, "ocdbt": OCDBT, "ocdbt-zarr3": orbax_handler(use_zarr3=True)}
each = pytest.mark.parametrize("save", list(ALL.values()), ids=list(ALL))


def saved(folder, tree, *, handler=ocp.PyTreeCheckpointHandler, **how):
    """Saves a tree that is nested already, which the writers of the contract's cases are not."""
    with quiet(), ocp.Checkpointer(handler(**how)) as checkpointer:
        checkpointer.save(folder, tree)
    return folder


def managed(folder, *steps, **how):
    with quiet(), ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(**how)) as m:
        for step in steps:
            m.save(step, args=ocp.args.StandardSave({"w": np.full(3, step)}))
        m.wait_until_finished()
    return folder


def restored(folder):
    """Returns what Orbax itself reads, by the names that we give it."""
    with quiet(), ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.restore(folder)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x) for p, x in leaves}


def check(folder):
    want = restored(folder)
    got = open_checkpoint(folder)
    assert sorted(got) == sorted(want)
    for name, source in got.items():
        values = everything(source)
        assert values.shape == source.shape == want[name].shape
        assert values.tobytes() == want[name].astype(values.dtype).tobytes(), name
    return got


def edited(folder, change):
    """Changes the folder's ``_METADATA``: what ``change`` returns, or does to it."""
    path = folder / "_METADATA"
    tree = json.loads(path.read_text())
    path.write_text(json.dumps(change(tree) or tree))
    return folder


@pytest.mark.parametrize("how", [{}, {"use_ocdbt": False}, {"use_zarr3": True}], ids=str)
def test_containers_of_every_kind_are_paths(tmp_path, how):
    pair = collections.namedtuple("pair", ["left", "right"])
    tree = {
        "layers": [np.ones(2, "float32"), (np.zeros((2, 2), "int32"), [np.arange(3)])],
        "state": pair(np.ones(2), {"mu": np.zeros(1)}),
        "step": 3,
        "rate": 0.5,
        "counts": {7: np.ones(1)},
    }
    got = check(saved(tmp_path / "x", tree, **how))
    assert {"layers/1/1/0", "state/left", "state/right/mu", "step", "counts/7"} <= set(got)
    assert got["step"].shape == ()


def test_what_is_no_array_is_passed_over(tmp_path):
    tree = {"w": np.ones(2), "name": "text", "none": None, "empty": {}, "list": []}
    assert list(open_checkpoint(saved(tmp_path / "x", tree))) == ["w"]


@each
def test_names_with_dots_and_slashes_keep_to_their_folder(tmp_path, save):
    values = {"a.b": np.ones(2), "layer 1": np.zeros(2), "w..": np.ones(1)}
    path = save(tmp_path, values)
    assert sorted(open_checkpoint(path)) == sorted(values)


@each
@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "int4"])
def test_bits_of_narrow_dtypes_survive(tmp_path, save, name):
    dtype = np.dtype(getattr(ml_dtypes, name))
    values = np.arange(16).astype("int8").astype(dtype) if name == "int4" else None
    if values is None:
        values = np.arange(256, dtype="uint8").repeat(2).view(dtype)
    source = open_checkpoint(save(tmp_path, {"w": jnp.asarray(values)}))["w"]
    assert source.dtype == dtype
    assert everything(source).tobytes() == values.tobytes()


def test_a_pytree_checkpointer_and_a_training_state_are_read(tmp_path):
    with quiet(), ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "x", {"params": {"w": jnp.ones(3)}, "step": 4})
    assert sorted(check(tmp_path / "x")) == ["params/w", "step"]


def test_a_manager_with_one_step_is_that_step(tmp_path):
    root = managed(tmp_path / "run", 7)
    got = open_checkpoint(root)
    assert everything(got["w"]).tolist() == [7, 7, 7]
    for folder in (root / "7", root / "7" / "default"):
        assert everything(open_checkpoint(folder)["w"]).tolist() == [7, 7, 7]


@pytest.mark.parametrize("prefix", [None, "step"])
def test_a_manager_with_several_steps_names_the_newest(tmp_path, prefix):
    root = managed(tmp_path / "run", 2, 10, step_prefix=prefix)
    newest = root / (f"{prefix}_10" if prefix else "10")
    message = refused(root, "wanted one step, got 2. Open the folder of one step; the newest is ")
    assert message.endswith(f"is {str(newest)!r}.")
    assert everything(open_checkpoint(newest)["w"]).tolist() == [10, 10, 10]


def test_a_step_with_several_trees_names_them(tmp_path):
    with quiet(), ocp.CheckpointManager(tmp_path / "run") as manager:
        one = ocp.args.StandardSave({"w": np.ones(3)})
        items = ocp.args.Composite(params=one, opt=one, config=ocp.args.JsonSave({"x": 1}))
        manager.save(1, args=items)
        manager.wait_until_finished()
    step = tmp_path / "run" / "1"
    refused(tmp_path / "run", "wanted one tree, got 2: 'opt', 'params'. Open one of", first=step)
    assert list(open_checkpoint(step / "params")) == ["w"]


def test_a_tree_of_v1_is_read_from_its_root(tmp_path):
    path = orbax_v1(tmp_path, {"a/b": np.arange(4.0)})
    assert everything(open_checkpoint(path)["a/b"]).tolist() == [0, 1, 2, 3]


def test_a_step_without_arrays_is_refused(tmp_path):
    with quiet(), ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(1, args=ocp.args.Composite(config=ocp.args.JsonSave({"x": 1})))
        manager.wait_until_finished()
    message = refused(
        tmp_path / "run",
        "wanted _METADATA, which names what Orbax saved, got a folder without it",
        first=tmp_path / "run" / "1",
    )
    assert message.endswith("or is older than Orbax 0.4: restore and save it with Orbax.")


@each
def test_a_folder_that_lacks_its_tree_is_refused(tmp_path, save):
    path = save(tmp_path, {"w": np.ones(3)})
    (path / "_METADATA").unlink()
    refused(path, "wanted _METADATA, which names what Orbax saved, got a folder without it")


def test_an_empty_folder_is_no_orbax_folder(tmp_path):
    assert not orbax.is_folder(tmp_path)
    refused(tmp_path, "or what Orbax writes in this folder, but it is empty")


def unfinished(path, monkeypatch, save):
    """Saves, but stops where Orbax would give the folder its name; returns what it left."""
    from orbax.checkpoint._src.path import atomicity

    async def stop(self, *args, **kwargs):
        raise RuntimeError("the machine went away")

    with monkeypatch.context() as patch:
        patch.setattr(atomicity.AtomicRenameTemporaryPath, "finalize", stop)
        with pytest.raises(Exception, match="the machine went away"):
            save()
    (left,) = path.glob("*.orbax-checkpoint-tmp*")
    return left


@pytest.mark.parametrize("how", [{}, {"use_ocdbt": False}], ids=str)
def test_a_tree_that_was_not_finished_is_refused(tmp_path, monkeypatch, how):
    tree = {"w": np.ones(3)}
    left = unfinished(tmp_path, monkeypatch, lambda: saved(tmp_path / "x", tree, **how))
    message = refused(left, "wanted a finished checkpoint, got a folder that Orbax did not finish")
    assert message.endswith("Open an earlier step, or save it again.")


def test_a_step_that_was_not_finished_is_no_step(tmp_path, monkeypatch):
    root = managed(tmp_path / "run", 1)
    left = unfinished(root, monkeypatch, lambda: managed(root, 2))
    assert left.name.startswith("2.")
    assert everything(open_checkpoint(root)["w"]).tolist() == [1, 1, 1]
    shutil.rmtree(root / "1")
    refused(root, "or what Orbax writes in this folder, but it holds '2.orbax")


def bytes_read():
    found = tensorstore.experimental_collect_matching_metrics(
        "/tensorstore/kvstore/file/bytes_read"
    )
    return sum(value["value"] for metric in found for value in metric["values"])


def test_a_shard_of_a_sharded_save_reads_its_own_chunk_alone(tmp_path):
    values = np.random.default_rng(0).normal(size=(512, 256)).astype("float32")
    source = open_checkpoint(orbax_sharded(tmp_path, values))["w"]
    assert source.chunk == (128, 128)
    everything(source)
    sharding = jax.NamedSharding(jax.make_mesh((4, 2), ("x", "y")), jax.P("x", "y"))
    for index in sharding.devices_indices_map(values.shape).values():
        before = bytes_read()
        got = source.read(index)
        assert bytes_read() - before < 128 * 128 * 4 + 2**14
        np.testing.assert_array_equal(got, values[index])
    across = (slice(100, 300), slice(0, 10))
    before = bytes_read()
    np.testing.assert_array_equal(source.read(across), values[across])
    assert bytes_read() - before < 3 * 128 * 128 * 4 + 2**14


def test_a_part_without_elements_reads_nothing(tmp_path):
    source = open_checkpoint(ZARR(tmp_path, {"w": np.ones((4, 3))}))["w"]
    shutil.rmtree(tmp_path / "saved" / "w" / "0.0", ignore_errors=True)
    before = bytes_read()
    assert source.read((slice(2, 2), slice(None))).shape == (0, 3)
    assert bytes_read() == before


@each
def test_a_chunk_that_is_missing_or_cut_short_is_refused_when_it_is_read(tmp_path, save):
    values = np.random.default_rng(0).normal(size=(512, 256)).astype("float32")
    path = save(tmp_path, {"w": values})
    chunk = max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = chunk.read_bytes()
    assert len(content) > 2**17
    for spoil in (lambda: chunk.write_bytes(content[: len(content) // 2]), chunk.unlink):
        source = open_checkpoint(path)["w"]
        spoil()
        with pytest.raises(errors.CheckpointError, match="its chunks cannot be read: ") as caught:
            everything(source)
        assert str(caught.value).startswith(f"{path}: tensor 'w': ")
        assert str(caught.value).endswith("fetch it again.")


@pytest.mark.parametrize("shape", [[2**20, 2**20], [2**62], [2**24], [2**17, 2**17]])
def test_an_array_that_grew_beyond_memory_is_refused_when_all_of_it_is_read(tmp_path, shape):
    path = ZARR(tmp_path, {"w": np.ones((2,) * len(shape), "int8")})
    header = path / "w" / ".zarray"
    header.write_text(json.dumps({**json.loads(header.read_text()), "shape": shape}))
    source = open_checkpoint(path)["w"]
    np.testing.assert_array_equal(source.read((slice(0, 2),) * len(shape)), 1)
    with pytest.raises(
        errors.CheckpointError, match="wanted a part that fits into memory"
    ) as caught:
        everything(source)
    assert str(caught.value).startswith(f"{path}: tensor 'w': ")


def test_a_chunk_larger_than_memory_is_refused(tmp_path, monkeypatch):
    path = ZARR(tmp_path, {"w": np.ones(100)})
    source = open_checkpoint(path)["w"]
    monkeypatch.setattr(chunked, "_memory", lambda: 799)
    message = "tensor 'w': wanted a chunk that fits into memory .799 bytes., got one of 800"
    with pytest.raises(errors.CheckpointError, match=message) as caught:
        everything(source)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith("Save it again in smaller chunks.")


@pytest.mark.parametrize(("save", "header"), [(ZARR, ".zarray"), (ZARR3, "zarr.json")])
def test_an_array_without_its_header_is_refused(tmp_path, save, header):
    path = save(tmp_path, {"w": np.ones(3)})
    (path / "w" / header).unlink()
    there = re.escape(repr(str(path / "w" / header)))
    refused(path, f"tensor 'w': wanted its header {there}, which cannot be read: No such file")


@each
def test_a_header_that_is_damaged_is_refused(tmp_path, save):
    path = save(tmp_path, {"w": np.ones(3)})
    for file in path.rglob("*"):
        if file.name in (".zarray", "zarr.json", "manifest.ocdbt"):
            file.write_bytes(file.read_bytes()[:-5])
    refused(path, "tensor 'w': its header cannot be read: .* fetch it again")


def zarray(path, **changes):
    header = path / "w" / ".zarray"
    header.write_text(json.dumps(json.loads(header.read_text()) | changes))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "|S3"}, r"wanted a dtype among bool, .*, got \|S0. Save it as one of these"),
        ({"dtype": "|V4"}, r"wanted a dtype among bool, .*, got \|V0. Save it as one of these"),
        ({"dtype": "<M8[s]"}, "its header cannot be read: .*Unsupported zarr dtype"),
        ({"dtype": "|O"}, "its header cannot be read"),
        ({"chunks": [2**40]}, r"wanted chunks no larger than \[3\], got \[1099511627776\]"),
        ({"chunks": [3, 3]}, "its header cannot be read"),
        ({"shape": [-3]}, "its header cannot be read"),
        (
            {"shape": [2**62, 2**62], "chunks": [1, 1]},
            "a shape whose bytes can be counted in 63 bits",
        ),
        ({"compressor": {"id": "nothing known"}}, "its header cannot be read"),
    ],
    ids=str,
)
def test_a_header_that_lies_is_refused(tmp_path, changes, message):
    path = zarray(ZARR(tmp_path, {"w": np.ones(3)}), **changes)
    assert "tensor 'w': " in refused(path, message)


def test_big_endian_values_are_turned_around(tmp_path):
    path = zarray(ZARR(tmp_path, {"w": np.arange(3.0)}), dtype=">f8")
    source = open_checkpoint(path)["w"]
    assert source.dtype == np.dtype("<f8")
    assert everything(source).tobytes() == np.arange(3.0).byteswap().tobytes()


def test_a_tree_beyond_the_limit_is_refused(tmp_path, monkeypatch):
    path = ZARR(tmp_path, {"w": np.ones(3)})
    monkeypatch.setattr(orbax, "HEADER_LIMIT", 10)
    refused(path, "wanted a tree of at most 10 bytes, got a larger file", first=path / "_METADATA")


def leaf(*keys, kind="np.ndarray"):
    listed = [{"key": key, "key_type": 2} for key in keys]
    value = {"value_type": kind, "skip_deserialize": False}
    return {"key_metadata": listed, "value_metadata": value}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "wanted JSON in UTF-8, got something else"),
        ("", "wanted JSON in UTF-8, got something else"),
        ("\ud800".encode("utf-8", "surrogatepass"), "wanted JSON in UTF-8, got something else"),
        ("[]", "wanted a JSON object, got list"),
        ("{}", "wanted 'tree_metadata' to describe the leaves, got None"),
        ('{"a": 1, "a": 2}', "the name 'a' stands twice"),
    ],
)
def test_a_tree_that_is_no_tree_is_refused(tmp_path, text, message):
    path = ZARR(tmp_path, {"w": np.ones(3)})
    (path / "_METADATA").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(path, message, first=path / "_METADATA")


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([], r"wanted 'tree_metadata' to describe the leaves, got \[\]"),
        ({"x": 5}, "wanted keys and a kind for leaf 'x', got 5"),
        ({"x": {"key_metadata": []}}, "wanted keys and a kind for leaf 'x', got"),
        ({"x": leaf() | {"value_metadata": {}}}, "wanted keys and a kind for leaf 'x', got"),
        ({"x": leaf() | {"key_metadata": "ab"}}, "wanted keys and a kind for leaf 'x', got"),
        ({"x": leaf()}, r"wanted keys that are text for leaf 'x', got \[\]"),
        ({"x": leaf(1)}, r"wanted keys that are text for leaf 'x', got \[1\]"),
        ({"x": leaf(["a"])}, r"wanted keys that are text for leaf 'x', got \[\['a'\]\]"),
        ({"x": leaf("\ud800")}, "wanted keys that are text for leaf 'x', got"),
        *(
            ({"x": leaf(*keys)}, "wanted a leaf 'x' that lies inside the folder, got")
            for keys in [
                *(("..",), ("../out",), ("/etc",), ("a/../../out",), ("",), ("a//b",), (".",)),
                *(("", ""), ("a\0b",), ("..\\out",), ("a/", "/../b")),
            ]
        ),
        ({"x": leaf("w"), "y": leaf("w")}, "two tensors are called 'w'. Rename one where they"),
    ],
    ids=lambda x: str(x)[:60].encode("ascii", "replace").decode(),
)
def test_a_tree_that_lies_is_refused(tmp_path, tree, message):
    path = ZARR(tmp_path, {"w": np.ones(3)})
    edited(path, lambda there: there | {"tree_metadata": tree})
    refused(path, message, first=path / "_METADATA")


def test_a_tree_with_leaves_beyond_count_is_refused(tmp_path, monkeypatch):
    path = ZARR(tmp_path, {"w": np.ones(3), "v": np.ones(3)})
    monkeypatch.setattr(orbax, "NODE_LIMIT", 1)
    refused(path, "wanted 'tree_metadata' to describe", first=path / "_METADATA")


@each
def test_a_name_that_was_never_saved_is_refused(tmp_path, save):
    path = save(tmp_path, {"w": np.ones(3)})
    edited(path, lambda tree: tree["tree_metadata"].update(x=leaf("other")))
    refused(path, "tensor 'other': (wanted its header .*|its header) cannot be read: ")


def test_without_tensorstore_its_package_is_named(tmp_path, monkeypatch):
    path = OCDBT(tmp_path, {"w": np.ones(3)})
    chunked._context.cache_clear()
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    message = refused(path, "wanted the package tensorstore, which reads what Orbax writes, got")
    assert message.endswith("Run pip install tensorstore.")


def test_a_tensor_says_where_it_is_from(tmp_path):
    path = ZARR(tmp_path, {"a/w": np.ones(3)})
    source = open_checkpoint(path)["a/w"]
    assert repr(source) == "saved:a/w"
    assert source.origin == str(path)
