"""PyTorch's files: what is told apart, what is refused; torch.save writes, torch.load judges.

What a pickle may ask for is in test_torch_pickle.py.
"""

import collections
import json
import pickle
import re
import sys
import zipfile

import jax
import numpy as np
import pytest
import torch
from reading import everything, refused

import lazyinit as li
from lazyinit import errors
from lazyinit.checkpoint import open_checkpoint
from lazyinit.formats import pickled, pytorch

ARCHIVE, LEGACY = {}, {"_use_new_zipfile_serialization": False}
both = pytest.mark.parametrize("how", [ARCHIVE, LEGACY], ids=["archive", "legacy"])


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


def odd(path, name, message):
    """Opens a file; all but one tensor of it are read, and that one is refused by its name."""
    opened = open_checkpoint(path)
    with pytest.raises(errors.CheckpointError, match=message) as caught:
        everything(opened[name])
    assert str(caught.value).startswith(f"{path}: tensor {name!r}: wanted ")
    for other in set(opened) - {name}:
        everything(opened[other])
    with pytest.raises(errors.FillError, match=message):
        li.fill({name: jax.ShapeDtypeStruct(opened[name].shape, "float32")}, opened)
    return opened


@both
@pytest.mark.parametrize("count", [2**64, -(2**63) - 1, 2**70])
def test_an_integer_beyond_64_bits_is_refused_alone(tmp_path, how, count):
    path = saved(tmp_path / "x.pt", {"seed": count, "w": torch.ones(2)}, **how)
    message = f"wanted an integer of at most 64 bits, got one of {count.bit_length()}. Save it as"
    odd(path, "seed", message)


@both
@pytest.mark.parametrize("count", [2**64 - 1, 2**63, -(2**63), 0])
def test_an_integer_of_64_bits_is_read(tmp_path, how, count):
    path = saved(tmp_path / "x.pt", {"seed": count}, **how)
    assert everything(open_checkpoint(path)["seed"]) == count


@both
def test_a_tensor_alone_has_no_name(tmp_path, how):
    assert list(open_checkpoint(saved(tmp_path / "x.pt", torch.ones(2), **how))) == [""]


@both
def test_a_whole_module_is_read_by_the_names_of_its_state(tmp_path, how):
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    model.register_buffer("passing", torch.ones(2), persistent=False)
    got = open_checkpoint(saved(tmp_path / "x.pt", model, **how))
    want = model.state_dict()
    assert {name.replace("/", ".") for name in got} == set(want)
    for name, source in got.items():
        assert everything(source).tobytes() == bits(want[name.replace("/", ".")])


@both
def test_pytorch_is_not_needed(tmp_path, monkeypatch, how):
    path = saved(tmp_path / "x.pt", {"w": torch.ones(2)}, **how)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert everything(open_checkpoint(path)["w"]).tolist() == [1, 1]


@pytest.mark.filterwarnings("ignore")  # PyTorch: of what is deprecated or a prototype in it.
@pytest.mark.parametrize(
    ("kind", "how", "message"),
    [
        *((k, h, "dense tensor") for k in ("coo", "csr", "quantized") for h in (ARCHIVE, LEGACY)),
        ("bits", ARCHIVE, "wanted a dtype among bool, .*, got bits8. Save it in one"),
        ("nested", ARCHIVE, r"got what _rebuild_nested_tensor makes, .* Save tensor.to_dense\(\)"),
        *(
            ("meta", h, "got a tensor of the meta device, which has none")
            for h in (ARCHIVE, LEGACY)
        ),
        *(("conj", h, "got a view that conjugates or negates") for h in (ARCHIVE, LEGACY)),
        *(("neg", h, r"Save tensor.resolve_conj\(\).resolve_neg") for h in (ARCHIVE, LEGACY)),
    ],
)
def test_a_tensor_that_is_not_dense_numbers_is_refused_alone(tmp_path, kind, how, message):
    z = torch.tensor([1 + 2j, 3j])
    made = {
        "coo": lambda: torch.eye(3).to_sparse(),
        "csr": lambda: torch.eye(3).to_sparse_csr(),
        "bits": lambda: torch.zeros(4, dtype=torch.uint8).view(torch.bits8),
        "quantized": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
        "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "meta": lambda: torch.empty(3, device="meta"),
        "conj": z.conj,
        "neg": lambda: z.conj().imag,
    }[kind]()
    tensors = {"before": torch.ones(2), "odd one": made, "fine": torch.full((3,), 5.0)}
    opened = odd(saved(tmp_path / "x.pt", tensors, **how), "odd one", message)
    assert everything(opened["fine"]).tolist() == [5, 5, 5]


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
    message = refused(path, "wanted an uncompressed pickle of at most 100000000 bytes, got one")
    assert message.endswith("Save it again with torch.save.")


def test_a_pickle_beyond_the_limit_is_refused(tmp_path, monkeypatch):
    path = saved(tmp_path / "x.pt", {"w": torch.ones(2)})
    monkeypatch.setattr(pytorch, "HEADER_LIMIT", 10)
    refused(path, r"of at most 10 bytes, got one of \d+\. Save it again with torch\.save")


def test_compressed_values_are_refused_by_name(tmp_path):
    path = saved(tmp_path / "x.pt", {"w": torch.ones(64)})
    compressed_but(path, ("data.pkl", "byteorder", "version"))
    refused(path, "tensor 'w': wanted values stored as they are in the file, got Storage")


