"""PyTorch's files: what is told apart, what is refused; torch.save writes, torch.load judges."""

import collections
import json
import pickle
import re
import sys
import types
import zipfile

import numpy as np
import pytest
import torch

from lazyinit import errors
from lazyinit.checkpoint import open_checkpoint, pytorch

ARCHIVE, LEGACY = {}, {"_use_new_zipfile_serialization": False}
both = pytest.mark.parametrize("how", [ARCHIVE, LEGACY], ids=["archive", "legacy"])


def everything(source):
    return source.read((slice(None),) * len(source.shape))


def saved(path, value, **how):
    torch.save(value, path, **how)
    return path


def bits(tensor):
    plain = (
        tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    )
    return plain.reshape(-1).view(torch.uint8).numpy().tobytes()


def check(path):
    """Compares all tensors of a flat file with what torch.load makes of it, bit by bit."""
    want = torch.load(path, weights_only=True)
    got = open_checkpoint(path)
    assert list(got) == list(want)
    for name, source in got.items():
        values = everything(source)
        assert values.shape == source.shape == tuple(want[name].shape)
        assert values.dtype.name == str(want[name].dtype).removeprefix("torch.")
        assert values.tobytes() == bits(want[name]), name
    return got


def rezipped(path, change, method=zipfile.ZIP_STORED):
    """Writes an archive anew; ``change`` maps a member's short name and content to a content."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            content = change(name.partition("/")[2], content)
            if content is not None:
                archive.writestr(name, content)
    return path


def refused(path, message):
    with pytest.raises(errors.CheckpointError, match=message) as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


@both
def test_views_of_one_storage_are_read_as_torch_reads_them(tmp_path, how):
    base = torch.arange(120.0).reshape(4, 5, 6)
    views = {
        "base": base,
        "transposed": base.permute(2, 0, 1),
        "rows": base[1:3],
        "columns": base[:, :, 2:4],
        "every second": base[::2, :, ::3],
        "one": base[2, 3, 4],
        "repeated": base[0, 0].expand(7, 6),
        "a repeated number": base[1, 1, 1].expand(3, 2),
        "diagonal": base[0].diagonal(),
        "one of a diagonal": base[0].diagonal()[1:2],
        "empty": base[:, 2:2],
        "windows": base.reshape(-1).unfold(0, 5, 2),
    }
    got = check(saved(tmp_path / "x.pt", views, **how))
    if how is ARCHIVE:
        kinds = {name for name, source in got.items() if source.steps}
        assert kinds >= {"transposed", "columns", "every second", "repeated", "windows"}
        assert got["rows"].extents[0].start - got["base"].extents[0].start == 30 * 4
    for name, view in views.items():
        if view.ndim and 0 not in view.shape:
            part = got[name].read((slice(1, 2), *[slice(None)] * (view.ndim - 1)))
            assert part.tobytes() == bits(view[1:2]), name


def test_tensors_that_share_a_storage_lie_in_the_file_once(tmp_path):
    base = torch.zeros(1000)
    got = check(saved(tmp_path / "x.pt", {"head": base, "embed": base}))
    assert got["head"].extents == got["embed"].extents


# What torch.save still writes in the old way; torch.load itself reads no newer dtype from there.
OLD = [torch.bfloat16, torch.float16, torch.float64, torch.complex64, torch.complex128]
NEW = [
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
    *(torch.float8_e8m0fnu, torch.uint16, torch.uint32, torch.uint64),
]


@pytest.mark.parametrize(
    ("dtype", "how"),
    [*((dtype, ARCHIVE) for dtype in OLD + NEW), *((dtype, LEGACY) for dtype in OLD)],
    ids=lambda x: {"{}": "archive"}.get(str(x), str(x) if x is not LEGACY else "legacy"),
)
def test_every_bit_pattern_survives(tmp_path, how, dtype):
    # All 256 values of a byte, so NaNs with payloads and negative zeros too.
    patterns = torch.arange(256, dtype=torch.uint8).repeat(2).view(dtype)
    check(saved(tmp_path / "x.pt", {"flat": patterns, "square": patterns.reshape(4, -1)}, **how))


@both
def test_bools_are_read(tmp_path, how):
    check(saved(tmp_path / "x.pt", {"mask": torch.tensor([[True, False], [False, True]])}, **how))


@both
def test_parameters_and_what_wants_a_gradient_are_plain_values(tmp_path, how):
    state = {
        "parameter": torch.nn.Parameter(torch.arange(6.0).reshape(2, 3)),
        "wants": torch.ones(3, requires_grad=True),
        "buffer": torch.nn.Buffer(torch.ones(2)),
    }
    check(saved(tmp_path / "x.pt", state, **how))


@both
def test_a_state_dict_of_a_module_is_read_by_its_own_names(tmp_path, how):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    got = check(saved(tmp_path / "x.pt", model.state_dict(), **how))
    assert {"0.weight", "1.running_mean", "1.num_batches_tracked"} <= set(got)
    assert got["1.num_batches_tracked"].shape == ()


@both
def test_containers_are_paths_numbers_are_tensors_and_text_is_passed_over(tmp_path, how):
    tree = {
        "model": collections.OrderedDict(
            w=torch.ones(2), layers=[torch.zeros(1), (torch.ones(3),)]
        ),
        "optimizer": {"state": {0: {"step": torch.tensor(4.0)}}, "groups": [{"lr": 0.5}]},
        "epoch": 3,
        "done": True,
        "z": 1j,
        "name": "run",
        "nothing": None,
        "size": torch.Size([2, 3]),
        "dtype": torch.float32,
    }
    got = open_checkpoint(saved(tmp_path / "x.pt", tree, **how))
    values = {name: everything(source).tolist() for name, source in got.items()}
    assert values == {
        "model/w": [1, 1],
        "model/layers/0": [0],
        "model/layers/1/0": [1, 1, 1],
        "optimizer/state/0/step": 4,
        "optimizer/groups/0/lr": 0.5,
        "epoch": 3,
        "done": True,
        "z": 1j,
        "size/0": 2,
        "size/1": 3,
    }
    assert got["done"].dtype == bool


@both
def test_an_integer_beyond_64_bits_is_refused(tmp_path, how):
    path = saved(tmp_path / "x.pt", {"seed": 2**70}, **how)
    refused(path, "tensor 'seed': wanted an integer of at most 64 bits, got 'one of 71'")


@both
def test_a_tensor_alone_has_no_name(tmp_path, how):
    assert list(open_checkpoint(saved(tmp_path / "x.pt", torch.ones(2), **how))) == [""]


@both
@pytest.mark.parametrize("what", ["exec", "getattr", "subclass"])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path, how, what):
    class Bomb:
        def __reduce__(self):
            ran = str(tmp_path / "ran")
            if what == "getattr":
                return (getattr, (ran, "upper"))
            if what == "subclass":
                return (collections.OrderedDict, (), None, None, iter([("a", Exec())]))
            return (exec, (f"open({ran!r}, 'w')",))

    class Exec:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    path = saved(tmp_path / "x.pt", {"w": torch.ones(2), "bomb": Bomb()}, **how)
    message = refused(path, "wanted tensors in dicts and lists, got a pickle that asks for code: ")
    assert ("getattr" if what == "getattr" else "exec") in message
    assert "Nothing was run." in message
    assert "torch.load(..., weights_only=False) and save its state_dict() alone." in message
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_plain_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path, protocol):
    class Bomb:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(Bomb(), protocol))
    how = (
        "got a pickle that asks for code: exec. Nothing" if protocol < 4 else "without running code"
    )
    refused(path, how)
    assert not (tmp_path / "ran").exists()


@both
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [4, 5])
def test_a_pickle_of_a_newer_protocol_is_told_from_one_that_runs_code(tmp_path, protocol, how):
    path = saved(tmp_path / "x.pt", {"w": torch.ones(2)}, pickle_protocol=protocol, **how)
    message = refused(path, "wanted a pickle of protocol 2, which torch.save writes by itself, got")
    assert message.endswith("Save it again without pickle_protocol.")


def test_a_whole_module_is_refused(tmp_path):
    path = saved(tmp_path / "x.pt", torch.nn.Linear(2, 3))
    refused(path, "a pickle that asks for code: torch.nn.modules.linear.Linear. Nothing was")


@both
def test_without_pytorch_the_extra_is_named(tmp_path, monkeypatch, how):
    path = saved(tmp_path / "x.pt", {"w": torch.ones(2)}, **how)
    monkeypatch.setitem(sys.modules, "torch", None)
    message = refused(path, "wanted PyTorch, which unpickles its own files, got none")
    assert message.endswith(
        "Run pip install 'lazyinit[torch]', or convert the file to safetensors."
    )


@pytest.mark.filterwarnings("ignore")  # PyTorch: of what is deprecated or a prototype in it.
@pytest.mark.parametrize(
    ("kind", "how"),
    [
        *(("coo", ARCHIVE), ("coo", LEGACY), ("csr", ARCHIVE), ("csr", LEGACY)),
        *(("bits", ARCHIVE), ("quantized", LEGACY)),
    ],
)
def test_a_tensor_that_is_not_dense_numbers_is_refused(tmp_path, kind, how):
    made = {
        "coo": lambda: torch.eye(3).to_sparse(),
        "csr": lambda: torch.eye(3).to_sparse_csr(),
        "bits": lambda: torch.zeros(4, dtype=torch.uint8).view(torch.bits8),
        "quantized": quantized,
    }[kind]()
    path = saved(tmp_path / "x.pt", {"fine": torch.ones(2), "odd one": made}, **how)
    # Before 2.14 PyTorch tells which one it is, of all kinds.
    named = "tensor 'odd one': wanted a dense tensor of a dtype among bool, .*Save it as such"
    refused(path, rf"{named}|wanted dense tensors, got one .* sparse .*to_dense\(\)")


def quantized():
    return torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)


@pytest.mark.filterwarnings("ignore")  # As above.
def test_a_quantized_tensor_of_an_archive_is_told_from_damage(tmp_path):
    path = saved(tmp_path / "x.pt", {"w": quantized()})
    message = refused(path, "wanted dense tensors, got one that PyTorch cannot describe without")
    assert message.endswith("tensor.dequantize().")


def test_a_view_that_conjugates_or_negates_is_refused_by_name(tmp_path):
    z = torch.tensor([1 + 2j, 3j])
    for view in (z.conj(), z.conj().imag):
        path = saved(tmp_path / "x.pt", {"w": view})
        message = refused(path, "tensor 'w': wanted values as they are, got a view that conjugates")
        assert message.endswith("Save tensor.resolve_conj().resolve_neg().")


def test_a_legacy_view_that_conjugates_gives_what_torch_gives(tmp_path):
    z = torch.tensor([1 + 2j, 3j])
    check(saved(tmp_path / "conj.pt", {"w": z.conj()}, **LEGACY))
    check(saved(tmp_path / "neg.pt", {"w": z.conj().imag}, **LEGACY))


def test_big_endian_values_are_refused(tmp_path):
    path = saved(tmp_path / "x.pt", {"w": torch.ones(2)})
    rezipped(path, lambda name, content: b"big" if name == "byteorder" else content)
    message = refused(path, "wanted little-endian values, got b'big'")
    assert message.endswith("Save it again on a little-endian machine.")


def test_an_archive_from_before_the_byte_order_was_noted_is_read(tmp_path):
    path = saved(tmp_path / "x.pt", {"w": torch.ones(2)})
    rezipped(
        path, lambda name, content: None if name in ("byteorder", ".format_version") else content
    )
    check(path)


def compressed_but(path, stored):
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            method = zipfile.ZIP_STORED if name.partition("/")[2] in stored else None
            archive.writestr(name, content, method)
    return path


def test_a_compressed_pickle_is_refused(tmp_path):
    path = compressed_but(saved(tmp_path / "x.pt", {"w": torch.ones(2)}), ())
    message = refused(path, "wanted a pickle stored as it is, of at most 100000000 bytes, got one")
    assert message.endswith("Save it again with torch.save.")


def test_a_pickle_beyond_the_limit_is_refused(tmp_path, monkeypatch):
    path = saved(tmp_path / "x.pt", {"w": torch.ones(2)})
    monkeypatch.setattr(pytorch, "HEADER_LIMIT", 10)
    refused(path, r"of at most 10 bytes, got one of \d+\. Save it again with torch\.save")


def test_compressed_values_are_refused_by_name(tmp_path):
    path = saved(tmp_path / "x.pt", {"w": torch.ones(64)})
    compressed_but(path, ("data.pkl", "byteorder", "version"))
    refused(path, "tensor 'w': wanted values stored as they are in the archive, got Member")


def test_values_that_are_too_short_for_their_tensor_are_refused(tmp_path):
    path = saved(tmp_path / "x.pt", {"w": torch.ones(64)})
    rezipped(path, lambda name, content: content[:8] if name == "data/0" else content)
    refused(path, "tensor 'w': wanted bytes 0 to 256, got '8 bytes in x/data/0'")


def test_an_archive_without_the_values_is_refused(tmp_path):
    path = saved(tmp_path / "x.pt", {"w": torch.ones(64)})
    rezipped(path, lambda name, content: None if name == "data/0" else content)
    refused(path, "got one that torch.load refuses: .*It is damaged or incomplete: fetch it again")


def fake(shape, stride, *, at=0, offset=0):
    """What torch.load hands out, with whatever a hostile pickle may make it say."""
    return types.SimpleNamespace(
        shape=shape,
        dtype=torch.float32,
        layout=torch.strided,
        stride=lambda: stride,
        is_conj=lambda: False,
        is_neg=lambda: False,
        is_contiguous=lambda: False,
        storage_offset=lambda: offset,
        untyped_storage=lambda: types.SimpleNamespace(_checkpoint_offset=at),
    )


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (fake((2,), (1,), at=7), "wanted values stored as they are in the archive, got None"),
        (fake((2,), (1,), at=None), "wanted values stored as they are in the archive, got None"),
        (fake((3,), (1,)), "wanted bytes 0 to 12, got '8 bytes in x/data/0'"),
        (fake((2,), (1,), offset=1), "wanted bytes 4 to 12, got"),
        (fake((2,), (1,), offset=-1), "wanted bytes -4 to 4, got"),
        (fake((2,), (-1,), offset=1), "wanted bytes 4 to 4, got"),
        (fake((2, 2), (2**62, 1)), "wanted bytes 0 to"),
        (fake((2**62, 9), (0, 0)), "wanted a shape whose bytes can be counted in 63 bits"),
        (fake((1,) * 65, (0,) * 65), "wanted a shape of at most 64 non-negative integers"),
    ],
)
def test_a_tensor_that_would_reach_beyond_its_values_is_refused(tmp_path, tensor, message):
    path = tmp_path / "x.pt"
    path.write_bytes(b"0" * 99)
    file = pytorch.File.at(path)
    record = pytorch.Member("x/data/0", 0, 8, 8, is_deflated=False, crc=0)
    with pytest.raises(errors.CheckpointError, match=message) as caught:
        pytorch._mapped(torch, file, "w", tensor, {0: record})
    assert str(caught.value).startswith(f"{path}: tensor 'w': ")


@both
def test_a_file_cut_short_is_refused_wherever_it_is_cut(tmp_path, how):
    path = saved(tmp_path / "x.pt", {"w": torch.ones(64), "v": torch.ones(3)}, **how)
    whole = path.read_bytes()
    for length in (*range(3, len(whole), 97), len(whole) - 1):
        path.write_bytes(whole[:length])
        # Cut within a name, the old way's pickle asks for something that nobody has.
        refused(path, "fetch it again|asks for code: collections")


def test_a_zip_that_torch_did_not_write_is_not_taken_for_its_own(tmp_path):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/readme.txt", "hello")
    refused(path, "got a member 'x/readme.txt'")


def test_a_zip_with_a_pickle_that_is_no_pickle_is_refused(tmp_path):
    path = saved(tmp_path / "x.pt", {"w": torch.ones(2)})
    rezipped(path, lambda name, content: b"hello" if name == "data.pkl" else content)
    refused(path, "wanted a file of torch.save, got one that torch.load refuses: ")


def test_torchscript_is_refused(tmp_path):
    path = saved(tmp_path / "x.pt", {"w": torch.ones(2)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x/constants.pkl", b"")
    refused(path, "got one that torch.load refuses: ")


def indexed(folder, shards, **changes):
    for name, tensors in shards.items():
        saved(folder / name, tensors)
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map | changes}))
    return index


def test_an_index_names_its_shards(tmp_path):
    shards = {"a.bin": {"a.w": torch.ones(2)}, "b.bin": {"b.w": torch.zeros(3)}}
    index = indexed(tmp_path, shards)
    for path in (tmp_path, index):
        got = open_checkpoint(path)
        assert {name: everything(source).tolist() for name, source in got.items()} == {
            "a.w": [1, 1],
            "b.w": [0, 0, 0],
        }


@pytest.mark.parametrize("shard", ["../a.bin", "/etc/passwd", "x/../../a.bin", "C:a.bin", ""])
def test_a_shard_outside_the_folder_is_refused(tmp_path, shard):
    folder = tmp_path / "inside"
    folder.mkdir()
    saved(tmp_path / "a.bin", {"w": torch.ones(2)})
    index = indexed(folder, {}, w=shard)
    message = refused(
        index, f"wanted shards inside the folder of the index, got {re.escape(repr(shard))}"
    )
    assert message.endswith("Put the shard beside the index and name it plainly.")


def test_a_missing_shard_suggests_the_nearest_file(tmp_path):
    shards = {"pytorch_model-1.bin": {"a": torch.ones(2)}}
    index = indexed(tmp_path, shards, b="pytorch_model-2.bin")
    refused(
        index, "the shard 'pytorch_model-2.bin' is missing from the folder.*'pytorch_model-1.bin'"
    )


def test_a_tensor_that_is_not_in_its_shard_is_refused(tmp_path):
    index = indexed(tmp_path, {"a.bin": {"weight": torch.ones(2)}}, weigth="a.bin")
    refused(index, "tensor 'weigth': wanted it in 'a.bin', which does not hold it.*'weight'")


def test_a_shard_that_runs_code_is_refused_by_its_own_name(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    indexed(tmp_path, {"a.bin": {"w": Bomb()}})
    with pytest.raises(errors.CheckpointError, match="a pickle that asks for code") as caught:
        open_checkpoint(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "a.bin"))
    assert not (tmp_path / "ran").exists()


def test_no_tensor_of_pytorch_is_made_to_open_an_archive(tmp_path, monkeypatch):
    path = saved(tmp_path / "x.pt", {"w": torch.ones(64, 64)})
    real, devices = torch.load, []
    monkeypatch.setattr(
        torch, "load", lambda *a, **k: devices.append(k["map_location"]) or real(*a, **k)
    )
    source = open_checkpoint(path)["w"]
    assert devices == ["meta"]
    assert not everything(source).flags.owndata
    np.testing.assert_array_equal(everything(source), np.ones((64, 64), "float32"))
    assert repr(source) == "x.pt:w"
