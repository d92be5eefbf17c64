"""Maps for trees with layers in lists: numpy says what becomes of Flax's parameters."""

import os

os.environ.setdefault("USE_TORCH", "0")  # transformers would import it if it is there.

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import FAMILIES, module_of, params_of
from flax import nnx
from flax.traverse_util import unflatten_dict
from list_trees import LISTS
from pipelines import assert_equal, filled, values, written

import lazyinit as li
from lazyinit import maps
from lazyinit.match.translate import translate
from lazyinit.rules.rule import as_rules
from lazyinit.tensors.memory import open_tree

pytestmark = pytest.mark.filterwarnings("ignore")  # Theirs, about the end of Flax models.


def in_order(flat):
    return dict(sorted(flat.items()))


@pytest.mark.parametrize("name", LISTS)
def test_a_map_for_layers_in_lists_agrees_with_numpy_both_ways(name):
    rules, tree_of, prefix = LISTS[name]
    tensors = values(written(params_of(name), FAMILIES[name][3]))
    flat = tree_of(params_of(name))
    assert sum(x.size for x in flat.values()) == sum(x.size for x in params_of(name).values())
    if prefix:
        rules = (li.strip_prefix(prefix), *rules)
    leaves, report = filled(flat, tensors, rules)
    assert_equal(in_order(leaves), in_order(flat))
    assert report.unexpected == report.missing == report.unused_rules == ()
    assert_equal(in_order(values(written(flat, rules))), in_order(tensors))


@pytest.mark.parametrize("name", LISTS)
def test_with_the_number_of_heads_it_needs_no_tree(name):
    rules, tree_of, prefix = LISTS[name]
    rules = maps.sized((li.strip_prefix(prefix), *rules) if prefix else rules, h=4, g=2)
    tensors = values(written(params_of(name), FAMILIES[name][3]))
    made = translate(open_tree(tensors), rules=as_rules(rules))
    assert_equal(in_order(values(made)), in_order(tree_of(params_of(name))))


class Encoder(nnx.Module):
    """BERT of nnx modules, as transformers computes it; attention masks and dropout left out."""

    class Embed(nnx.Module):
        def __init__(self, rngs):
            self.word = nnx.Embed(64, 32, rngs=rngs)
            self.position = nnx.Embed(512, 32, rngs=rngs)
            self.type = nnx.Embed(2, 32, rngs=rngs)
            self.norm = nnx.LayerNorm(32, epsilon=1e-12, rngs=rngs)

    class Mlp(nnx.Module):
        def __init__(self, rngs):
            self.up = nnx.Linear(32, 64, rngs=rngs)
            self.down = nnx.Linear(64, 32, rngs=rngs)

    class Layer(nnx.Module):
        def __init__(self, rngs):
            self.attention = nnx.MultiHeadAttention(4, 32, decode=False, rngs=rngs)
            self.attention_norm = nnx.LayerNorm(32, epsilon=1e-12, rngs=rngs)
            self.mlp = Encoder.Mlp(rngs)
            self.mlp_norm = nnx.LayerNorm(32, epsilon=1e-12, rngs=rngs)

    def __init__(self, rngs):
        self.embed = Encoder.Embed(rngs)
        self.layers = nnx.List([Encoder.Layer(rngs) for _ in range(2)])
        self.pooler = nnx.Linear(32, 32, rngs=rngs)

    def __call__(self, ids):
        x = self.embed.word(ids) + self.embed.position(jnp.arange(ids.shape[1])[None])
        x = self.embed.norm(x + self.embed.type(jnp.zeros_like(ids)))
        for layer in self.layers:
            x = layer.attention_norm(x + layer.attention(x))
            up = jax.nn.gelu(layer.mlp.up(x), approximate=False)
            x = layer.mlp_norm(x + layer.mlp.down(up))
        return x, jnp.tanh(self.pooler(x[:, 0]))


def test_an_nnx_encoder_computes_what_flax_bert_computes():
    params = params_of("BertModel")
    tensors = values(written(params, maps.BERT))
    graphdef, state = li.lazy(Encoder)(rngs=nnx.Rngs(0))
    state, report = li.fill(state, tensors, maps.BERT_NNX, on_missing="error")
    assert report.unexpected == ()
    ids = np.random.default_rng(0).integers(0, 64, (2, 8))
    hidden, pooled = nnx.merge(graphdef, li.materialize(state))(ids)
    nested = unflatten_dict({tuple(path.split("/")): x for path, x in params.items()})
    ones = np.ones_like(ids)
    expected = module_of("BertModel").apply(
        {"params": nested}, ids, ones, 0 * ids, np.arange(8)[None], None
    )
    np.testing.assert_allclose(hidden, expected[0], atol=1e-4)
    np.testing.assert_allclose(pooled, expected[1], atol=1e-4)
