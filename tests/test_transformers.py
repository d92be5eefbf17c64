"""Flax models that other people wrote: tiny configurations of the families in transformers 4.57."""

import os

os.environ["USE_TORCH"] = "0"  # transformers would import it if it is there.

import jax
import jax.numpy as jnp
import pytest
import transformers
from oracles import assert_same, kernel_sharding

import lazyinit as li

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Theirs, about the end of Flax models in version 5.
]

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
SEQ2SEQ = {
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}
CASES = {
    "BertForSequenceClassification": ("Bert", SMALL, (IDS, IDS, IDS, POSITIONS, None)),
    "GPT2LMHeadModel": (
        "GPT2",
        {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32},
        (IDS, IDS, POSITIONS),
    ),
    "T5ForConditionalGeneration": (
        "T5",
        {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
        (IDS, IDS, IDS, IDS),
    ),
    "ViTForImageClassification": ("ViT", VISION, (IMAGE,)),
    "CLIPModel": (
        "CLIP",
        {
            "text_config": SMALL | {"max_position_embeddings": 16},
            "vision_config": VISION,
            "projection_dim": 16,
        },
        (IDS, IMAGE, IDS, POSITIONS),
    ),
    "LlamaForCausalLM": ("Llama", SMALL | {"max_position_embeddings": 32}, (IDS, IDS, POSITIONS)),
    "BartForConditionalGeneration": (
        "Bart",
        SEQ2SEQ | {"max_position_embeddings": 32},
        (IDS, IDS, IDS, IDS, POSITIONS, POSITIONS),
    ),
    "WhisperForConditionalGeneration": (
        "Whisper",
        SEQ2SEQ
        | {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16}
        | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
        (jnp.ones((1, 8, 32)), IDS, IDS, POSITIONS),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_leaf_has_the_bits_of_eager_init(name, monkeypatch):
    clip = jnp.clip

    def clip_as_before(x, *bounds, a_max=None, **kwargs):  # T5 uses the keyword that is gone.
        return clip(x, *bounds, **kwargs) if a_max is None else clip(x, max=a_max)

    monkeypatch.setattr(jnp, "clip", clip_as_before)
    family, config, inputs = CASES[name]
    config = getattr(transformers, f"{family}Config")(**config)
    module = getattr(transformers, f"Flax{name}")(config, _do_init=False).module
    key = jax.random.key(0)
    eager = module.init(key, *inputs)
    tree = li.lazy(module).init(key, *inputs)
    assert_same(li.materialize(tree), eager)
    mesh = jax.make_mesh((2, 4), ("x", "y"))
    assert_same(li.materialize(tree, sharding=kernel_sharding(mesh)), eager)
