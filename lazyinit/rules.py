"""Rules: which tensor makes which leaf, where a checkpoint has names and layouts of its own.

A rule is a pair of patterns that share their wildcards, so it can be read in both directions:
from the leaf that is wanted to the tensor that makes it, and back. Rules are plain values.
"""

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from lazyinit import errors
from lazyinit.checkpoint.layout import Transpose
from lazyinit.params import Source


def as_stored(source: Source) -> Source:
    """Returns the source itself: the layout of the leaf is that of the tensor."""
    return source


@dataclass(frozen=True, slots=True, repr=False)
class Rule:
    """Says that leaves of one pattern are made from tensors of another.

    In both patterns ``*`` stands for a part of one key and ``**`` for any number of keys; the
    wildcards of both sides are the same, in the same order. ``/`` and ``.`` mean the same.

    Attributes:
      leaf: what the path of the leaf, below ``at``, looks like: ``"**/kernel"``.
      tensor: what its tensor is called: ``"**.weight"``.
      layout: maps the tensor's source to one with the leaf's layout; never guessed from shapes.
      across_collections: whether the name of a Linen collection (the first key of a leaf, in a
        tree that has ``params`` as a first key) may count as nothing.
      optional: whether it is in order that the rule has nothing to do; the report then does not
        list it as unused.

    Raises:
      FillError: the two patterns have not the same wildcards.

    Example:
      >>> rule = Rule("**/kernel", "**.weight", Transpose("o i -> i o"))
      >>> rule.tensor_for("encoder/dense/kernel")
      'encoder/dense/weight'
    """

    leaf: str
    tensor: str
    layout: Callable[[Source], Source] = as_stored
    across_collections: bool = False
    optional: bool = False

    def __post_init__(self) -> None:
        _check_wildcards(self, self.leaf, self.tensor)

    def __repr__(self) -> str:
        shown = [repr(self.leaf), repr(self.tensor)]
        shown += [repr(self.layout)] * (self.layout is not as_stored)
        shown += [f"{flag}=True" for flag in _FLAGS if getattr(self, flag)]
        return f"Rule({', '.join(shown)})"

    def tensor_for(self, path: str) -> str:
        """Returns the ``/``-joined name of the tensor for a leaf, or ``""`` if there is none."""
        return _translate(self.leaf, self.tensor, path)


@dataclass(frozen=True, slots=True, repr=False)
class Rename:
    """Says that tensors are to be known by another name, before leaves are matched.

    Attributes:
      tensor: what the checkpoint calls them: ``"model.**"``; wildcards as in ``Rule``.
      name: what they are to be called: ``"**"``.

    Raises:
      FillError: the two patterns have not the same wildcards.

    Example:
      >>> Rename("decoder.h.*.**", "layers.*.**").name_for("decoder/h/3/ln/weight")
      'layers/3/ln/weight'
    """

    tensor: str
    name: str

    def __post_init__(self) -> None:
        _check_wildcards(self, self.tensor, self.name)

    def __repr__(self) -> str:
        return f"Rename({self.tensor!r}, {self.name!r})"

    def name_for(self, name: str) -> str:
        """Returns the new ``/``-joined name for a tensor, or ``""`` if it keeps its own."""
        return _translate(self.tensor, self.name, name)


_FLAGS = ("across_collections", "optional")


AnyRule: TypeAlias = Rule | Rename


def strip_prefix(prefix: str) -> Rename:
    """Returns a rule that drops leading keys from the names of tensors.

    Raises:
      FillError: the prefix is empty.

    Example:
      >>> strip_prefix("model.")
      Rename('model.**', '**')
    """
    keys = prefix.strip("./")
    if not keys:
        raise errors.FillError(
            f"strip_prefix: wanted leading keys of names, such as 'model.', got {prefix!r}."
        )
    return Rename(f"{keys}.**", "**")


def check_rules(rules: Iterable[AnyRule]) -> tuple[AnyRule, ...]:
    """Returns the rules as a tuple.

    Raises:
      FillError: something in it is not a rule.
    """
    listed = tuple(rules) if isinstance(rules, Iterable) else (rules,)
    for place, rule in enumerate(listed):
        if not isinstance(rules, Iterable) or not isinstance(rule, Rule | Rename):
            raise errors.FillError(
                f"rules[{place}]: wanted a sequence of Rule or Rename values, got "
                f"{type(rule).__name__}. Write rules=[rule] or rules=[rule, *lazyinit.TORCH]."
            )
    return listed


def _check_wildcards(rule: AnyRule, one: str, other: str) -> None:
    if not one or not other or _WILDCARD.findall(one) != _WILDCARD.findall(other):
        raise errors.FillError(
            f"{rule}: wanted two patterns with the same wildcards in the same order, got "
            f"{one!r} and {other!r}. Write it as Rule('**/kernel', '**.weight')."
        )


# Both sides are matched and written key by key, each key followed by "/", so that a "**"
# that stands for no key at all leaves no stray "/" behind.
_WILDCARD = re.compile(r"\*\*|\*")


def _translate(pattern: str, template: str, path: str) -> str:
    found = _compiled(pattern).fullmatch(path + "/")
    if found is None:
        return ""
    captured = iter(found.groups())
    keys = _keys(template)
    return "".join(
        next(captured) if key == "**" else _WILDCARD.sub(lambda _: next(captured), key) + "/"
        for key in keys
    ).rstrip("/")


@functools.lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(
        "".join(
            "((?:[^/]+/)*)" if key == "**" else re.escape(key).replace(r"\*", "([^/]*)") + "/"
            for key in _keys(pattern)
        )
    )


@functools.lru_cache(maxsize=4096)
def _keys(pattern: str) -> Sequence[str]:
    return pattern.replace(".", "/").strip("/").split("/")


def _torch(leaf: str, tensor: str, layout: Callable[[Source], Source] = as_stored) -> Rule:
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
