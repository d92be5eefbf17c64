"""A Llama as people load it: torch's names and layout, bfloat16, google-tunix's tree and shardings.

The file has the names and the layout of a Llama of Hugging Face: kernels are ``[out, in]``, and
heads are no axis of their own. The model has the tree and the shardings of google-tunix's Llama 3:
kernels are ``[in, out]``, and heads are an axis. So all but the embedding and the norms change the
order of their axes on the way. All devices are on the mesh's axis ``fsdp``.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from decoder import Size
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from load import flat

import lazyinit as li

HEAD = 64  # Elements of a head.
SHARED = 4  # Query heads for each key head.


class Weight(nnx.Module):
    """One parameter, under any name."""

    def __init__(self, name: str, *shape: int) -> None:
        setattr(self, name, nnx.Param(jnp.zeros(shape, jnp.bfloat16)))


class Attention(nnx.Module):
    """The kernels of attention."""

    def __init__(self, width: int) -> None:
        heads = width // HEAD
        self.q_proj = Weight("w", width, heads, HEAD)
        self.k_proj = Weight("w", width, heads // SHARED, HEAD)
        self.v_proj = Weight("w", width, heads // SHARED, HEAD)
        self.o_proj = Weight("w", heads, HEAD, width)


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
    into = li.Rearrange("(h k) i -> i h k", k=HEAD)
    out = li.Rearrange("o (h k) -> h k o", k=HEAD)
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
    for path, leaf in flat(nnx.eval_shape(lambda: state_of(Decoder(size)))).items():
        number = next((key for key in path.split(".") if key.isdigit()), "")
        kind = kinds[
            path.replace(".", "/").replace(number, "{n}") if number else path.replace(".", "/")
        ]
        tensor = kind.tensor.replace("{n}", number)
        found[path] = Target(tensor, kind, leaf.shape, NamedSharding(mesh, kind.spec))
    return found


def state_of(model: nnx.Module) -> Any:
    """Returns the arrays of a model as nested dicts."""
    return nnx.to_pure_dict(nnx.state(model))
