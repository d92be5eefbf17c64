"""Cases of an NNX decoder with names in its metadata, as its users write it: under a mesh.

It has the sizes of SmolLM2-135M: 30 layers, 135 M parameters. What stands beside lazyinit is the
recipe of Flax's own documentation: ``nnx.jit``, and a constraint for the whole state.
"""

from pathlib import Path
from typing import Any

import jax
from decoder import Size
from flax import nnx
from harness import Case
from jax.sharding import AxisType, Mesh
from measure import Measured

import lazyinit as li


class Linear(nnx.Linear):
    """A linear layer with names for its two dimensions, initialized as people write it."""

    def __init__(self, inside: int, outside: int, *names: str | None, rngs: nnx.Rngs) -> None:
        init = nnx.with_partitioning(nnx.initializers.normal(0.02), names)
        super().__init__(inside, outside, use_bias=False, kernel_init=init, rngs=rngs)


class Norm(nnx.RMSNorm):
    """A norm whose scale has a name for its dimension."""

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        init = nnx.with_partitioning(nnx.initializers.ones_init(), (None,))
        super().__init__(width, scale_init=init, rngs=rngs)


class Block(nnx.Module):
    """A decoder block of the Llama family, with three query heads for each key head."""

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.attention_norm, self.norm = Norm(width, rngs=rngs), Norm(width, rngs=rngs)
        self.q = Linear(width, width, "fsdp", "tp", rngs=rngs)
        self.k = Linear(width, width // 3, "fsdp", "tp", rngs=rngs)
        self.v = Linear(width, width // 3, "fsdp", "tp", rngs=rngs)
        self.o = Linear(width, width, "tp", "fsdp", rngs=rngs)
        self.gate = Linear(width, width * 8 // 3, "fsdp", "tp", rngs=rngs)
        self.up = Linear(width, width * 8 // 3, "fsdp", "tp", rngs=rngs)
        self.down = Linear(width * 8 // 3, width, "tp", "fsdp", rngs=rngs)


class Decoder(nnx.Module):
    """A decoder whose layers are unrolled in a Python loop."""

    def __init__(self, size: Size, *, rngs: nnx.Rngs) -> None:
        init = nnx.with_partitioning(nnx.initializers.normal(0.02), ("tp", "fsdp"))
        self.embed = nnx.Embed(size.vocab, size.width, embedding_init=init, rngs=rngs)
        self.layers = nnx.List([Block(size.width, rngs=rngs) for _ in range(size.layers)])
        self.norm = Norm(size.width, rngs=rngs)


def mesh_of(size: Size, axis_type: AxisType) -> Mesh:
    """Returns a mesh of two by half of the devices."""
    return jax.make_mesh((2, size.devices // 2), ("fsdp", "tp"), axis_types=(axis_type,) * 2)


def _made(state: Any) -> Any:
    return jax.block_until_ready(nnx.to_pure_dict(state))


def lazyinit_outside(measured: Measured, size: Size, _: Path) -> Any:
    mesh, model = mesh_of(size, AxisType.Auto), li.lazy(Decoder)
    with measured:
        with measured.part("record"):
            _graphdef, state = model(size, rngs=nnx.Rngs(0))
        with measured.part("materialize"):
            return _made(li.materialize(state, sharding=li.shard_by_metadata(mesh)))


def _lazyinit_inside(measured: Measured, size: Size, axis_type: AxisType) -> Any:
    mesh, model = mesh_of(size, axis_type), li.lazy(Decoder)
    with measured, jax.set_mesh(mesh):
        with measured.part("record"):
            _graphdef, state = model(size, rngs=nnx.Rngs(0))
        with measured.part("materialize"):
            return _made(li.materialize(state))


def lazyinit_auto(measured: Measured, size: Size, _: Path) -> Any:
    return _lazyinit_inside(measured, size, AxisType.Auto)


def lazyinit_explicit(measured: Measured, size: Size, _: Path) -> Any:
    return _lazyinit_inside(measured, size, AxisType.Explicit)


def nnx_jit(measured: Measured, size: Size, _: Path) -> Any:
    mesh = mesh_of(size, AxisType.Auto)

    @nnx.jit
    def make() -> nnx.Module:
        model = Decoder(size, rngs=nnx.Rngs(0))
        state = nnx.state(model)
        specs = nnx.get_partition_spec(state)
        nnx.update(model, jax.lax.with_sharding_constraint(state, specs))
        return model

    with measured, jax.set_mesh(mesh):
        return _made(nnx.state(make()))


def eager(measured: Measured, size: Size, _: Path) -> Any:
    with measured, jax.set_mesh(mesh_of(size, AxisType.Auto)):
        return _made(nnx.state(Decoder(size, rngs=nnx.Rngs(0))))


CASES = (
    Case(
        name="nnx-on-mesh",
        title="NNX decoder with metadata, {layers} layers, {bytes}, {devices}",
        module="on_mesh",
        contenders={
            "lazyinit_outside": "lazyinit, recorded under no mesh, `li.shard_by_metadata(mesh)`",
            "lazyinit_auto": "lazyinit, within `jax.set_mesh`, Auto axes",
            "lazyinit_explicit": "lazyinit, within `jax.set_mesh`, Explicit axes",
            "nnx_jit": "`nnx.jit`, `nnx.get_partition_spec`, `with_sharding_constraint`",
            "eager": "eager, within `jax.set_mesh`",
        },
        reference="eager",
        exact=("lazyinit_outside", "lazyinit_auto", "lazyinit_explicit"),
        size=Size(layers=30, width=576, vocab=49152, devices=8),
        quick=Size(layers=4, width=576, vocab=4096, devices=8),
    ),
)
