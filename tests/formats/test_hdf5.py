"""HDF5 files: h5py writes them, as Keras lays them out; what is mapped and what is refused."""

import sys

import h5py
import jax
import ml_dtypes
import numpy as np
import pytest
from reading import everything, refused

import lazyinit as li
from lazyinit import errors
from lazyinit.checkpoint import open_checkpoint


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.weights.h5"


def odd(path, message):
    """Opens a file in which the dataset "odd" cannot be read, and all others can."""
    opened = open_checkpoint(path)
    with pytest.raises(errors.CheckpointError, match=f"^{path}: tensor 'odd': {message}"):
        everything(opened["odd"])
    assert everything(opened["w"]).tolist() == [1, 1]


def test_weights_of_keras_are_filled_and_spread_over_eight_devices(path):
    kernel, bias = np.arange(128.0, dtype="float32").reshape(8, 16), np.ones(16, "float32")
    with h5py.File(path, "w") as file:  # As keras.Model.save_weights lays them out.
        file["layers/dense/vars/0"] = kernel
        file.create_dataset("layers/dense/vars/1", data=bias, chunks=(4,), compression="gzip")
        file["layers/dense"].attrs["name"] = "dense"
        file.create_group("optimizer/vars")
    rules = [
        li.Rule("**/kernel", "layers.**.vars.0"),
        li.Rule("**/bias", "layers.**.vars.1"),
    ]
    shapes = {"kernel": ((8, 16), "float32"), "bias": ((16,), "float32")}
    tree = {"dense": {n: jax.ShapeDtypeStruct(*described) for n, described in shapes.items()}}
    filled, _ = li.fill(tree, path, rules, on_unexpected="error")
    sharding = jax.NamedSharding(jax.make_mesh((8,), ("x",)), jax.P("x"))
    made = li.materialize(filled, sharding=sharding)["dense"]
    np.testing.assert_array_equal(made["kernel"], kernel)
    np.testing.assert_array_equal(made["bias"], bias)


def test_a_contiguous_dataset_is_a_view_of_the_map(path):
    with h5py.File(path, "w") as file:
        file["w"] = np.arange(1000.0)
    source = open_checkpoint(path)["w"]
    assert not everything(source).flags.owndata
    (extent,) = source.extents
    content = path.read_bytes()[extent.start : extent.stop]
    assert content == np.arange(1000.0).tobytes()


@pytest.mark.parametrize("chunks", [None, (2,)])
def test_what_keras_marks_as_bfloat16_is_that(path, chunks):
    values = np.arange(5).astype(ml_dtypes.bfloat16)
    with h5py.File(path, "w") as file:
        file.create_dataset("w", data=values.view(np.uint16), chunks=chunks)
        file["w"].attrs["dtype"] = "bfloat16"
    source = open_checkpoint(path)["w"]
    assert source.dtype == values.dtype
    assert everything(source).tobytes() == values.tobytes()


@pytest.mark.parametrize(
    ("array", "shown"), [(np.ones(2, ">f4"), ">f4"), (np.array([b"text"]), r"\|S4")]
)
def test_a_dataset_of_another_dtype_is_refused_alone(path, array, shown):
    with h5py.File(path, "w") as file:
        file["w"], file["odd"] = np.ones(2), array
    odd(path, f"wanted a dtype among .*, little-endian, got {shown}. Save it as one of these")


def test_a_dataset_without_a_shape_is_refused_alone(path):
    with h5py.File(path, "w") as file:
        file["w"], file["odd"] = np.ones(2), h5py.Empty("f4")
    odd(path, "wanted an array, got a dataset without a shape")


@pytest.mark.parametrize("kind", ["external", "virtual"])
def test_values_in_other_files_are_refused_alone(path, kind):
    with h5py.File(path, "w") as file:
        file["w"] = np.ones(2)
        if kind == "external":
            file.create_dataset("odd", (4,), "f4", external=[("other.bin", 0, 16)])
        else:
            layout = h5py.VirtualLayout((4,), "f4")
            layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
            file.create_virtual_dataset("odd", layout)
    odd(path, "wanted values in this file, got a dataset whose values lie in other files")


def test_links_are_not_followed(path):
    with h5py.File(path, "w") as file:
        file["w"] = np.ones(2)
        file["soft"] = h5py.SoftLink("/w")
        file["out"] = h5py.ExternalLink("other.h5", "/x")
        file["group/back"] = file["/"]
    assert list(open_checkpoint(path)) == ["w"]


@pytest.mark.parametrize("chunks", [None, (1024,)])
def test_values_that_were_promised_and_never_written_are_refused(path, chunks):
    with h5py.File(path, "w") as file:
        file.create_dataset("w", (2**50,), "f4", chunks=chunks)
    refused(path, "tensor 'w': wanted 4503599627370496 bytes of values, got '0 bytes'")


def test_a_chunk_that_is_damaged_is_refused(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("w", data=np.arange(1000), chunks=(1000,), compression="gzip")
        at = file["w"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[at : at + 8] = b"\xff" * 8
    path.write_bytes(content)
    source = open_checkpoint(path)["w"]
    with pytest.raises(
        errors.CheckpointError, match=f"^{path}: tensor 'w': wanted an HDF5 file, got"
    ):
        everything(source)


def test_a_file_that_is_cut_short_is_refused(path):
    with h5py.File(path, "w") as file:
        file["w"] = np.arange(1000.0)
    path.write_bytes(path.read_bytes()[:-100])
    refused(path, "wanted an HDF5 file, got one that h5py does not read: .*It is damaged or incom")


def test_without_h5py_the_extra_is_named(path, monkeypatch):
    with h5py.File(path, "w") as file:
        file["w"] = np.ones(2)
    monkeypatch.setitem(sys.modules, "h5py", None)
    refused(path, r"wanted h5py, .* got none. Run pip install 'lazyinit-jax\[h5\]'")
