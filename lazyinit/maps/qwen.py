"""Qwen: ``QWEN2_TUNIX`` and ``QWEN3_TUNIX`` for google-tunix, ``QWEN_MAXTEXT`` for MaxText.

The first two fit, for a checkpoint of ``Qwen2ForCausalLM`` (2.5 too), and of ``Qwen3ForCausalLM``
or ``Qwen3MoeForCausalLM``, google-tunix's trees::

    embedder/input_embedding   final_norm/w   lm_head/w
    layers/0/{input_layernorm,post_attention_layernorm}/w
    layers/0/attn/{q_proj,k_proj,v_proj,o_proj}/w
    layers/0/attn/{q_bias,k_bias,v_bias} in Qwen 2   layers/0/attn/{q_norm,k_norm}/w in Qwen 3
    layers/0/mlp/{gate_proj,up_proj,down_proj}/kernel
    layers/0/mlp/router/kernel and layers/0/mlp/{gate_proj,up_proj,down_proj} [e, in, out] in MoE

``QWEN_MAXTEXT`` fits, for any of these checkpoints, MaxText's tree without scanned layers::

    token_embedder/embedding   decoder/decoder_norm/scale   decoder/logits_dense/kernel
    decoder/layers_0/{pre,post}_self_attention_layer_norm/scale
    decoder/layers_0/self_attention/{query,key,value,out}/kernel, and biases [h, k]
    decoder/layers_0/self_attention/{query_norm,key_norm}/scale
    decoder/layers_0/mlp/{wi_0,wi_1,wo}/kernel
    decoder/layers_0/moe_block/gate/kernel, decoder/layers_0/moe_block/{wi_0,wi_1,wo} [e, in, out]

MaxText's scanned layers lie along axis 1. The rules for them, with 128 experts in each layer, are
``scanned(counted(QWEN_MAXTEXT, e=128), "model.layers.{n}", "decoder/layers", axis=1)``.
If MaxText's vocabulary is larger, it is padded with zeros: put a rule with ``Pad(0)`` first.

Names: ``transformers/models/{qwen2,qwen3,qwen3_moe}``, 4.57; ``tunix/models/{qwen2,qwen3}``, 0.1.7;
``maxtext/checkpoint_conversion/utils/param_mapping.py``, 0.2.5.
"""

from lazyinit.maps.parts import AXES, HEADS, HEADS_IN, HEADS_OUT, linear, norm, rule
from lazyinit.maps.tunix import GROUPS_OUT, LAYER, TENSORS, decoder, scale
from lazyinit.rules.joins import Stack
from lazyinit.rules.reshape import Rearrange
from lazyinit.rules.rule import AnyRule

QWEN2_TUNIX: tuple[AnyRule, ...] = (
    *decoder(),
    *(
        rule(f"{LAYER}/attn/{name}_bias", f"{TENSORS}.self_attn.{name}_proj.bias")
        for name in ("q", "k", "v")
    ),
)

QWEN3_TUNIX: tuple[AnyRule, ...] = (
    *decoder(),
    *scale(f"{LAYER}/attn/q_norm", f"{TENSORS}.self_attn.q_norm"),
    *scale(f"{LAYER}/attn/k_norm", f"{TENSORS}.self_attn.k_norm"),
    *linear(f"{LAYER}/mlp/router", f"{TENSORS}.mlp.gate"),
    *(
        rule(f"{LAYER}/mlp/{name}", f"{TENSORS}.mlp.experts.{{e}}.{name}.weight", AXES, Stack(0))
        for name in ("gate_proj", "up_proj", "down_proj")
    ),
)

_DECODER = "decoder/layers_{n}"
_ATTENTION, _PROJECTIONS = f"{_DECODER}/self_attention", f"{TENSORS}.self_attn"
_WIDTHS = (("wi_0", "gate_proj"), ("wi_1", "up_proj"), ("wo", "down_proj"))

QWEN_MAXTEXT: tuple[AnyRule, ...] = (
    rule("token_embedder/embedding", "model.embed_tokens.weight"),
    *norm(f"{_DECODER}/pre_self_attention_layer_norm", f"{TENSORS}.input_layernorm"),
    *norm(f"{_DECODER}/post_self_attention_layer_norm", f"{TENSORS}.post_attention_layernorm"),
    rule(f"{_ATTENTION}/query/kernel", f"{_PROJECTIONS}.q_proj.weight", HEADS_OUT),
    rule(f"{_ATTENTION}/query/bias", f"{_PROJECTIONS}.q_proj.bias", HEADS),
    *(
        each
        for name, tensor in (("key", "k_proj"), ("value", "v_proj"))
        for each in (
            rule(f"{_ATTENTION}/{name}/kernel", f"{_PROJECTIONS}.{tensor}.weight", GROUPS_OUT),
            rule(
                f"{_ATTENTION}/{name}/bias",
                f"{_PROJECTIONS}.{tensor}.bias",
                Rearrange("(g k) -> g k"),
            ),
        )
    ),
    rule(f"{_ATTENTION}/out/kernel", f"{_PROJECTIONS}.o_proj.weight", HEADS_IN),
    *norm(f"{_ATTENTION}/query_norm", f"{_PROJECTIONS}.q_norm"),
    *norm(f"{_ATTENTION}/key_norm", f"{_PROJECTIONS}.k_norm"),
    *(
        each
        for name, tensor in _WIDTHS
        for each in linear(f"{_DECODER}/mlp/{name}", f"{TENSORS}.mlp.{tensor}")
    ),
    *linear(f"{_DECODER}/moe_block/gate", f"{TENSORS}.mlp.gate"),
    *(
        rule(
            f"{_DECODER}/moe_block/{name}",
            f"{TENSORS}.mlp.experts.{{e}}.{tensor}.weight",
            AXES,
            Stack(0),
        )
        for name, tensor in _WIDTHS
    ),
    *norm("decoder/decoder_norm", "model.norm"),
    rule("decoder/logits_dense/kernel", "lm_head.weight", AXES),
    rule("decoder/logits_dense/kernel", "model.embed_tokens.weight", AXES, tied=True),
)
