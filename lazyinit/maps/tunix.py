"""What maps for google-tunix are made of: the modules that its decoders share.

Kernels of heads lie as its ``Einsum`` has them: ``[d, h, k]`` to heads and ``[h, k, d]`` from them
in Llama and Qwen, ``[h, d, k]`` to heads in Gemma.
"""

from lazyinit.maps.parts import AXES, HEADS_IN, HEADS_OUT, linear, rule
from lazyinit.rules.reshape import Rearrange
from lazyinit.rules.rule import Rule

LAYER, TENSORS = "layers/{n}", "model.layers.{n}"
# Queries may share keys: their heads are counted apart.
GROUPS_OUT = Rearrange("(g k) i -> i g k")


def attention() -> tuple[Rule, ...]:
    """Returns rules for the projections of an attention of Llama or Qwen."""
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
    """Returns rules for all that Llama and Qwen share."""
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
