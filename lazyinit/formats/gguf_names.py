"""Gives tensors of a GGUF file the names, and the order of rotary elements, of ``transformers``.

llama.cpp gives tensors names of its own. For Llama it also interleaves the two halves of each
head's queries and keys, which the rotary embedding turns together; here one half follows the other
again. It stacks experts; here each expert is a tensor of its own again.

Names: ``gguf/constants.py`` and ``gguf/tensor_mapping.py`` of the package gguf, 0.19; order:
``permute`` in llama.cpp's ``convert_hf_to_gguf.py``, for ``LlamaModel``.
"""

from collections.abc import Iterator
from dataclasses import replace

from lazyinit import errors
from lazyinit.patterns import pattern, slashed
from lazyinit.sources import Source
from lazyinit.tensors.base import Checkpoint
from lazyinit.tensors.views import reshaped, selected, transposed

ARCHITECTURE = "general.architecture"
MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3moe": "qwen3_moe"}
"""The ``model_type`` of ``config.json`` for each architecture whose names are known."""

_LAYER = "model.layers.{n}"
_NAMES = {
    "token_embd.*": "model.embed_tokens.*",
    "output_norm.*": "model.norm.*",
    "output.*": "lm_head.*",
    "blk.{n}.attn_norm.*": f"{_LAYER}.input_layernorm.*",
    "blk.{n}.attn_q.*": f"{_LAYER}.self_attn.q_proj.*",
    "blk.{n}.attn_k.*": f"{_LAYER}.self_attn.k_proj.*",
    "blk.{n}.attn_v.*": f"{_LAYER}.self_attn.v_proj.*",
    "blk.{n}.attn_output.*": f"{_LAYER}.self_attn.o_proj.*",
    "blk.{n}.attn_q_norm.*": f"{_LAYER}.self_attn.q_norm.*",
    "blk.{n}.attn_k_norm.*": f"{_LAYER}.self_attn.k_norm.*",
    "blk.{n}.ffn_norm.*": f"{_LAYER}.post_attention_layernorm.*",
    "blk.{n}.ffn_gate.*": f"{_LAYER}.mlp.gate_proj.*",
    "blk.{n}.ffn_up.*": f"{_LAYER}.mlp.up_proj.*",
    "blk.{n}.ffn_down.*": f"{_LAYER}.mlp.down_proj.*",
    "blk.{n}.ffn_gate_inp.*": f"{_LAYER}.mlp.gate.*",
}
_EXPERTS = {
    "blk.{n}.ffn_gate_exps.*": f"{_LAYER}.mlp.experts.{{e}}.gate_proj.*",
    "blk.{n}.ffn_up_exps.*": f"{_LAYER}.mlp.experts.{{e}}.up_proj.*",
    "blk.{n}.ffn_down_exps.*": f"{_LAYER}.mlp.experts.{{e}}.down_proj.*",
}
# The tensors of Llama whose rows are interleaved, and the metadata that counts their heads.
_TURNED = {
    "blk.{n}.attn_q.*": "llama.attention.head_count",
    "blk.{n}.attn_k.*": "llama.attention.head_count_kv",
}


def as_transformers(opened: Checkpoint) -> Checkpoint:
    """Returns the tensors of a GGUF file by the names, and in the layouts, of ``transformers``.

    A tensor that ``transformers`` does not have, such as ``rope_freqs.weight``, keeps its name.

    Raises:
      CheckpointError: it is no GGUF file, its architecture is not known here, or what it says of
        its heads does not fit its tensors.
    """
    architecture = opened.metadata.get(ARCHITECTURE)
    if architecture not in MODEL_TYPES:
        got = f"the architecture {architecture!r}" if architecture else "no architecture"
        raise errors.CheckpointError(
            f"{opened.origin}: names='transformers' wants a GGUF file of a model among "
            f"{', '.join(MODEL_TYPES)}, got {got}. Leave names= out, and write rules for the names "
            "that the file has."
        )
    tensors = {
        name: source
        for tensor in opened
        for name, source in _named(tensor, opened, turned=architecture == "llama")
    }
    return replace(opened, tensors=tensors)


def _named(tensor: str, opened: Checkpoint, *, turned: bool) -> Iterator[tuple[str, Source]]:
    source, path = opened[tensor], slashed(tensor)
    for theirs, ours in _EXPERTS.items():
        if found := pattern(theirs).match(path):
            for place in range(source.shape[0]):
                name = pattern(ours).write(found.having("e", str(place)))
                yield name.replace("/", "."), selected(source, 0, place)
            return
    for theirs, ours in _NAMES.items():
        if found := pattern(theirs).match(path):
            if turned and theirs in _TURNED:
                source = _halves_apart(tensor, source, opened, _TURNED[theirs])
            yield pattern(ours).write(found).replace("/", "."), source
            return
    yield tensor, source


def _halves_apart(tensor: str, source: Source, opened: Checkpoint, key: str) -> Source:
    """Reorders rows from ``(h k two)``, for ``h`` heads, to ``(h two k)``."""
    text = opened.metadata.get(key, "none")
    heads = int(text) if text.isdecimal() else 0
    rows, *rest = source.shape or (0,)
    if not heads or rows % (2 * heads):
        raise errors.CheckpointError(
            f"{opened.origin}: tensor {tensor!r}: wanted rows that {key} divides in pairs, got "
            f"{rows} rows and {text} heads. Leave names= out."
        )
    pairs = reshaped(source, (heads, rows // heads // 2, 2, *rest))
    apart = transposed(pairs, (0, 2, 1, *range(3, 3 + len(rest))))
    return reshaped(apart, source.shape)
