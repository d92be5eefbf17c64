import json
import struct

import fsspec
import jax
import numpy as np
import pytest
from checkpoint_writers import FORMATS, save_safetensors, with_index, write_quantized_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from range_server import serving
from reading import everything, refused_in
from safetensors.numpy import save_file

import lazyinit as li
from lazyinit.formats import fetched, remote

VALUES = {
    "kernel": np.random.default_rng(0).normal(size=(512, 256)).astype("float32"),
    "bias": np.arange(256, dtype="float16"),
    "scalar": np.array(7, "int32"),
}
ALL = (slice(None), slice(None))


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(fetched, "_PAUSE", 0.0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the same tensors as one file, ``t.safetensors``, and as a folder."""
    folder = tmp_path_factory.mktemp("saved")
    save_safetensors(VALUES, folder / "t.safetensors")
    (folder / "model").mkdir()
    with_index(folder / "model", VALUES, "model", ".safetensors", save_safetensors)
    return folder


@pytest.fixture
def server(saved):
    with serving() as running:
        running.put(saved)
        yield running


@pytest.fixture
def memory(saved):
    """The address of a folder of fsspec's own filesystem in memory."""
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(saved), "/remote", recursive=True)
    yield "memory://remote"
    filesystem.rm("/remote", recursive=True)


def check_values(checkpoint):
    assert set(checkpoint) == set(VALUES)
    for name, source in checkpoint.items():
        got = everything(source)
        assert (got.shape, got.dtype) == (VALUES[name].shape, VALUES[name].dtype)
        assert got.tobytes() == VALUES[name].tobytes(), name


@pytest.mark.parametrize(
    "path",
    ["t.safetensors", "model", "model/", "model/model.safetensors.index.json"],
)
def test_a_file_a_folder_and_an_index_are_opened(server, memory, path):
    for base in (server.url, memory):
        check_values(li.open_checkpoint(f"{base}/{path}"))


def test_a_folder_of_one_file_is_opened(server):
    server.files["/one/model.safetensors"] = server.files["/t.safetensors"]
    check_values(li.open_checkpoint(f"{server.url}/one"))


def test_a_file_of_any_name_is_opened(server):
    server.files["/blobs/abc"] = server.files["/t.safetensors"]
    check_values(li.open_checkpoint(f"{server.url}/blobs/abc"))


@pytest.mark.parametrize("path", ["t.safetensors", "model/model.safetensors.index.json"])
def test_an_address_that_is_signed_is_asked_for_as_it_is(server, path):
    url = f"{server.url}/{path}?signature=a/b"
    check_values(li.open_checkpoint(url))
    assert f"/{path}?signature=a/b" == server.requests[0]


@pytest.mark.parametrize(
    ("path", "tried"),
    [
        ("none.safetensors", ["none.safetensors"]),
        ("none.index.json", ["none.index.json"]),
        ("none.gguf", ["none.gguf"]),
        ("none", ["none/model.safetensors", "none/model.safetensors.index.json", "none"]),
    ],
)
def test_what_is_not_there_is_told_with_what_was_tried(server, memory, path, tried):
    for base in (server.url, memory):
        url = f"{base}/{path}"
        there_is_no = ", nor ".join(f"{base}/{name}" for name in tried)
        refused_in(
            lambda url=url: li.open_checkpoint(url),
            f"{url}: wanted a file of safetensors or GGUF, or a folder of safetensors under Hugging "
            f"Face's names, but there is no {there_is_no}. If the checkpoint has another format or "
            "other names, download it, and open it here.",
        )


def test_a_tensor_says_where_it_lies(server):
    url = f"{server.url}/t.safetensors"
    source = li.open_checkpoint(url)["kernel"]
    (extent,) = source.extents
    assert (source.names, source.origin, extent.file) == (("kernel",), url, url)
    assert server.files["/t.safetensors"][extent.start : extent.stop] == VALUES["kernel"].tobytes()
    assert repr(source) == "t.safetensors:kernel"


@pytest.mark.parametrize("status", [401, 403])
def test_what_is_forbidden_is_not_taken_for_missing(server, status):
    server.refusals = [status] * 9
    url = f"{server.url}/t.safetensors"
    refused_in(
        lambda: li.open_checkpoint(url),
        f"{url}: its size cannot be fetched: ClientResponseError: {status}",
    )


