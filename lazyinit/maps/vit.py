"""ViT: ``VIT`` for ``transformers.FlaxViT*``, ``VIT_NNX`` for a tree with layers in a list.

``VIT_NNX`` fits, for a checkpoint of ``ViTModel`` (strip the prefix ``vit.`` of others)::

    cls_token   position_embeddings   patches (a convolution)
    layers/0/attention_norm   layers/0/attention/{query,key,value,out}
    layers/0/mlp_norm   layers/0/mlp/{up,down}   norm   pooler   classifier

with the kernels of ``nnx.MultiHeadAttention``, ``nnx.Conv``, ``nnx.Linear`` and ``nnx.LayerNorm``.
Names: ``transformers/models/vit/modeling_vit.py``, 4.57.
"""

from lazyinit.maps.parts import CONV, from_heads, heads, linear, norm, rule, same
from lazyinit.rules.renames import Ignore
from lazyinit.rules.rule import AnyRule

VIT: tuple[AnyRule, ...] = (
    *same("**/embeddings/cls_token", "**/embeddings/position_embeddings"),
    *linear("**/patch_embeddings/projection", "**.patch_embeddings.projection", CONV),
    *norm("**/layernorm_before", "**.layernorm_before"),
    *norm("**/layernorm_after", "**.layernorm_after"),
    *norm("**/layernorm", "**.layernorm"),
    *linear("**/attention/query", "**.attention.query"),
    *linear("**/attention/key", "**.attention.key"),
    *linear("**/attention/value", "**.attention.value"),
    *linear("**/dense", "**.dense"),
    *linear("**/classifier", "**.classifier"),
    Ignore("**.embeddings.mask_token"),
)

_LAYER, _TENSORS = "layers/{n}", "encoder.layer.{n}"

VIT_NNX: tuple[AnyRule, ...] = (
    rule("cls_token", "embeddings.cls_token"),
    rule("position_embeddings", "embeddings.position_embeddings"),
    *linear("patches", "embeddings.patch_embeddings.projection", CONV),
    *norm(f"{_LAYER}/attention_norm", f"{_TENSORS}.layernorm_before"),
    *heads(f"{_LAYER}/attention/query", f"{_TENSORS}.attention.attention.query"),
    *heads(f"{_LAYER}/attention/key", f"{_TENSORS}.attention.attention.key"),
    *heads(f"{_LAYER}/attention/value", f"{_TENSORS}.attention.attention.value"),
    *from_heads(f"{_LAYER}/attention/out", f"{_TENSORS}.attention.output.dense"),
    *norm(f"{_LAYER}/mlp_norm", f"{_TENSORS}.layernorm_after"),
    *linear(f"{_LAYER}/mlp/up", f"{_TENSORS}.intermediate.dense"),
    *linear(f"{_LAYER}/mlp/down", f"{_TENSORS}.output.dense"),
    *norm("norm", "layernorm"),
    *linear("pooler", "pooler.dense"),
    *linear("classifier", "classifier"),
    Ignore("embeddings.mask_token"),
)
