"""Cases that make parameters from a key: all of them, the head alone, all of them sharded.

The timed part is cold: it starts with a module, a key and token ids, and ends when every array
is there. Tracing and compilation are in it, and nothing was compiled before but one tiny
program. JAX's persistent compilation cache is off.
"""

import functools
import operator
import tempfile
from pathlib import Path
from typing import Any

import jax
from decoder import Size, decoder
from harness import Case
from jax.experimental.compilation_cache import compilation_cache
from measure import Measured

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


def lazy_init(measured: Measured, size: Size, _: Path) -> Any:
    model, key, ids = decoder(size)
    with measured:  # Flax's own: no activations, but every parameter, op by op.
        shape = jax.ShapeDtypeStruct(ids.shape, ids.dtype)
        return jax.block_until_ready(model.lazy_init(key, shape))


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


def recipe_head(measured: Measured, size: Size, _: Path) -> Any:
    """As Levanter's ``load_checkpoint_or_initialize``: shapes first, then what is missing."""
    model, key, ids = decoder(size)
    with measured:
        with measured.part("eval_shape"):
            shapes = jax.eval_shape(model.init, key, ids)
            missing = {"params/head/kernel"}
        with measured.part("jit"):
            place = jax.sharding.SingleDeviceSharding(jax.devices()[0])

            def make(key: Any, ids: Any) -> Any:
                flat, _ = jax.tree_util.tree_flatten_with_path(model.init(key, ids))
                named = {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in flat}
                return {name: x for name, x in named.items() if name in missing}

            made = jax.jit(make, out_shardings=place)(key, ids)
            jax.block_until_ready(made)
    assert made["params/head/kernel"].shape == shapes["params"]["head"]["kernel"].shape
    return {"kernel": made["params/head/kernel"]}


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


def lazyinit_warm(measured: Measured, size: Size, _: Path) -> Any:
    model, key, ids = decoder(size)
    tree = li.lazy(model).init(key, ids)
    jax.block_until_ready(li.materialize(tree))
    with measured:
        return jax.block_until_ready(li.materialize(tree))


def jit_warm(measured: Measured, size: Size, _: Path) -> Any:
    model, key, ids = decoder(size)
    compiled = jax.jit(model.init).lower(key, ids).compile()
    jax.block_until_ready(compiled(key, ids))
    with measured:
        return jax.block_until_ready(compiled(key, ids))


def fill_cache(measured: Measured, size: Size, folder: Path, part: str = "") -> Any:
    """Fills the persistent compilation cache, and makes the reference."""
    lazyinit_cached(measured, size, folder, part)
    jax.config.update("jax_enable_compilation_cache", False)
    return _subtree(eager(measured, size, folder), part)


def lazyinit_first(measured: Measured, size: Size, folder: Path, part: str = "") -> Any:
    return lazyinit_cached(measured, size, Path(tempfile.mkdtemp(dir=folder)), part)


def lazyinit_cached(measured: Measured, size: Size, folder: Path, part: str = "") -> Any:
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    compilation_cache.reset_cache()  # JAX asked once, before, whether there is one.
    return lazyinit_recorded(measured, size, folder, part)


def lazyinit_recorded(measured: Measured, size: Size, _: Path, part: str = "") -> Any:
    model, key, ids = decoder(size)
    tree = li.lazy(model).init(key, ids)
    with measured:
        made = _subtree(li.materialize(tree, part or None), part)
        return jax.block_until_ready(made)


fill_cache_head, lazyinit_head_first, lazyinit_head_cached = (
    functools.partial(contend, part="params/head")
    for contend in (fill_cache, lazyinit_first, lazyinit_cached)
)


def _subtree(tree: Any, path: str) -> Any:
    return functools.reduce(operator.getitem, filter(None, path.split("/")), tree)


def lazyinit_again(measured: Measured, size: Size, _: Path) -> Any:
    """Recorded anew, in a process that has compiled what it takes: what is not compilation."""
    model, key, ids = decoder(size)
    jax.block_until_ready(li.materialize(li.lazy(model).init(key, ids)))
    tree = li.lazy(model).init(key, ids)
    with measured:
        return jax.block_until_ready(li.materialize(tree))


CASES = (
    Case(
        name="init-32",
        title="cold full init, {layers} layers",
        module="initialize",
        contenders={
            "lazyinit": "lazyinit",
            "jit": "`jax.jit(model.init)`",
            "eager": "eager `model.init`",
            "lazy_init": "`model.lazy_init` of Flax",
        },
        reference="eager",
        exact=("lazyinit",),
        size=Size(layers=32),
        quick=Size(layers=8),
    ),
    Case(
        name="head-32",
        title="head only, {layers} layers",
        module="initialize",
        contenders={
            "lazyinit_head": "lazyinit",
            "jit_head": '`jax.jit(lambda k, x: model.init(k, x)["params"]["head"])`',
            "recipe_head": "`jax.eval_shape`, then one `jax.jit` of what is missing",
        },
        reference="eager_head",
        exact=("lazyinit_head",),
        size=Size(layers=32),
    ),
    Case(
        name="sharded-init",
        title="cold full init, sharded over {devices}",
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
    Case(
        name="cache",
        title="materialize, {layers} layers, recorded before",
        module="initialize",
        contenders={
            "lazyinit_cached": "lazyinit, second process with a compilation cache",
            "lazyinit_first": "lazyinit, first process with one, which it fills",
            "lazyinit_recorded": "lazyinit, no compilation cache",
        },
        reference="fill_cache",
        exact=("lazyinit_cached", "lazyinit_first", "lazyinit_recorded"),
        size=Size(layers=32),
    ),
    Case(
        name="cache-head",
        title="materialize the head alone, recorded before",
        module="initialize",
        contenders={
            "lazyinit_head_cached": "lazyinit, second process with a compilation cache",
            "lazyinit_head_first": "lazyinit, first process with one, which it fills",
        },
        reference="fill_cache_head",
        exact=("lazyinit_head_cached", "lazyinit_head_first"),
        size=Size(layers=32),
    ),
    Case(
        name="warm",
        title="{bytes} of parameters, 4 layers, everything compiled before",
        module="initialize",
        contenders={
            "lazyinit_warm": "lazyinit",
            "jit_warm": "compiled `jax.jit(model.init)`",
        },
        reference="eager",
        exact=("lazyinit_warm",),
        size=Size(layers=4, width=2048, vocab=16384),
        quick=Size(layers=2, width=1024, vocab=8192),
    ),
)