def test_a_server_that_recovers_while_it_is_opened_is_read(server):
    server.refusals, server.faults = [500] * 4, [500, "drop"]
    check_values(li.open_checkpoint(f"{server.url}/t.safetensors"))


def of_length(length, header=b"{}", values=b""):
    return struct.pack("<Q", length) + header + values


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "wanted a safetensors file, which starts with 8 bytes, got 0."),
        (b"abc", "wanted a safetensors file, which starts with 8 bytes, got 3."),
        (of_length(2**63), f"wanted a safetensors header of at most 100000000 bytes, got a length of {2**63}."),
        (of_length(2**64 - 1), "wanted a safetensors header of at most 100000000 bytes"),
        (of_length(3), "wanted a header of 3 bytes, but the file ends after 10 bytes."),
        (of_length(90_000_000), "wanted a header of 90000000 bytes, but the file ends after 10"),
        (of_length(2, b"[]"), "wanted a header that is a JSON object, got one that starts with b'[]'"),
        (of_length(2, b"{}", b"x"), "1 bytes after the header belong to no tensor"),
    ],
)  # fmt: skip
def test_a_header_that_cannot_be_true_is_refused_with_the_address(server, data, message):
    server.files["/bad.safetensors"] = data
    url = f"{server.url}/bad.safetensors"
    refused_in(lambda: li.open_checkpoint(url), f"{url}: {message}")
    # What tells that it is no page of a web site is asked for, too.
    assert server.sent <= len(data) + 8 + min(len(data), 512)


def test_a_tensor_past_the_end_is_refused_before_it_is_fetched(server):
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})
    server.files["/bad.safetensors"] = of_length(len(header), header.encode())
    url = f"{server.url}/bad.safetensors"
    refused_in(
        lambda: li.open_checkpoint(url), f"{url}: tensor 'w': its values end", "past the end"
    )


def put_index(server, shard, folder="/deep/index"):
    index = json.dumps({"metadata": {}, "weight_map": {"kernel": shard}})
    server.files[f"{folder}/model.safetensors.index.json"] = index.encode()
    return f"{server.url}{folder}"


@pytest.mark.parametrize(
    "shard",
    [
        "../t.safetensors", "a/../../t.safetensors", "/t.safetensors", "//host/t.safetensors",
        "http://127.0.0.1:1/t.safetensors", "s3://bucket/t", "file:///etc/passwd",
        "..\\t.safetensors", "", "a\0b",
    ],
)  # fmt: skip
def test_an_index_whose_shards_climb_out_is_refused_before_one_is_asked_for(server, shard):
    server.files["/deep/t.safetensors"] = server.files["/t.safetensors"]
    url = put_index(server, shard)
    there = f"{url}/model.safetensors.index.json"
    refused_in(
        lambda: li.open_checkpoint(url),
        f"{there}: wanted shards inside the folder of the index, got {shard!r}, which is unsafe to "
        "follow. Put the shard beside the index and name it plainly.",
    )
    asked = {"/deep/index/model.safetensors", "/deep/index/model.safetensors.index.json"}
    assert set(server.requests) == asked


@pytest.mark.parametrize(
    "shard",
    ["%2e%2e/t.safetensors", "%2E./t.safetensors", "..%2ft.safetensors", "t?.safetensors", "t#"],
)
def test_a_shard_is_a_name_and_no_part_of_an_address(server, shard):
    for path in ("/deep/t.safetensors", "/deep/index/t", "/t.safetensors"):
        server.files[path] = server.files["/t.safetensors"]
    url = put_index(server, shard)
    there = f"{url}/model.safetensors.index.json"
    refused_in(
        lambda: li.open_checkpoint(url), f"{there}: the shard {shard!r} is missing from the folder"
    )
    assert all(path.startswith("/deep/index/") for path in server.requests)


def test_a_shard_may_lie_deeper_and_have_a_blank_in_its_name(server):
    server.files["/deep/index/a%20part/t%2B.safetensors"] = server.files["/t.safetensors"]
    server.files["/deep/index/a%20part/t+.safetensors"] = server.files["/t.safetensors"]
    checkpoint = li.open_checkpoint(put_index(server, "a part/t+.safetensors"))
    assert everything(checkpoint["kernel"]).tobytes() == VALUES["kernel"].tobytes()


