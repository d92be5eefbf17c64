import re
import struct
import tracemalloc

import flax.serialization
import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax.training import checkpoints, train_state
from reading import everything

from lazyinit import errors
from lazyinit.checkpoint import open_checkpoint


def saved(path, tree):
    path.write_bytes(flax.serialization.msgpack_serialize(tree))
    return path


def ext(code, payload):
    return msgpack.packb(msgpack.ExtType(code, payload))


def array(shape, dtype, data):
    return ext(1, msgpack.packb((shape, dtype, data)))


def test_numbers_are_tensors_without_dimensions_and_text_is_passed_over(tmp_path):
    tree = {
        "np": np.float16(2.5), "bf": np.asarray(3, ml_dtypes.bfloat16)[()], "int": 3, "neg": -200,
        "large": 2**63, "float": 0.1, "no": False, "complex": 1 + 2j, "text": "x", "none": None,
        "list": [np.ones(2), 7], "bytes": b"ab",
    }  # fmt: skip
    checkpoint = open_checkpoint(saved(tmp_path / "c", tree))
    got = {name: (source.dtype.name, everything(source)) for name, source in checkpoint.items()}
    want = {"list/0": tree["list"][0], "list/1": 7}
    want |= {k: v for k, v in tree.items() if k not in ("text", "none", "list", "bytes")}
    assert set(got) == set(want)
    for name, value in want.items():
        assert got[name][0] == np.asarray(value).dtype.name, name
        np.testing.assert_array_equal(got[name][1], value)
    assert repr(checkpoint["int"]) == "c:int"
    assert (checkpoint["int"].origin, checkpoint["int"].extents) == (str(tmp_path / "c"), ())


def test_a_train_state_that_flax_saved_is_read(tmp_path):
    import optax

    params = {"dense": {"kernel": jnp.ones((2, 3))}}
    state = train_state.TrainState.create(apply_fn=None, params=params, tx=optax.adam(1e-3))
    path = checkpoints.save_checkpoint(str(tmp_path), state, 5)
    checkpoint = open_checkpoint(path)
    assert {"step", "params/dense/kernel", "opt_state/0/mu/dense/kernel"} <= set(checkpoint)
    np.testing.assert_array_equal(everything(checkpoint["params/dense/kernel"]), np.ones((2, 3)))


def test_an_array_alone_or_a_list_is_a_checkpoint(tmp_path):
    assert list(open_checkpoint(saved(tmp_path / "a", np.ones(3)))) == [""]
    assert list(open_checkpoint(saved(tmp_path / "b", [np.ones(3), np.ones(2)]))) == ["0", "1"]


def test_a_view_of_the_file_is_what_is_read(tmp_path):
    source = open_checkpoint(saved(tmp_path / "c", {"w": np.ones((64, 64))}))["w"]
    assert not everything(source).flags.owndata


def test_an_array_in_pieces_is_read_across_them(tmp_path, monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 40)
    values = np.arange(7 * 5, dtype="float32").reshape(7, 5)
    source = open_checkpoint(saved(tmp_path / "c", {"w": values}))["w"]
    assert len(source.extents) == 4
    assert repr(source) == "c:w"
    for index in [
        (slice(1, 6), slice(2, 4)),
        (slice(3, 3), slice(0, 5)),
        (slice(0, 7), slice(0, 5)),
    ]:
        np.testing.assert_array_equal(source.read(index), values[index])


