"""Cases that make parameters from a key: all of them, the head alone, all of them sharded.

The timed part is cold: it starts with a module, a key and token ids, and ends when every array
is there. Tracing and compilation are in it, and nothing was compiled before but one tiny
program. JAX's persistent compilation cache is off.
"""

from pathlib import Path
from typing import Any

import jax
from harness import Case
from measure import Measured
from models import Size, decoder

import lazyinit as li


def lazyinit(measured: Measured, size: Size, _: Path) -> Any:
    model, key, ids = decoder(size)
    li.lazy(model)  # Imports the recorder.
    with measured:
        with measured.part("record"):
            tree = li.lazy(model).init(key, ids)
        with measured.part("materialize"):
            tree = jax.block_until_ready(li.materialize(tree))
    return tree


def jit(measured: Measured, size: Size, _: Path) -> Any:
    model, key, ids = decoder(size)
    with measured:
        return jax.block_until_ready(jax.jit(model.init)(key, ids))


def eager(measured: Measured, size: Size, _: Path) -> Any:
    model, key, ids = decoder(size)
    with measured:
        return jax.block_until_ready(model.init(key, ids))


def lazyinit_head(measured: Measured, size: Size, _: Path) -> Any:
    model, key, ids = decoder(size)
    li.lazy(model)
    with measured:
        with measured.part("record"):
            tree = li.lazy(model).init(key, ids)
        with measured.part("materialize"):
            head = li.materialize(tree, "params/head")["params"]["head"]
            jax.block_until_ready(head)
    return head


def jit_head(measured: Measured, size: Size, _: Path) -> Any:
    model, key, ids = decoder(size)
    with measured:
        # XLA drops whatever the head does not need.
        head = jax.jit(lambda k, x: model.init(k, x)["params"]["head"])(key, ids)
        return jax.block_until_ready(head)


def eager_head(measured: Measured, size: Size, folder: Path) -> Any:
    return eager(measured, size, folder)["params"]["head"]


def lazyinit_sharded(measured: Measured, size: Size, _: Path) -> Any:
    model, key, ids = decoder(size)
    li.lazy(model)
    mesh = jax.make_mesh((size.devices,), ("data",))
    with measured:
        with measured.part("record"):
            tree = li.lazy(model).init(key, ids)
        with measured.part("materialize"):
            tree = li.materialize(tree, sharding=li.shard_fsdp(mesh, "data"))
            jax.block_until_ready(tree)
    return tree


def jit_sharded(measured: Measured, size: Size, _: Path) -> Any:
    model, key, ids = decoder(size)
    mesh = jax.make_mesh((size.devices,), ("data",))
    rule = li.shard_fsdp(mesh, "data")  # The same rule; it looks at shapes alone.
    with measured:
        with measured.part("eval_shape"):
            shapes = jax.eval_shape(model.init, key, ids)
        with measured.part("jit"):
            shardings = jax.tree.map(lambda leaf: rule("", leaf), shapes)
            tree = jax.jit(model.init, out_shardings=shardings)(key, ids)
            jax.block_until_ready(tree)
    return tree


def _full(layers: int) -> Case:
    return Case(
        name=f"init-{layers}",
        title=f"cold full init, {layers} layers",
        module="initialize",
        contenders={
            "lazyinit": "lazyinit",
            "jit": "`jax.jit(model.init)`",
            "eager": "eager `model.init`",
        },
        reference="eager",
        exact=("lazyinit",),
        size=Size(layers=layers),
    )


CASES = (
    _full(8),
    _full(32),
    Case(
        name="head-32",
        title="head only, 32 layers",
        module="initialize",
        contenders={
            "lazyinit_head": "lazyinit",
            "jit_head": '`jax.jit(lambda k, x: model.init(k, x)["params"]["head"])`',
        },
        reference="eager_head",
        exact=("lazyinit_head",),
        size=Size(layers=32),
    ),
    Case(
        name="sharded-init",
        title="cold full init, sharded over 8 devices",
        module="initialize",
        contenders={
            "lazyinit_sharded": "lazyinit",
            "jit_sharded": "`jax.jit(model.init, out_shardings=...)`",
        },
        reference="eager",
        exact=("lazyinit_sharded",),
        size=Size(layers=32, devices=8),
        quick=Size(layers=8, devices=8),
    ),
)