def test_a_shard_that_is_missing_is_named(server):
    del server.files["/model/model-00002-of-00002.safetensors"]
    there = f"{server.url}/model/model.safetensors.index.json"
    refused_in(
        lambda: li.open_checkpoint(f"{server.url}/model"),
        f"{there}: the shard 'model-00002-of-00002.safetensors' is missing from the folder",
        "Fetch it, or fetch the checkpoint again.",
    )


def test_an_index_that_is_too_long_is_refused_in_bounded_memory(server, monkeypatch):
    monkeypatch.setattr(remote, "HEADER_LIMIT", 10)
    monkeypatch.setattr("lazyinit.formats.sharded.HEADER_LIMIT", 10)
    there = f"{server.url}/model/model.safetensors.index.json"
    refused_in(lambda: li.open_checkpoint(there), f"{there}: wanted an index of at most 10 bytes")
    assert server.sent == 11


def open_kernel(server):
    url = f"{server.url}/t.safetensors"
    source = li.open_checkpoint(url)["kernel"]
    server.ranges.clear()
    server.sent = 0
    return url, source


# One run, and many at once.
READS = {"whole": ALL, "many": (slice(0, 128), slice(5, 9))}


@pytest.fixture(params=READS)
def index(request, monkeypatch):
    monkeypatch.setattr(remote, "GAP", 0)
    return READS[request.param]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("whole", "tensor 'kernel': wanted bytes"),
        ("other", "tensor 'kernel': wanted bytes"),
        ("unsaid", "tensor 'kernel': wanted bytes"),
        ("drop", "tensor 'kernel' cannot be fetched after 4 tries: "),
        ("fewer", "tensor 'kernel' cannot be fetched after 4 tries: ConnectionError: "),
        (500, "tensor 'kernel' cannot be fetched after 4 tries: ClientResponseError: 500"),
        (403, "tensor 'kernel' cannot be fetched: ClientResponseError: 403"),
        (404, "tensor 'kernel': the file was opened but is no longer there. Open the checkpoint"),
        (416, "the file has changed since it was opened"),
    ],
)
def test_a_fault_that_lasts_names_the_file_and_the_tensor(server, index, fault, message):
    url, source = open_kernel(server)
    server.always = fault
    refused_in(lambda: source.read(index), f"{url}: {message}")
    # Of 128 runs, no more than the first 64 are asked for, each four times at most.
    assert len(set(server.ranges)) <= 8 * remote._AT_ONCE
    assert max(server.ranges.count(asked) for asked in server.ranges) <= 4


@pytest.mark.parametrize("fault", ["drop", "fewer", "more", 500])
def test_a_fault_that_passes_leaves_the_bits_right(server, index, fault):
    _, source = open_kernel(server)
    server.faults = [fault] * 3
    assert source.read(index).tobytes() == VALUES["kernel"][index].tobytes()
    assert len(server.faults) < 3


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_passing_faults_in_any_order_leave_the_bits_right(server, data):
    rows = st.tuples(st.integers(0, 512), st.integers(0, 512)).map(sorted)
    columns = st.tuples(st.integers(0, 256), st.integers(0, 256)).map(sorted)
    index = (slice(*data.draw(rows)), slice(*data.draw(columns)))
    faults = data.draw(st.lists(st.sampled_from(["drop", "fewer", "more", 500, ""]), max_size=3))
    server.faults = list(faults)
    source = li.open_checkpoint(f"{server.url}/t.safetensors")["kernel"]
    assert source.read(index).tobytes() == VALUES["kernel"][index].tobytes()


def test_a_file_that_changes_between_opening_and_reading_is_noticed(server, memory, saved):
    data = (saved / "t.safetensors").read_bytes()
    for base in (server.url, memory):
        url = f"{base}/t.safetensors"
        source = li.open_checkpoint(url)["kernel"]
        source.check()
        if base == memory:
            fsspec.filesystem("memory").pipe_file("/remote/t.safetensors", data[:-4] + b"abcd")
        else:
            server.files["/t.safetensors"] = data[:-4] + b"abcd"
        for ask in (source.check, lambda source=source: source.read(ALL)):
            refused_in(ask, f"{url}: the file has changed since it was opened (", "again.")


