import sys
import tracemalloc
import types

import fsspec
import pytest
from range_server import serving
from reading import refused_in

from lazyinit.formats import fetched
from lazyinit.formats.fetched import RemoteFile

DATA = bytes(range(256)) * 64
WHAT = "tensor 'w'"


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(fetched, "_PAUSE", 0.0)


@pytest.fixture
def server():
    with serving() as running:
        running.files["/f"] = DATA
        yield running


@pytest.fixture
def memory():
    """The address of a file of fsspec's own filesystem in memory."""
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe_file("/fetched/f", DATA)
    yield "memory://fetched/f"
    filesystem.rm("/fetched", recursive=True)


def read(file, start=8, stop=4096):
    return file.read(start, stop, what=WHAT)


def test_a_range_is_the_bytes_of_the_file(server, memory):
    for url in (f"{server.url}/f", memory):
        file = RemoteFile.at(url)
        assert file.size == len(DATA)
        for start, stop in ((0, len(DATA)), (8, 4096), (len(DATA) - 1, len(DATA)), (0, 1)):
            assert read(file, start, stop) == DATA[start:stop]


def test_no_bytes_are_not_asked_for(server):
    file = RemoteFile.at(f"{server.url}/f")
    before = len(server.requests)
    assert read(file, 8, 8) == b""
    assert len(server.requests) == before


def test_a_file_that_is_not_there_is_told_apart(server):
    for url in (f"{server.url}/none", "memory://fetched-none/f"):
        with pytest.raises(FileNotFoundError):
            RemoteFile.at(url)
    server.refusals = [410, 410]
    with pytest.raises(FileNotFoundError):
        RemoteFile.at(f"{server.url}/f")


def test_a_folder_is_no_file(memory):
    with pytest.raises(FileNotFoundError):
        RemoteFile.at("memory://fetched")


def test_a_server_that_does_not_tell_the_size_is_refused(monkeypatch, memory):
    wanted = f"{memory}: wanted a server that tells how long the file is, got one that does not. Download it first."
    with monkeypatch.context() as patch:
        patch.setattr(fsspec.filesystem("memory"), "info", lambda path: {"size": None})
        refused_in(lambda: RemoteFile.at(memory), wanted)


def test_a_size_that_is_told_only_with_the_file_is_enough(server):
    server.has_sizes = False  # In answer to HEAD.
    assert RemoteFile.at(f"{server.url}/f").size == len(DATA)


@pytest.mark.parametrize("status", [401, 403, 400])
def test_a_refusal_while_opening_is_not_asked_again(server, status):
    server.refusals = [status] * 9
    url = f"{server.url}/f"
    start = f"{url}: its size cannot be fetched: ClientResponseError: {status}"
    refused_in(lambda: RemoteFile.at(url), start, "download the checkpoint first.")
    assert len(server.requests) == 2  # HEAD, then GET.


@pytest.mark.parametrize("status", [500, 502, 503, 429, 408])
def test_trouble_while_opening_is_asked_again(server, status):
    server.refusals = [status] * 6
    assert RemoteFile.at(f"{server.url}/f").size == len(DATA)
    assert len(server.requests) == 7


def test_a_server_that_stays_in_trouble_is_given_up(server):
    server.refusals = [500] * 99
    url = f"{server.url}/f"
    start = f"{url}: its size cannot be fetched after 4 tries: ClientResponseError: 500"
    refused_in(
        lambda: RemoteFile.at(url), start, "Try again later, or download the checkpoint first."
    )
    assert len(server.requests) == 8


def test_a_server_that_cannot_be_reached_is_given_up():
    with serving() as gone:
        url = f"{gone.url}/f"
    start = f"{url}: its size cannot be fetched after 4 tries: "
    refused_in(lambda: RemoteFile.at(url), start, "download the checkpoint first.")


@pytest.mark.parametrize("fault", ["drop", "fewer", 500, 503, 429])
def test_trouble_while_reading_is_asked_again_and_the_bytes_are_right(server, fault):
    file = RemoteFile.at(f"{server.url}/f")
    server.faults = [fault] * 3
    assert read(file) == DATA[8:4096]
    assert server.ranges == [("/f", 8, 4096)] * 4


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("drop", "Client"),
        ("fewer", "ConnectionError: 4087 bytes came of 4088"),
        (500, "ClientResponseError: 500"),
    ],
)
def test_trouble_that_lasts_is_given_up_after_four_tries(server, fault, why):
    file = RemoteFile.at(f"{server.url}/f")
    server.always = fault
    start = f"{file.path}: {WHAT} cannot be fetched after 4 tries: {why}"
    refused_in(lambda: read(file), start, "Try again later, or download the checkpoint first.")
    assert len(server.ranges) == 4


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(fetched, "_PATIENCE", 0.2)
    fetched._timeouts.cache_clear()
    yield
    fetched._timeouts.cache_clear()


