"""Progress is told to a callback, a terminal or a notebook, seldom enough, and changes nothing."""

import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from range_server import serving
from safetensors.numpy import load_file, save_file

import lazyinit as li
from lazyinit import progress
from lazyinit.make.selfcheck import proofs_on
from lazyinit.make.ways import Drawn, Job, way_of
from lazyinit.tools.cli import main
from lazyinit.tools.convert import convert

KEY = jax.random.key(0)
VALUES = {f"layers.{n}.w": np.full((64, 100), n, np.float32) for n in range(5)}
TOTAL = sum(x.nbytes for x in VALUES.values())


@pytest.fixture
def told(monkeypatch):
    """A callback that is told everything, and the list that it fills."""
    monkeypatch.setattr(progress, "_PAUSE", 0)
    return []


def stored(values=VALUES):
    tree = {name: li.LazyParam(x.shape, x.dtype, jnp.zeros) for name, x in values.items()}
    return li.fill(tree, values, on_missing="error")[0]


def assert_whole(told, actions, total):
    assert {now.action for now in told} == set(actions)
    done = [now.done_bytes for now in told]
    assert done == sorted(done)
    assert done[-1] == total
    assert {now.total_bytes for now in told} == {total}


def test_materialize_tells_what_it_makes_reads_and_moves(told):
    x = jax.ShapeDtypeStruct((1, 300), "float32")
    tree = {"made": li.lazy(nn.Dense(200)).init(KEY, x), "read": stored(), "moved": jnp.ones(3)}
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[1])
    made = li.materialize(tree, sharding=sharding, progress=told.append)
    want = {"made": li.materialize(tree["made"]), "read": VALUES, "moved": tree["moved"]}
    assert_whole(
        told,
        ("compile", "make", "read", "move"),
        sum(leaf.nbytes for leaf in jax.tree.leaves(made)),
    )
    assert {now.path for now in told} <= {path for path, _ in li.paths.leaves_with_paths(tree)}
    for one, other in zip(jax.tree.leaves(made), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_compiled_is_told_before_anything_is_made(told):
    x = jax.ShapeDtypeStruct((1, 300), "float32")
    tree = li.lazy(nn.Dense(200)).init(KEY, x)
    assert isinstance(
        way_of([Job("kernel", tree["params"]["kernel"], None, "f4")], proofs_on), Drawn
    )
    li.materialize(tree, "params/kernel", progress=told.append)
    path, size = "params/kernel", 4 * 300 * 200
    assert told[0] == li.Progress("compile", path, 0, size)
    assert told[-1] == li.Progress("make", path, size, size)


def test_from_pretrained_tells_what_materialize_does(told):
    x = jax.ShapeDtypeStruct((1, 300), "float32")
    bias = {"bias": np.ones(200, np.float32)}
    options = {"at": "params", "on_missing": "init", "progress": told.append}
    li.from_pretrained(nn.Dense(200), bias, KEY, x, **options)
    assert_whole(told, ("compile", "make", "read"), 200 * 301 * 4)


@pytest.mark.parametrize("size", ["5GB", 60000])
def test_save_tells_the_names_that_it_writes(told, tmp_path, size):
    rules = [li.Rename("out.**", "layers.**")]
    li.save(VALUES, tmp_path, rules=rules, progress=told.append, max_shard_size=size)
    assert_whole(told, ("write",), TOTAL)
    assert [now.path for now in told] == [f"out.{n}.w" for n in range(5)]


@pytest.mark.parametrize("name", ["x.npz", "x.msgpack", "x.safetensors", "x", "orbax"])
def test_convert_tells_what_it_writes(told, tmp_path, name):
    target = tmp_path / name
    kind = "orbax" if name == "orbax" else "by suffix"
    convert(li.open_checkpoint(VALUES), target, format=kind, progress=told.append)
    assert_whole(told, ("write",), TOTAL)
    names = {str(target)} if name == "orbax" else set(VALUES)
    assert {now.path for now in told} == names


def test_orbax_is_told_once_it_begins_and_once_it_is_done(told, tmp_path):
    li.save({**VALUES, "step": 3}, tmp_path / "x", format="orbax", progress=told.append)
    assert [now.done_bytes for now in told] == [0, TOTAL + 8]


def test_update_tells_of_the_whole_though_it_reads_by_groups(told, monkeypatch):
    monkeypatch.setattr("lazyinit._update.TOGETHER", 30000)
    tree = {name: jnp.zeros(x.shape) for name, x in VALUES.items()}
    made, _ = li.update(tree, VALUES, progress=told.append)
    assert_whole(told, ("read",), TOTAL)
    np.testing.assert_array_equal(made["layers.3.w"], VALUES["layers.3.w"])


def test_a_leaf_that_is_read_in_many_pieces_is_told_of_before_it_is_done(told, monkeypatch):
    monkeypatch.setattr("lazyinit.make.read.PIECE", 400)
    li.materialize(stored({"w": VALUES["layers.1.w"]}), progress=told.append)
    assert_whole(told, ("read",), 64 * 100 * 4)
    assert {now.path for now in told} == {"w"}
    assert len(told) == 64


def test_what_is_read_from_a_server_is_told_of_as_it_comes(told, monkeypatch, tmp_path):
    monkeypatch.setattr("lazyinit.make.read.PIECE", 5000)
    save_file(VALUES, tmp_path / "model.safetensors")
    tree = {name: li.LazyParam(x.shape, x.dtype, jnp.zeros) for name, x in VALUES.items()}
    with serving() as server:
        server.put(tmp_path)
        tree, _ = li.fill(tree, f"{server.url}/model.safetensors", on_missing="error")
        made = li.materialize(tree, progress=told.append)
    assert_whole(told, ("read",), TOTAL)
    assert len(told) > len(VALUES)
    np.testing.assert_array_equal(made["layers.3.w"], VALUES["layers.3.w"])


class Stop(Exception):
    pass


def failing_at(nbytes):
    def callback(now):
        if now.done_bytes >= nbytes:
            raise Stop(f"at {now.done_bytes}")

    return callback


@pytest.mark.parametrize("at", [0, TOTAL])
def test_an_error_of_the_callback_ends_materialize_and_the_tree_is_as_it_was(told, at):
    tree = stored()
    with pytest.raises(Stop):
        li.materialize(tree, progress=failing_at(at))
    assert all(isinstance(leaf, li.StoredParam) for leaf in tree.values())
    np.testing.assert_array_equal(li.materialize(tree)["layers.2.w"], VALUES["layers.2.w"])


@pytest.mark.parametrize("at", [0, TOTAL])
def test_an_error_of_the_callback_leaves_the_old_checkpoint(told, tmp_path, at):
    li.save({"w": np.ones(3)}, tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    for size in ("5GB", 60000):
        with pytest.raises(Stop):
            li.save(VALUES, tmp_path, progress=failing_at(at), max_shard_size=size)
        assert {path.name for path in tmp_path.iterdir()} == before
    np.testing.assert_array_equal(load_file(tmp_path / "model.safetensors")["w"], np.ones(3))
    for name in ("x.npz", "x.msgpack", "x.safetensors"):
        with pytest.raises(Stop):
            convert(li.open_checkpoint(VALUES), tmp_path / name, progress=failing_at(at))
    assert {path.name for path in tmp_path.iterdir()} == before


def test_an_error_of_the_callback_in_update_says_how_far_it_came(told, monkeypatch):
    monkeypatch.setattr("lazyinit._update.TOGETHER", 1)
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    values = {"bias": np.ones(2, np.float32), "kernel": np.ones((3, 2), np.float32)}
    with pytest.raises(li.errors.UpdateError, match="wanted to read 2 leaves, got 1, then: at 32"):
        li.update(model, values, progress=failing_at(10))
    assert (model.bias[...] == 1).all()
    assert not (model.kernel[...] == 1).any()


def test_thousands_of_small_steps_are_told_ten_times_a_second(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    seen = []
    with progress.reporting(seen.append, 20_000) as tell:
        for n in range(20_000):  # One second of them.
            now[0] += 1 / 20_000
            tell("make", str(n), 1)
    assert seen[0].done_bytes == 1
    assert seen[-1].done_bytes == 20_000
    assert 10 <= len(seen) <= 12


@pytest.mark.parametrize("wrong", [None, "yes", 1])
def test_what_is_no_progress_is_refused_before_anything_is_done(tmp_path, wrong):
    message = "progress: wanted True, False or a function that takes a lazyinit.Progress, got"
    calls = [
        lambda: li.materialize(stored(), progress=wrong),
        lambda: li.save(VALUES, tmp_path / "x", progress=wrong),
        lambda: li.update({"w": jnp.zeros(2)}, {"w": np.ones(2)}, progress=wrong),
        lambda: convert(li.open_checkpoint(VALUES), tmp_path / "x", progress=wrong),
    ]
    for call in calls:
        with pytest.raises(li.errors.WordError, match=message):
            call()
    assert not (tmp_path / "x").exists()


def test_nothing_is_shown_where_there_is_no_terminal(capsys, tmp_path):
    li.materialize(stored(), progress=True)
    li.save(VALUES, tmp_path / "x", progress=True)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_a_bar_that_fits_and_standard_output_stays_clean(
    capsys, monkeypatch, tmp_path
):
    monkeypatch.setattr(progress, "_PAUSE", 0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    name = "params/" + "a_long_name/" * 20 + "[red]w"
    li.save({name: np.ones((64, 100))}, tmp_path / "x", progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if line.strip()]
    assert any("write params/a_long" in line and "…" in line for line in lines)
    assert any("50.0/50.0 KiB" in line for line in lines)
    assert main(["convert", str(tmp_path / "x"), str(tmp_path / "x.npz")]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'x.npz'}: 1 tensors, 50.0 KiB\n"
    assert "write" in err


def test_a_notebook_has_one_display_that_is_updated(monkeypatch, capsys):
    shown = []
    handle = types.SimpleNamespace(update=shown.append)
    module = types.ModuleType("IPython.display")
    module.HTML = str
    module.display = lambda first, display_id: shown.append(first) or handle
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    li.materialize(stored({"<b>": VALUES["layers.0.w"]}), progress=True)
    assert shown[0] == ""
    assert f'<progress value="{64 * 400}" max="{64 * 400}"' in shown[-1]
    assert "25.0 KiB of 25.0 KiB" in shown[-1]
    half = progress.as_html(li.Progress("read", "<b>", 1, 2), 1.0)
    assert half.endswith("1 B of 2 B, 1 B/s, 1 s left: read &lt;b&gt;</div>")
    assert "time left unknown" in progress.as_html(li.Progress("compile", "w", 0, 2), 1.0)
    assert capsys.readouterr() == ("", "")
