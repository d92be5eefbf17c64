"""Maps for google-tunix's trees: numpy says what becomes of the tensors; PyTorch's classes name them."""

import json

import numpy as np
import pytest
from flax import nnx
from pipelines import assert_equal, filled, values, written
from safetensors.numpy import load_file
from tunix_trees import TREES, D, E, F, G, H, K, Tree, V, X, leaves_of, tensors_of
from with_torch import run_with_torch

import lazyinit as li
from lazyinit import maps
from lazyinit.match.translate import translate
from lazyinit.rules.rule import as_rules
from lazyinit.tensors.memory import open_tree

RULES = {
    "llama": maps.LLAMA_TUNIX,
    "llama tied": maps.LLAMA_TUNIX,
    "qwen2": maps.QWEN2_TUNIX,
    "qwen3": maps.QWEN3_TUNIX,
    "qwen3_moe": maps.QWEN3_TUNIX,
    "gemma": maps.GEMMA_TUNIX,
    "gemma2": maps.GEMMA2_TUNIX,
    "gemma2 fused": maps.GEMMA2_TUNIX,
    "gemma3_text": maps.GEMMA3_TUNIX,
}


def in_order(flat):
    return dict(sorted(flat.items()))


@pytest.mark.parametrize("name", TREES)
def test_a_map_for_tunix_agrees_with_numpy_both_ways(name):
    tensors = tensors_of(name)
    flat = leaves_of(name, tensors)
    leaves, report = filled(flat, tensors, RULES[name])
    assert_equal(in_order(leaves), flat)
    assert report.unexpected == report.missing == report.unused_rules == ()
    assert_equal(in_order(values(written(flat, RULES[name]))), in_order(tensors))


@pytest.mark.parametrize("name", TREES)
def test_it_fits_every_leaf_of_the_model_and_nothing_else_is_there(name):
    _, state = li.lazy(Tree)(TREES[name], rngs=nnx.Rngs(0))
    _, report = li.fill(state, tensors_of(name), RULES[name], on_missing="error")
    assert report.unexpected == ()
    assert sorted(report.loaded) == list(leaves_of(name, tensors_of(name)))


@pytest.mark.parametrize("name", [n for n in TREES if "gemma" not in n])
def test_with_the_number_of_heads_it_needs_no_tree(name):
    tensors = tensors_of(name)
    made = translate(open_tree(tensors), rules=as_rules(maps.sized(RULES[name], h=H, g=G)))
    assert_equal(in_order(values(made)), leaves_of(name, tensors))


def test_the_head_of_a_checkpoint_that_is_tied_is_the_embedding():
    tensors = tensors_of("llama")
    del tensors["lm_head.weight"]
    _, state = li.lazy(Tree)(TREES["llama"], rngs=nnx.Rngs(0))
    state, _ = li.fill(state, tensors, maps.LLAMA_TUNIX, on_missing="error")
    head = li.materialize(state, "lm_head")["lm_head"]["w"].get_value()
    np.testing.assert_array_equal(head, tensors["model.embed_tokens.weight"].T)


def test_gemma_with_vision_goes_by_the_names_of_its_language_model():
    text = {f"language_model.{n}": x for n, x in tensors_of("gemma3_text").items()}
    here, there = "vision_encoder/siglip_encoder", "vision_tower.vision_model"
    block, layer = f"{here}/transformer/blocks/0", f"{there}.encoder.layers.0"
    random = np.random.default_rng(0).standard_normal
    tensors = {
        f"{there}.embeddings.patch_embedding.weight": random((5, 3, 2, 2), "float32"),
        f"{there}.embeddings.patch_embedding.bias": random(5, "float32"),
        f"{there}.embeddings.position_embedding.weight": random((4, 5), "float32"),
        f"{there}.post_layernorm.weight": random(5, "float32"),
        f"{layer}.layer_norm1.bias": random(5, "float32"),
        f"{layer}.self_attn.k_proj.weight": random((5, 5), "float32"),
        f"{layer}.self_attn.out_proj.bias": random(5, "float32"),
        f"{layer}.mlp.fc1.weight": random((7, 5), "float32"),
        "multi_modal_projector.mm_input_projection_weight": random((5, D), "float32"),
        "multi_modal_projector.mm_soft_emb_norm.weight": random(5, "float32"),
    }
    kernel, bias, positions, norm, ln1, key, out, fc1, projection, soft = tensors.values()
    flat = leaves_of("gemma3_text", tensors_of("gemma3_text")) | {
        f"{here}/embedding/kernel": kernel.transpose(2, 3, 1, 0),
        f"{here}/embedding/bias": bias,
        f"{here}/pos_embedding": positions[None],
        f"{here}/transformer/encoder_norm/scale": norm,
        f"{block}/ln1/bias": ln1,
        f"{block}/attn/key_proj/kernel": key.T,
        f"{block}/attn/out_proj/bias": out,
        f"{block}/mlp/fc1/kernel": fc1.T,
        "embedder/mm_input_projection/w": projection,
        "embedder/mm_soft_embedding_norm/scale": soft,
    }
    leaves, report = filled(flat, tensors | text, maps.GEMMA3_VISION_TUNIX)
    assert_equal(in_order(leaves), in_order(flat))
    assert report.unexpected == report.missing == ()
    back = values(written(flat, maps.GEMMA3_VISION_TUNIX))
    assert_equal(in_order(back), in_order(tensors | text))


SAVE = """
import json, sys
import torch, transformers
for name, config, arguments, folder in json.loads(sys.argv[1]):
    torch.manual_seed(0)
    config = getattr(transformers, name.split("For")[0] + config)(**arguments)
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
"""
DECODER = {
    "vocab_size": V,
    "hidden_size": D,
    "intermediate_size": F,
    "num_hidden_layers": 2,
    "num_attention_heads": H,
    "num_key_value_heads": G,
    "head_dim": K,
    "max_position_embeddings": 64,
}
UNTIED = DECODER | {"tie_word_embeddings": False}
MIXED = UNTIED | {"num_experts": E, "num_experts_per_tok": 2, "moe_intermediate_size": X}
CLASSES = {
    "llama": ("LlamaForCausalLM", "Config", UNTIED),
    "llama tied": ("LlamaForCausalLM", "Config", DECODER | {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2ForCausalLM", "Config", UNTIED),
    "qwen3": ("Qwen3ForCausalLM", "Config", DECODER | {"tie_word_embeddings": True}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "Config", MIXED),
    "gemma": ("GemmaForCausalLM", "Config", DECODER),
    "gemma2": ("Gemma2ForCausalLM", "Config", DECODER),
    "gemma2 fused": ("Gemma2ForCausalLM", "Config", DECODER | {"num_key_value_heads": H}),
    "gemma3_text": ("Gemma3ForCausalLM", "TextConfig", DECODER),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each family, written by PyTorch's classes in one process."""
    made = {name: str(tmp_path_factory.mktemp(name.replace(" ", "_"))) for name in CLASSES}
    run_with_torch(SAVE, json.dumps([[*CLASSES[name], folder] for name, folder in made.items()]))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", TREES)
def test_what_pytorch_saves_is_read_and_written_as_numpy_says(name, folders, tmp_path):
    tensors = load_file(f"{folders[name]}/model.safetensors")
    flat = leaves_of(name, tensors)
    leaves, report = filled(flat, tensors, RULES[name])
    assert report.unexpected == report.missing == ()
    assert_equal(in_order(leaves), flat)
    li.save(leaves, tmp_path, rules=RULES[name])
    assert_equal(in_order(load_file(tmp_path / "model.safetensors")), in_order(tensors))