def test_a_server_that_falls_silent_is_asked_again_and_then_given_up(server, impatient):
    file = RemoteFile.at(f"{server.url}/f")
    server.faults = ["stall"]
    assert read(file) == DATA[8:4096]
    server.always = "stall"
    refused_in(
        lambda: read(file), f"{file.path}: {WHAT} cannot be fetched after 4 tries: ", "Timeout"
    )
    assert len(server.ranges) == 6


def test_the_pause_doubles_between_tries(server, monkeypatch):
    pauses = []
    monkeypatch.setattr(fetched, "_PAUSE", 0.5)
    monkeypatch.setattr(fetched, "time", types.SimpleNamespace(sleep=pauses.append))
    server.refusals = [500] * 99
    refused_in(lambda: RemoteFile.at(f"{server.url}/f"), server.url)
    assert pauses == [0.5, 1.0, 2.0]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_while_reading_is_not_asked_again(server, status):
    file = RemoteFile.at(f"{server.url}/f")
    server.always = status
    start = f"{file.path}: {WHAT} cannot be fetched: ClientResponseError: {status}"
    refused_in(lambda: read(file), start, "download the checkpoint first.")
    assert len(server.ranges) == 1


@pytest.mark.parametrize(
    ("fault", "got"),
    [
        ("whole", "the whole file (status 200)"),
        ("other", "bytes 9-4095"),
        ("unsaid", "a range without saying which"),
    ],
)
def test_a_server_that_ignores_ranges_is_refused_at_once(server, fault, got):
    file = RemoteFile.at(f"{server.url}/f")
    server.always = fault
    wanted = f"{file.path}: {WHAT}: wanted bytes 8-4095, got {got}: the server ignores ranges. Download the file first."
    refused_in(lambda: read(file), wanted)
    assert len(server.ranges) == 1


def test_the_whole_file_is_a_right_answer_to_who_asks_for_all_of_it(server):
    server.always = "whole"
    assert read(RemoteFile.at(f"{server.url}/f"), 0, len(DATA)) == DATA


@pytest.mark.parametrize("fault", ["whole", "more"])
def test_what_comes_beyond_what_was_asked_for_is_not_held(server, fault):
    server.files["/f"] = bytes(2**26)
    file = RemoteFile.at(f"{server.url}/f")
    server.always = fault
    tracemalloc.start()
    try:
        if fault == "whole":
            refused_in(lambda: read(file), file.path, "ignores ranges")
        else:
            assert read(file) == bytes(4088)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # "more" makes up 4 MiB, in this process.
    assert peak < 2**24
    assert server.sent < 2**25  # The rest was never taken: it lies in the system's buffers.


def test_bytes_beyond_the_range_are_left(server):
    file = RemoteFile.at(f"{server.url}/f")
    server.always = "more"
    assert read(file) == DATA[8:4096]


def change_content(server):
    server.files["/f"] = DATA[::-1]


def change_size(server):
    server.files["/f"] = DATA + b"x"


@pytest.mark.parametrize("change", [change_content, change_size])
def test_another_tag_is_another_file(server, change):
    file = RemoteFile.at(f"{server.url}/f")
    file.check()
    change(server)
    changed = f"{file.path}: the file has changed since it was opened ("
    for ask in (file.check, lambda: read(file)):
        refused_in(ask, changed, "then", "now). Open the checkpoint again.")


def test_another_time_of_writing_is_another_file(server):
    server.has_tags, server.modified = False, "Mon, 01 Jan 2024 00:00:00 GMT"
    file = RemoteFile.at(f"{server.url}/f")
    assert read(file) == DATA[8:4096]
    server.modified = "Tue, 02 Jan 2024 00:00:00 GMT"
    for ask in (file.check, lambda: read(file)):
        refused_in(ask, f"{file.path}: the file has changed", "01 Jan", "02 Jan", "again.")


