"""MiniLM as NNX: a small BERT that turns sentences into vectors, and a classifier on top of it.

Written from the paper (https://arxiv.org/abs/1810.04805), without dropout. The names of its parts
are those that ``lazyinit.maps.BERT_NNX`` knows.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx


@dataclass(frozen=True)
class Config:
    """The sizes of a BERT, as its ``config.json`` calls them."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float

    @classmethod
    def read(cls, folder: Path) -> "Config":
        stored = json.loads((folder / "config.json").read_text())
        return cls(**{name: stored[name] for name in cls.__annotations__})

    def norm(self, rngs: nnx.Rngs) -> nnx.LayerNorm:
        return nnx.LayerNorm(self.hidden_size, epsilon=self.layer_norm_eps, rngs=rngs)


class Embeddings(nnx.Module):
    def __init__(self, config: Config, rngs: nnx.Rngs) -> None:
        self.word = nnx.Embed(config.vocab_size, config.hidden_size, rngs=rngs)
        self.position = nnx.Embed(config.max_position_embeddings, config.hidden_size, rngs=rngs)
        self.type = nnx.Embed(config.type_vocab_size, config.hidden_size, rngs=rngs)
        self.norm = config.norm(rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        positions = jnp.arange(ids.shape[1])
        return self.norm(self.word(ids) + self.position(positions) + self.type(0 * ids))


class Mlp(nnx.Module):
    def __init__(self, config: Config, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(config.hidden_size, config.intermediate_size, rngs=rngs)
        self.down = nnx.Linear(config.intermediate_size, config.hidden_size, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.gelu(self.up(x), approximate=False))


class Layer(nnx.Module):
    def __init__(self, config: Config, rngs: nnx.Rngs) -> None:
        self.attention = nnx.MultiHeadAttention(
            config.num_attention_heads, config.hidden_size, decode=False, rngs=rngs
        )
        self.attention_norm = config.norm(rngs)
        self.mlp = Mlp(config, rngs)
        self.mlp_norm = config.norm(rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        x = self.attention_norm(x + self.attention(x, mask=mask[:, None, None, :]))
        return self.mlp_norm(x + self.mlp(x))


class Encoder(nnx.Module):
    def __init__(self, config: Config, rngs: nnx.Rngs) -> None:
        self.embed = Embeddings(config, rngs)
        self.layers = nnx.List([Layer(config, rngs) for _ in range(config.num_hidden_layers)])
        self.pooler = nnx.Linear(config.hidden_size, config.hidden_size, rngs=rngs)

    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns a vector for each token: ``[batch, length, hidden]``."""
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, mask.astype(bool))
        return x


class Classifier(nnx.Module):
    def __init__(self, config: Config, labels: int, rngs: nnx.Rngs) -> None:
        self.bert = Encoder(config, rngs)
        self.classifier = nnx.Linear(config.hidden_size, labels, rngs=rngs)

    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        first = self.bert(ids, mask)[:, 0]
        return self.classifier(jnp.tanh(self.bert.pooler(first)))


def mean_of_tokens(hidden: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns a vector of length 1 for each sentence, as MiniLM was trained to give."""
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    return mean / jnp.linalg.norm(mean, axis=1, keepdims=True)
