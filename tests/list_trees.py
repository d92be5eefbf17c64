"""Trees with layers in lists, as numpy makes them of the parameters of transformers' Flax models."""

import numpy as np

from lazyinit import maps

H, K = 4, 8  # Heads, and the size of one.


def headed(prefix, source, names, params, out, heads=H):
    """Returns the leaves of an attention by path, made of Flax's parameters by numpy."""
    leaves = {}
    for name, theirs in zip(("query", "key", "value"), names, strict=True):
        kernel = params[f"{source}{theirs}/kernel"]
        h = kernel.shape[1] // K
        leaves[f"{prefix}/{name}/kernel"] = kernel.reshape(kernel.shape[0], h, K)
        if f"{source}{theirs}/bias" in params:
            leaves[f"{prefix}/{name}/bias"] = params[f"{source}{theirs}/bias"].reshape(h, K)
    leaves[f"{prefix}/out/kernel"] = params[f"{out}/kernel"].reshape(heads, K, -1)
    if f"{out}/bias" in params:
        leaves[f"{prefix}/out/bias"] = params[f"{out}/bias"]
    return leaves


def moved(pairs, params):
    """Returns leaves by new paths: each pair names a subtree here and there."""
    return {
        new + path.removeprefix(old): x
        for new, old in pairs
        for path, x in params.items()
        if path == old or path.startswith(old + "/")
    }


def bert_tree(params):
    leaves = moved(
        [
            ("embed/word", "embeddings/word_embeddings"),
            ("embed/position", "embeddings/position_embeddings"),
            ("embed/type", "embeddings/token_type_embeddings"),
            ("embed/norm", "embeddings/LayerNorm"),
            ("pooler", "pooler/dense"),
        ],
        params,
    )
    for n in range(2):
        there = f"encoder/layer/{n}"
        leaves |= moved(
            [
                (f"layers/{n}/attention_norm", f"{there}/attention/output/LayerNorm"),
                (f"layers/{n}/mlp/up", f"{there}/intermediate/dense"),
                (f"layers/{n}/mlp/down", f"{there}/output/dense"),
                (f"layers/{n}/mlp_norm", f"{there}/output/LayerNorm"),
            ],
            params,
        )
        names, out = ("query", "key", "value"), f"{there}/attention/output/dense"
        leaves |= headed(f"layers/{n}/attention", f"{there}/attention/self/", names, params, out)
    return leaves


def gpt2_tree(params):
    params = {path.removeprefix("transformer/"): x for path, x in params.items()}
    leaves = moved([("embed", "wte"), ("positions", "wpe"), ("norm", "ln_f")], params)
    for n in range(2):
        leaves |= moved(
            [
                (f"layers/{n}/attention_norm", f"h/{n}/ln_1"),
                (f"layers/{n}/mlp_norm", f"h/{n}/ln_2"),
            ],
            params,
        )
        for new, old in (("up", "c_fc"), ("down", "c_proj")):
            leaves[f"layers/{n}/mlp/{new}/kernel"] = params[f"h/{n}/mlp/{old}/kernel"].T
            leaves[f"layers/{n}/mlp/{new}/bias"] = params[f"h/{n}/mlp/{old}/bias"]
        split = {}
        kernels = np.split(params[f"h/{n}/attn/c_attn/kernel"].T, 3, axis=1)
        biases = np.split(params[f"h/{n}/attn/c_attn/bias"], 3)
        for name, kernel, bias in zip("qkv", kernels, biases, strict=True):
            split |= {f"{name}/kernel": kernel, f"{name}/bias": bias}
        split["out/kernel"] = params[f"h/{n}/attn/c_proj/kernel"].T
        split["out/bias"] = params[f"h/{n}/attn/c_proj/bias"]
        leaves |= headed(f"layers/{n}/attention", "", "qkv", split, "out")
    return leaves


def llama_tree(params):
    leaves = moved([("embed", "model/embed_tokens"), ("head", "lm_head")], params)
    leaves["norm/scale"] = params["model/norm/weight"]
    for n in range(2):
        there = f"model/layers/{n}"
        leaves |= moved(
            [(f"layers/{n}/mlp/{p}", f"{there}/mlp/{p}_proj") for p in ("gate", "up", "down")],
            params,
        )
        leaves[f"layers/{n}/attention_norm/scale"] = params[f"{there}/input_layernorm/weight"]
        leaves[f"layers/{n}/mlp_norm/scale"] = params[f"{there}/post_attention_layernorm/weight"]
        names, out = ("q_proj", "k_proj", "v_proj"), f"{there}/self_attn/o_proj"
        leaves |= headed(f"layers/{n}/attention", f"{there}/self_attn/", names, params, out)
    return leaves


