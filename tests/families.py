"""Tiny configurations of the families that there are maps for, and what their modules take."""

import os

os.environ.setdefault("USE_TORCH", "0")  # transformers would import it if it is there.

import functools

import jax
import jax.numpy as jnp
import numpy as np

import lazyinit as li
from lazyinit import maps

IDS = jnp.ones((1, 8), jnp.int32)
POSITIONS = jnp.arange(8)[None]
IMAGE = jnp.ones((1, 32, 32, 3))
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
VISION = {k: v for k, v in SMALL.items() if k != "vocab_size"} | {"image_size": 32, "patch_size": 8}
DECODER = SMALL | {"num_key_value_heads": 2, "max_position_embeddings": 32}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
GATED = T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
CLIP = {
    "text_config": SMALL | {"max_position_embeddings": 16},
    "vision_config": VISION,
    "projection_dim": 16,
}
BERT_INPUTS = (IDS, IDS, IDS, POSITIONS, None)
# By the name of the class, less Flax, and what is special: the config's class, its arguments, the inputs, the rules.
FAMILIES = {
    "BertModel": ("Bert", SMALL, BERT_INPUTS, maps.BERT),
    "BertForPreTraining": ("Bert", SMALL, BERT_INPUTS, maps.BERT),
    "BertForMaskedLM": ("Bert", SMALL | {"tie_word_embeddings": False}, BERT_INPUTS, maps.BERT),
    "BertForQuestionAnswering": ("Bert", SMALL, BERT_INPUTS, maps.BERT),
    "BertForSequenceClassification": ("Bert", SMALL, BERT_INPUTS, maps.BERT),
    "GPT2LMHeadModel": ("GPT2", GPT2, (IDS, IDS, POSITIONS), maps.GPT2),
    "LlamaForCausalLM": ("Llama", DECODER, (IDS, IDS, POSITIONS), maps.LLAMA),
    "MistralForCausalLM": ("Mistral", DECODER, (IDS, IDS, POSITIONS), maps.LLAMA),
    "T5ForConditionalGeneration": ("T5", T5, (IDS,) * 4, maps.T5),
    "T5ForConditionalGeneration gated": ("T5", GATED, (IDS,) * 4, maps.T5),
    "ViTModel": ("ViT", VISION, (IMAGE,), maps.VIT),
    "ViTForImageClassification": ("ViT", VISION, (IMAGE,), maps.VIT),
    "CLIPModel": ("CLIP", CLIP, (IDS, IMAGE, IDS, POSITIONS), maps.CLIP),
}


def clip_as_before(clip):
    """Returns ``jnp.clip`` with the keyword that is gone, and that T5 uses."""

    def before(x, *bounds, a_max=None, **kwargs):
        return clip(x, *bounds, **kwargs) if a_max is None else clip(x, max=a_max)

    return before


def config_of(name):
    import transformers

    family, arguments, _, _ = FAMILIES[name]
    return getattr(transformers, f"{family}Config")(**arguments)


def module_of(name):
    import transformers

    return getattr(transformers, f"Flax{name.split()[0]}")(config_of(name), _do_init=False).module


@functools.cache
def params_of(name):
    """Returns the parameters of a family by path: the right shapes, random values, nothing run."""
    clip = jnp.clip
    jnp.clip = clip_as_before(clip)
    try:
        tree = li.lazy(module_of(name)).init(jax.random.key(0), *FAMILIES[name][2])
    finally:
        jnp.clip = clip
    leaves = jax.tree_util.tree_leaves_with_path(tree["params"])
    random = np.random.default_rng(0)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): random.standard_normal(
            leaf.shape, "float32"
        )
        for path, leaf in leaves
    }
