"""Cases that load a decoder as people load it: torch's layout, bfloat16, an NNX model, 8 devices.

The file and the model are those of ``llama.py``. What is measured is said in ``load.py``. Of
lazyinit and of tunix recording the model is timed too; the others get shapes and shardings for
nothing.
"""

import functools
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from decoder import Size
from flax import nnx
from harness import Case
from llama import HEAD, KINDS, RULES, SHARED, Decoder, Target, mesh_of, state_of, targets
from load import file_in, flat
from measure import Measured, touch

import lazyinit as li

_DRAWN = 2**22  # Elements that are drawn, and repeated in each tensor: to draw all takes minutes.


def write(
    _: Measured,
    size: Size,
    folder: Path,
    dtype: Any = jnp.bfloat16,
    stored: Any = jnp.bfloat16,
) -> Any:
    """Writes the file, and returns what all contenders must have, by NumPy's own transposes."""
    drawn = np.random.default_rng(0).standard_normal(_DRAWN, np.float32).astype(stored)
    wanted = targets(size)
    tensors = {
        target.tensor: np.resize(drawn[n:], target.stored)
        for n, target in enumerate(wanted.values())
    }
    safetensors.numpy.save_file(tensors, file_in(folder))
    return {
        path: target.made_of(tensors[target.tensor], target.shape).astype(dtype)
        for path, target in wanted.items()
    }


def lazyinit(measured: Measured, size: Size, folder: Path, dtype: Any = jnp.bfloat16) -> Any:
    mesh = mesh_of(size)
    shard = li.shard_by_rules(mesh, {k.leaf.replace("{n}", "*"): k.spec for k in KINDS})
    _prepare(measured, folder)
    with measured:
        with measured.part("record"):
            graph, state = li.lazy(Decoder)(size)
        with measured.part("fill"):
            state, report = li.fill(state, file_in(folder), RULES)
        with measured.part("materialize"):
            model = nnx.merge(graph, li.materialize(state, sharding=shard, dtype=dtype))
            made = jax.block_until_ready(flat(state_of(model)))
    assert len(report.loaded) == len(made), report
    return made


def tunix(measured: Measured, size: Size, folder: Path, dtype: Any = None) -> Any:
    params, models = _tunix()
    config = models.ModelConfig(
        num_layers=size.layers,
        vocab_size=size.vocab,
        embed_dim=size.width,
        hidden_dim=4 * size.width,
        num_heads=size.width // HEAD,
        head_dim=HEAD,
        num_kv_heads=size.width // HEAD // SHARED,
        rope_theta=500_000,
        norm_eps=1e-5,
        weight_tying=True,
    )
    mesh = mesh_of(size)
    _prepare(measured, folder)
    with measured:
        load = params.create_model_from_safe_tensors
        model = load(str(file_in(folder).parent), config, mesh, dtype=dtype)
        return jax.block_until_ready(flat(state_of(model)))


def slices(measured: Measured, size: Size, folder: Path, dtype: Any = None) -> Any:
    """As one would write it by hand for a mesh: each shard reads its slice, and turns it."""
    wanted = targets(size)
    _prepare(measured, folder)
    with measured, safetensors.safe_open(file_in(folder), framework="numpy") as tensors:
        made = {}
        for path, target in wanted.items():

            def read(index: Any, target: Target = target) -> Any:
                values = tensors.get_slice(target.tensor)[target.place(index)]
                at = zip(index, target.shape, strict=True)
                shape = [len(range(*part.indices(size))) for part, size in at]
                values = target.made_of(values, shape)
                return values if dtype is None else values.astype(dtype)

            made[path] = jax.make_array_from_callback(target.shape, target.sharding, read)
        return jax.block_until_ready(made)


def orbax(measured: Measured, size: Size, folder: Path) -> Any:
    """Orbax reads the layout of the file alone, so what it read is turned by one program."""
    import orbax.checkpoint.experimental.v1 as ocp

    wanted = targets(size)
    stored = {
        target.tensor: jax.ShapeDtypeStruct(
            target.stored, jnp.bfloat16, sharding=target.stored_sharding
        )
        for target in wanted.values()
    }
    shardings = {path: target.sharding for path, target in wanted.items()}

    @functools.partial(jax.jit, out_shardings=shardings, donate_argnums=0)
    def turn(tensors: Any) -> Any:
        return {p: t.made_of(tensors[t.tensor], t.shape) for p, t in wanted.items()}

    _prepare(measured, folder)
    with measured:
        with measured.part("load"), _safetensors_layout(ocp):
            tensors = jax.block_until_ready(ocp.load(file_in(folder), stored))
        with measured.part("transpose"):
            return jax.block_until_ready(turn(tensors))


def _safetensors_layout(ocp: Any) -> Any:
    return ocp.Context(checkpoint_layout=ocp.options.CheckpointLayout.SAFETENSORS)


def _tunix() -> tuple[Any, Any]:
    """Returns tunix's maps and its models of Llama 3, without what the package imports first.

    That is its trainers, which need packages that loading does not.
    """
    spec = importlib.util.find_spec("tunix")
    assert spec is not None, "the case says what it needs"
    package = types.ModuleType("tunix")
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["tunix"] = package
    from tunix.models.llama3 import model, params  # pyright: ignore[reportMissingImports]

    return params, model


def _prepare(measured: Measured, folder: Path) -> None:
    measured.ready(file_in(folder))
    touch(2 * file_in(folder).stat().st_size)


write_wide, lazyinit_wide, tunix_wide, slices_wide = (
    functools.partial(contend, dtype=jnp.float32) for contend in (write, lazyinit, tunix, slices)
)
write_narrow = functools.partial(write, stored=jnp.float32)
lazyinit_narrow, tunix_narrow, slices_narrow = (
    functools.partial(contend, dtype=jnp.bfloat16) for contend in (lazyinit, tunix, slices)
)

_SIZE = Size(layers=16, width=2048, vocab=128256, devices=8)  # As Llama-3.2-1B.
_QUICK = Size(layers=2, width=2048, vocab=16384, devices=8)
_TUNIX = "google-tunix's `create_model_from_safe_tensors`"
_SLICES = "`safe_open`, a slice for each shard, transposed by NumPy"

CASES = (
    Case(
        name="load-transposed",
        title="{bytes} bfloat16, a Llama of Hugging Face, into an NNX model, {devices}, {cache}",
        module="transposed",
        contenders={
            "lazyinit": "lazyinit",
            "tunix": _TUNIX,
            "orbax": "Orbax v1's safetensors layout, then one `jax.jit` that transposes",
            "slices": _SLICES,
        },
        reference="write",
        exact=("lazyinit", "tunix", "orbax", "slices"),
        needs=("tunix", "orbax.checkpoint"),
        size=_SIZE,
        quick=_QUICK,
    ),
    *(
        Case(
            name=f"load-transposed-{end}",
            title=title,
            module="transposed",
            contenders={
                f"lazyinit_{end}": "lazyinit",
                f"tunix_{end}": _TUNIX,
                f"slices_{end}": _SLICES,
            },
            reference=f"write_{end}",
            exact=(f"lazyinit_{end}", f"tunix_{end}", f"slices_{end}"),
            needs=("tunix",),
            size=_SIZE,
            quick=_QUICK,
        )
        for end, title in (
            ("wide", "the same file cast to float32, {bytes}, {devices}, {cache}"),
            ("narrow", "a float32 file cast to bfloat16, {bytes}, {devices}, {cache}"),
        )
    ),
)
