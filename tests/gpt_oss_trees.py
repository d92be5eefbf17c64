"""GPT-OSS: its tensors by the names of Hugging Face, and MaxText's trees, as numpy makes them.

``benchmarks/maps_of_maxtext.py`` compares with PyTorch's classes and MaxText's own decoders.
"""

import numpy as np
from maxtext_trees import ends_of, tensors_of_layer
from tunix_trees import D, E, G, H, K, V, X


def config_of(layers):
    return {"model_type": "gpt_oss", "num_hidden_layers": layers}


def tensors_of(layers):
    projections = {"q": (H * K, D), "k": (G * K, D), "v": (G * K, D), "o": (D, H * K)}
    layer = {f"self_attn.{name}_proj.weight": shape for name, shape in projections.items()}
    layer |= {f"self_attn.{name}_proj.bias": shape[:1] for name, shape in projections.items()}
    layer |= {"input_layernorm.weight": (D,), "post_attention_layernorm.weight": (D,)}
    layer |= {"self_attn.sinks": (H,), "mlp.router.weight": (E, D), "mlp.router.bias": (E,)}
    experts = {"gate_up_proj": (E, D, 2 * X), "gate_up_proj_bias": (E, 2 * X)}
    experts |= {"down_proj": (E, X, D), "down_proj_bias": (E, D)}
    layer |= {f"mlp.experts.{name}": shape for name, shape in experts.items()}
    shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    shapes["lm_head.weight"] = (V, D)
    for n in range(layers):
        shapes |= {f"model.layers.{n}.{name}": shape for name, shape in layer.items()}
    random = np.random.default_rng(0)
    return {name: random.standard_normal(shape, "float32") for name, shape in shapes.items()}


def _leaves(theirs):
    yield "pre_self_attention_layer_norm/scale", theirs["input_layernorm.weight"]
    yield "post_self_attention_layer_norm/scale", theirs["post_attention_layernorm.weight"]
    attention = "GptOssAttention"
    for name in ("query", "key", "value"):
        tensor = f"self_attn.{name[0]}_proj"
        kernel = theirs[f"{tensor}.weight"].T.reshape(D, -1, K)
        yield f"{attention}/{name}/kernel", kernel
        yield f"{attention}/{name}/bias", theirs[f"{tensor}.bias"].reshape(-1, K)
    yield f"{attention}/out/kernel", theirs["self_attn.o_proj.weight"].T.reshape(H, K, D)
    yield f"{attention}/out/bias", theirs["self_attn.o_proj.bias"]
    yield f"{attention}/sinks", theirs["self_attn.sinks"]
    yield "GptOssMlp/gate/kernel", theirs["mlp.router.weight"].T
    yield "GptOssMlp/gate/bias", theirs["mlp.router.bias"]
    for end in ("", "_bias"):
        both = theirs[f"mlp.experts.gate_up_proj{end}"]
        yield f"GptOssMlp/wi_0{end}", both[..., ::2]
        yield f"GptOssMlp/wi_1{end}", both[..., 1::2]
        yield f"GptOssMlp/wo{end}", theirs[f"mlp.experts.down_proj{end}"]


def leaves_of(tensors, layers, *, scanned):
    leaves = ends_of(tensors)
    together = {}
    for n in range(layers):
        theirs = tensors_of_layer(tensors, n)
        for path, x in _leaves(theirs):
            if scanned:
                together.setdefault(f"decoder/layers/layers_{n % 2}/{path}", []).append(x)
            else:
                leaves[f"decoder/layers_{n}/{path}"] = x
    leaves |= {path: np.stack(xs, 1) for path, xs in together.items()}
    return {f"params/{path}": x for path, x in sorted(leaves.items())}