def test_a_shard_of_one_device_costs_its_bytes_and_the_gaps(server):
    _, source = open_kernel(server)
    for index in (
        (slice(64, 128), ALL[1]),
        (ALL[0], slice(32, 64)),
        (slice(64, 128), slice(32, 64)),
        (slice(3, 4), slice(5, 6)),
    ):
        server.sent = 0
        got = source.read(index)
        assert got.tobytes() == VALUES["kernel"][index].tobytes()
        gaps = remote.GAP * (got.shape[0] - 1)
        assert got.nbytes <= server.sent <= got.nbytes + gaps
        server.ranges.clear()


def test_gaps_wider_than_stated_are_not_fetched(server, monkeypatch):
    monkeypatch.setattr(remote, "GAP", 512)
    _, source = open_kernel(server)
    got = source.read((slice(0, 64), slice(0, 64)))  # Gaps of 768 bytes.
    assert server.sent == got.nbytes
    assert len(server.ranges) == 64


def zeros_like_values():
    zeros = jax.nn.initializers.zeros
    return {name: li.LazyParam(x.shape, x.dtype, zeros) for name, x in VALUES.items()}


def cut(path, leaf):
    mesh = jax.make_mesh((8,), ("x",))
    return jax.NamedSharding(mesh, jax.P(*(None, "x")[-leaf.ndim :]) if leaf.ndim else jax.P())


@pytest.mark.parametrize("path", ["t.safetensors", "model"])
def test_a_tree_over_eight_devices_is_the_one_of_the_local_file(server, memory, saved, path):
    trees = []
    for base in (saved, server.url, memory):
        tree, report = li.fill(zeros_like_values(), f"{base}/{path}", on_missing="error")
        assert sorted(report.loaded) == sorted(VALUES)
        trees.append(li.materialize(tree, sharding=cut))
    for tree in trees:
        assert len(tree["kernel"].sharding.device_set) == 8
        for name, value in VALUES.items():
            assert np.asarray(tree[name]).tobytes() == value.tobytes()


def test_a_tree_is_made_whole_or_not_at_all(server):
    url = f"{server.url}/t.safetensors"
    tree, _ = li.fill(zeros_like_values(), url)
    server.always = "whole"
    refused_in(lambda: li.materialize(tree, sharding=cut), f"{url}: tensor '", "ignores ranges")
    assert not any(isinstance(leaf, jax.Array) for leaf in tree.values())
    server.always = ""
    made = li.materialize(tree, sharding=cut)
    assert all(np.asarray(made[name]).tobytes() == VALUES[name].tobytes() for name in VALUES)


def test_metadata_is_read_from_elsewhere_too(tmp_path):
    save_file(VALUES, tmp_path / "x.safetensors", {"step": "7"})
    with serving() as server:
        server.files["/x.safetensors"] = (tmp_path / "x.safetensors").read_bytes()
        assert li.open_checkpoint(f"{server.url}/x.safetensors").metadata == {"step": "7"}


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>Log in</title></head></html>" + b" " * 600
CONFIG = b'{"model_type": "bert", "hidden_size": 8}' + b" " * 600


@pytest.mark.parametrize("name", ["model.safetensors", "any", "model.safetensors.index.json"])
@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (POINTER, "got a pointer of Git LFS. Fetch the file that it stands for: git lfs pull."),
        (PAGE, "got a page of a web site. The address that it was fetched from gives no file"),
        (CONFIG, "got a JSON file, which holds settings, such as config.json. Pass the folder"),
    ],
)
def test_what_is_no_checkpoint_is_called_what_it_is(server, memory, data, message, name, elsewhere):
    if elsewhere:
        url = f"memory://odd/{name}"
        fsspec.filesystem("memory").pipe(f"/odd/{name}", data)
    else:
        url, server.files[f"/{name}"] = f"{server.url}/{name}", data
    if data is CONFIG and name.endswith(".index.json"):
        message = "wanted 'weight_map' to map tensor names to file names"
    else:
        message = f"wanted a file of weights, {message}"
    refused_in(lambda: li.open_checkpoint(url), f"{url}: {message}")


