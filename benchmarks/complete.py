"""The case of a checkpoint that lacks a part: the head and the last quarter of the layers.

Eight devices. What the file has is loaded, the rest is made from the key. The file is in the page
cache, as in ``load.py``; recording or evaluating shapes is timed, everything is cold.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from decoder import Size, decoder
from harness import Case
from load import file_in, flat
from measure import Measured, touch

import lazyinit as li


def write(_: Measured, size: Size, folder: Path) -> Any:
    """Writes the file; the reference is what it has, and what eager ``init`` gives beside it."""
    model, key, ids = decoder(size)
    whole = flat(model.init(key, ids))
    rng = np.random.default_rng(0)
    stored = {n: rng.random(x.shape, np.float32) for n, x in whole.items() if _is_stored(n, size)}
    safetensors.numpy.save_file(stored, file_in(folder))
    return whole | stored


def lazyinit(measured: Measured, size: Size, folder: Path) -> Any:
    model, key, ids = decoder(size)
    sharding = li.shard_fsdp(_mesh(size), "data")
    li.lazy(model)
    _prepare(measured, folder)
    with measured:
        tree, _ = li.fill(li.lazy(model).init(key, ids), file_in(folder))
        return flat(jax.block_until_ready(li.materialize(tree, sharding=sharding)))


def lazyinit_twice(measured: Measured, size: Size, folder: Path) -> Any:
    """One after the other: what both at once is worth."""
    model, key, ids = decoder(size)
    sharding = li.shard_fsdp(_mesh(size), "data")
    li.lazy(model)
    _prepare(measured, folder)
    with measured:
        tree, report = li.fill(li.lazy(model).init(key, ids), file_in(folder))
        with measured.part("load"):
            tree = li.materialize(tree, report.loaded, sharding)
            jax.block_until_ready([x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)])
        with measured.part("initialize"):
            tree = jax.block_until_ready(li.materialize(tree, sharding=sharding))
        return flat(tree)


def recipe(measured: Measured, size: Size, folder: Path) -> Any:
    """As Levanter's ``load_checkpoint_or_initialize``: shapes, a sharded load, then one jit.

    The jit takes what was loaded, donated, and computes what is missing; XLA drops the rest of
    ``init``.
    """
    model, key, ids = decoder(size)
    rule = li.shard_fsdp(_mesh(size), "data")
    _prepare(measured, folder)
    with measured:
        with measured.part("eval_shape"):
            shapes = flat(jax.eval_shape(model.init, key, ids))
            shardings = {name: rule(name, leaf) for name, leaf in shapes.items()}
        with (
            measured.part("load"),
            safetensors.safe_open(file_in(folder), framework="numpy") as file,
        ):
            loaded = {}
            for name in file.keys():  # noqa: SIM118 (no mapping)
                read = file.get_slice(name).__getitem__
                loaded[name] = jax.make_array_from_callback(
                    shapes[name].shape, shardings[name], read
                )
        with measured.part("jit"):

            def completed(loaded: dict[str, Any], key: Any, ids: Any) -> dict[str, Any]:
                return flat(model.init(key, ids)) | loaded

            run = jax.jit(completed, out_shardings=shardings, donate_argnums=0)
            return jax.block_until_ready(run(loaded, key, ids))


def _is_stored(name: str, size: Size) -> bool:
    missing = ["head", *(f"layers_{n}" for n in range(size.layers - size.layers // 4, size.layers))]
    return name.split(".")[1] not in missing


def _mesh(size: Size) -> Any:
    return jax.make_mesh((size.devices,), ("data",))


def _prepare(measured: Measured, folder: Path) -> None:
    measured.ready(file_in(folder))
    touch(4 * file_in(folder).stat().st_size)


CASES = (
    Case(
        name="complete",
        title="{bytes} onto {devices}; a file lacks the head and the last quarter of the layers",
        module="complete",
        contenders={
            "lazyinit": "lazyinit",
            "lazyinit_twice": "lazyinit, load first and then initialize",
            "recipe": "`jax.eval_shape`, slices by `safe_open`, one `jax.jit` with donation",
        },
        reference="write",
        exact=("lazyinit", "lazyinit_twice"),
        reads=True,
        size=Size(layers=32, width=512, vocab=16384, devices=8),
        quick=Size(layers=8, width=256, devices=8),
    ),
)
