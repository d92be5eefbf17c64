"""Gemma: for google-tunix's ``Gemma``, ``GEMMA_TUNIX`` and ``GEMMA2_TUNIX``, and its ``Gemma3``.

``GEMMA_TUNIX``, ``GEMMA2_TUNIX`` and ``GEMMA3_TUNIX`` fit, for a checkpoint of
``GemmaForCausalLM``, ``Gemma2ForCausalLM`` and ``Gemma3ForCausalLM``, and ``GEMMA3_VISION_TUNIX``
for one of ``Gemma3ForConditionalGeneration``, google-tunix's trees::

    embedder/input_embedding   final_norm/scale
    layers/0/{pre_attention_norm,pre_ffw_norm}/scale   layers/0/post_ffw_norm/scale from Gemma 2 on
    layers/0/post_attn_norm/scale in Gemma 2, layers/0/post_attention_norm/scale in Gemma 3
    layers/0/attn/attn_vec_einsum/w [h, k, d]
    layers/0/attn/q_einsum/w [h, d, k]   layers/0/attn/kv_einsum/w [2, g, d, k]
    layers/0/attn/qkv_einsum/w [3, h, d, k] instead, if no heads share keys
    layers/0/attn/{_query_norm,_key_norm}/scale in Gemma 3
    layers/0/mlp/{gate_proj,up_proj,down_proj}/kernel
    vision_encoder/siglip_encoder/...   embedder/{mm_input_projection,mm_soft_embedding_norm}

Names: ``transformers/models/{gemma,gemma2,gemma3}``, 4.57; ``tunix/models/{gemma,gemma3}``, 0.1.7.
"""

from lazyinit.maps.parts import CONV, HEADS_IN, linear, norm, rule
from lazyinit.maps.tunix import LAYER, gated
from lazyinit.rules.joins import Stack
from lazyinit.rules.renames import Ignore
from lazyinit.rules.reshape import Rearrange
from lazyinit.rules.rule import AnyRule, Rule

_QUERY = Rearrange("(h k) i -> h i k")
_GROUPS = Rearrange("(g k) i -> g i k")


# From Gemma 2 on there are norms after a block, too.
_NORMS = (
    ("pre_attention_norm", "input_layernorm"),
    ("pre_ffw_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
)
_FIRST_NORMS = (
    ("pre_attention_norm", "input_layernorm"),
    ("pre_ffw_norm", "post_attention_layernorm"),
)


def _decoder(model: str, norms: tuple[tuple[str, str], ...]) -> tuple[Rule, ...]:
    tensors = f"{model}.layers.{{n}}"
    here, there = f"{LAYER}/attn", f"{tensors}.self_attn"
    q, k, v = (f"{there}.{name}_proj.weight" for name in "qkv")
    return (
        rule("embedder/input_embedding", f"{model}.embed_tokens.weight"),
        rule(f"{here}/q_einsum/w", q, _QUERY),
        rule(f"{here}/kv_einsum/w", (k, v), _GROUPS, Stack(0)),
        rule(f"{here}/qkv_einsum/w", (q, k, v), _QUERY, Stack(0)),
        rule(f"{here}/attn_vec_einsum/w", f"{there}.o_proj.weight", HEADS_IN),
        *(r for leaf, tensor in norms for r in norm(f"{LAYER}/{leaf}", f"{tensors}.{tensor}")),
        *norm(f"{here}/_query_norm", f"{there}.q_norm"),
        *norm(f"{here}/_key_norm", f"{there}.k_norm"),
        *gated(LAYER, tensors),
        *norm("final_norm", f"{model}.norm"),
    )


def _vision() -> tuple[Rule, ...]:
    here, there = "vision_encoder/siglip_encoder", "vision_tower.vision_model"
    block, layer = f"{here}/transformer/blocks/{{n}}", f"{there}.encoder.layers.{{n}}"
    projections = (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out"))
    return (
        *linear(f"{here}/embedding", f"{there}.embeddings.patch_embedding", CONV),
        rule(
            f"{here}/pos_embedding",
            f"{there}.embeddings.position_embedding.weight",
            Rearrange("n d -> 1 n d"),
        ),
        *norm(f"{block}/ln1", f"{layer}.layer_norm1"),
        *norm(f"{block}/ln2", f"{layer}.layer_norm2"),
        *(
            each
            for name, tensor in projections
            for each in linear(f"{block}/attn/{name}_proj", f"{layer}.self_attn.{tensor}_proj")
        ),
        *linear(f"{block}/mlp/fc1", f"{layer}.mlp.fc1"),
        *linear(f"{block}/mlp/fc2", f"{layer}.mlp.fc2"),
        *norm(f"{here}/transformer/encoder_norm", f"{there}.post_layernorm"),
        rule("embedder/mm_input_projection/w", "multi_modal_projector.mm_input_projection_weight"),
        *norm("embedder/mm_soft_embedding_norm", "multi_modal_projector.mm_soft_emb_norm"),
    )


_GEMMA3_NORMS = (*_NORMS, ("post_attention_norm", "post_attention_layernorm"))

# The head is always the embedding.
GEMMA_TUNIX: tuple[AnyRule, ...] = (
    *_decoder("model", _FIRST_NORMS),
    Ignore("lm_head.weight"),
)

GEMMA2_TUNIX: tuple[AnyRule, ...] = (
    *_decoder("model", (*_NORMS, ("post_attn_norm", "post_attention_layernorm"))),
    Ignore("lm_head.weight"),
)

GEMMA3_TUNIX: tuple[AnyRule, ...] = (
    *_decoder("model", _GEMMA3_NORMS),
    Ignore("lm_head.weight"),
)

GEMMA3_VISION_TUNIX: tuple[AnyRule, ...] = (
    *_decoder("language_model.model", _GEMMA3_NORMS),
    *_vision(),
    Ignore("language_model.lm_head.weight"),
)
