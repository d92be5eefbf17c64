"""Flax NNX constructors that several tests share: each takes an ``nnx.Rngs``."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx

CASES = {}
# Told apart by another case already, or long.
SLOW = {
    "Bidirectional",
    "ConvTranspose",
    "Einsum",
    "GRUCell",
    "LSTM classifier",
    "LSTMCell",
    "Linear float16",
    "LinearGeneral",
    "LoRALinear",
    "SimpleCell",
    "SpectralNorm",
    "ViT",
    "cond",
    "jit",
    "remat",
    "split_rngs of one stream",
    "vmap nested",
}


def rngs():
    """Returns the streams that every case is made with."""
    return nnx.Rngs(0, params=jax.random.key(1), dropout=2, noise=3)


def case(name, build):
    assert name not in CASES
    CASES[name] = build


# Layers.

for _name, _layer in {
    "Linear": lambda r: nnx.Linear(4, 8, rngs=r),
    "Linear bfloat16": lambda r: nnx.Linear(4, 8, param_dtype=jnp.bfloat16, rngs=r),
    "Linear float16": lambda r: nnx.Linear(4, 8, param_dtype=jnp.float16, use_bias=False, rngs=r),
    "LinearGeneral": lambda r: nnx.LinearGeneral((2, 4), (4, 2), axis=(-2, -1), rngs=r),
    "Einsum": lambda r: nnx.Einsum("abc,cde->abde", (3, 4, 2), (4, 2), rngs=r),
    "Conv": lambda r: nnx.Conv(4, 8, (3, 3), feature_group_count=2, rngs=r),
    "ConvTranspose": lambda r: nnx.ConvTranspose(4, 8, (3,), rngs=r),
    "Embed": lambda r: nnx.Embed(16, 8, rngs=r),
    "BatchNorm": lambda r: nnx.BatchNorm(8, rngs=r),
    "LayerNorm": lambda r: nnx.LayerNorm(8, rngs=r),
    "RMSNorm": lambda r: nnx.RMSNorm(8, rngs=r),
    "GroupNorm": lambda r: nnx.GroupNorm(8, num_groups=2, rngs=r),
    "InstanceNorm": lambda r: nnx.InstanceNorm(8, rngs=r),
    "WeightNorm": lambda r: nnx.WeightNorm(nnx.Linear(4, 8, rngs=r), rngs=r),
    "SpectralNorm": lambda r: nnx.SpectralNorm(nnx.Linear(4, 8, rngs=r), rngs=r),
    "Dropout": lambda r: nnx.Dropout(0.5, rngs=r),
    "MultiHeadAttention": lambda r: nnx.MultiHeadAttention(2, 8, decode=False, rngs=r),
    "LSTMCell": lambda r: nnx.LSTMCell(4, 8, rngs=r),
    "OptimizedLSTMCell": lambda r: nnx.OptimizedLSTMCell(4, 8, rngs=r),
    "GRUCell": lambda r: nnx.GRUCell(4, 8, rngs=r),
    "SimpleCell": lambda r: nnx.SimpleCell(4, 8, rngs=r),
    "RNN": lambda r: nnx.RNN(nnx.LSTMCell(4, 8, rngs=r)),
    "Bidirectional": lambda r: nnx.Bidirectional(
        nnx.RNN(nnx.GRUCell(4, 8, rngs=r)), nnx.RNN(nnx.GRUCell(4, 8, rngs=r))
    ),
    "LoRA": lambda r: nnx.LoRA(4, 2, 8, base_module=nnx.Linear(4, 8, rngs=r), rngs=r),
    "LoRALinear": lambda r: nnx.LoRALinear(4, 8, lora_rank=2, rngs=r),
    "PReLU": lambda r: nnx.PReLU(),
    "Sequential": lambda r: nnx.Sequential(
        nnx.Linear(4, 8, rngs=r), nnx.relu, nnx.Linear(8, 2, rngs=r)
    ),
}.items():
    case(_name, _layer)


# Variables.


class Streams(nnx.Module):
    """Draws from several streams, one of them the default, and keeps what it drew."""

    def __init__(self, rngs):
        self.noise = nnx.Variable(rngs.noise.normal((4,)))
        self.unnamed = nnx.Param(jax.random.normal(rngs.anything(), (4,)))
        self.cache = nnx.Cache(jnp.zeros((2, 4), jnp.bfloat16))
        self.state = nnx.BatchStat(jnp.arange(4.0))
        self.intermediate = nnx.Intermediate(rngs.params.uniform((2,)))
        self.count = nnx.Variable(jnp.int32(3))
        self.number = 3
        self.key = nnx.Variable(rngs.params())


class Partitioned(nnx.Module):
    def __init__(self, rngs):
        init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("in", "out"))
        with nnx.use_eager_sharding(False):  # Names only: no mesh is at hand.
            self.linear = nnx.Linear(4, 8, kernel_init=init, rngs=rngs)
            normal = rngs.params.normal((4, 8))
            self.own = nnx.Param(normal, out_sharding=("in", None), note="kept")


class Shared(nnx.Module):
    """One variable at three places, and one computed from another."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(16, 8, rngs=rngs)
        self.head = self.embed
        self.weights = nnx.Dict(tied=self.embed.embedding)
        norm = jnp.linalg.norm(self.embed.embedding[...], axis=0)
        self.scaled = nnx.Param(self.embed.embedding[...] / norm)


