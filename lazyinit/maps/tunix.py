"""Building blocks of maps for google-tunix: the rules for modules that its decoders share.

Kernels have the axes of google-tunix's ``Einsum``: in Llama and Qwen ``[d, h, k]`` to heads and
``[h, k, d]`` from heads, in Gemma ``[h, d, k]`` to heads.
"""

from lazyinit.maps.parts import AXES, HEADS_IN, HEADS_OUT, linear, rule
from lazyinit.rules.reshape import Rearrange
from lazyinit.rules.rule import Rule

LAYER, TENSORS = "layers/{n}", "model.layers.{n}"
# Several queries may share a key: the number of key heads (g) is not that of query heads (h).
GROUPS_OUT = Rearrange("(g k) i -> i g k")


def attention() -> tuple[Rule, ...]:
    """Returns the rules for the projections of Llama's or Qwen's attention."""
    here, there = f"{LAYER}/attn", f"{TENSORS}.self_attn"
    return (
        rule(f"{here}/q_proj/w", f"{there}.q_proj.weight", HEADS_OUT),
        rule(f"{here}/k_proj/w", f"{there}.k_proj.weight", GROUPS_OUT),
        rule(f"{here}/v_proj/w", f"{there}.v_proj.weight", GROUPS_OUT),
        rule(f"{here}/o_proj/w", f"{there}.o_proj.weight", HEADS_IN),
    )


def scale(leaf: str, tensor: str) -> tuple[Rule, ...]:
    """Returns the rule for an ``RMSNorm`` of Llama or Qwen."""
    return (rule(f"{leaf}/w", f"{tensor}.weight"),)


def gated(layer: str, tensors: str) -> tuple[Rule, ...]:
    """Returns rules for a gated feed-forward block."""
    names = ("gate_proj", "up_proj", "down_proj")
    return tuple(
        each for name in names for each in linear(f"{layer}/mlp/{name}", f"{tensors}.mlp.{name}")
    )


def decoder() -> tuple[Rule, ...]:
    """Returns the rules that the decoders of Llama and Qwen have in common."""
    return (
        rule("embedder/input_embedding", "model.embed_tokens.weight"),
        *attention(),
        *scale(f"{LAYER}/input_layernorm", f"{TENSORS}.input_layernorm"),
        *scale(f"{LAYER}/post_attention_layernorm", f"{TENSORS}.post_attention_layernorm"),
        *gated(LAYER, TENSORS),
        *scale("final_norm", "model.norm"),
        rule("lm_head/w", "lm_head.weight", AXES),
        rule("lm_head/w", "model.embed_tokens.weight", AXES, tied=True),
    )
