"""A killed save leaves the old checkpoint or the new one, whole, and the next one clears up."""

import dataclasses
import errno
import json
import os
import re
import resource

import forked
import numpy as np
import pytest
from safetensors.numpy import load_file

import lazyinit as li
from lazyinit.checkpoint.beside import side_files
from lazyinit.checkpoint.folder import planned, write_folder
from lazyinit.formats import commit, journal
from lazyinit.formats.commit import INDEX, SINGLE, replacing_checkpoint, replacing_file
from lazyinit.tensors.memory import open_tree
from lazyinit.tensors.pieces import pieces

SIZES = {"single": 10**9, "sharded": 100}


def tensors(value):
    return {f"layer.{n}": np.full((10,), value, np.float32) for n in range(6)}


def write(folder, value, kind, read=pieces, like=None):
    plans = planned(open_tree(tensors(value)), metadata={}, max_shard_size=SIZES[kind])
    write_folder(folder, plans, read, beside=side_files(like, folder) if like else ())


SIDE = {"notes/a.txt": "a", "notes/deep/b.txt": "b"}


def side_folder(folder):
    """Writes the files of ``SIDE`` into a folder, and returns it."""
    for name, text in SIDE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def side_of(folder):
    return {n: (folder / n).read_text() for n in SIDE if (folder / n).exists()}


def value_of(folder):
    """Reads a folder as transformers does (first the one file, then the index), officially."""
    if (folder / SINGLE).exists():
        found = load_file(folder / SINGLE)
    elif (folder / INDEX).exists():
        weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
        found = {k: load_file(folder / file)[k] for k, file in weight_map.items()}
    else:
        return 0
    assert set(found) == set(tensors(0))
    (value,) = {float(x) for array in found.values() for x in array}
    ours = li.open_checkpoint(folder)
    assert set(ours) == set(found)
    assert all((source.read((slice(None),)) == value).all() for source in ours.values())
    return value


def files(folder):
    return {p.name for p in folder.iterdir()}


def assert_nothing_left_over(folder, kind, more=()):
    found = files(folder) - {"config.json", *more}
    if kind == "single":
        assert found == {SINGLE}
    else:
        weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
        assert found == {INDEX, *weight_map.values()}


KILLED = """
import os, pathlib, signal, sys
sys.path.insert(0, sys.argv[1])
from test_commit import *

def killed_at(point, do):
    # A child process that is killed at the given step; returns whether it was.
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == signal.SIGKILL
    left = point
    def step(*_):
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    steps = {"open", "os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir"}
    sys.addaudithook(lambda event, args: step() if event in steps else None)
    def read(source):
        for piece in pieces(source, 32):
            step()
            yield piece
    os.fsync = lambda file: step()
    do(read)
    os._exit(0)

os.fsync = lambda file: None  # It takes long, and makes no difference to a killed process.
def values_seen(folder, old, new, then):
    point, killed, seen = 0, True, []
    folder.mkdir(parents=True)
    like = side_folder(folder / "like")
    while killed:
        point += 1
        here = folder / str(point)
        here.mkdir()
        (here / "config.json").write_text("{}")
        if old == "single":
            write(here, 1, old)
        if old == "sharded":
            write(here, 9, old)
            write(here, 1, old)  # Over another: its names carry a token.
        killed = killed_at(point, lambda read: write(here, 2, new, read, like))
        seen.append(value_of(here))
        assert (here / "config.json").exists()
        if seen[-1] == 2:
            assert side_of(here) == SIDE
        if killed:
            write(here, 3, then)
            assert value_of(here) == 3
            more = ["notes"] if seen[-1] == 2 else []
            assert side_of(here) == (SIDE if more else {})
            assert_nothing_left_over(here, then, more)
    assert_nothing_left_over(here, new, ["notes"])
    return seen

print(json.dumps([values_seen(pathlib.Path(sys.argv[2], *case), *case) for case in CASES]))
"""


# What lies there, what is written and killed, and what is written after that.
CASES = [
    ("nothing", "single", "sharded"),
    ("nothing", "sharded", "single"),
    ("single", "single", "single"),
    ("single", "sharded", "sharded"),
    ("sharded", "single", "single"),
    ("sharded", "sharded", "sharded"),
]


