"""Cases that load a decoder as people load it: torch's layout, bfloat16, an NNX model, 8 devices.

The file has the names and the layout of a Llama of Hugging Face: kernels are ``[out, in]``, and
heads are no axis of their own. The model has the tree and the shardings of google-tunix's Llama 3:
kernels are ``[in, out]``, and heads are an axis. So all but the embedding and the norms change the
order of their axes on the way. All devices are on the mesh's axis ``fsdp``.

What is measured is said in ``load.py``. Of lazyinit and of tunix recording the model is timed too;
the others get shapes and shardings for nothing.
"""

import functools
import importlib.util
import math
import sys
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from load import file_in, flat
from measure import Measured, touch

import lazyinit as li

_HEAD = 64  # Elements of a head.
_SHARED = 4  # Query heads for each key head.
_DRAWN = 2**22  # Elements that are drawn, and repeated in each tensor: to draw all takes minutes.


class Weight(nnx.Module):
    """One parameter, under any name."""

    def __init__(self, name: str, *shape: int) -> None:
        setattr(self, name, nnx.Param(jnp.zeros(shape, jnp.bfloat16)))


class Attention(nnx.Module):
    """The kernels of attention."""

    def __init__(self, width: int) -> None:
        heads = width // _HEAD
        self.q_proj = Weight("w", width, heads, _HEAD)
        self.k_proj = Weight("w", width, heads // _SHARED, _HEAD)
        self.v_proj = Weight("w", width, heads // _SHARED, _HEAD)
        self.o_proj = Weight("w", heads, _HEAD, width)


class Mlp(nnx.Module):
    """The kernels of a gated feed-forward layer."""

    def __init__(self, width: int) -> None:
        self.gate_proj = Weight("kernel", width, 4 * width)
        self.up_proj = Weight("kernel", width, 4 * width)
        self.down_proj = Weight("kernel", 4 * width, width)


class Layer(nnx.Module):
    """One decoder layer."""

    def __init__(self, width: int) -> None:
        self.input_layernorm = Weight("w", width)
        self.attn = Attention(width)
        self.post_attention_layernorm = Weight("w", width)
        self.mlp = Mlp(width)


class Decoder(nnx.Module):
    """The parameters of a Llama 3 whose head is its embedding."""

    def __init__(self, size: Size) -> None:
        self.embedder = Weight("input_embedding", size.vocab, size.width)
        self.layers = nnx.List([Layer(size.width) for _ in range(size.layers)])
        self.final_norm = Weight("w", size.width)


@dataclass(frozen=True, slots=True)
class Kind:
    """Leaves of one kind.

    Attributes:
      leaf: what their paths look like.
      tensor: what their tensors are called.
      spec: how they are sharded.
      axes: for each axis of the tensor, which axes of the leaf it is, in one.
      change: what lazyinit is told.
    """

    leaf: str
    tensor: str
    spec: P
    axes: Sequence[Sequence[int]]
    change: Any = ()  # A change of layout, or none.


_FIRST, _LAST = P("fsdp", "tp"), P("tp", "fsdp")


def _kinds() -> Iterator[Kind]:
    yield Kind("embedder/input_embedding", "model.embed_tokens.weight", _LAST, ((0,), (1,)))
    yield Kind("final_norm/w", "model.norm.weight", P("tp"), ((0,),))
    for name in ("input_layernorm", "post_attention_layernorm"):
        tensor = f"model.layers.{{n}}.{name}.weight"
        yield Kind(f"layers/{{n}}/{name}/w", tensor, P("tp"), ((0,),))
    into = li.Rearrange("(h k) i -> i h k", k=_HEAD)
    out = li.Rearrange("o (h k) -> h k o", k=_HEAD)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        leaf, tensor = f"layers/{{n}}/attn/{name}/w", f"model.layers.{{n}}.self_attn.{name}.weight"
        if name == "o_proj":
            yield Kind(leaf, tensor, P("tp", None, "fsdp"), ((2,), (0, 1)), out)
        else:
            yield Kind(leaf, tensor, P("fsdp", "tp", None), ((1, 2), (0,)), into)
    for name, spec in (("gate_proj", _FIRST), ("up_proj", _FIRST), ("down_proj", _LAST)):
        leaf, tensor = f"layers/{{n}}/mlp/{name}/kernel", f"model.layers.{{n}}.mlp.{name}.weight"
        yield Kind(leaf, tensor, spec, ((1,), (0,)), li.Transpose("o i -> i o"))


KINDS = tuple(_kinds())
RULES = [li.Rule(kind.leaf, kind.tensor, kind.change) for kind in KINDS]


@dataclass(frozen=True, slots=True)
class Target:
    """A leaf, and its tensor.

    Attributes:
      tensor: its name.
      kind: what both are.
      shape: of the leaf.
      sharding: of the leaf.
    """

    tensor: str
    kind: Kind
    shape: Sequence[int]
    sharding: NamedSharding

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return tuple(math.prod(self.shape[axis] for axis in group) for group in self.kind.axes)

    @property
    def stored_sharding(self) -> NamedSharding:
        """The sharding of the tensor that gives each device what it needs of it."""
        spec = (self.kind.spec[first] for first, *_ in self.kind.axes)
        return NamedSharding(self.sharding.mesh, P(*spec))

    def place(self, index: Sequence[slice]) -> tuple[slice, ...]:
        """Returns where in the tensor a shard of the leaf is. Each head is whole."""
        found = []
        for first, *rest in self.kind.axes:
            start, stop, _ = index[first].indices(self.shape[first])
            inner = math.prod(self.shape[axis] for axis in rest)
            found.append(slice(start * inner, stop * inner))
        return tuple(found)

    def made_of(self, tensor: Any, shape: Sequence[int]) -> Any:
        """Returns the leaf, or a shard of it, of the tensor's values."""
        return tensor.T.reshape(shape) if self.kind.change else tensor


def mesh_of(size: Size) -> Mesh:
    return jax.make_mesh((size.devices, 1), ("fsdp", "tp"))


def targets(size: Size) -> dict[str, Target]:
    """Returns the target of each leaf, by path."""
    mesh, kinds, found = mesh_of(size), {kind.leaf: kind for kind in KINDS}, {}
    for path, leaf in flat(nnx.eval_shape(lambda: _state(Decoder(size)))).items():
        number = next((key for key in path.split(".") if key.isdigit()), "")
        kind = kinds[
            path.replace(".", "/").replace(number, "{n}") if number else path.replace(".", "/")
        ]
        tensor = kind.tensor.replace("{n}", number)
        found[path] = Target(tensor, kind, leaf.shape, NamedSharding(mesh, kind.spec))
    return found


def _state(model: nnx.Module) -> Any:
    return nnx.to_pure_dict(nnx.state(model))


def write(_: Measured, size: Size, folder: Path, dtype: Any = jnp.bfloat16) -> Any:
    """Writes the file, and returns what all contenders must have, by NumPy's own transposes."""
    drawn = np.random.default_rng(0).standard_normal(_DRAWN, np.float32).astype(jnp.bfloat16)
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
            made = jax.block_until_ready(flat(_state(model)))
    assert len(report.loaded) == len(made), report
    return made


def tunix(measured: Measured, size: Size, folder: Path, dtype: Any = None) -> Any:
    params, models = _tunix()
    config = models.ModelConfig(
        num_layers=size.layers,
        vocab_size=size.vocab,
        embed_dim=size.width,
        hidden_dim=4 * size.width,
        num_heads=size.width // _HEAD,
        head_dim=_HEAD,
        num_kv_heads=size.width // _HEAD // _SHARED,
        rope_theta=500_000,
        norm_eps=1e-5,
        weight_tying=True,
    )
    mesh = mesh_of(size)
    _prepare(measured, folder)
    with measured:
        load = params.create_model_from_safe_tensors
        model = load(str(file_in(folder).parent), config, mesh, dtype=dtype)
        return jax.block_until_ready(flat(_state(model)))


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


write_cast, lazyinit_cast, tunix_cast, slices_cast = (
    functools.partial(contend, dtype=jnp.float32) for contend in (write, lazyinit, tunix, slices)
)

_SIZE = Size(layers=16, width=2048, vocab=128256, devices=8)  # As Llama-3.2-1B.
_QUICK = Size(layers=4, width=2048, vocab=32768, devices=8)
_TUNIX = "google-tunix's `create_model_from_safe_tensors`"
_SLICES = "`safe_open`, a slice for each shard, transposed by NumPy"

CASES = (
    Case(
        name="load-transposed",
        title="loading {bytes} bfloat16, a Llama of Hugging Face, into an NNX model, 8 devices",
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
    Case(
        name="load-transposed-cast",
        title="the same file into float32, {bytes}, 8 devices",
        module="transposed",
        contenders={"lazyinit_cast": "lazyinit", "tunix_cast": _TUNIX, "slices_cast": _SLICES},
        reference="write_cast",
        exact=("lazyinit_cast", "tunix_cast", "slices_cast"),
        needs=("tunix",),
        size=_SIZE,
        quick=_QUICK,
    ),
)