ONE = msgpack.packb((2,))
CHUNK = "__msgpack_chunked_array__"
PIECE = {"0": np.ones(2)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x81\xa1a", "wanted 1 bytes of msgpack at byte 3, got 0, and the end"),
        (b"\x81\xa1a\xc1", "wanted msgpack at byte 3, got byte 0xc1"),
        (b"\x81\xa1a\xc0\xc0", "wanted an end at byte 4, got 1 bytes more"),
        (b"\x81" + b"\x91" * 200 + b"\x01", "wanted a key at byte 2 that is text .*, got list of 1"),
        (b"\x91" * 200 + b"\x01", "wanted containers at most 100 deep, got more"),
        (b"\xdf\xff\xff\xff\xff\xa1a\xc0", "wanted 4294967295 values at byte 5, got the end"),
        (b"\xdd\xff\xff\xff\xff\xc0", "wanted 4294967295 values at byte 5, got the end"),
        (b"\x81\xa1a\xdb\xff\xff\xff\xff", "wanted 4294967295 bytes of text at byte 8, got 0"),
        (b"\x81\xda\xff\xff" + b"a" * 70000, "wanted a key at byte 4 that is text of at most 10000"),
        (b"\x81\xa1\xff\xc0", r"wanted a key at byte 2 in UTF-8, got b'\\xff'"),
        (b"\x82\xa1a\xc0\xa1a\xc0", "wanted each key once, got 'a' twice"),
        (b"\x81\xa1a" + ext(9, b"xx"), r"wanted an extension of Flax's \(1, 2 or 3\) at byte"),
        (b"\x81\xa1a\xc9\xff\xff\xff\xff\x01", "wanted 4294967295 bytes of an extension at byte 9"),
        (b"\x81\xa1a" + ext(1, b"\x93\x91"), "wanted 1 bytes of msgpack at byte 7, got 0"),
        (b"\x81\xa1a" + ext(1, b"\xc0\xc0"), "wanted an extension of Flax's at byte 6, got a noth"),
        (b"\x81\xa1a" + ext(2, ONE), "wanted an extension of Flax's at byte 6, got a list of 1"),
        (b"\x81\xa1a" + ext(2, b"\x92\xc0\x01"), "wanted two numbers before byte 9, got nothing"),
        (b"\x81\xa1a" + ext(2, b"\x92\x01\x01\x01"), "wanted an extension that ends at byte 9"),
        (b"\x81\xa1a" + array(3, "f", b""), "wanted an array's shape of at most 64 numbers before"),
        (b"\x81\xa1a" + array([1] * 65, "f", b""), "wanted an array's shape of at most 64 numbers"),
        (b"\x81\xa1a" + array([1], 3, b""), "wanted an array's dtype at byte .* that is text"),
        (b"\x81\xa1a" + array([1], "int8", 3), "wanted an array's bytes at byte .*, got number"),
        (b"\x81\xa1a" + array([1], "object", b"0"), "tensor 'a': wanted a dtype among bool, .*'obj"),
        (b"\x81\xa1a" + array([-1], "int8", b"0"), r"tensor 'a': wanted a shape of .*, got \[-1\]"),
        (b"\x81\xa1a" + array([0.5], "int8", b"0"), "tensor 'a': wanted a shape of at most 64"),
        (b"\x81\xa1a" + array([2**40, 2**40], "int8", b"0"), "tensor 'a': wanted .* 63 bits"),
        (b"\x81\xa1a" + array([3], "int8", b"0"), r"tensor 'a': wanted 3 bytes for int8\[3\], got 1"),
        (msgpack.packb({"a": {CHUNK: True}}), "tensor 'a': wanted a shape and the pieces"),
        (msgpack.packb({"a": {CHUNK: True, "chunks": {"0": 1}}}), "tensor 'a': wanted a shape and"),
    ],
)  # fmt: skip
def test_what_is_not_flax_msgpack_is_refused(tmp_path, content, message):
    path = tmp_path / "c"
    path.write_bytes(content)
    with pytest.raises(errors.CheckpointError, match=message) as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"shape": {"0": 2}, "chunks": {"1": np.ones(2)}}, "wanted a shape and the pieces"),
        ({"shape": {"1": 2}, "chunks": PIECE}, "wanted a shape of at most 64"),
        ({"shape": {"0": 3}, "chunks": PIECE}, r"wanted 3 elements in its pieces, got \[2\]"),
        ({"shape": {"0": 2}, "chunks": {"0": np.ones((1, 2))}}, "wanted flat pieces of float64"),
        (
            {"shape": {"0": 4}, "chunks": {**PIECE, "1": np.ones(2, "int8")}},
            "wanted flat pieces of float64",
        ),
    ],
)
def test_pieces_that_make_no_array_are_refused(tmp_path, members, message):
    path = saved(tmp_path / "c", {"a": {CHUNK: True, **members}})
    with pytest.raises(errors.CheckpointError, match=f"tensor 'a': {message}"):
        open_checkpoint(path)


def test_lists_within_lists_beyond_number_are_refused(tmp_path, monkeypatch):
    from lazyinit.formats import msgpack_walk

    monkeypatch.setattr(msgpack_walk, "NODE_LIMIT", 100)
    path = tmp_path / "c"
    path.write_bytes(b"\xdc" + struct.pack(">H", 200) + b"\xc0" * 200)
    with pytest.raises(errors.CheckpointError, match="wanted at most 100 values, got more"):
        open_checkpoint(path)


def test_a_file_that_shrinks_while_it_is_opened_is_refused(tmp_path, monkeypatch):
    from lazyinit.formats import flax_msgpack
    from lazyinit.tensors.mapped import File

    path = saved(tmp_path / "c", {"a": np.ones(2)})
    longer = File(str(path), path.stat().st_size + 9, path.stat().st_mtime_ns)
    path.write_bytes(path.read_bytes()[:5])
    monkeypatch.setattr(flax_msgpack.File, "at", lambda _: longer)
    with pytest.raises(errors.CheckpointError, match=re.escape(f"{path}: wanted")):
        open_checkpoint(path)


def test_opening_holds_no_values(tmp_path):
    path = saved(tmp_path / "c", {"a": np.ones((1024, 4096), "float32"), "b": np.ones(3)})
    open_checkpoint(path)
    tracemalloc.start()
    checkpoint = open_checkpoint(path)
    checkpoint["a"].read((slice(0, 8), slice(None)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**18


def test_an_integer_of_more_than_64_bits_is_refused(tmp_path):
    from lazyinit.tensors.mapped import File
    from lazyinit.tensors.memory import number

    path = saved(tmp_path / "c", {})
    with pytest.raises(errors.CheckpointError, match="tensor 'n': wanted an integer of at most 64"):
        number(File.at(path), "n", 2**70)