@pytest.fixture(scope="module")
def values_seen(tmp_path_factory):
    """What a reader finds after each step at which a save was killed, by case: one process."""
    here, folder = os.path.dirname(__file__), tmp_path_factory.mktemp("killed")
    return dict(zip(CASES, json.loads(forked.run(KILLED, here, folder)), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_killed_at_any_step_a_reader_finds_the_old_or_the_new(values_seen, case):
    seen = values_seen[case]
    before = 0 if case[0] == "nothing" else 1
    assert seen == sorted(seen), "once the new one is there, it stays"
    assert seen[0] == before
    assert seen[-1] == 2
    assert set(seen) == {before, 2}
    assert len(seen) > 20


@pytest.mark.parametrize("old", ["nothing", "single", "sharded"])
@pytest.mark.parametrize("new", ["single", "sharded"])
def test_an_error_leaves_the_old_one_and_no_trace(tmp_path, old, new, tmp_path_factory):
    like = side_folder(tmp_path_factory.mktemp("like"))
    (tmp_path / "config.json").write_text("{}")
    if old != "nothing":
        write(tmp_path, 1, old)
    before = files(tmp_path)

    def full(source):
        yield from pieces(source)
        if "layer.4" in source.names:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(li.errors.WriteError, match="No space left on device. What was there"):
        write(tmp_path, 2, new, full, like)
    assert files(tmp_path) == before
    assert value_of(tmp_path) == (old != "nothing")


def test_a_limit_of_the_system_is_a_clear_error(tmp_path):
    write(tmp_path, 1, "single")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))  # Bytes; the system enforces it.
    try:
        with pytest.raises(li.errors.WriteError, match="File too large. What was there before"):
            write(tmp_path, 2, "single")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert value_of(tmp_path) == 1
    assert files(tmp_path) == {SINGLE}


def test_an_interrupt_is_no_write_error(tmp_path):
    def interrupted(source):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 2, "sharded", interrupted)
    assert files(tmp_path) == set()


def test_a_folder_that_cannot_be_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(li.errors.WriteError, match=r"file: it could not be written: File exists"):
        write(tmp_path / "file", 1, "single")
    with pytest.raises(li.errors.WriteError, match="Not a directory"):
        write(tmp_path / "file" / "below", 1, "single")


def test_a_failed_commit_takes_back_the_index(tmp_path, monkeypatch):
    write(tmp_path, 1, "single")
    before = files(tmp_path)

    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, "no")

    real = os.replace
    monkeypatch.setattr(commit.os, "replace", lambda *names: (real(*names), refuse()))
    with pytest.raises(li.errors.WriteError, match="no. What was there before is unchanged"):
        write(tmp_path, 2, "sharded")
    monkeypatch.undo()
    assert files(tmp_path) == before
    assert value_of(tmp_path) == 1


@pytest.mark.parametrize("new", ["single", "sharded"])
def test_a_failed_commit_takes_back_what_came_along(tmp_path, monkeypatch, new):
    like, folder = side_folder(tmp_path / "like"), tmp_path / "folder"
    write(folder, 1, "single")
    before = files(folder)
    real = os.replace

    def refuse(source, target):
        if os.path.basename(target) in (SINGLE, INDEX):
            assert side_of(folder) == SIDE
            raise PermissionError(errno.EPERM, "no")
        real(source, target)

    monkeypatch.setattr(commit.os, "replace", refuse)
    with pytest.raises(li.errors.WriteError, match="no. What was there before is unchanged"):
        write(folder, 2, new, like=like)
    monkeypatch.undo()
    assert files(folder) == before
    assert value_of(folder) == 1


def test_what_came_along_and_was_changed_since_stays(tmp_path):
    like, folder = side_folder(tmp_path / "like"), tmp_path / "folder"
    with pytest.raises(AssertionError, match=r"^\[-9\]"):
        forked.run(KILLED_BEFORE_IT_COUNTS, os.path.dirname(__file__), folder, like)
    assert side_of(folder) == SIDE
    (folder / "notes" / "a.txt").write_text("mine")
    write(folder, 1, "single")
    assert side_of(folder) == {"notes/a.txt": "mine"}
    assert not (folder / "notes" / "deep").exists()


