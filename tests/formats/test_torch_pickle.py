"""What a pickle may ask for: its tensors are read, nothing runs; pickle and torch write them."""

import argparse
import collections
import enum
import functools
import io
import os
import pickle
import struct
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from reading import refused

from lazyinit import errors
from lazyinit.checkpoint import open_checkpoint
from lazyinit.formats.torch_pickle import Reader

ARCHIVE, LEGACY = {}, {"_use_new_zipfile_serialization": False}
both = pytest.mark.parametrize("how", [ARCHIVE, LEGACY], ids=["archive", "legacy"])


def saved(path, value, **how):
    torch.save(value, path, **how)
    return path


def values(path):
    opened = open_checkpoint(path)
    return {name: x.read((slice(None),) * len(x.shape)).tolist() for name, x in opened.items()}


class Running:
    """Runs when somebody unpickles it."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def marking(tmp_path):
    return f"open({str(tmp_path / 'ran')!r}, 'w')"


@both
@pytest.mark.parametrize("place", ["value", "item", "argument", "state"])
@pytest.mark.parametrize("function", [exec, eval, os.system, __import__, open])
def test_what_runs_code_is_refused_by_its_name_and_does_not_run(tmp_path, how, place, function):
    argument = f"touch {tmp_path / 'ran'}" if function is os.system else marking(tmp_path)
    bomb = Running(function, argument)
    tree = {
        "value": bomb,
        "item": collections.OrderedDict(a=bomb),
        "argument": Running(functools.partial, bomb),
        "state": argparse.Namespace(a=bomb),
    }[place]
    path = saved(tmp_path / "x.pt", {"w": torch.ones(2), "bomb": tree}, **how)
    refused(
        path, "wanted tensors in dicts and lists, got a pickle that asks for code: .*Nothing was"
    )
    assert not (tmp_path / "ran").exists()


class Late:
    def __setstate__(self, state):
        raise AssertionError("it ran")

    def __getstate__(self):
        return {"w": torch.full((2,), 7.0), "n": 3}


class Color(enum.Enum):
    RED = 1


class Listed(list):
    pass


class Slotted:
    __slots__ = ("w",)

    def __init__(self, w):
        self.w = w


@both
def test_tensors_are_given_whatever_classes_lie_beside_and_around_them(tmp_path, how):
    tree = {
        "state_dict": {"w": torch.ones(2)},
        "args": argparse.Namespace(lr=0.5, best=torch.zeros(1)),
        "late": Late(),
        "color": Color.RED,
        "partial": functools.partial(print, torch.full((1,), 2.0)),
        "listed": Listed([torch.full((1,), 3.0), 4]),
        "slotted": Slotted(torch.full((1,), 5.0)),
        "set": {1, 2},
        "deque": collections.deque([torch.full((1,), 6.0)]),
        "path": torch.nn.Linear,
        Color.RED: 8,
    }
    got = values(saved(tmp_path / "x.pt", tree, **how))
    assert got == {
        "state_dict/w": [1, 1],
        "args/best": [0],
        "late/w": [7, 7],
        "partial/state/1/0": [2],
        "listed/0": [3],
        "slotted/w": [5],
        "set/0": 1,
        "set/1": 2,
        "deque/0": [6],
        "<object 10>/1": 8,
    }


@both
def test_a_file_of_nothing_but_other_classes_is_refused(tmp_path, how):
    path = saved(tmp_path / "x.pt", {"a": argparse.Namespace(lr=0.5)}, **how)
    refused(
        path, "got a pickle that asks for code: argparse.Namespace. Nothing was run. If you tru"
    )


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("how", [ARCHIVE, LEGACY], ids=["archive", "legacy"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_every_protocol_is_read(tmp_path, protocol, how):
    tree = {
        "w": torch.arange(6.0).reshape(2, 3),
        "a": np.arange(3, dtype="int16"),
        "f": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "empty": np.zeros((0, 2)),
        "s": np.float32(0.5),
        "d": np.float64(0.25),
        "z": 1 + 2j,
        "big": 2**62,
        "s3": {3},
        "f3": frozenset([4]),
        "text": b"bytes",
    }
    got = values(saved(tmp_path / "x.pt", tree, pickle_protocol=protocol, **how))
    assert got == {
        "w": [[0, 1, 2], [3, 4, 5]],
        "a": [0, 1, 2],
        "f": [[0, 1, 2], [3, 4, 5]],
        "empty": [],
        "s": 0.5,
        "d": 0.25,
        "z": 1 + 2j,
        "big": 2**62,
        "s3/0": 3,
        "f3/0": 4,
    }


@pytest.mark.parametrize("protocol", range(2, 6))
def test_arrays_that_pickle_itself_wrote_are_read(tmp_path, protocol):
    path = tmp_path / "params.pkl"
    path.write_bytes(pickle.dumps({"p": {"w": np.arange(3.0)}, "step": 4}, protocol))
    assert values(path) == {"p/w": [0, 1, 2], "step": 4}


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "int4", "float4_e2m1fn"])
def test_arrays_of_the_dtypes_of_jax_are_read_as_jax_and_numpy_pickle_them(
    tmp_path, dtype, protocol
):
    values = jnp.arange(6).reshape(2, 3).astype(dtype)
    tree = {"jax": values, "numpy": np.asarray(values), "scalar": np.asarray(values)[1, 1]}
    path = tmp_path / "params.pkl"
    path.write_bytes(pickle.dumps(tree, protocol))
    opened = open_checkpoint(path)
    for name, want in tree.items():
        got = opened[name].read((slice(None),) * want.ndim)
        assert (got.dtype, got.shape) == (jnp.dtype(dtype), want.shape)
        np.testing.assert_array_equal(got.astype("float32"), np.asarray(want, "float32"))


def test_a_pickle_of_one_number_is_no_checkpoint(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps("text", 2))
    refused(
        path, "wanted tensors or arrays, got a pickle of one str. Save them with torch.save, or"
    )


@pytest.mark.parametrize(
    "array",
    [np.array(["a"]), np.array([{}], object), np.ones(2, ">f4"), np.array(["2026-01-01"], "M8[D]")],
)
def test_an_array_that_is_none_of_numbers_is_refused_alone(tmp_path, array):
    opened = open_checkpoint(saved(tmp_path / "x.pt", {"w": torch.ones(2), "odd": array}))
    assert opened["w"].read((slice(None),)).tolist() == [1, 1]
    with pytest.raises(
        errors.CheckpointError, match="wanted an array of numbers, little-endian, got"
    ):
        opened["odd"].read(())


@both
def test_keys_that_are_no_text_become_text(tmp_path, how):
    tree = {None: torch.ones(1), (1, "a"): torch.ones(1), 2.5: torch.ones(1), True: torch.ones(1)}
    tree |= {7: torch.ones(1), b"k": torch.ones(1), ((1, 2), 3): torch.ones(1)}
    tree |= {((1, 2), 4): torch.ones(1)}
    got = values(saved(tmp_path / "x.pt", tree, **how))
    assert set(got) == {"None", "(1, 'a')", "2.5", "True", "7", "b'k'", "<tuple 6>", "<tuple 7>"}


def test_parts_of_a_subclass_of_tensors_are_read(tmp_path):
    path = saved(
        tmp_path / "x.pt", {"p": torch.nn.Buffer(torch.ones(2)), "q": Marked(torch.ones(1))}
    )
    assert values(path)["q"] == [1]


class Marked(torch.nn.Parameter):
    pass


def load(*opcodes):
    return Reader(io.BytesIO(b"".join(opcodes) + pickle.STOP)).load()


NAME = pickle.GLOBAL + b"collections\nOrderedDict\n"


@pytest.mark.parametrize(
    ("opcodes", "message"),
    [
        ([pickle.EXT1, b"\1"], "it asks for an extension"),
        ([NAME, pickle.NONE, pickle.REDUCE], "arguments are NoneType"),
        ([pickle.EMPTY_TUPLE, pickle.BINPERSID], "tuple index out of range"),
        ([b"(X\7\0\0\0storageNNNNt", pickle.BINPERSID], "in another way than PyTorch does"),
        (
            [b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0kNK\1K\1t", pickle.BINPERSID],
            "a storage is a view of another, as before PyTorch 0.4",
        ),
        ([b"ctorch._utils\n_rebuild_tensor\n(NK\0))t", pickle.REDUCE], "a tensor is described in"),
        (
            [
                b"ctorch._utils\n_rebuild_tensor\n",
                b"((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0kNK\1tQK\0K\1\x85)t",
                pickle.REDUCE,
            ],
            "a tensor has 1 sizes and 0 strides",
        ),
        ([b"c__builtin__\ncomplex\n(X\1\0\0\0jK\1t", pickle.REDUCE], "is not made of two floats"),
        ([b"cnumpy\ndtype\n(Nt", pickle.REDUCE], "a dtype is not written as text"),
        ([b"cjax._src.array\n_reconstruct_array\n(Nt", pickle.REDUCE], "values to unpack"),
        ([pickle.BINGET, b"\7"], "Memo value not found"),
        ([NAME, pickle.MARK, pickle.BUILD], "pop from empty list|list index out of range"),
    ],
    ids=range(12),
)
def test_a_pickle_that_no_library_writes_is_an_error(opcodes, message):
    with pytest.raises(Exception, match=message):
        load(*opcodes)


def test_no_name_is_imported_or_changed():
    state = b"(N(X\4\0\0\0nameX\1\0\0\0xdt"
    name = load(b"cnot_a_module_at_all\nThing\n", state, pickle.BUILD)
    assert str(name) == "not_a_module_at_all.Thing"


@pytest.mark.parametrize("opcode", [pickle.BYTEARRAY8, pickle.BINBYTES8, pickle.BINUNICODE8])
def test_a_promise_of_many_bytes_costs_no_memory(opcode):
    tracemalloc.start()
    with pytest.raises(EOFError):
        load(opcode, struct.pack("<Q", 2**40), b"abc")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_place_far_away_in_the_memo_costs_no_memory():
    tracemalloc.start()
    assert load(pickle.NONE, pickle.LONG_BINPUT, struct.pack("<I", 2**32 - 1)) is None
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
