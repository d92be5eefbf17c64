"""T5: ``T5`` for ``transformers.FlaxT5*``, ``T5_NNX`` for a tree with layers in lists.

``T5_NNX`` fits, for a checkpoint of ``T5ForConditionalGeneration`` (1.0 and 1.1)::

    shared/embedding   head
    {encoder,decoder}/relative_bias/embedding   {encoder,decoder}/norm/scale
    {encoder,decoder}/layers/0/{attention_norm,mlp_norm}/scale
    {encoder,decoder}/layers/0/attention/{query,key,value,out}
    {encoder,decoder}/layers/0/mlp/{up,down}, or {gate,linear,down} in 1.1
    decoder/layers/0/cross_attention_norm/scale   decoder/layers/0/cross_attention/...

with the kernels ``[d, h, k]`` and ``[h, k, d]`` of ``nnx.LinearGeneral``, those of ``nnx.Linear``,
and ``nnx.RMSNorm``.
Names: ``transformers/models/t5/modeling_t5.py``, 4.57.
"""

from lazyinit.maps.parts import AXES, HEADS_IN, HEADS_OUT, embed, linear, norm, rule, same
from lazyinit.rules.renames import Ignore
from lazyinit.rules.rule import AnyRule

_TIED = (
    rule("**/shared/embedding", "**.encoder.embed_tokens.weight", tied=True),
    Ignore("**.encoder.embed_tokens.weight"),
    Ignore("**.decoder.embed_tokens.weight"),
    # Checkpoints of the first release have this tensor, which no model uses.
    Ignore("**.EncDecAttention.relative_attention_bias.weight"),
)

T5: tuple[AnyRule, ...] = (
    *embed("**/shared", "**.shared"),
    *embed("**/SelfAttention/relative_attention_bias", "**.SelfAttention.relative_attention_bias"),
    *same("**/layer_norm/weight", "**/final_layer_norm/weight"),
    *(
        rule(f"**/{attention}/{name}/kernel", f"**.{attention}.{name}.weight", AXES)
        for attention in ("SelfAttention", "EncDecAttention")
        for name in "qkvo"
    ),
    *(
        rule(f"**/DenseReluDense/{name}/kernel", f"**.DenseReluDense.{name}.weight", AXES)
        for name in ("wi", "wi_0", "wi_1", "wo")
    ),
    rule("**/lm_head/kernel", "**.lm_head.weight", AXES),
    *_TIED,
)


def _attention(leaf: str, tensor: str) -> tuple[AnyRule, ...]:
    return (
        *linear(f"{leaf}/query", f"{tensor}.q", HEADS_OUT),
        *linear(f"{leaf}/key", f"{tensor}.k", HEADS_OUT),
        *linear(f"{leaf}/value", f"{tensor}.v", HEADS_OUT),
        *linear(f"{leaf}/out", f"{tensor}.o", HEADS_IN),
    )


def _stack(side: str, mlp: int) -> tuple[AnyRule, ...]:
    layer, tensors = f"{side}/layers/{{n}}", f"{side}.block.{{n}}.layer"
    return (
        *embed(
            f"{side}/relative_bias", f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias"
        ),
        *norm(f"{layer}/attention_norm", f"{tensors}.0.layer_norm"),
        *_attention(f"{layer}/attention", f"{tensors}.0.SelfAttention"),
        *norm(f"{layer}/mlp_norm", f"{tensors}.{mlp}.layer_norm"),
        rule(f"{layer}/mlp/up/kernel", f"{tensors}.{mlp}.DenseReluDense.wi.weight", AXES),
        rule(f"{layer}/mlp/gate/kernel", f"{tensors}.{mlp}.DenseReluDense.wi_0.weight", AXES),
        rule(f"{layer}/mlp/linear/kernel", f"{tensors}.{mlp}.DenseReluDense.wi_1.weight", AXES),
        rule(f"{layer}/mlp/down/kernel", f"{tensors}.{mlp}.DenseReluDense.wo.weight", AXES),
        *norm(f"{side}/norm", f"{side}.final_layer_norm"),
    )


T5_NNX: tuple[AnyRule, ...] = (
    *embed("shared", "shared"),
    *_stack("encoder", 1),
    *_stack("decoder", 2),
    *norm("decoder/layers/{n}/cross_attention_norm", "decoder.block.{n}.layer.1.layer_norm"),
    *_attention("decoder/layers/{n}/cross_attention", "decoder.block.{n}.layer.1.EncDecAttention"),
    rule("head/kernel", "lm_head.weight", AXES),
    *_TIED,
)
