"""The case that loads a safetensors file onto eight devices.

The file is written by this run into a temporary folder and read through once before each timed
part, so that it is in the page cache: what is measured is the path from there into JAX's arrays,
not the disk. As much memory as a contender takes was touched before, too. Every contender ends with
arrays that own their bytes; ``measure.facts`` looks at the address of each buffer. Recording the
model and building the shardings are not timed.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.flax
import safetensors.numpy
from harness import Case
from measure import Measured, touch
from models import Size, decoder

import lazyinit as li


def write(_: Measured, size: Size, folder: Path) -> Any:
    """Writes the file: the reference that all contenders must equal, bit by bit."""
    model, key, ids = decoder(size)
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.random(leaf.shape, np.float32)
        for name, leaf in _flat(jax.eval_shape(model.init, key, ids)).items()
    }
    safetensors.numpy.save_file(tensors, _file(folder))
    return tensors


def lazyinit(measured: Measured, size: Size, folder: Path) -> Any:
    model, key, ids = decoder(size)
    tree = li.lazy(model).init(key, ids)
    sharding = li.shard_fsdp(jax.make_mesh((size.devices,), ("data",)), "data")
    _warm(folder)
    with measured:
        with measured.part("fill"):
            tree, report = li.fill(tree, _file(folder))
        with measured.part("materialize"):
            tree = jax.block_until_ready(li.materialize(tree, sharding=sharding))
    assert len(report.loaded) == len(_flat(tree)), report
    return _flat(tree)


def load_file(measured: Measured, size: Size, folder: Path) -> Any:
    model, key, ids = decoder(size)
    rule = li.shard_fsdp(jax.make_mesh((size.devices,), ("data",)), "data")
    shapes = _flat(jax.eval_shape(model.init, key, ids))
    shardings = {name: rule(name, leaf) for name, leaf in shapes.items()}
    _warm(folder)
    with measured:
        tensors = jax.device_put(safetensors.flax.load_file(_file(folder)), shardings)
        return jax.block_until_ready(tensors)


def orbax(measured: Measured, size: Size, folder: Path) -> Any:
    import orbax.checkpoint.experimental.v1 as ocp

    model, key, ids = decoder(size)
    rule = li.shard_fsdp(jax.make_mesh((size.devices,), ("data",)), "data")
    target = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rule(name, leaf))
        for name, leaf in _flat(jax.eval_shape(model.init, key, ids)).items()
    }
    _warm(folder)
    with measured, ocp.Context(checkpoint_layout=ocp.options.CheckpointLayout.SAFETENSORS):
        return jax.block_until_ready(ocp.load(_file(folder), target))


def copy(measured: Measured, _: Size, folder: Path) -> Any:
    _warm(folder)
    with measured:
        everything = np.array(np.memmap(_file(folder), np.uint8, "r"))
    length = int(everything[:8].view(np.uint64)[0])
    header = json.loads(everything[8 : 8 + length].tobytes())
    header.pop("__metadata__", None)
    return {
        name: everything[8 + length :][slice(*entry["data_offsets"])]
        .view(np.float32)
        .reshape(entry["shape"])
        for name, entry in header.items()
    }


def _file(folder: Path) -> Path:
    return folder / "model.safetensors"


def _warm(folder: Path) -> None:
    with _file(folder).open("rb", buffering=0) as file:
        while file.read(1 << 22):
            pass
    touch(3 * _file(folder).stat().st_size)


def _flat(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


CASES = (
    Case(
        name="load",
        title="loading {bytes} float32 of safetensors onto 8 devices, page cache warm",
        module="load",
        contenders={
            "lazyinit": "lazyinit",
            "load_file": "`safetensors.flax.load_file` + `jax.device_put`",
            "orbax": "Orbax v1's safetensors layout, with target shardings",
            "copy": "floor: one numpy copy out of a memory map",
        },
        reference="write",
        exact=("lazyinit", "load_file", "copy"),
        owned=True,
        needs=("orbax.checkpoint",),
        size=Size(layers=32, width=896, vocab=22016, devices=8),
        quick=Size(layers=32, width=384, vocab=13312, devices=8),
    ),
)