def t5_tree(params):
    leaves = {"shared/embedding": params["shared/embedding"]}
    for side, mlp in (("encoder", 1), ("decoder", 2)):
        bias = "block/0/layer/0/SelfAttention/relative_attention_bias"
        leaves |= moved([(f"{side}/relative_bias", f"{side}/{bias}")], params)
        leaves[f"{side}/norm/scale"] = params[f"{side}/final_layer_norm/weight"]
        for n in range(2):
            here, there = f"{side}/layers/{n}", f"{side}/block/{n}/layer"
            leaves |= moved(
                [
                    (f"{here}/mlp/up", f"{there}/{mlp}/DenseReluDense/wi"),
                    (f"{here}/mlp/down", f"{there}/{mlp}/DenseReluDense/wo"),
                ],
                params,
            )
            attentions = [("attention", "SelfAttention"), ("cross_attention", "EncDecAttention")]
            for row, (new, old) in enumerate(attentions[:mlp]):
                attention, out = f"{there}/{row}/{old}/", f"{there}/{row}/{old}/o"
                leaves[f"{here}/{new}_norm/scale"] = params[f"{there}/{row}/layer_norm/weight"]
                leaves |= headed(f"{here}/{new}", attention, "qkv", params, out)
            leaves[f"{here}/mlp_norm/scale"] = params[f"{there}/{mlp}/layer_norm/weight"]
    return leaves


def vit_tree(params):
    leaves = moved(
        [
            ("cls_token", "embeddings/cls_token"),
            ("position_embeddings", "embeddings/position_embeddings"),
            ("patches", "embeddings/patch_embeddings/projection"),
            ("norm", "layernorm"),
            ("pooler", "pooler/dense"),
        ],
        params,
    )
    for n in range(2):
        there = f"encoder/layer/{n}"
        leaves |= moved(
            [
                (f"layers/{n}/attention_norm", f"{there}/layernorm_before"),
                (f"layers/{n}/mlp_norm", f"{there}/layernorm_after"),
                (f"layers/{n}/mlp/up", f"{there}/intermediate/dense"),
                (f"layers/{n}/mlp/down", f"{there}/output/dense"),
            ],
            params,
        )
        names, out = ("query", "key", "value"), f"{there}/attention/output/dense"
        attention = f"{there}/attention/attention/"
        leaves |= headed(f"layers/{n}/attention", attention, names, params, out)
    return leaves


def clip_tree(params):
    leaves = moved(
        [
            ("text/embed", "text_model/embeddings/token_embedding"),
            ("text/positions", "text_model/embeddings/position_embedding"),
            ("text/norm", "text_model/final_layer_norm"),
            ("vision/class_embedding", "vision_model/embeddings/class_embedding"),
            ("vision/patches", "vision_model/embeddings/patch_embedding"),
            ("vision/positions", "vision_model/embeddings/position_embedding"),
            ("vision/pre_norm", "vision_model/pre_layrnorm"),
            ("vision/norm", "vision_model/post_layernorm"),
            *((name, name) for name in ("text_projection", "visual_projection", "logit_scale")),
        ],
        params,
    )
    for side in ("text", "vision"):
        for n in range(2):
            there = f"{side}_model/encoder/layers/{n}"
            leaves |= moved(
                [
                    (f"{side}/layers/{n}/attention_norm", f"{there}/layer_norm1"),
                    (f"{side}/layers/{n}/mlp_norm", f"{there}/layer_norm2"),
                    (f"{side}/layers/{n}/mlp/up", f"{there}/mlp/fc1"),
                    (f"{side}/layers/{n}/mlp/down", f"{there}/mlp/fc2"),
                ],
                params,
            )
            names, out = ("q_proj", "k_proj", "v_proj"), f"{there}/self_attn/out_proj"
            attention = f"{there}/self_attn/"
            leaves |= headed(f"{side}/layers/{n}/attention", attention, names, params, out)
    return leaves


LISTS = {
    "BertModel": (maps.BERT_NNX, bert_tree, ""),
    "GPT2LMHeadModel": (maps.GPT2_NNX, gpt2_tree, "transformer."),
    "LlamaForCausalLM": (maps.LLAMA_NNX, llama_tree, ""),
    "T5ForConditionalGeneration": (maps.T5_NNX, t5_tree, ""),
    "ViTModel": (maps.VIT_NNX, vit_tree, ""),
    "CLIPModel": (maps.CLIP_NNX, clip_tree, ""),
}
