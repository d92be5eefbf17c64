"""BERT: ``BERT`` for ``transformers.FlaxBert*``, ``BERT_NNX`` for a tree with layers in a list.

``BERT_NNX`` fits, for a checkpoint of ``BertModel`` (strip the prefix ``bert.`` of others)::

    embed/{word,position,type}/embedding   embed/norm
    layers/0/attention/{query,key,value,out}   layers/0/attention_norm
    layers/0/mlp/{up,down}   layers/0/mlp_norm   pooler

with the kernels of ``nnx.MultiHeadAttention``, ``nnx.Linear`` and ``nnx.LayerNorm``.
Names: ``transformers/models/bert/modeling_bert.py``, 4.57.
"""

from lazyinit.maps.parts import AXES, embed, from_heads, heads, linear, norm, rule, same
from lazyinit.rules.renames import Ignore
from lazyinit.rules.rule import AnyRule

BERT: tuple[AnyRule, ...] = (
    *embed("**/word_embeddings", "**.word_embeddings"),
    *embed("**/position_embeddings", "**.position_embeddings"),
    *embed("**/token_type_embeddings", "**.token_type_embeddings"),
    *norm("**/LayerNorm", "**.LayerNorm"),
    # Checkpoints that were converted from TensorFlow have these names.
    rule("**/LayerNorm/scale", "**.LayerNorm.gamma"),
    rule("**/LayerNorm/bias", "**.LayerNorm.beta"),
    *linear("**/self/query", "**.self.query"),
    *linear("**/self/key", "**.self.key"),
    *linear("**/self/value", "**.self.value"),
    *linear("**/dense", "**.dense"),
    *same("**/cls/predictions/bias"),
    rule("**/cls/predictions/decoder/kernel", "**.cls.predictions.decoder.weight", AXES),
    rule(
        "**/cls/predictions/decoder/kernel",
        "**.bert.embeddings.word_embeddings.weight",
        AXES,
        tied=True,
    ),
    *linear("**/cls/seq_relationship", "**.cls.seq_relationship"),
    *linear("**/classifier", "**.classifier"),
    *linear("**/qa_outputs", "**.qa_outputs"),
    Ignore("**.position_ids"),
    Ignore("**.token_type_ids"),
    Ignore("**.cls.predictions.decoder.weight"),
    Ignore("**.cls.predictions.decoder.bias"),  # It equals cls.predictions.bias.
)

_LAYER, _TENSORS = "layers/{n}", "encoder.layer.{n}"

BERT_NNX: tuple[AnyRule, ...] = (
    *embed("embed/word", "embeddings.word_embeddings"),
    *embed("embed/position", "embeddings.position_embeddings"),
    *embed("embed/type", "embeddings.token_type_embeddings"),
    *norm("embed/norm", "embeddings.LayerNorm"),
    *heads(f"{_LAYER}/attention/query", f"{_TENSORS}.attention.self.query"),
    *heads(f"{_LAYER}/attention/key", f"{_TENSORS}.attention.self.key"),
    *heads(f"{_LAYER}/attention/value", f"{_TENSORS}.attention.self.value"),
    *from_heads(f"{_LAYER}/attention/out", f"{_TENSORS}.attention.output.dense"),
    *norm(f"{_LAYER}/attention_norm", f"{_TENSORS}.attention.output.LayerNorm"),
    *linear(f"{_LAYER}/mlp/up", f"{_TENSORS}.intermediate.dense"),
    *linear(f"{_LAYER}/mlp/down", f"{_TENSORS}.output.dense"),
    *norm(f"{_LAYER}/mlp_norm", f"{_TENSORS}.output.LayerNorm"),
    *linear("pooler", "pooler.dense"),
    Ignore("**.position_ids"),
)
