"""The trees of MaxText 0.2.5's decoders, as numpy makes them of checkpoints with names of Hugging Face.

``benchmarks/maps_of_maxtext.py`` compares with MaxText's own table and decoders.
"""

import ml_dtypes
import numpy as np
from tunix_trees import LAYERS, D, E, H, K, V


def ends_of(tensors):
    """Returns the leaves before and after the layers of an untied model."""
    return {
        "token_embedder/embedding": tensors["model.embed_tokens.weight"],
        "decoder/decoder_norm/scale": tensors["model.norm.weight"],
        "decoder/logits_dense/kernel": tensors["lm_head.weight"].T,
    }


def tensors_of_layer(tensors, n):
    prefix = f"model.layers.{n}."
    return {k.removeprefix(prefix): x for k, x in tensors.items() if k.startswith(prefix)}


def layer_of(theirs):
    made = {
        "pre_self_attention_layer_norm/scale": theirs["input_layernorm.weight"],
        "post_self_attention_layer_norm/scale": theirs["post_attention_layernorm.weight"],
        "self_attention/out/kernel": theirs["self_attn.o_proj.weight"].T.reshape(H, K, D),
    }
    for name in ("query", "key", "value"):
        tensor = f"self_attn.{name[0]}_proj"
        made[f"self_attention/{name}/kernel"] = theirs[f"{tensor}.weight"].T.reshape(D, -1, K)
        if f"{tensor}.bias" in theirs:
            made[f"self_attention/{name}/bias"] = theirs[f"{tensor}.bias"].reshape(-1, K)
        if (norm := f"self_attn.{name[0]}_norm.weight") in theirs:
            made[f"self_attention/{name}_norm/scale"] = theirs[norm]
    for name, tensor in (("wi_0", "gate"), ("wi_1", "up"), ("wo", "down")):
        if "mlp.gate.weight" in theirs:
            experts = [theirs[f"mlp.experts.{e}.{tensor}_proj.weight"].T for e in range(E)]
            made[f"moe_block/{name}"] = np.stack(experts)
            made["moe_block/gate/kernel"] = theirs["mlp.gate.weight"].T
        else:
            made[f"mlp/{name}/kernel"] = theirs[f"mlp.{tensor}_proj.weight"].T
    return made


def gemma_layer_of(name, theirs):
    made = {
        path: x
        for path, x in layer_of(theirs | {"post_attention_layernorm.weight": 0}).items()
        if not path.endswith("layer_norm/scale")
    }
    pre_ffw = "pre_feedforward_layernorm.weight"
    norms = {
        "pre_self_attention_norm": "input_layernorm.weight",
        "post_self_attention_norm": "post_attention_layernorm.weight",
        "pre_ffw_norm": pre_ffw if pre_ffw in theirs else "post_attention_layernorm.weight",
        "post_ffw_norm": "post_feedforward_layernorm.weight",
    }
    if name == "gemma":
        del norms["post_self_attention_norm"], norms["post_ffw_norm"]
    made |= {f"{path}/scale": theirs[tensor] for path, tensor in norms.items()}
    return {path: x + 1 if path.endswith("scale") else x for path, x in made.items()}


def mixtral_layer_of(theirs):
    names = {"w1": "gate", "w3": "up", "w2": "down"}
    for key in [key for key in theirs if "block_sparse_moe" in key]:
        last = key.split(".")[-2]
        new = key.replace("block_sparse_moe", "mlp").replace(
            f".{last}.", f".{names.get(last, last)}{'_proj' * (last in names)}."
        )
        theirs = theirs | {new: theirs[key]}
    made = layer_of(theirs)
    return {path.replace("moe_block", "MoeBlock_0"): x for path, x in made.items()}


def divided(kernel):
    return kernel * np.float32(1 / np.sqrt(K))


def interleaved(kernel):
    """Pairs side by side, of halves one after the other, as MaxText's own conversion makes them."""
    halves = np.split(kernel, 2, axis=-1)
    return np.stack(halves, axis=-1).reshape(kernel.shape)


def layers_of(name, tensors, layers):
    made = []
    for n in range(layers):
        theirs = tensors_of_layer(tensors, n)
        layer = gemma_layer_of(name, theirs) if "gemma" in name else None
        layer = layer or (mixtral_layer_of if name == "mixtral" else layer_of)(theirs)
        if name not in ("gemma3_text", "qwen2", "qwen3", "qwen3_moe"):
            layer["self_attention/query/kernel"] = divided(layer["self_attention/query/kernel"])
        if name == "llama 3.1":
            for each in ("query", "key"):
                path = f"self_attention/{each}/kernel"
                layer[path] = interleaved(layer[path])
        made.append(layer)
    return made


def placed(name, layers, *, scanned):
    """Yields the paths of leaves and the layers that lie in each, or the one that is it."""
    if name == "gemma2":
        ends = ("_local", "_global")
        for n, layer in enumerate(layers):
            for path, x in layer.items():
                head, slash, rest = path.partition("/")
                at = "layers" if scanned else f"layers_{n // 2}"
                yield f"{at}/{head}{ends[n % 2]}{slash}{rest}", x, scanned
    elif name == "gemma3_text" and scanned:
        full = len(layers) - len(layers) % 6
        for n, layer in enumerate(layers):
            at = "layers" if n < full else "layers_remainder"
            yield from ((f"{at}/layers_{n % 6}/{path}", x, n < full) for path, x in layer.items())
    else:
        for n, layer in enumerate(layers):
            at = "layers" if scanned else f"layers_{n}"
            yield from ((f"{at}/{path}", x, scanned) for path, x in layer.items())


def leaves_of(name, tensors, *, scanned, layers=LAYERS):
    is_gemma = name.startswith("gemma")
    table, root = tensors["model.embed_tokens.weight"], np.float32(D**0.5)
    if is_gemma:
        table = table * (np.float32(ml_dtypes.bfloat16(root)) if name == "gemma3_text" else root)
    leaves = {
        "token_embedder/embedding": table,
        "decoder/decoder_norm/scale": tensors["model.norm.weight"] + is_gemma,
    }
    if "lm_head.weight" in tensors:
        leaves["decoder/logits_dense/kernel"] = tensors["lm_head.weight"].T
    together = {}
    for path, x, is_part in placed(name, layers_of(name, tensors, layers), scanned=scanned):
        together.setdefault(f"decoder/{path}", []).append((x, is_part))
    for path, parts in together.items():
        xs = [x for x, _ in parts]
        leaves[path] = np.stack(xs, 1) if parts[0][1] else xs[0]
    return {f"params/{path}": x for path, x in sorted(leaves.items())}


CASES = {  # The names of tensors, and how many layers.
    "llama": ("llama", 2),
    "llama 3.1": ("llama", 2),
    "mixtral": ("mixtral", 2),
    "qwen2": ("qwen2", 2),
    "qwen3": ("qwen3", 2),
    "qwen3_moe": ("qwen3_moe", 2),
    "gemma": ("gemma", 2),
    "gemma2": ("gemma2", 4),
    "gemma2, two layers": ("gemma2", 2),
    "gemma3_text": ("gemma3_text", 14),
    "gemma3_text, one step": ("gemma3_text", 7),
    "gemma3_text, no step": ("gemma3_text", 2),
}


def config_of(name, layers):
    family = name.split(",")[0].split(" ")[0]
    return {
        "model_type": family,
        "num_hidden_layers": layers,
        "num_experts": E,
        "num_local_experts": E,
        "vocab_size": V,
    }
