"""The models that the benchmarks initialize, record and load."""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


@dataclass(frozen=True, slots=True)
class Size:
    """How large a case is.

    Attributes:
      layers: decoder layers, unrolled. There are ``9 * layers + 3`` parameters.
      width: of the residual stream; a multiple of 64.
      vocab: rows of the embedding and columns of the head.
      devices: CPU devices of the process.
    """

    layers: int = 32
    width: int = 256
    vocab: int = 8192
    devices: int = 1


class Block(nn.Module):
    """A parallel decoder block, as in GPT-J: nine parameters, initializers made anew."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def dense(features: int, name: str, bias: bool) -> nn.Dense:
            init = nn.initializers.normal(0.02)  # As people write it: a new closure every time.
            return nn.Dense(features, use_bias=bias, kernel_init=init, name=name)

        y = nn.RMSNorm(name="norm")(x)
        heads = (*x.shape[:-1], self.width // 64, 64)
        q, k, v = (dense(self.width, n, False)(y).reshape(heads) for n in ("q", "k", "v"))
        causal = nn.make_causal_mask(x[..., 0])
        attended = nn.dot_product_attention(q, k, v, mask=causal).reshape(x.shape)
        attended = dense(self.width, "o", False)(attended)
        up = dense(4 * self.width, "up", True)(y)
        return x + attended + dense(self.width, "down", True)(nn.gelu(up))


class Decoder(nn.Module):
    """A decoder whose layers are unrolled in a Python loop."""

    size: Size

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        size, init = self.size, nn.initializers.normal(0.02)
        x = nn.Embed(size.vocab, size.width, embedding_init=init, name="embed")(ids)
        for n in range(size.layers):
            x = Block(size.width, name=f"layers_{n}")(x)
        x = nn.RMSNorm(name="norm")(x)
        return nn.Dense(size.vocab, use_bias=False, kernel_init=init, name="head")(x)


def decoder(size: Size) -> tuple[Decoder, jax.Array, jax.Array]:
    """Returns a decoder, a key, and token ids int32[1,16] to initialize it with."""
    return Decoder(size), jax.random.key(0), jnp.zeros((1, 16), jnp.int32)


def llama2_70b() -> tuple[Callable[..., Any], Any]:
    """Returns the Llama-2-70B module of transformers, and the abstract inputs of its ``init``."""
    from transformers import FlaxLlamaForCausalLM

    tokens = functools.partial(jax.ShapeDtypeStruct, (1, 8), jnp.int32)
    module = FlaxLlamaForCausalLM(_llama2_70b_config(), _do_init=False).module
    return module, (tokens(), tokens(), tokens())


def llama2_70b_scanned() -> tuple[Callable[..., Any], Any]:
    """Returns Llama-2-70B with its 80 layers, transformers' own, under ``nn.scan``."""
    from transformers.models.llama.modeling_flax_llama import FlaxLlamaDecoderLayer

    config = _llama2_70b_config()

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, mask: jax.Array, positions: jax.Array) -> Any:
            layer = FlaxLlamaDecoderLayer(config, name="layer")
            return layer(x, attention_mask=mask, position_ids=positions)[0], None

    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, ids: jax.Array, mask: jax.Array, positions: jax.Array) -> jax.Array:
            x = nn.Embed(config.vocab_size, config.hidden_size, name="embed")(ids)
            layers = nn.scan(
                Layer,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(nn.broadcast, nn.broadcast),
                length=config.num_hidden_layers,
            )
            x, _ = layers(name="layers")(x, mask, positions)
            return nn.Dense(config.vocab_size, use_bias=False, name="head")(nn.RMSNorm()(x))

    tokens = functools.partial(jax.ShapeDtypeStruct, (1, 8), jnp.int32)
    return Scanned(), (tokens(), tokens(), tokens())


def _llama2_70b_config() -> Any:
    os.environ["USE_TORCH"] = "0"  # Flax alone: an installed torch would be imported with it.
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=32000,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        max_position_embeddings=4096,
    )
