"""Ready maps against Flax's own conversion, both ways, and against what the models then compute."""

import os

os.environ.setdefault("USE_TORCH", "0")  # transformers would import it if it is there.

from types import SimpleNamespace

import numpy as np
import pytest
from families import FAMILIES, params_of
from flax.traverse_util import flatten_dict, unflatten_dict
from pipelines import assert_equal, filled, values, written

import lazyinit as li
from lazyinit import maps
from lazyinit.match.translate import translate
from lazyinit.patterns import pattern
from lazyinit.rules.rule import as_rules
from lazyinit.tensors.memory import open_tree

pytestmark = pytest.mark.filterwarnings("ignore")  # Theirs, about the end of Flax models.


def converted(name, tensors):
    """Returns what transformers' own conversion to Flax makes of tensors, by path."""
    import transformers
    from transformers.modeling_flax_pytorch_utils import convert_pytorch_state_dict_to_flax

    prefix = getattr(transformers, f"Flax{name.split()[0]}").base_model_prefix
    params = unflatten_dict({tuple(path.split("/")): x for path, x in params_of(name).items()})
    model = SimpleNamespace(params=params, base_model_prefix=prefix)
    made = flatten_dict(convert_pytorch_state_dict_to_flax(dict(tensors), model))
    return {"/".join(path): np.asarray(x) for path, x in made.items()}


def in_order(flat):
    return dict(sorted(flat.items()))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_map_agrees_with_the_conversion_of_transformers_both_ways(name):
    params, rules = params_of(name), FAMILIES[name][3]
    tensors = values(written(params, rules))
    assert all("." in tensor or tensor == "logit_scale" for tensor in tensors)
    assert_equal(in_order(converted(name, tensors)), in_order(params))
    flat = {f"params/{path}": x for path, x in params.items()}
    leaves, report = filled(flat, tensors, rules)
    assert_equal(in_order(leaves), in_order(flat))
    assert report.unexpected == report.missing == report.unused_rules == ()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_map_says_what_becomes_of_every_tensor_without_a_tree(name):
    params, rules = params_of(name), FAMILIES[name][3]
    made = translate(open_tree(values(written(params, rules))), rules=as_rules(rules))
    assert_equal(in_order(values(made)), in_order(params))


@pytest.mark.parametrize("name", FAMILIES)
def test_no_leaf_goes_by_a_name_that_its_map_does_not_say(name):
    rules = FAMILIES[name][3]
    fits = [pattern(leaf) for r in rules if isinstance(r, li.Rule) for leaf in r.leaves]
    assert [p for p in params_of(name) if not any(f.match(p) for f in fits)] == []


# Buffers and ties.


@pytest.mark.parametrize(
    ("rules", "buffers"),
    [
        (maps.BERT, ["bert.embeddings.position_ids", "cls.predictions.decoder.bias"]),
        (maps.GPT2, ["transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias"]),
        (maps.GPT2, ["lm_head.weight", "h.1.crossattention.masked_bias"]),
        (maps.LLAMA, ["model.layers.0.self_attn.rotary_emb.inv_freq"]),
        (maps.T5, ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]),
        (maps.VIT, ["vit.embeddings.mask_token"]),
        (maps.CLIP, ["text_model.embeddings.position_ids"]),
    ],
)
def test_buffers_and_copies_are_not_unexpected(rules, buffers):
    tensors = {name: np.ones(2, "float32") for name in buffers}
    _, report = li.fill({"x": np.ones(2)}, {"x": np.ones(2), **tensors}, rules)
    assert report.unexpected == ()


@pytest.mark.parametrize(
    ("rules", "head", "embedding"),
    [
        (maps.LLAMA, "lm_head/kernel", "model.embed_tokens.weight"),
        (maps.LLAMA_NNX, "head/kernel", "model.embed_tokens.weight"),
        (maps.GPT2, "lm_head/kernel", "transformer.wte.weight"),
        (maps.BERT, "cls/predictions/decoder/kernel", "bert.embeddings.word_embeddings.weight"),
    ],
)
def test_a_head_that_is_tied_in_the_checkpoint_is_filled_from_the_embedding(rules, head, embedding):
    table = np.arange(6, dtype="float32").reshape(3, 2)
    leaves, _ = filled({head: table.T}, {embedding: table}, rules)
    assert_equal(leaves, {head: table.T})


def test_norms_of_checkpoints_from_tensorflow_are_known():
    flat = {"LayerNorm/scale": np.ones(2, "float32"), "LayerNorm/bias": np.zeros(2, "float32")}
    tensors = {"LayerNorm.gamma": np.ones(2, "float32"), "LayerNorm.beta": np.zeros(2, "float32")}
    assert_equal(in_order(filled(flat, tensors, maps.BERT)[0]), in_order(flat))