def test_another_size_is_another_file_where_nothing_else_is_said(server):
    server.has_tags = False
    file = RemoteFile.at(f"{server.url}/f")
    assert file.version == ""
    server.files["/f"] = DATA[:-1]
    refused_in(
        lambda: read(file), f"{file.path}: the file has changed", "16384 bytes then, 16383 now"
    )
    refused_in(file.check, f"{file.path}: the file has changed", "16384 bytes", "16383")


def test_a_range_past_the_end_is_of_another_file(server):
    file = RemoteFile.at(f"{server.url}/f")
    server.files["/f"] = b"short"
    refused_in(
        lambda: read(file),
        f"{file.path}: the file has changed since it was opened (16384 bytes then, fewer now).",
    )


def test_a_weak_tag_is_the_same_tag():
    assert fetched._version({"ETag": 'W/"a"'}) == fetched._version({"etag": '"a"'}) == '"a"'


def test_a_file_that_is_gone_is_told(server, memory):
    for url in (f"{server.url}/f", memory):
        file = RemoteFile.at(url)
        if url == memory:
            fsspec.filesystem("memory").rm_file("/fetched/f")
            fsspec.filesystem("memory").pipe_file("/fetched/other", b"")
        else:
            del server.files["/f"]
        gone = "the file was opened but is no longer there. Open the checkpoint again."
        refused_in(file.check, f"{url}: {gone}")
        refused_in(lambda file=file: read(file), f"{url}: {WHAT}: {gone}")


def test_a_filesystem_that_gives_more_than_asked_for_is_refused(monkeypatch, memory):
    file = RemoteFile.at(memory)
    filesystem = fsspec.filesystem("memory")
    monkeypatch.setattr(filesystem, "cat_file", lambda path, start, end: DATA)
    refused_in(
        lambda: read(file),
        f"{memory}: {WHAT}: wanted 4088 bytes, got 16384. Download the file first.",
    )


def test_a_filesystem_that_gives_fewer_than_asked_for_is_asked_again(monkeypatch, memory):
    file = RemoteFile.at(memory)
    asked = []
    filesystem = fsspec.filesystem("memory")
    monkeypatch.setattr(filesystem, "cat_file", lambda path, start, end: asked.append(1) or b"a")
    refused_in(
        lambda: read(file),
        f"{memory}: {WHAT} cannot be fetched after 4 tries: ConnectionError: 1 bytes came of 4088",
    )
    assert len(asked) == 4


def test_a_file_that_shrank_has_changed_whatever_holds_it(memory):
    file = RemoteFile.at(memory)
    fsspec.filesystem("memory").pipe_file("/fetched/f", b"short")
    refused_in(
        lambda: read(file), f"{memory}: the file has changed since it was opened (16384 bytes"
    )


def test_a_filesystem_that_forbids_is_asked_once(monkeypatch, memory):
    file = RemoteFile.at(memory)
    asked = []

    def forbid(path, start, end):
        asked.append(1)
        raise PermissionError("not yours")

    monkeypatch.setattr(fsspec.filesystem("memory"), "cat_file", forbid)
    refused_in(
        lambda: read(file), f"{memory}: {WHAT} cannot be fetched: PermissionError: not yours. Try"
    )
    assert len(asked) == 1


@pytest.mark.parametrize("missing", ["fsspec", "aiohttp"])
def test_a_missing_package_names_the_extra(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    fetched._timeouts.cache_clear()
    url = "https://127.0.0.1:1/f"
    refused_in(
        lambda: RemoteFile.at(url),
        f"{url}: wanted a package that reads https:// addresses, got an error: ",
        missing,
        "Run pip install 'lazyinit-jax[remote]'.",
    )


@pytest.mark.parametrize(
    ("url", "package"),
    [("s3://bucket/f", "s3fs"), ("gs://bucket/f", "gcsfs"), ("hf://o/r/f", "huggingface_hub")],
)
def test_a_missing_filesystem_names_its_package(monkeypatch, url, package):
    monkeypatch.setitem(sys.modules, package, None)
    scheme = url.partition(":")[0]
    refused_in(
        lambda: RemoteFile.at(url),
        f"{url}: wanted a package that reads {scheme}:// addresses, got an error: ",
        f"Run pip install 'lazyinit-jax[remote]' and pip install {package}.",
    )


def test_an_unknown_scheme_is_told():
    url = "gopher://host/f"
    refused_in(
        lambda: RemoteFile.at(url),
        f"{url}: wanted an address that fsspec knows (s3://, gs://, https://, hf://), got gopher://. "
        "Download the checkpoint first.",
    )
