"""Layers of GPT-OSS in MaxText: attention with biases and sinks, and experts with biases.

    layers_0/{pre,post}_self_attention_layer_norm/scale
    .../GptOssAttention/{query,key,value,out}/{kernel,bias}, sinks
    .../GptOssMlp/gate/{kernel,bias}, {wi_0,wi_1,wo} [e, in, out], {wi_0,wi_1,wo}_bias [e, out]

The checkpoint has the two projections into an expert as one, whose outputs take turns.

Names: ``maxtext/checkpoint_conversion/utils/param_mapping.py``, 0.2.5.
"""

from lazyinit.maps.parts import AXES, HEADS, HEADS_IN, HEADS_OUT, rule
from lazyinit.maps.tunix import GROUPS_OUT
from lazyinit.rules.joins import Split
from lazyinit.rules.reshape import Rearrange
from lazyinit.rules.rule import Rule

_GROUPS = Rearrange("(g k) -> g k")
_HEADS = (
    ("query", "q_proj", HEADS_OUT, HEADS),
    ("key", "k_proj", GROUPS_OUT, _GROUPS),
    ("value", "v_proj", GROUPS_OUT, _GROUPS),
)


def gpt_oss_layer(here: str, there: str) -> tuple[Rule, ...]:
    """Returns the rules of one layer.

    Args:
      here: the path of the layer.
      there: what the checkpoint calls it.
    """
    attention, projections = f"{here}/GptOssAttention", f"{there}.self_attn"
    mlp, experts = f"{here}/GptOssMlp", f"{there}.mlp.experts"
    turns, last = Rearrange("... (f p) -> ... (p f)", p=2), Split(axis=-1)
    return (
        rule(f"{here}/pre_self_attention_layer_norm/scale", f"{there}.input_layernorm.weight"),
        rule(
            f"{here}/post_self_attention_layer_norm/scale",
            f"{there}.post_attention_layernorm.weight",
        ),
        *(
            each
            for leaf, tensor, kernel, bias in _HEADS
            for each in (
                rule(f"{attention}/{leaf}/kernel", f"{projections}.{tensor}.weight", kernel),
                rule(f"{attention}/{leaf}/bias", f"{projections}.{tensor}.bias", bias),
            )
        ),
        rule(f"{attention}/out/kernel", f"{projections}.o_proj.weight", HEADS_IN),
        rule(f"{attention}/out/bias", f"{projections}.o_proj.bias"),
        rule(f"{attention}/sinks", f"{projections}.sinks"),
        rule(f"{mlp}/gate/kernel", f"{there}.mlp.router.weight", AXES),
        rule(f"{mlp}/gate/bias", f"{there}.mlp.router.bias"),
        rule((f"{mlp}/wi_0", f"{mlp}/wi_1"), f"{experts}.gate_up_proj", turns, last),
        rule((f"{mlp}/wi_0_bias", f"{mlp}/wi_1_bias"), f"{experts}.gate_up_proj_bias", turns, last),
        rule(f"{mlp}/wo", f"{experts}.down_proj"),
        rule(f"{mlp}/wo_bias", f"{experts}.down_proj_bias"),
    )
