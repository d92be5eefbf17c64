"""Rules for one layer of DeepSeek 2 or 3 in MaxText: latent attention, shared and routed experts.

    {dense,moe}_layers_0/{pre,post}_self_attention_layer_norm/scale
    .../self_attention/{wkv_a,wkv_b,out}/kernel, kv_norm/scale
    .../self_attention/query/kernel, or {wq_a,wq_b}/kernel and q_norm/scale
    .../mlp/{wi_0,wi_1,wo}/kernel, or, in a layer of experts,
    .../DeepSeekMoeBlock_0/shared_experts/{wi_0,wi_1,wo}/kernel
    .../DeepSeekMoeBlock_0/MoeBlock_0/gate/{kernel,bias}, {wi_0,wi_1,wo} [e, in, out]

Names: ``maxtext/checkpoint_conversion/utils/param_mapping.py``, 0.2.5.
"""

from lazyinit.maps.parts import AXES, HEADS_IN, HEADS_OUT, rule
from lazyinit.rules.joins import Stack
from lazyinit.rules.rule import Rule

MLP = ("wi_0", "gate_proj"), ("wi_1", "up_proj"), ("wo", "down_proj")
_NORMS = (
    ("pre_self_attention_layer_norm", "input_layernorm"),
    ("post_self_attention_layer_norm", "post_attention_layernorm"),
    ("self_attention/kv_norm", "self_attn.kv_a_layernorm"),
    ("self_attention/q_norm", "self_attn.q_a_layernorm"),
)
_KERNELS = (
    ("query", "q_proj", HEADS_OUT),
    ("wq_a", "q_a_proj", AXES),
    ("wq_b", "q_b_proj", HEADS_OUT),
    ("wkv_a", "kv_a_proj_with_mqa", AXES),
    ("wkv_b", "kv_b_proj", HEADS_OUT),
    ("out", "o_proj", HEADS_IN),
)


def deepseek_layer(here: str, there: str, *, has_experts: bool) -> tuple[Rule, ...]:
    """Returns the rules of one layer.

    Args:
      here: the path of the layer in the tree.
      there: the name of the layer in the checkpoint.
      has_experts: whether the layer has experts, in place of one feed-forward block.
    """
    block, experts = f"{here}/DeepSeekMoeBlock_0", f"{here}/DeepSeekMoeBlock_0/MoeBlock_0"
    into, tensors = f"{here}/mlp", f"{there}.mlp"
    routed: tuple[Rule, ...] = ()
    if has_experts:
        into, tensors = f"{block}/shared_experts", f"{there}.mlp.shared_experts"
        each = f"{there}.mlp.experts.{{e}}"
        routed = (
            *(rule(f"{experts}/{n}", f"{each}.{t}.weight", AXES, Stack(0)) for n, t in MLP),
            rule(f"{experts}/gate/kernel", f"{there}.mlp.gate.weight", AXES),
            rule(f"{experts}/gate/bias", f"{there}.mlp.gate.e_score_correction_bias"),
        )
    return (
        *(rule(f"{here}/{leaf}/scale", f"{there}.{t}.weight") for leaf, t in _NORMS),
        *(
            rule(f"{here}/self_attention/{leaf}/kernel", f"{there}.self_attn.{t}.weight", change)
            for leaf, t, change in _KERNELS
        ),
        *(rule(f"{into}/{n}/kernel", f"{tensors}.{t}.weight", AXES) for n, t in MLP),
        *routed,
    )
