"""The decoder that most cases initialize, record and load, at any size."""

from dataclasses import dataclass

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