class DecodeCache(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(2, 8, decode=True, rngs=rngs)
        self.attention.init_cache((1, 16, 8), dtype=jnp.float32)


class Containers(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(3)])
        self.named = nnx.Dict(a=nnx.Linear(4, 4, rngs=rngs), b=nnx.Param(rngs.params.normal((2,))))


case("several streams", Streams)
case("partitioned", Partitioned)
case("shared variables", Shared)
case("attention decode cache", DecodeCache)
case("containers", Containers)


# Transforms.


class Block(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(8, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(nnx.relu(self.linear(x))))


def vmapped(rngs):
    return nnx.vmap(Block, in_axes=0, out_axes=0)(rngs.split(3))


def split_rngs(rngs):
    make = nnx.split_rngs(splits=3)(nnx.vmap(lambda r: nnx.Linear(4, 4, rngs=r), in_axes=(0,)))
    return make(rngs)


def split_one_stream(rngs):
    axes = nnx.StateAxes({"params": 0, ...: None})

    @nnx.split_rngs(splits=3, only="params")
    @nnx.vmap(in_axes=(axes,), out_axes=0)
    def make(rngs):
        return nnx.Linear(4, 4, rngs=rngs)

    return make(rngs)


def nested_vmap(rngs):
    inner = nnx.vmap(lambda r: nnx.Linear(4, 4, rngs=r), in_axes=0, out_axes=1)
    return nnx.vmap(inner, in_axes=0, out_axes=0)(rngs.split((2, 3)))


def scanned(rngs):
    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def make(carry, rngs):
        return carry * 0.5, nnx.Linear(
            4, 4, kernel_init=lambda k, s, d, **_: jax.random.normal(k, s, d) * carry, rngs=rngs
        )

    return make(jnp.float32(1.3), rngs.split(3))[1]


def jitted(rngs):
    return nnx.jit(Block)(rngs)


def rematerialized(rngs):
    return nnx.remat(Block)(rngs)


def ran_rematerialized(rngs):
    module = Block(rngs)
    out = nnx.remat(lambda module, x: module(x))(module, jnp.arange(16.0).reshape(2, 8))
    module.linear.bias = nnx.Param(out[0] * 0.3 + 0.1)
    return module


def branched(rngs):
    module = Block(rngs)
    wide, narrow = (lambda m: m.linear(jnp.ones((1, 8))) * n for n in (2.0, 3.0))
    out = nnx.cond(jnp.ones(()).sum() > 0, wide, narrow, module)
    module.linear.bias = nnx.Param(out[0] * 0.3 + 0.1)
    return module


def ran(rngs):
    """Runs the module while it is built: statistics and counts go on."""
    module = Block(rngs)
    module(jnp.arange(16.0).reshape(2, 8))
    return module


case("vmap", vmapped)
case("vmap nested", nested_vmap)
case("split_rngs", split_rngs)
case("split_rngs of one stream", split_one_stream)
case("scan", scanned)
case("jit", jitted)
case("remat", rematerialized)
case("remat of a run", ran_rematerialized)
case("cond", branched)
case("run while it is built", ran)


# Between Linen and NNX.


class Inner(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 8, rngs=rngs)

    def __call__(self, x):
        return self.linear(x)


def linen_inside(rngs):
    return nnx.bridge.ToNNX(nn.Dense(8), rngs=rngs).lazy_init(jnp.ones((1, 4)))


case("bridge.ToNNX", linen_inside)


# Models.


class DecoderLayer(nnx.Module):
    """Ten parameters: two scales, q, k, v and o in attention with a bias of o, gate, up, down."""

    def __init__(self, width, *, rngs):
        init = nnx.initializers.normal(0.02)
        self.attention_norm = nnx.RMSNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            2, width, use_bias=False, kernel_init=init, decode=False, rngs=rngs
        )
        self.mlp_norm = nnx.RMSNorm(width, rngs=rngs)
        self.gate, self.up = (
            nnx.Linear(width, 2 * width, use_bias=False, kernel_init=init, rngs=rngs)
            for _ in range(2)
        )
        self.down = nnx.Linear(2 * width, width, use_bias=False, kernel_init=init, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.attention_norm(x))
        h = self.mlp_norm(x)
        return x + self.down(nnx.silu(self.gate(h)) * self.up(h))


