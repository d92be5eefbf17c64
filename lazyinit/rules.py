"""Sequences of rules: what may be in one, and the one for PyTorch."""

from collections.abc import Callable, Iterable
from typing import TypeAlias

from lazyinit import errors
from lazyinit.checkpoint.change import Change
from lazyinit.checkpoint.layout import Transpose
from lazyinit.params import Source
from lazyinit.renames import Ignore, Rename
from lazyinit.renames import strip_prefix as strip_prefix
from lazyinit.rule import Rule, as_stored

AnyRule: TypeAlias = Rule | Rename | Ignore


def check_rules(rules: Iterable[AnyRule]) -> tuple[AnyRule, ...]:
    """Returns the rules as a tuple.

    Raises:
      FillError: something in it is not a rule.
    """
    listed = tuple(rules) if isinstance(rules, Iterable) else (rules,)
    for place, rule in enumerate(listed):
        if not isinstance(rules, Iterable) or not isinstance(rule, AnyRule):
            raise errors.FillError(
                f"rules[{place}]: wanted a sequence of Rule or Rename values, got "
                f"{type(rule).__name__}. Write rules=[rule] or rules=[rule, *lazyinit.TORCH]."
            )
    return listed


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
"""PyTorch's names and layouts, for leaves that go by Flax's.

Linear and convolution weights are transposed to kernels; normalizations, embeddings and BatchNorm
running statistics get Flax's names; every other leaf is looked for under its own. ``gamma`` and
``beta`` are LayerNorm's names in checkpoints that came from TensorFlow. PyTorch has no
collections, so the first key of a Linen path counts as nothing.

Not covered, as neither name nor shape tells: transposed convolutions (PyTorch stores them
``(in, out, *spatial)``, and Flax flips the spatial axes unless ``transpose_kernel=True``), and
kernels with heads as an axis of their own (``nn.DenseGeneral``).
"""