@pytest.mark.parametrize(
    ("write", "got"),
    [
        ("gguf", "GGUF, under a name without .gguf"),
        ("npz", "a zip archive, such as PyTorch's or NumPy's"),
        ("torch", "a zip archive, such as PyTorch's or NumPy's"),
        ("torch-legacy", "a pickle, such as PyTorch's"),
        ("hdf5", "HDF5"),
        ("npy", "npy"),
        ("msgpack", "msgpack"),
    ],
)
def test_another_format_is_named_with_the_way_out(server, memory, write, got, tmp_path):
    (format,) = [each for each in FORMATS if each.name == write]
    path = format.write(tmp_path, format.tensors())
    path = path.rename(tmp_path / "weights")
    server.put(tmp_path, "other/")
    fsspec.filesystem("memory").put(str(path), f"/remote/{path.name}")
    for url in (f"{server.url}/other/{path.name}", f"{memory}/{path.name}"):
        refused_in(
            lambda url=url: li.open_checkpoint(url),
            f"{url}: wanted safetensors, got {got}. Only safetensors and GGUF can be read at an "
            "address: download the file, and open it here.",
        )


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """A GGUF file with blocks of two kinds and a long list of metadata."""
    return write_quantized_gguf(tmp_path_factory.mktemp("gguf"), 20_000)


def test_a_gguf_file_is_read_by_ranges_of_its_blocks(server, memory, quantized):
    server.put(quantized.parent)
    fsspec.filesystem("memory").put(str(quantized), "/remote/t.gguf")
    local = li.open_checkpoint(quantized)
    for url in (f"{server.url}/t.gguf?download=true", f"{memory}/t.gguf"):
        opened = li.open_checkpoint(url)
        assert (opened.metadata, list(opened)) == (local.metadata, list(local))
        for name, source in opened.items():
            assert everything(source).tobytes() == everything(local[name]).tobytes()
    before, asked = server.sent, len(server.ranges)
    opened = li.open_checkpoint(f"{server.url}/t.gguf")
    # Each request is for twice as much as the one before: a long header takes few of them.
    assert server.sent - before < 2 * quantized.stat().st_size
    assert len(server.ranges) - asked < 8
    before = server.sent
    opened["blk.0.Q8_0.weight"].read((slice(1, 2), slice(0, 5)))
    assert server.sent - before == 34  # A block of Q8_0.


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GGUF\x03\0\0\0" + b"\xff" * 16, "wanted a GGUF header with at most 1000000 entries"),
        (b"GGUF\x03", "wanted a GGUF header with at most 1 bytes more, got 4"),
        (b"", "wanted a GGUF header with at most 0 bytes more, got 4"),
        (b"GGML" * 3, "wanted a GGUF header with its mark, got b'GGML'"),
        (
            b"PK\x03\x04" + b"\0" * 99,
            "wanted gguf, got a zip archive, such as PyTorch's or NumPy's. Only safe",
        ),
        (PAGE, "wanted a file of weights, got a page of a web site"),
    ],
)
def test_a_gguf_file_that_is_none_is_refused_with_the_address(server, data, message):
    server.files["/x.gguf"] = data
    refused_in(
        lambda: li.open_checkpoint(f"{server.url}/x.gguf"), f"{server.url}/x.gguf: {message}"
    )


@pytest.mark.parametrize("has_sizes", [False, True])
@pytest.mark.parametrize("fault", ["", "whole"])
def test_a_page_that_is_not_served_in_ranges_is_called_a_page(server, has_sizes, fault):
    server.files["/page"], server.kind = PAGE, "text/html; charset=utf-8"
    server.has_sizes, server.always = has_sizes, fault
    url = f"{server.url}/page"
    refused_in(lambda: li.open_checkpoint(url), f"{url}: wanted a file of weights, got a page of a")


def test_weights_are_read_whatever_the_server_calls_them(server):
    server.kind = "text/html"
    check_values(li.open_checkpoint(f"{server.url}/t.safetensors"))


def test_a_server_that_fails_is_not_asked_what_the_file_is(server):
    server.always = 500
    url = f"{server.url}/t.safetensors"
    refused_in(
        lambda: li.open_checkpoint(url), f"{url}: the header cannot be fetched after 4 tries"
    )
    assert len(server.ranges) == 4