class Decoder(nnx.Module):
    def __init__(self, depth, width=16, *, rngs):
        self.embed = nnx.Embed(32, width, rngs=rngs)
        self.layers = nnx.List([DecoderLayer(width, rngs=rngs) for _ in range(depth)])
        self.norm = nnx.RMSNorm(width, rngs=rngs)

    def __call__(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.embed.attend(self.norm(x))


class ViT(nnx.Module):
    def __init__(self, depth=2, width=16, *, rngs):
        self.patches = nnx.Conv(3, width, (4, 4), strides=(4, 4), rngs=rngs)
        self.cls = nnx.Param(jnp.zeros((1, 1, width)))
        positions = nnx.initializers.truncated_normal(0.02)
        self.positions = nnx.Param(positions(rngs.params(), (1, 5, width), jnp.float32))
        self.blocks = nnx.Sequential(*(DecoderLayer(width, rngs=rngs) for _ in range(depth)))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, images):
        x = self.patches(images).reshape(images.shape[0], -1, self.cls.shape[-1])
        cls = jnp.broadcast_to(self.cls[...], (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([cls, x], 1) + self.positions[...]
        return self.head(self.norm(self.blocks(self.dropout(x)))[:, 0])


class Classifier(nnx.Module):
    def __init__(self, *, rngs):
        self.embed = nnx.Embed(32, 8, rngs=rngs)
        self.rnn = nnx.RNN(nnx.OptimizedLSTMCell(8, 16, rngs=rngs))
        self.head = nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, ids):
        return self.head(self.rnn(self.embed(ids))[:, -1])


ADAM = optax.adam(1e-3)  # Graph definitions compare it by identity.


def trained(rngs):
    """A model and its optimizer, made together."""
    model = Inner(rngs)
    return nnx.Dict(model=model, optimizer=nnx.Optimizer(model, ADAM, wrt=nnx.Param))


case("decoder", lambda r: Decoder(2, rngs=r))
case("ViT", lambda r: ViT(rngs=r))
case("LSTM classifier", lambda r: Classifier(rngs=r))
case("model and optimizer", trained)