def test_values_that_are_too_short_for_their_tensor_are_refused(tmp_path):
    path = saved(tmp_path / "x.pt", {"w": torch.ones(64)})
    rezipped(path, lambda name, content: content[:8] if name == "data/0" else content)
    refused(path, "tensor 'w': wanted bytes 0 to 256, got '8 bytes in x/data/0'")


def test_an_archive_without_the_values_is_refused(tmp_path):
    path = saved(tmp_path / "x.pt", {"w": torch.ones(64)})
    rezipped(path, lambda name, content: None if name == "data/0" else content)
    refused(path, "tensor 'w': wanted values stored as they are in the file, got .*fetch it again")


def spec(shape, stride, *, key="0", offset=0):
    storage = pickled.Storage(key, "float32", 2)
    return pickled.TensorSpec(storage, "float32", offset, shape, stride)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (spec((2,), (1,), key="7"), "wanted values stored as they are in the file, got Storage"),
        (spec((3,), (1,)), "wanted bytes 0 to 12, got '8 bytes in x/data/0'"),
        (spec((2,), (1,), offset=1), "wanted bytes 4 to 12, got"),
        (spec((2,), (1,), offset=-1), "wanted bytes -4 to 4, got"),
        (spec((2,), (-1,), offset=1), "wanted bytes 4 to 4, got"),
        (spec((2, 2), (2**62, 1)), "wanted bytes 0 to"),
        (spec((2**62, 9), (0, 0)), "wanted a shape whose bytes can be counted in 63 bits"),
        (spec((1,) * 65, (0,) * 65), "wanted a shape of at most 64 non-negative integers"),
    ],
)
def test_a_tensor_that_would_reach_beyond_its_values_is_refused(tmp_path, tensor, message):
    path = tmp_path / "x.pt"
    path.write_bytes(b"0" * 99)
    records = {"0": pytorch._Record(0, 8, "x/data/0")}
    with pytest.raises(errors.CheckpointError, match=message) as caught:
        pytorch._tensor(
            pytorch.File.at(path), "w", tensor, lambda storage: records.get(storage.key)
        )
    assert str(caught.value).startswith(f"{path}: tensor 'w': ")


@both
def test_a_file_cut_short_is_refused_wherever_it_is_cut(tmp_path, how):
    path = saved(tmp_path / "x.pt", {"w": torch.ones(64), "v": torch.ones(3)}, **how)
    whole = path.read_bytes()
    for length in (*range(3, len(whole), 97), len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path, "fetch it again")


def test_a_zip_that_torch_did_not_write_is_not_taken_for_its_own(tmp_path):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/readme.txt", "hello")
    refused(path, "got a member 'x/readme.txt'")


def test_a_zip_with_a_pickle_that_is_no_pickle_is_refused(tmp_path):
    path = saved(tmp_path / "x.pt", {"w": torch.ones(2)})
    rezipped(path, lambda name, content: b"hello" if name == "data.pkl" else content)
    refused(
        path, "wanted a file of torch.save, got a pickle that cannot be read: Unpick.* fetch it"
    )


@pytest.mark.filterwarnings("ignore")  # PyTorch: TorchScript is deprecated.
def test_an_archive_of_torchscript_is_read_by_the_names_of_its_state(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).eval()
    made = [torch.jit.script(model), torch.jit.trace(model, torch.ones(1, 2))]
    for n, script in enumerate(made):
        torch.jit.save(script, tmp_path / f"{n}.pt")
        got = open_checkpoint(tmp_path / f"{n}.pt")
        want = script.state_dict()
        assert {name.replace("/", ".") for name in got} == set(want)
        for name, source in got.items():
            assert everything(source).tobytes() == bits(want[name.replace("/", ".")])
            assert source.extents


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


@both
def test_values_are_views_of_the_map(tmp_path, how):
    source = open_checkpoint(saved(tmp_path / "x.pt", {"w": torch.ones(64, 64)}, **how))["w"]
    assert not everything(source).flags.owndata
    np.testing.assert_array_equal(everything(source), np.ones((64, 64), "float32"))
    assert repr(source) == "x.pt:w"


def test_values_beyond_the_end_of_an_old_file_are_refused(tmp_path):
    path = saved(tmp_path / "x.pt", {"w": torch.ones(64)}, **LEGACY)
    path.write_bytes(path.read_bytes()[:-1])
    refused(path, r"wanted 256 bytes of values in storage '\d+', got 255. It is damaged")


def test_an_old_file_of_another_byte_order_is_refused(tmp_path):
    path = saved(tmp_path / "x.pt", {"w": torch.ones(2)}, **LEGACY)
    content = path.read_bytes()
    at = content.index(b"little_endian") + len(b"little_endianq\0")
    assert content[at : at + 1] == pickle.NEWTRUE
    path.write_bytes(content[:at] + pickle.NEWFALSE + content[at + 1 :])
    refused(path, "wanted little-endian values, got values in another order of bytes. Save it")


def test_pickles_of_an_old_file_beyond_the_limit_are_refused(tmp_path, monkeypatch):
    path = saved(tmp_path / "x.pt", {"w": torch.ones(2)}, **LEGACY)
    monkeypatch.setattr(pytorch, "HEADER_LIMIT", 100)
    refused(
        path, r"got a pickle that cannot be read: .* it goes on to byte \d+ of \d+, and 100 are"
    )
