import io
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
from reading import everything

import lazyinit as li
from lazyinit import errors
from lazyinit.checkpoint import open_checkpoint
from lazyinit.formats import deflated, npz, zipped

DEFLATED, STORED = zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED


def npy(array, **how):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array), **how)
    return stream.getvalue()


def header(text, version=1, length=None):
    text = text.encode()
    length = len(text) if length is None else length
    return (
        b"\x93NUMPY"
        + bytes([version, 0])
        + struct.pack("<H" if version == 1 else "<I", length)
        + text
    )


def described(descr="'<f4'", shape="(1,)", order="False"):
    return header(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n")


def zipped_up(path, members, method=STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_bfloat16_which_numpy_calls_void_is_read_as_itself(tmp_path, save):
    values = np.arange(6).astype(ml_dtypes.bfloat16)
    save(tmp_path / "a.npz", w=values)
    source = open_checkpoint(tmp_path / "a.npz")["w"]
    assert source.dtype == ml_dtypes.bfloat16
    assert everything(source).tobytes() == values.tobytes()


def test_a_header_of_version_two_is_read(tmp_path):
    path = zipped_up(tmp_path / "a.npz", {"w.npy": npy(np.arange(3), version=(2, 0))})
    np.testing.assert_array_equal(everything(open_checkpoint(path)["w"]), np.arange(3))


def test_an_archive_in_the_format_for_large_ones_is_read(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("w.npy", "w", force_zip64=True) as out:
        out.write(npy(np.arange(3)))
    np.testing.assert_array_equal(everything(open_checkpoint(path)["w"]), np.arange(3))


def test_a_stored_member_is_a_view_of_the_map(tmp_path):
    np.savez(tmp_path / "a.npz", w=np.ones((64, 64)), f=np.ones((64, 32), order="F"))
    for source in open_checkpoint(tmp_path / "a.npz").values():
        assert not everything(source).flags.owndata


def test_a_slice_of_a_compressed_member_holds_its_own_bytes_and_a_block(tmp_path):
    values = np.random.default_rng(0).integers(0, 9, (4096, 1024), "int32")
    np.savez_compressed(tmp_path / "a.npz", w=values)
    source = open_checkpoint(tmp_path / "a.npz")["w"]
    assert repr(source) == "a.npz:w"
    tracemalloc.start()
    got = source.read((slice(4000, 4010), slice(3, 5)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(got, values[4000:4010, 3:5])
    assert peak < 8 * 2**20


def test_reading_the_first_rows_decompresses_little_more(tmp_path, monkeypatch):
    values = np.random.default_rng(0).normal(size=(4096, 256))
    np.savez_compressed(tmp_path / "a.npz", w=values)
    source = open_checkpoint(tmp_path / "a.npz")["w"]
    seen = []
    real = deflated.Stream.read
    monkeypatch.setattr(deflated.Stream, "read", lambda self, n: seen.append(n) or real(self, n))
    source.read((slice(0, 2), slice(None)))
    assert sum(seen) == 2 * 256 * 8 + source.start


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (b"", "wanted a member that starts as NumPy's arrays do, got b''"),
        (b"\x93NUMPX" + b"0" * 100, "wanted a member that starts as NumPy's arrays do"),
        (header("{}", version=3), "wanted a header of version 1 or 2, got 3"),
        (header("{}", version=2, length=2**31), "a header of at most 10000 bytes, got 2147483648"),
        (header("{}", length=900), "wanted a header of NumPy's, got something else"),
        (header("{}\n"), "wanted a header of NumPy's, got something else"),
        (header("(" * 5000 + "\n"), "wanted a header of NumPy's, got something else"),
        (header("__import__('os').abort()\n"), "wanted a header of NumPy's, got something else"),
        (described(shape="(-1,)") + b"0000", r"wanted a shape of at most 64 non-negative .*\[-1\]"),
        (described(shape=f"({2**62}, 9)"), "wanted a shape whose bytes can be counted in 63 bits"),
        (described(shape="(2,)") + b"0000", r"wanted 8 bytes of values for float32\[2\], got 4"),
        (described(shape=f"({2**40},)") + b"0000", "wanted 4398046511104 bytes of values"),
    ],
)
@pytest.mark.parametrize("method", [STORED, DEFLATED])
def test_a_member_that_is_no_array_of_numbers_is_refused(tmp_path, member, message, method):
    path = zipped_up(tmp_path / "a.npz", {"w.npy": member}, method)
    with pytest.raises(errors.CheckpointError, match=message) as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: tensor 'w': ")


ODD = [
    (npy(np.array([{}], object), allow_pickle=True), "array of numbers, got one of Python obj"),
    (npy(np.array(["a"])), "wanted a dtype among bool, .*, got '<U1'. Save it as one "),
    (npy(np.ones(2, ">f4")), "wanted a dtype among .*, little-endian, got '>f4'"),
    (npy(np.ones(2, ml_dtypes.float8_e5m2).view("V1")), r"wanted a dtype among .*, got '\|V1'"),
    (npy(np.zeros(2, [("a", "f4")])), "wanted a dtype among"),
]


@pytest.mark.parametrize(("member", "message"), ODD)
@pytest.mark.parametrize("method", [STORED, DEFLATED])
def test_a_member_of_another_dtype_is_refused_by_name_and_the_others_are_read(
    tmp_path, member, message, method
):
    path = zipped_up(tmp_path / "a.npz", {"odd.npy": member, "w.npy": npy(np.ones(3))}, method)
    opened = open_checkpoint(path)
    with pytest.raises(errors.CheckpointError, match=message) as caught:
        everything(opened["odd"])
    assert str(caught.value).startswith(f"{path}: tensor 'odd': ")
    tree, report = li.fill({"w": np.zeros(3)}, path)
    assert report.loaded == ("w",)
    assert report.unexpected == ("odd",)
    np.testing.assert_array_equal(li.materialize(tree)["w"], np.ones(3))
    leaf = np.zeros(opened["odd"].shape, "float32")
    for rules, tree in (
        ((), {"odd": leaf}),
        ([li.Rule("x", "odd", li.Cast("float32"))], {"x": leaf}),
    ):
        with pytest.raises(errors.FillError, match=message) as caught:
            li.fill(tree, path, rules)
        assert str(caught.value).startswith(f"{next(iter(tree))}: the model wants float32[")


def test_a_member_without_a_name_is_refused(tmp_path):
    path = zipped_up(tmp_path / "a.npz", {"w": b"123"}, STORED)
    content = path.read_bytes()
    local, rest = content[: 30 + 1 + 3], content[30 + 1 + 3 :]
    local = local[:26] + b"\0\0" + local[28:30] + local[31:]
    entry = rest[:28] + b"\0\0" + rest[30:46]
    end = rest[47:]
    sizes = struct.pack("<II", len(entry), len(local))
    path.write_bytes(local + entry + end[:12] + sizes + end[20:])
    with pytest.raises(errors.CheckpointError, match="wanted members with names, got one without"):
        open_checkpoint(path)


def test_a_pickle_in_an_archive_is_never_loaded(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    np.savez(tmp_path / "a.npz", w=np.array([Bomb()], object))
    with pytest.raises(errors.CheckpointError, match="a pickle can run code"):
        everything(open_checkpoint(tmp_path / "a.npz")["w"])
    assert not (tmp_path / "ran").exists()


def test_an_archive_of_something_else_is_refused(tmp_path):
    path = zipped_up(tmp_path / "a.zip", {"w.npy": npy(1), "readme.txt": b"x"})
    with pytest.raises(errors.CheckpointError, match=r"got a member 'readme\.txt'\. Pass its"):
        open_checkpoint(path)


def test_an_empty_archive_is_an_empty_checkpoint(tmp_path):
    np.savez(tmp_path / "a.npz")
    assert list(open_checkpoint(tmp_path / "a.npz")) == []


def broken(path, change, method=STORED):
    zipped_up(path, {"a.npy": npy(np.ones(64)), "b.npy": npy(np.zeros(64))}, method)
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    second = content.index(b"PK\x01\x02", directory + 1)
    change(content, directory, second)
    path.write_bytes(content)
    return path


def put(at, code, value):
    def change(content, directory, second):
        struct.pack_into(code, content, second + at, value)

    return change


def rename(content, directory, second):
    content[second + 46 : second + 51] = b"a.npy"


def rename_locally(content, directory, second):
    content[30:35] = b"x.npy"


def reversed_offset(content, directory, second):
    struct.pack_into("<I", content, second + 42, 4)


def overlap(content, directory, second):
    start = struct.unpack_from("<I", content, second + 42)[0]
    struct.pack_into("<II", content, directory + 20, start + 20, start + 20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(8, "<H", 1), "member 'b.npy': it is encrypted"),
        (put(10, "<H", 12), "member 'b.npy': wanted compression method 0 .* got 12"),
        (put(24, "<I", 2**31), "member 'b.npy': its 640 bytes cannot become the 2147483648"),
        (put(20, "<I", 2**31), "member 'b.npy': its 2147483648 bytes cannot become the 640"),
        (put(42, "<I", 2**31), "member 'b.npy': wanted its header at byte 2147483648, got none"),
        (reversed_offset, "member 'b.npy': wanted its header at byte 4, got none"),
        (rename, "the name 'a.npy' stands twice"),
        (rename_locally, "member 'a.npy': its own header calls it b'x.npy'"),
        (overlap, "member 'b.npy': its bytes overlap 'a.npy'"),
        (put(6, "<H", 999), "wanted a zip archive, got a damaged one: zip file version"),
        (put(0, "<I", 0), "wanted a zip archive, got a damaged one: Bad magic"),
    ],
)
def test_a_table_of_contents_that_lies_is_refused(tmp_path, change, message):
    path = broken(tmp_path / "a.npz", change)
    with pytest.raises(errors.CheckpointError, match=message) as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_member_that_ends_in_the_table_of_contents_is_refused(tmp_path):
    def change(content, directory, second):
        struct.pack_into("<II", content, second + 20, 700, 700)

    path = broken(tmp_path / "a.npz", change)
    with pytest.raises(errors.CheckpointError, match="member 'b.npy': it ends 60 bytes past the"):
        open_checkpoint(path)


def test_an_archive_without_a_table_of_contents_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"PK\x03\x04" + b"0" * 100)
    with pytest.raises(errors.CheckpointError, match="damaged one: File is not a zip file"):
        open_checkpoint(path)


def test_a_table_of_contents_beyond_the_limit_is_refused(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", **{f"tensor{n}": np.ones(1) for n in range(100)})
    monkeypatch.setattr(zipped, "_DIRECTORY_LIMIT", 1000)
    with pytest.raises(errors.CheckpointError, match="more than 1000 bytes of contents"):
        open_checkpoint(tmp_path / "a.npz")


def test_a_promise_that_no_compression_can_keep_is_refused(tmp_path):
    def bomb(content, directory, second):
        struct.pack_into("<I", content, second + 24, 2**31)

    path = broken(tmp_path / "a.npz", bomb, DEFLATED)
    with pytest.raises(errors.CheckpointError, match="cannot become the 2147483648 bytes that it"):
        open_checkpoint(path)


def test_a_bomb_within_what_compression_can_do_costs_no_memory(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, w=np.zeros((2**16, 256), "int8"))
    assert path.stat().st_size < 2**15
    tracemalloc.start()
    source = open_checkpoint(path)["w"]
    source.read((slice(2**15, 2**15 + 1), slice(None)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * 2**20


def test_values_that_were_changed_fail_their_checksum_or_do_not_decompress(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, w=np.random.default_rng(0).integers(0, 9, 50_000))
    content = bytearray(path.read_bytes())
    content[5000] ^= 16
    path.write_bytes(content)
    source = open_checkpoint(path)["w"]
    with pytest.raises(errors.CheckpointError, match="tensor 'w': its values (fail|cannot)"):
        everything(source)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff" * 40_000, "its values (cannot be decompressed|fail the archive's checksum)"),
        (b"", "its values end too soon"),
    ],
)
def test_a_stream_that_is_damaged_is_refused(tmp_path, monkeypatch, content, message):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, w=np.random.default_rng(0).normal(size=5000))
    source = open_checkpoint(path)["w"]
    data = path.read_bytes()
    path.write_bytes(data[:800] + content)
    monkeypatch.setattr(deflated.File, "check", lambda _: None)  # It changes while it is read.
    with pytest.raises(errors.CheckpointError, match=f"tensor 'w': {message}") as caught:
        everything(source)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_file_that_goes_while_it_is_read_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, w=np.ones(5000))
    source = open_checkpoint(path)["w"]
    path.unlink()
    monkeypatch.setattr(deflated.File, "check", lambda _: None)
    with pytest.raises(errors.CheckpointError, match="tensor 'w': the file can no longer be read"):
        everything(source)


def test_the_limits_are_those_of_numpy():
    assert npz._HEADER_LIMIT == 10_000
