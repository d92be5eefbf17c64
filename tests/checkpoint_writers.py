"""The official writer of each format, which is what the readers are judged by."""

import contextlib
import json
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import equinox
import flax.serialization
import flax.traverse_util
import gguf
import h5py
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import quantized_folders
import safetensors.numpy
import torch
import torch.distributed.checkpoint

import lazyinit as li


@dataclass(frozen=True)
class Format:
    """How a format is written, and what may be said of every reader of it.

    Attributes:
      name: of the test case.
      write: ``(folder, tensors)``, tensors by ``/``-joined name; returns what is to be opened.
      kind: ``"mapped"``, ``"copied"`` (from a map), ``"streamed"``, ``"chunked"`` or ``"held"``.
      has_empty: whether it can hold arrays without elements.
      lacks: the dtypes that it has not, and the tensors that it cannot name.
      is_one: whether it holds one array, by the name of its file.
      open: ``(path, tensors)``, where opening needs more than the path.
    """

    name: str
    write: Callable
    kind: str = "mapped"
    has_empty: bool = True
    lacks: tuple[str, ...] = ()
    is_one: bool = False
    open: Callable = lambda path, tensors: li.open_checkpoint(path)

    def __repr__(self):
        return self.name

    def tensors(self):
        """Returns what is written, by name."""
        made = tensors(has_empty=self.has_empty)
        if self.is_one:
            return {"kernel": made["dense/kernel"]}
        lacks = self.lacks
        return {n: x for n, x in made.items() if n not in lacks and x.dtype.name not in lacks}


def to_torch(array):
    """Returns a tensor of the same bytes; PyTorch reads no bfloat16 from NumPy."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def halves(tensors):
    names = list(tensors)
    cut = len(names) // 2
    return [{name: tensors[name] for name in part} for part in (names[:cut], names[cut:])]


def with_index(folder, tensors, stem, suffix, save):
    weight_map = {}
    for n, part in enumerate(halves(tensors)):
        file = f"{stem}-{n + 1:05}-of-00002{suffix}"
        save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index))
    return folder


def nested(tensors):
    return flax.traverse_util.unflatten_dict(tensors, sep="/")


def save_safetensors(tensors, path):
    safetensors.numpy.save_file(tensors, path)


def save_msgpack(tensors, path):
    path.write_bytes(flax.serialization.to_bytes(nested(tensors)))


def save_torch(tensors, path, **how):
    torch.save({name: to_torch(array) for name, array in tensors.items()}, path, **how)


def single(save, file, **how):
    def write(folder, tensors):
        save(tensors, folder / file, **how)
        return folder / file

    return write


def sharded(save, stem, suffix):
    return lambda folder, tensors: with_index(folder, tensors, stem, suffix, save)


def chunked_msgpack(folder, tensors):
    whole = flax.serialization.MAX_CHUNK_SIZE
    flax.serialization.MAX_CHUNK_SIZE = max(64, sum(x.nbytes for x in tensors.values()) // 3)
    try:
        save_msgpack(tensors, folder / "flax_model.msgpack")
    finally:
        flax.serialization.MAX_CHUNK_SIZE = whole
    return folder


def npz(save):
    def write(folder, tensors):
        save(folder / "t.npz", **tensors)
        return folder / "t.npz"

    return write


def fortran_npz(folder, tensors):
    np.savez(folder / "t.npz", **{name: np.array(x, order="F") for name, x in tensors.items()})
    return folder / "t.npz"


@contextlib.contextmanager
def quiet():
    """Orbax warns of its own next version, and leaves files open."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def orbax_handler(**how):
    def write(folder, tensors):
        with quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**how)) as checkpointer:
            checkpointer.save(folder / "saved", nested(tensors))
        return folder / "saved"

    return write


def orbax_standard(folder, tensors):
    arrays = {
        # JAX makes no 64-bit arrays of its own here; those stay NumPy's.
        name: x if x.dtype.itemsize > 4 else jnp.asarray(x)
        for name, x in tensors.items()
    }
    with quiet(), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "saved", nested(arrays))
        checkpointer.wait_until_finished()
    return folder / "saved"


def orbax_step(folder, tensors):
    with quiet(), ocp.CheckpointManager(folder / "run") as manager:
        manager.save(7, args=ocp.args.StandardSave(nested(tensors)))
        manager.wait_until_finished()
    return folder / "run" / "7"


def orbax_v1(folder, tensors):
    import orbax.checkpoint.experimental.v1 as v1

    with quiet():
        save = getattr(v1, "save", None) or v1.save_pytree
        save(folder / "saved", nested(tensors))
    return folder / "saved"


def orbax_sharded(folder, array):
    """Saves one array in eight pieces, one of each device."""
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    sharding = jax.NamedSharding(mesh, jax.P("x", "y"))
    with quiet(), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "saved", {"w": jax.device_put(array, sharding)})
        checkpointer.wait_until_finished()
    return folder / "saved"


def write_gguf(folder, tensors):
    writer = gguf.GGUFWriter(folder / "t.gguf", "none")
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "t.gguf"


def write_hdf5(**how):
    def write(folder, tensors):
        with h5py.File(folder / "t.h5", "w") as file:
            for name, array in tensors.items():
                file.create_dataset(name, data=array, **(how if array.ndim else {}))
        return folder / "t.h5"

    return write


def write_distributed(folder, tensors):
    state = {name: to_torch(array) for name, array in tensors.items()}
    with quiet():
        torch.distributed.checkpoint.save(state, checkpoint_id=folder / "saved")
    return folder / "saved"


