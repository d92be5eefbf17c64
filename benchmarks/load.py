"""Cases that load a safetensors file onto eight devices: all of it, and one layer of it.

The file is written by this run into a temporary folder and read through once before each timed
part, so that it is in the page cache: what is measured is the path from there into JAX's arrays,
not the disk. As much memory as a contender takes was touched before, too. Every contender ends with
arrays that own their bytes; ``measure.facts`` looks at the address of each buffer. Recording the
model and building the shardings are not timed.
"""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.flax
import safetensors.numpy
from decoder import Size, decoder
from harness import Case
from measure import Measured, touch

import lazyinit as li

LAYER = "params.layers_5."  # What is loaded where not all is.


def write(_: Measured, size: Size, folder: Path, part: str = "") -> Any:
    """Writes the file: the reference that all contenders must equal, bit by bit."""
    model, key, ids = decoder(size)
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.random(leaf.shape, np.float32)
        for name, leaf in flat(jax.eval_shape(model.init, key, ids)).items()
    }
    safetensors.numpy.save_file(tensors, file_in(folder))
    return {name: tensor for name, tensor in tensors.items() if name.startswith(part)}


def lazyinit(measured: Measured, size: Size, folder: Path, part: str = "") -> Any:
    model, key, ids = decoder(size)
    tree = li.lazy(model).init(key, ids)
    sharding = li.shard_fsdp(jax.make_mesh((size.devices,), ("data",)), "data")
    paths = part.replace(".", "/") + "**" if part else None
    _prepare(measured, folder)
    with measured:
        with measured.part("fill"):
            tree, report = li.fill(tree, file_in(folder))
        with measured.part("materialize"):
            tree = li.materialize(tree, paths, sharding)
            made = {name: x for name, x in flat(tree).items() if name.startswith(part)}
            jax.block_until_ready(made)
    assert len(report.loaded) == len(flat(tree)), report
    return made


def load_file(measured: Measured, size: Size, folder: Path, part: str = "") -> Any:
    target = _target(size, part)
    shardings = {name: leaf.sharding for name, leaf in target.items()}
    _prepare(measured, folder)
    with measured:
        tensors = safetensors.flax.load_file(file_in(folder))
        wanted = {name: tensors[name] for name in shardings}
        return jax.block_until_ready(jax.device_put(wanted, shardings))


def slices(measured: Measured, size: Size, folder: Path, part: str = "") -> Any:
    """As one would write it by hand for a mesh: each shard reads its slice."""
    target = _target(size, part)
    _prepare(measured, folder)
    with measured, safetensors.safe_open(file_in(folder), framework="numpy") as tensors:
        made = {}
        for name, leaf in target.items():
            read = tensors.get_slice(name).__getitem__
            made[name] = jax.make_array_from_callback(leaf.shape, leaf.sharding, read)
        return jax.block_until_ready(made)


def orbax(measured: Measured, size: Size, folder: Path, part: str = "") -> Any:
    import orbax.checkpoint.experimental.v1 as ocp

    target = _target(size, part)
    _prepare(measured, folder)
    with measured, ocp.Context(checkpoint_layout=ocp.options.CheckpointLayout.SAFETENSORS):
        return jax.block_until_ready(ocp.load(file_in(folder), target))


def copy(measured: Measured, _: Size, folder: Path) -> Any:
    _prepare(measured, folder)
    with measured:
        everything = np.array(np.memmap(file_in(folder), np.uint8, "r"))
    length = int(everything[:8].view(np.uint64)[0])
    header = json.loads(everything[8 : 8 + length].tobytes())
    header.pop("__metadata__", None)
    return {
        name: everything[8 + length :][slice(*entry["data_offsets"])]
        .view(np.float32)
        .reshape(entry["shape"])
        for name, entry in header.items()
    }


write_part, lazyinit_part, load_file_part, slices_part, orbax_part = (
    functools.partial(contend, part=LAYER)
    for contend in (write, lazyinit, load_file, slices, orbax)
)


def file_in(folder: Path) -> Path:
    return folder / "model.safetensors"


def _prepare(measured: Measured, folder: Path) -> None:
    measured.ready(file_in(folder))
    touch(3 * file_in(folder).stat().st_size)


def _target(size: Size, part: str) -> dict[str, Any]:
    """Returns shape, dtype and sharding of each array that is wanted."""
    model, key, ids = decoder(size)
    rule = li.shard_fsdp(jax.make_mesh((size.devices,), ("data",)), "data")
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rule(name, leaf))
        for name, leaf in flat(jax.eval_shape(model.init, key, ids)).items()
        if name.startswith(part)
    }


def flat(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


_SIZE = Size(layers=32, width=896, vocab=22016, devices=8)
_QUICK = Size(layers=32, width=384, vocab=13312, devices=8)
_LOAD_FILE = "`safetensors.flax.load_file` + `jax.device_put`"
_SLICES = "`safe_open`, a slice for each shard, by `jax.make_array_from_callback`"
_ORBAX = "Orbax v1's safetensors layout, with target shardings"

CASES = (
    Case(
        name="load",
        title="loading {bytes} float32 of safetensors onto {devices}, {cache}",
        module="load",
        contenders={
            "lazyinit": "lazyinit",
            "load_file": _LOAD_FILE,
            "slices": _SLICES,
            "orbax": _ORBAX,
            "copy": "floor: one numpy copy out of a memory map",
        },
        reference="write",
        exact=("lazyinit", "load_file", "slices", "copy"),
        owned=True,
        reads=True,
        needs=("orbax.checkpoint",),
        size=_SIZE,
        quick=_QUICK,
    ),
    Case(
        name="load-layer",
        title="loading one layer ({bytes}) of that file",
        module="load",
        contenders={
            "lazyinit_part": "lazyinit",
            "load_file_part": _LOAD_FILE,
            "slices_part": _SLICES,
            "orbax_part": _ORBAX,
        },
        reference="write_part",
        exact=("lazyinit_part", "load_file_part", "slices_part"),
        owned=True,
        reads=True,
        needs=("orbax.checkpoint",),
        size=_SIZE,
        quick=_QUICK,
    ),
)