KILLED_BEFORE_IT_COUNTS = """
import os, pathlib, signal, sys
sys.path.insert(0, sys.argv[1])
from test_commit import *
commit._commit = lambda staged: os.kill(os.getpid(), signal.SIGKILL)
write(pathlib.Path(sys.argv[2]), 1, "single", like=pathlib.Path(sys.argv[3]))
"""


def test_two_saves_at_once_do_not_meet(tmp_path):
    write(tmp_path, 1, "single")
    with replacing_checkpoint(tmp_path, 1) as staged:
        with pytest.raises(li.errors.SaveError, match="another process is saving there"):
            write(tmp_path, 2, "sharded")
        with staged.create(SINGLE) as stream:
            stream.write((tmp_path / SINGLE).read_bytes())
    assert files(tmp_path) == {SINGLE}
    assert value_of(tmp_path) == 1


def test_an_index_that_names_files_elsewhere_removes_nothing_there(tmp_path):
    outside = tmp_path / "outside.safetensors"
    outside.write_text("precious")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "notes.txt").write_text("precious")
    hostile = ["../outside.safetensors", str(outside), "notes.txt", ".", "", 3, None]
    (folder / INDEX).write_text(json.dumps({"weight_map": dict(enumerate(hostile))}))
    facts = journal.facts_of(outside)
    (folder / "link").symlink_to(tmp_path)
    names = ["../outside.safetensors", str(outside), "link/outside.safetensors", "", "."]
    beside = journal.Companions(["none"], "", dict.fromkeys(names, facts), ["..", str(tmp_path)])
    lines = [json.dumps(hostile), json.dumps(dataclasses.asdict(beside))]
    (folder / ".lazyinit-save.json").write_text("\n".join(lines))
    write(folder, 1, "single")
    assert outside.read_text() == "precious"
    assert files(folder) == {SINGLE, "notes.txt", "link"}


@pytest.mark.parametrize(
    "text", ["", "[", "[1]", '{"weight_map": 3}', "{}", "[]\n{", '[]\n{"names": 3}', "[]\n[3]"]
)
def test_an_index_or_a_journal_that_is_broken_is_replaced(tmp_path, text):
    (tmp_path / INDEX).write_text(text)
    (tmp_path / ".lazyinit-save.json").write_text(text)
    write(tmp_path, 1, "sharded")
    assert value_of(tmp_path) == 1
    assert_nothing_left_over(tmp_path, "sharded")


def test_links_of_a_cache_are_replaced_and_their_targets_stay(tmp_path):
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    folder.mkdir()
    write(blobs, 1, "single")
    (folder / SINGLE).symlink_to(blobs / SINGLE)
    write(folder, 2, "single")
    assert (value_of(blobs), value_of(folder)) == (1, 2)
    assert not (folder / SINGLE).is_symlink()


def test_new_shards_take_no_name_that_is_in_use(tmp_path):
    write(tmp_path, 1, "sharded")
    first = files(tmp_path)
    assert "model-00001-of-00003.safetensors" in first
    write(tmp_path, 2, "sharded")
    assert files(tmp_path) & first == {INDEX}
    assert all(re.search(r"-of-00003-[0-9a-f]{8}\.", n) for n in files(tmp_path) - first)


def test_one_file_is_replaced_or_stays(tmp_path):
    path = tmp_path / "sub" / "x.npz"
    with replacing_file(path) as stream:
        stream.write(b"one")
    assert path.read_bytes() == b"one"
    with pytest.raises(ZeroDivisionError), replacing_file(path) as stream:
        stream.write(str(1 / 0).encode())
    assert path.read_bytes() == b"one"
    assert files(path.parent) == {"x.npz"}


def test_what_a_killed_write_of_one_file_left_is_cleared_by_the_next(tmp_path):
    path = tmp_path / "[x].npz"
    left = tmp_path / ".lazyinit-0123abcd-[x].npz"
    left.write_text("left over")
    other = tmp_path / ".lazyinit-0123abcd-y.npz"
    other.write_text("of another")
    with replacing_file(path) as stream, replacing_file(path) as second:
        assert not left.exists()
        assert len(files(tmp_path)) == 3, "the one that is being written is not left over"
        second.write(b"second")
        stream.write(b"first")
    assert path.read_bytes() == b"first"
    assert files(tmp_path) == {"[x].npz", other.name}
