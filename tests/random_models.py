"""Random decoders whose true rules are known: leaves and tensors of one model, both as numpy arrays.

The leaves are named and laid out as several libraries do it, the tensors as PyTorch's are, or as
TensorFlow's. Sizes are few and small, so that many are equal: kernels are square, and heads times
their size is the width.
"""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st


@dataclass(frozen=True)
class Model:
    """A model: its leaves by path, and the tensors of its checkpoint by name."""

    leaves: dict
    tensors: dict


STYLES = ("flax", "einsum", "gemma")
NORMS = {  # By the name of a tensor, that of a leaf.
    "two": {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"},
    "like": {"input_layernorm": "pre_attn_norm", "post_attention_layernorm": "pre_ffw_norm"},
    "same": {n: n for n in ("input_layernorm", "post_attention_layernorm")},
    "four": {
        "input_layernorm": "pre_attention_norm",
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "pre_ffw_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
}


class _Writer:
    """Makes leaves of distinct values, and the tensors that they are made from."""

    def __init__(self, turned):
        self.leaves, self.tensors, self._next, self._turned = {}, {}, 0, turned

    def fresh(self, *shape):
        self._next += (size := int(np.prod(shape)))
        return np.arange(self._next - size, self._next, dtype="int32").reshape(shape)

    def same(self, leaf, tensor, *shape):
        self.leaves[leaf] = self.tensors[tensor] = self.fresh(*shape)

    def kernel(self, leaf, tensor, inputs, outputs):
        """Adds a kernel ``[*inputs, *outputs]``, of which the checkpoint has a matrix."""
        self.leaves[leaf] = self.fresh(*inputs, *outputs)
        self.store(tensor, self.leaves[leaf], len(inputs))

    def store(self, tensor, kernel, inputs):
        matrix = kernel.reshape(int(np.prod(kernel.shape[:inputs])), -1)
        self.tensors[tensor] = matrix.T if self._turned() else matrix


@st.composite
def models(draw, turned=None):
    """Returns a strategy for models.

    Args:
      draw: hypothesis's.
      turned: whether matrices are ``[out, in]``: a strategy, drawn anew for each tensor; ``None`` for
        one word for all of them.
    """
    sizes = st.sampled_from([2, 3, 4, 6])
    width, inner, words, heads, size = (draw(sizes) for _ in range(5))
    if draw(st.booleans()):
        width = heads * size
    if draw(st.booleans()):
        inner = width
    groups = draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0]))
    is_torch = draw(st.integers(0, 3)) > 0
    made = _Writer((lambda: is_torch) if turned is None else (lambda: draw(turned)))
    style, norms = draw(st.sampled_from(STYLES)), NORMS[draw(st.sampled_from(sorted(NORMS)))]
    last = "scale" if style == "flax" else draw(st.sampled_from(["scale", "w"]))
    weight = "weight" if is_torch or turned is not None else draw(st.sampled_from(["weight", "w"]))
    experts = draw(st.sampled_from([0, 0, 2, 3]))
    made.same("embed/embedding", f"model.embed_tokens.{weight}", words, width)
    made.same(f"norm/{last}", f"model.norm.{weight}", width)
    for n in range(draw(st.integers(1, 3))):
        here, there = f"layers/{n}", f"model.layers.{n}"
        for theirs, mine in norms.items():
            made.same(f"{here}/{mine}/{last}", f"{there}.{theirs}.{weight}", width)
        _attention(
            made, style, f"{here}/attn", f"{there}.self_attn", weight, (width, heads, groups, size)
        )
        if experts:
            made.kernel(
                f"{here}/mlp/router/kernel", f"{there}.mlp.gate.{weight}", (width,), (experts,)
            )
        for name in ("gate_proj", "up_proj", "down_proj"):
            ends = ((inner,), (width,)) if name == "down_proj" else ((width,), (inner,))
            if not experts:
                made.kernel(f"{here}/mlp/{name}/kernel", f"{there}.mlp.{name}.{weight}", *ends)
                continue
            stacked = made.fresh(experts, *ends[0], *ends[1])
            made.leaves[f"{here}/mlp/{name}"] = stacked
            for m in range(experts):
                made.store(f"{there}.mlp.experts.{m}.{name}.{weight}", stacked[m], 1)
    head = draw(st.sampled_from(["own", "tied", "none"]))
    if head == "own":
        made.kernel("lm_head/kernel", f"lm_head.{weight}", (width,), (words,))
    elif head == "tied":
        made.leaves["lm_head/kernel"] = made.leaves["embed/embedding"].T
    order = draw(st.permutations(sorted(made.tensors)))
    return Model(made.leaves, {name: made.tensors[name] for name in order})


def _attention(made, style, here, there, weight, sizes):
    width, heads, groups, size = sizes
    if style == "flax":
        for name, count in (("query", heads), ("key", groups), ("value", groups)):
            made.kernel(
                f"{here}/{name}/kernel", f"{there}.{name[0]}_proj.{weight}", (width,), (count, size)
            )
        made.kernel(f"{here}/out/kernel", f"{there}.o_proj.{weight}", (heads, size), (width,))
        return
    out = "o_proj" if style == "einsum" else "attn_vec_einsum"
    made.kernel(f"{here}/{out}/w", f"{there}.o_proj.{weight}", (heads, size), (width,))
    kernels = {name: made.fresh(width, heads if name == "q" else groups, size) for name in "qkv"}
    for name, kernel in kernels.items():
        made.store(f"{there}.{name}_proj.{weight}", kernel, 1)
    if style == "einsum":
        made.leaves |= {f"{here}/{name}_proj/w": kernel for name, kernel in kernels.items()}
        return
    q, k, v = (kernel.transpose(1, 0, 2) for kernel in kernels.values())
    if heads == groups:
        made.leaves[f"{here}/qkv_einsum/w"] = np.stack([q, k, v])
    else:
        made.leaves[f"{here}/q_einsum/w"] = q
        made.leaves[f"{here}/kv_einsum/w"] = np.stack([k, v])
