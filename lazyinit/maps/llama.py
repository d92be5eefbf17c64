"""Llama and Mistral: ``LLAMA`` for ``transformers.FlaxLlama*`` and ``FlaxMistral*``.

``LLAMA_NNX`` fits, for a checkpoint of ``LlamaForCausalLM`` and any with its names, a tree with
layers in a list, and with any number of key heads::

    embed/embedding   layers/0/attention_norm/scale   layers/0/attention/{query,key,value,out}
    layers/0/mlp_norm/scale   layers/0/mlp/{gate,up,down}   norm/scale   head

with the kernels ``[d, h, k]`` and ``[h, k, d]`` of ``nnx.LinearGeneral``, those of ``nnx.Linear``,
and ``nnx.RMSNorm``.

``LLAMA_TUNIX`` fits google-tunix's ``Llama3``::

    embedder/input_embedding   final_norm/w   lm_head/w
    layers/0/{input_layernorm,post_attention_layernorm}/w
    layers/0/attn/{q_proj,k_proj,v_proj,o_proj}/w
    layers/0/mlp/{gate_proj,up_proj,down_proj}/kernel

Names: ``transformers/models/llama/modeling_llama.py``, 4.57; ``tunix/models/llama3``, 0.1.7.
"""

from lazyinit.maps.parts import AXES, HEADS_IN, HEADS_OUT, embed, linear, norm, rule, same
from lazyinit.maps.tunix import GROUPS_OUT, decoder
from lazyinit.rules.renames import Ignore
from lazyinit.rules.rule import AnyRule

_BUFFERS = (Ignore("**.rotary_emb.inv_freq"),)

LLAMA: tuple[AnyRule, ...] = (
    *embed("**/embed_tokens", "**.embed_tokens"),
    *same("**/input_layernorm/weight", "**/post_attention_layernorm/weight", "**/norm/weight"),
    *linear("**/q_proj", "**.q_proj"),
    *linear("**/k_proj", "**.k_proj"),
    *linear("**/v_proj", "**.v_proj"),
    *linear("**/o_proj", "**.o_proj"),
    *linear("**/gate_proj", "**.gate_proj"),
    *linear("**/up_proj", "**.up_proj"),
    *linear("**/down_proj", "**.down_proj"),
    rule("**/lm_head/kernel", "**.lm_head.weight", AXES),
    rule("**/lm_head/kernel", "**.model.embed_tokens.weight", AXES, tied=True),
    *_BUFFERS,
)

_LAYER, _TENSORS = "layers/{n}", "model.layers.{n}"

LLAMA_NNX: tuple[AnyRule, ...] = (
    *embed("embed", "model.embed_tokens"),
    *norm(f"{_LAYER}/attention_norm", f"{_TENSORS}.input_layernorm"),
    *linear(f"{_LAYER}/attention/query", f"{_TENSORS}.self_attn.q_proj", HEADS_OUT),
    *linear(f"{_LAYER}/attention/key", f"{_TENSORS}.self_attn.k_proj", GROUPS_OUT),
    *linear(f"{_LAYER}/attention/value", f"{_TENSORS}.self_attn.v_proj", GROUPS_OUT),
    *linear(f"{_LAYER}/attention/out", f"{_TENSORS}.self_attn.o_proj", HEADS_IN),
    *norm(f"{_LAYER}/mlp_norm", f"{_TENSORS}.post_attention_layernorm"),
    *linear(f"{_LAYER}/mlp/gate", f"{_TENSORS}.mlp.gate_proj"),
    *linear(f"{_LAYER}/mlp/up", f"{_TENSORS}.mlp.up_proj"),
    *linear(f"{_LAYER}/mlp/down", f"{_TENSORS}.mlp.down_proj"),
    *norm("norm", "model.norm"),
    rule("head/kernel", "lm_head.weight", AXES),
    rule("head/kernel", "model.embed_tokens.weight", AXES, tied=True),
    *_BUFFERS,
)

LLAMA_TUNIX: tuple[AnyRule, ...] = (*decoder(), *_BUFFERS)
