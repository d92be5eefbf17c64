"""The trees of google-tunix 0.1.7's models, and what numpy makes of checkpoints for them.

The package itself brings datasets, TensorFlow's among them, numba and more, so that no test installs it:
``benchmarks/tunix.py`` compares with its own loader. Here are its trees, small, without a forward pass.
"""

import jax
import numpy as np
from flax import nnx

D, F, H, G, K, V, E, X = 32, 48, 4, 2, 16, 64, 3, 24  # X: the width of an expert.
LAYERS = 2


def linear(*shape):
    return {"kernel": shape}


def mlp(width=F):
    up, down = linear(D, width), linear(width, D)
    return {"gate_proj": up, "up_proj": up, "down_proj": down}


EXPERTS = {
    "router": linear(D, E),
    "gate_proj": (E, D, X),
    "up_proj": (E, D, X),
    "down_proj": (E, X, D),
}


def plain(attention, feed_forward, *, head):
    projections = {
        "q_proj": (D, H, K),
        "k_proj": (D, G, K),
        "v_proj": (D, G, K),
        "o_proj": (H, K, D),
    }
    layer = {
        "input_layernorm": {"w": (D,)},
        "attn": {name: {"w": shape} for name, shape in projections.items()} | attention,
        "post_attention_layernorm": {"w": (D,)},
        "mlp": feed_forward,
    }
    tree = {"embedder": {"input_embedding": (V, D)}, "layers": [layer] * LAYERS}
    return tree | {"final_norm": {"w": (D,)}} | ({"lm_head": {"w": (D, V)}} if head else {})


def gemma(post_attention, attention, *, shared=True):
    separate = {"q_einsum": {"w": (H, D, K)}, "kv_einsum": {"w": (2, G, D, K)}}
    fused = {"qkv_einsum": {"w": (3, H, D, K)}}
    norms = ("pre_attention_norm", "pre_ffw_norm")
    norms += (post_attention, "post_ffw_norm") if post_attention else ()
    layer = {name: {"scale": (D,)} for name in norms} | {
        "attn": {"attn_vec_einsum": {"w": (H, K, D)}} | (separate if shared else fused) | attention,
        "mlp": mlp(),
    }
    tree = {"embedder": {"input_embedding": (V, D)}, "layers": [layer] * LAYERS}
    return tree | {"final_norm": {"scale": (D,)}}


NORMS = {"q_norm": {"w": (K,)}, "k_norm": {"w": (K,)}}
GEMMA_NORMS = {"_query_norm": {"scale": (K,)}, "_key_norm": {"scale": (K,)}}
BIASES = {"q_bias": (H * K,), "k_bias": (G * K,), "v_bias": (G * K,)}
TREES = {
    "llama": plain({}, mlp(), head=True),
    "llama tied": plain({}, mlp(), head=False),
    "qwen2": plain(BIASES, mlp(), head=True),
    "qwen3": plain(NORMS, mlp(), head=False),
    "qwen3_moe": plain(NORMS, EXPERTS, head=True),
    "gemma": gemma("", {}),
    "gemma2": gemma("post_attn_norm", {}),
    "gemma2 fused": gemma("post_attn_norm", {}, shared=False),
    "gemma3_text": gemma("post_attention_norm", GEMMA_NORMS),
}


class Tree(nnx.Module):
    """A module of nested dicts of shapes."""

    def __init__(self, shapes, *, rngs):
        for name, shape in shapes.items():
            setattr(self, name, _part(shape, rngs))


def _part(shape, rngs):
    if isinstance(shape, dict):
        return Tree(shape, rngs=rngs)
    if isinstance(shape, list):
        return nnx.List([_part(each, rngs) for each in shape])
    return nnx.Param(jax.random.normal(rngs.params(), shape))


def shapes_of(name, layers=LAYERS):
    """Returns the shapes of the tensors that PyTorch's class of a family has, by name."""
    if name == "mixtral":
        return _mixtral_shapes(layers)
    is_gemma, is_fused = name.startswith("gemma"), name.endswith("fused")
    groups = H if is_fused else G
    shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    if "lm_head" in TREES[name]:
        shapes["lm_head.weight"] = (V, D)
    for n in range(layers):
        layer, attention = f"model.layers.{n}", f"model.layers.{n}.self_attn"
        norms = ["input_layernorm", "post_attention_layernorm"]
        if is_gemma and name != "gemma":
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        shapes |= {f"{layer}.{norm}.weight": (D,) for norm in norms}
        for projection, heads in (("q", H), ("k", groups), ("v", groups)):
            shapes[f"{attention}.{projection}_proj.weight"] = (heads * K, D)
            if name == "qwen2":
                shapes[f"{attention}.{projection}_proj.bias"] = (heads * K,)
        shapes[f"{attention}.o_proj.weight"] = (D, H * K)
        if name in ("qwen3", "qwen3_moe", "gemma3_text"):
            shapes |= {f"{attention}.{each}_norm.weight": (K,) for each in "qk"}
        if name == "qwen3_moe":
            shapes[f"{layer}.mlp.gate.weight"] = (E, D)
        experts = [f".experts.{e}" for e in range(E)] if name == "qwen3_moe" else [""]
        for expert in experts:
            width = X if expert else F
            for each, shape in (("gate", (width, D)), ("up", (width, D)), ("down", (D, width))):
                shapes[f"{layer}.mlp{expert}.{each}_proj.weight"] = shape
    return shapes