def write_npy(folder, tensors):
    ((name, array),) = tensors.items()
    np.save(folder / f"{name}.npy", array)
    return folder / f"{name}.npy"


def write_equinox(folder, tensors):
    equinox.tree_serialise_leaves(folder / "t.eqx", tensors)
    return folder / "t.eqx"


def write_torchscript(folder, tensors):
    root = torch.nn.Module()
    for name, array in tensors.items():
        *above, last = name.split("/")
        module = root
        for each in above:
            if not hasattr(module, each):
                module.add_module(each, torch.nn.Module())
            module = getattr(module, each)
        module.register_buffer(last, to_torch(array))
    with quiet():
        torch.jit.save(torch.jit.script(root), folder / "t.pt")
    return folder / "t.pt"


def without_index(folder, tensors):
    for n, part in enumerate(halves(tensors)):
        save_safetensors(part, folder / f"model-{n + 1:05}-of-00002.safetensors")
    return folder


def write_pickle(folder, tensors):
    with (folder / "t.pkl").open("wb") as file:
        pickle.dump(tensors, file)
    return folder / "t.pkl"


def write_quantized(case):
    return lambda folder, tensors: quantized_folders.written(folder / "saved", case)


def open_dequantized(path, tensors):
    return li.open_checkpoint(path, dequantize=True)


def write_quantized_gguf(folder, words):
    writer = gguf.GGUFWriter(folder / "t.gguf", "llama")
    writer.add_block_count(1)
    writer.add_token_list([f"word {n}" for n in range(words)])
    for kind in (gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0):
        values = np.random.default_rng(0).normal(size=(4, 64)).astype("float32")
        held = gguf.quants.quantize(values, kind)
        writer.add_tensor(f"blk.0.{kind.name}.weight", held, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "t.gguf"


FORMATS = [
    Format("safetensors", single(save_safetensors, "t.safetensors")),
    Format("safetensors-index", sharded(save_safetensors, "model", ".safetensors")),
    Format("safetensors-shards", without_index),
    Format("msgpack", single(save_msgpack, "checkpoint_1")),
    Format("msgpack-pieces", chunked_msgpack, "copied"),
    Format("msgpack-index", sharded(save_msgpack, "flax_model", ".msgpack")),
    Format("npz", npz(np.savez)),
    Format("npz-fortran", fortran_npz),
    Format("npz-compressed", npz(np.savez_compressed), "streamed"),
    Format("npy", write_npy, is_one=True),
    Format("equinox", write_equinox, open=lambda path, t: li.open_checkpoint(path, like=t)),
    Format("torch", single(save_torch, "t.pt")),
    Format("torch-index", sharded(save_torch, "pytorch_model", ".bin")),
    Format("torch-legacy", single(save_torch, "t.bin", _use_new_zipfile_serialization=False)),
    Format("torch-script", write_torchscript, lacks=("größe/ж.é", "double")),
    Format("torch-distributed", write_distributed),
    Format("gguf", write_gguf, has_empty=False, lacks=("bool", "uint8", "bfloat16")),
    Format("hdf5", write_hdf5(), has_empty=False, lacks=("bfloat16",)),
    Format(
        "hdf5-chunks",
        write_hdf5(chunks=True, compression="gzip"),
        "streamed",  # Whole chunks, compressed.
        has_empty=False,
        lacks=("bfloat16", "int32"),  # The scalar is one, and is not chunked.
    ),
    Format("orbax-zarr", orbax_handler(use_ocdbt=False), "chunked", False),
    Format("orbax-zarr3", orbax_handler(use_ocdbt=False, use_zarr3=True), "chunked", False),
    Format("orbax-ocdbt", orbax_handler(), "chunked", False),
    Format("orbax-ocdbt-zarr3", orbax_handler(use_zarr3=True), "chunked", False),
    Format("orbax-standard", orbax_standard, "chunked", False),
    Format("orbax-step", orbax_step, "chunked", False),
    Format("orbax-v1", orbax_v1, "chunked", False),
]
# What obeys other laws: values that the header holds, and numbers that stand for others.
OTHERS = [
    Format("pickle", write_pickle, "held"),
    Format("gguf-quantized", lambda folder, tensors: write_quantized_gguf(folder, 2)),
    *(
        Format(f"quantized-{case}", write_quantized(case), open=open_dequantized)
        for case in ("ct_int4_group_zero", "fp8", "mxfp4", "bnb_nf4_nested_float16", "gptq_int4")
    ),
]


def tensors(*, has_empty=True):
    """Returns arrays of many dtypes and shapes, by name; random, but the same each time."""
    rng = np.random.default_rng(0)
    made = {
        "dense/kernel": rng.normal(size=(24, 16)).astype("float32"),
        "dense/bias": rng.normal(size=16).astype(ml_dtypes.bfloat16),
        "attention/query": rng.normal(size=(8, 2, 3)).astype("float16"),
        "ints/i8": rng.integers(-9, 9, (5, 3)).astype("int8"),
        "ints/u8": rng.integers(0, 9, 7).astype("uint8"),
        "ints/i32": rng.integers(-9, 9, (2, 2)).astype("int32"),
        "ints/i64": rng.integers(-9, 9, (3, 1)).astype("int64"),
        "double": rng.normal(size=4),
        "mask": rng.integers(0, 2, 9).astype("bool"),
        "step": np.array(3, "int32"),
        "größe/ж.é": rng.normal(size=(1, 8)).astype("float32"),
    }
    if has_empty:
        made["nothing"] = np.zeros((0, 3), "float32")
    return made
