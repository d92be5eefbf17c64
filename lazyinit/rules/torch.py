"""``TORCH``: rules for PyTorch's names and layouts that serve any model."""

from collections.abc import Callable

from lazyinit.rules.change import Change
from lazyinit.rules.layout import Transpose
from lazyinit.rules.rule import AnyRule, Rule, as_stored
from lazyinit.sources import Source


def _torch(leaf: str, tensor: str, layout: Change | Callable[[Source], Source] = as_stored) -> Rule:
    return Rule(leaf, tensor, layout, across_collections=True, optional=True)


TORCH: tuple[AnyRule, ...] = (
    _torch("**/kernel", "**.weight", Transpose("o i ... -> ... i o")),
    _torch("**/scale", "**.weight"),
    _torch("**/scale", "**.gamma"),
    _torch("**/embedding", "**.weight"),
    _torch("**/bias", "**.bias"),
    _torch("**/bias", "**.beta"),
    _torch("**/mean", "**.running_mean"),
    _torch("**/var", "**.running_var"),
    _torch("**", "**"),
)
"""Rules from PyTorch's names and layouts to those of Flax.

Linear and convolution weights are transposed to kernels; normalizations, embeddings and BatchNorm
running statistics get Flax's names; every other leaf keeps its name. ``gamma`` and ``beta`` are
LayerNorm's names in checkpoints that came from TensorFlow. PyTorch has no collections, so these
rules do not need the first key of a Linen path.

They do not cover two cases that neither a name nor a shape tells: transposed convolutions (PyTorch
stores them ``(in, out, *spatial)``, and Flax flips the spatial axes unless
``transpose_kernel=True``), and kernels with an axis for heads (``nn.DenseGeneral``).
"""
