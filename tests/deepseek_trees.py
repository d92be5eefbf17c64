"""DeepSeek 2 and 3: their tensors by the names of Hugging Face, and MaxText's trees, as numpy makes them.

``benchmarks/maps_of_maxtext.py`` compares with PyTorch's classes and MaxText's own decoders.
"""

import numpy as np
from maxtext_trees import ends_of, tensors_of_layer
from tunix_trees import D, E, F, H, V, X

LAYERS, DENSE = 5, 2
Q, C, N, R, VALUE = 20, 10, 16, 8, 12  # Ranks of queries and of keys; sizes without and with turns.
FAMILIES = ("deepseek_v2", "deepseek_v3", "kimi_k2")
PAIRS = {"wi_0": "gate_proj", "wi_1": "up_proj", "wo": "down_proj"}


def config_of(family, layers=LAYERS, dense=DENSE, **more):
    sizes = {"num_hidden_layers": layers, "first_k_dense_replace": dense, "n_routed_experts": E}
    return {"model_type": family, "vocab_size": V, **sizes, **more}


def _mlp(name, width):
    return {
        f"{name}.gate_proj.weight": (width, D),
        f"{name}.up_proj.weight": (width, D),
        f"{name}.down_proj.weight": (D, width),
    }


def _layer(family, has_experts):
    attention = {
        "kv_a_proj_with_mqa": (C + R, D),
        "kv_a_layernorm": (C,),
        "kv_b_proj": (H * (N + VALUE), C),
        "o_proj": (D, H * VALUE),
    }
    if family == "deepseek_v2":
        attention["q_proj"] = (H * (N + R), D)
    else:
        attention |= {"q_a_proj": (Q, D), "q_a_layernorm": (Q,), "q_b_proj": (H * (N + R), Q)}
    shapes = {f"self_attn.{name}.weight": shape for name, shape in attention.items()}
    shapes |= {f"{name}_layernorm.weight": (D,) for name in ("input", "post_attention")}
    if not has_experts:
        return shapes | _mlp("mlp", F)
    for e in range(E):
        shapes |= _mlp(f"mlp.experts.{e}", X)
    shapes |= _mlp("mlp.shared_experts", 2 * X) | {"mlp.gate.weight": (E, D)}
    bias = {"mlp.gate.e_score_correction_bias": (E,)}
    return shapes | (bias if family != "deepseek_v2" else {})


def tensors_of(family, layers=LAYERS, dense=DENSE):
    shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    shapes["lm_head.weight"] = (V, D)
    for n in range(layers):
        layer = _layer(family, n >= dense)
        shapes |= {f"model.layers.{n}.{name}": shape for name, shape in layer.items()}
    random = np.random.default_rng(0)
    return {name: random.standard_normal(shape, "float32") for name, shape in shapes.items()}


def _leaves(theirs):
    """Yields the paths in a layer, the leaves, and the axis along which a scan stacks them."""
    norms = {"pre_self_attention": "input", "post_self_attention": "post_attention"}
    for path, name in norms.items():
        yield f"{path}_layer_norm/scale", theirs[f"{name}_layernorm.weight"], 1
    attention = {k.split(".")[1]: x for k, x in theirs.items() if k.startswith("self_attn.")}
    names = {"kv_a_proj_with_mqa": "wkv_a", "q_a_proj": "wq_a"}
    heads = {"kv_b_proj": "wkv_b", "q_b_proj": "wq_b", "q_proj": "query"}
    for name, x in attention.items():
        if name in names:
            yield f"self_attention/{names[name]}/kernel", x.T, 1
        elif name in heads:
            yield f"self_attention/{heads[name]}/kernel", x.T.reshape(x.shape[1], H, -1), 1
        elif name == "o_proj":
            yield "self_attention/out/kernel", x.T.reshape(H, VALUE, D), 1
        else:
            yield f"self_attention/{name.split('_')[0]}_norm/scale", x, 1
    if "mlp.gate.weight" not in theirs:
        for path, name in PAIRS.items():
            yield f"mlp/{path}/kernel", theirs[f"mlp.{name}.weight"].T, 1
        return
    block = "DeepSeekMoeBlock_0"
    for path, name in PAIRS.items():
        yield (
            f"{block}/shared_experts/{path}/kernel",
            theirs[f"mlp.shared_experts.{name}.weight"].T,
            1,
        )
        experts = [theirs[f"mlp.experts.{e}.{name}.weight"].T for e in range(E)]
        yield f"{block}/MoeBlock_0/{path}", np.stack(experts), 1
    yield f"{block}/MoeBlock_0/gate/kernel", theirs["mlp.gate.weight"].T, 1
    if "mlp.gate.e_score_correction_bias" in theirs:
        yield f"{block}/MoeBlock_0/gate/bias", theirs["mlp.gate.e_score_correction_bias"], 0


def leaves_of(tensors, *, scanned, layers=LAYERS, dense=DENSE):
    leaves = ends_of(tensors)
    together = {}
    for n in range(layers):
        theirs = tensors_of_layer(tensors, n)
        kind, place = ("dense_layers", n) if n < dense else ("moe_layers", n - dense)
        for path, x, axis in _leaves(theirs):
            if scanned:
                together.setdefault((f"decoder/{kind}/{path}", axis), []).append(x)
            else:
                leaves[f"decoder/{kind}_{place}/{path}"] = x
    leaves |= {path: np.stack(xs, axis) for (path, axis), xs in together.items()}
    return {f"params/{path}": x for path, x in sorted(leaves.items())}