def _mixtral_shapes(layers):
    shapes = {n: shape for n, shape in shapes_of("llama", layers).items() if ".mlp." not in n}
    for n in range(layers):
        block = f"model.layers.{n}.block_sparse_moe"
        shapes[f"{block}.gate.weight"] = (E, D)
        for e in range(E):
            for each, shape in (("w1", (X, D)), ("w2", (D, X)), ("w3", (X, D))):
                shapes[f"{block}.experts.{e}.{each}.weight"] = shape
    return shapes


def tensors_of(name, layers=LAYERS):
    random = np.random.default_rng(0)
    shapes = shapes_of(name, layers)
    return {n: random.standard_normal(shape, "float32") for n, shape in shapes.items()}


def leaves_of(name, tensors):
    """Returns the leaves by path, in order, as numpy makes them of tensors."""
    leaves = {"embedder/input_embedding": tensors["model.embed_tokens.weight"]}
    if "lm_head" in TREES[name]:
        leaves["lm_head/w"] = tensors["lm_head.weight"].T
    is_gemma = name.startswith("gemma")
    leaves["final_norm/scale" if is_gemma else "final_norm/w"] = tensors["model.norm.weight"]
    for n in range(LAYERS):
        layer = f"model.layers.{n}."
        theirs = {k.removeprefix(layer): x for k, x in tensors.items() if k.startswith(layer)}
        made = _gemma_layer(name, theirs) if is_gemma else _plain_layer(theirs)
        leaves |= {f"layers/{n}/{path}": leaf for path, leaf in made.items()}
    return dict(sorted(leaves.items()))


def _plain_layer(theirs):
    made = {}
    for name in ("input_layernorm", "post_attention_layernorm"):
        made[f"{name}/w"] = theirs[f"{name}.weight"]
    for name in "qkv":
        made[f"attn/{name}_proj/w"] = theirs[f"self_attn.{name}_proj.weight"].T.reshape(D, -1, K)
        if f"self_attn.{name}_proj.bias" in theirs:
            made[f"attn/{name}_bias"] = theirs[f"self_attn.{name}_proj.bias"]
        if f"self_attn.{name}_norm.weight" in theirs:
            made[f"attn/{name}_norm/w"] = theirs[f"self_attn.{name}_norm.weight"]
    made["attn/o_proj/w"] = theirs["self_attn.o_proj.weight"].T.reshape(H, K, D)
    if "mlp.gate.weight" not in theirs:
        return made | _mlp(theirs)
    made["mlp/router/kernel"] = theirs["mlp.gate.weight"].T
    for name in ("gate_proj", "up_proj", "down_proj"):
        experts = [theirs[f"mlp.experts.{e}.{name}.weight"].T for e in range(E)]
        made[f"mlp/{name}"] = np.stack(experts)
    return made


def _gemma_layer(name, theirs):
    made = {"pre_attention_norm/scale": theirs["input_layernorm.weight"]}
    if name == "gemma":
        made["pre_ffw_norm/scale"] = theirs["post_attention_layernorm.weight"]
    else:
        post = "post_attention_norm" if name == "gemma3_text" else "post_attn_norm"
        made |= {
            f"{post}/scale": theirs["post_attention_layernorm.weight"],
            "pre_ffw_norm/scale": theirs["pre_feedforward_layernorm.weight"],
            "post_ffw_norm/scale": theirs["post_feedforward_layernorm.weight"],
        }
    q, k, v = (
        theirs[f"self_attn.{each}_proj.weight"].reshape(-1, K, D).transpose(0, 2, 1)
        for each in "qkv"
    )
    if name.endswith("fused"):
        made["attn/qkv_einsum/w"] = np.stack([q, k, v])
    else:
        made |= {"attn/q_einsum/w": q, "attn/kv_einsum/w": np.stack([k, v])}
    made["attn/attn_vec_einsum/w"] = theirs["self_attn.o_proj.weight"].T.reshape(H, K, D)
    if name == "gemma3_text":
        made["attn/_query_norm/scale"] = theirs["self_attn.q_norm.weight"]
        made["attn/_key_norm/scale"] = theirs["self_attn.k_norm.weight"]
    return made | _mlp(theirs)


def _mlp(theirs):
    names = ("gate_proj", "up_proj", "down_proj")
    return {f"mlp/{name}/kernel": theirs[f"mlp.{name}.weight"].T for name in names}
