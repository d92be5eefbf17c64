"""CLIP: ``CLIP`` for ``transformers.FlaxCLIP*``, ``CLIP_NNX`` for a tree with layers in lists.

``CLIP_NNX`` fits, for a checkpoint of ``CLIPModel``::

    text/{embed,positions}/embedding   text/norm
    vision/class_embedding   vision/patches (a convolution)   vision/positions/embedding
    vision/{pre_norm,norm}
    {text,vision}/layers/0/attention_norm   {text,vision}/layers/0/attention/{query,key,value,out}
    {text,vision}/layers/0/mlp_norm   {text,vision}/layers/0/mlp/{up,down}
    text_projection   visual_projection   logit_scale

with the kernels of ``nnx.MultiHeadAttention``, ``nnx.Conv``, ``nnx.Linear`` and ``nnx.LayerNorm``.
Names: ``transformers/models/clip/modeling_clip.py``, 4.57.
"""

from lazyinit.maps.parts import CONV, embed, from_heads, heads, linear, norm, rule, same
from lazyinit.rules.renames import Ignore
from lazyinit.rules.rule import AnyRule

CLIP: tuple[AnyRule, ...] = (
    *same("**/logit_scale", "**/class_embedding"),
    *embed("**/token_embedding", "**.token_embedding"),
    *embed("**/position_embedding", "**.position_embedding"),
    *linear("**/patch_embedding", "**.patch_embedding", CONV),
    *norm("**/layer_norm1", "**.layer_norm1"),
    *norm("**/layer_norm2", "**.layer_norm2"),
    *norm("**/final_layer_norm", "**.final_layer_norm"),
    *norm("**/pre_layrnorm", "**.pre_layrnorm"),  # transformers spells it so.
    *norm("**/post_layernorm", "**.post_layernorm"),
    *linear("**/q_proj", "**.q_proj"),
    *linear("**/k_proj", "**.k_proj"),
    *linear("**/v_proj", "**.v_proj"),
    *linear("**/out_proj", "**.out_proj"),
    *linear("**/fc1", "**.fc1"),
    *linear("**/fc2", "**.fc2"),
    *linear("**/text_projection", "**.text_projection"),
    *linear("**/visual_projection", "**.visual_projection"),
    Ignore("**.position_ids"),
)


def _layers(side: str) -> tuple[AnyRule, ...]:
    layer, tensors = f"{side}/layers/{{n}}", f"{side}_model.encoder.layers.{{n}}"
    return (
        *norm(f"{layer}/attention_norm", f"{tensors}.layer_norm1"),
        *heads(f"{layer}/attention/query", f"{tensors}.self_attn.q_proj"),
        *heads(f"{layer}/attention/key", f"{tensors}.self_attn.k_proj"),
        *heads(f"{layer}/attention/value", f"{tensors}.self_attn.v_proj"),
        *from_heads(f"{layer}/attention/out", f"{tensors}.self_attn.out_proj"),
        *norm(f"{layer}/mlp_norm", f"{tensors}.layer_norm2"),
        *linear(f"{layer}/mlp/up", f"{tensors}.mlp.fc1"),
        *linear(f"{layer}/mlp/down", f"{tensors}.mlp.fc2"),
    )


CLIP_NNX: tuple[AnyRule, ...] = (
    *embed("text/embed", "text_model.embeddings.token_embedding"),
    *embed("text/positions", "text_model.embeddings.position_embedding"),
    *_layers("text"),
    *norm("text/norm", "text_model.final_layer_norm"),
    rule("vision/class_embedding", "vision_model.embeddings.class_embedding"),
    *linear("vision/patches", "vision_model.embeddings.patch_embedding", CONV),
    *embed("vision/positions", "vision_model.embeddings.position_embedding"),
    *norm("vision/pre_norm", "vision_model.pre_layrnorm"),
    *_layers("vision"),
    *norm("vision/norm", "vision_model.post_layernorm"),
    *linear("text_projection", "text_projection"),
    *linear("visual_projection", "visual_projection"),
    rule("logit_scale", "logit_scale"),
    Ignore("**.position_ids"),
)
