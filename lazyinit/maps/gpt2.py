"""GPT-2: ``GPT2`` for ``transformers.FlaxGPT2*``, ``GPT2_NNX`` for a tree with layers in a list.

Flax's ``FlaxConv1D`` keeps its kernel ``[out, in]``, PyTorch's ``Conv1D`` ``[in, out]``.

``GPT2_NNX`` fits, for a checkpoint of ``GPT2Model`` (strip the prefix ``transformer.`` of others)::

    embed/embedding   positions/embedding
    layers/0/attention_norm   layers/0/attention/{query,key,value,out}
    layers/0/mlp_norm   layers/0/mlp/{up,down}   norm

with the kernels of ``nnx.MultiHeadAttention``, ``nnx.Linear`` and ``nnx.LayerNorm``.
Names: ``transformers/models/gpt2/modeling_gpt2.py``, 4.57.
"""

from lazyinit.maps.parts import AXES, embed, fused_heads, linear, norm, rule
from lazyinit.rules.layout import Transpose
from lazyinit.rules.renames import Ignore
from lazyinit.rules.reshape import Rearrange
from lazyinit.rules.rule import AnyRule

_BUFFERS = (Ignore("**.attn.bias"), Ignore("**.attn.masked_bias"))

GPT2: tuple[AnyRule, ...] = (
    *embed("**/wte", "**.wte"),
    *embed("**/wpe", "**.wpe"),
    *norm("**/ln_1", "**.ln_1"),
    *norm("**/ln_2", "**.ln_2"),
    *norm("**/ln_cross_attn", "**.ln_cross_attn"),
    *norm("**/ln_f", "**.ln_f"),
    *linear("**/c_attn", "**.c_attn"),
    *linear("**/q_attn", "**.q_attn"),
    *linear("**/c_proj", "**.c_proj"),
    *linear("**/c_fc", "**.c_fc"),
    rule("**/lm_head/kernel", "**.lm_head.weight", AXES),
    rule("**/lm_head/kernel", "**.transformer.wte.weight", AXES, tied=True),
    Ignore("**.lm_head.weight"),  # It equals wte, unless the model has a head of its own.
    *_BUFFERS,
    Ignore("**.crossattention.bias"),
    Ignore("**.crossattention.masked_bias"),
)

_LAYER, _TENSORS = "layers/{n}", "h.{n}"
_AS_IT_IS = Transpose("i o -> i o")

GPT2_NNX: tuple[AnyRule, ...] = (
    *embed("embed", "wte"),
    *embed("positions", "wpe"),
    *norm(f"{_LAYER}/attention_norm", f"{_TENSORS}.ln_1"),
    *fused_heads(
        tuple(f"{_LAYER}/attention/{name}" for name in ("query", "key", "value")),
        f"{_TENSORS}.attn.c_attn",
    ),
    *linear(f"{_LAYER}/attention/out", f"{_TENSORS}.attn.c_proj", Rearrange("(h k) o -> h k o")),
    *norm(f"{_LAYER}/mlp_norm", f"{_TENSORS}.ln_2"),
    *linear(f"{_LAYER}/mlp/up", f"{_TENSORS}.mlp.c_fc", _AS_IT_IS),
    *linear(f"{_LAYER}/mlp/down", f"{_TENSORS}.mlp.c_proj", _AS_IT_IS),
    *norm("norm", "ln_f"),
    Ignore("lm_head.weight"),
    *_BUFFERS,
)
