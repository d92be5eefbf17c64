"""A rule says which tensors make which leaves, and how their layouts differ.

A rule is a pair of patterns that share their wildcards, and a layout that says how the tensors
are changed. It can be read in both directions: from leaves to the tensors that make them, and
back. Rules are plain values, and print as they are written. ``as_rules`` makes a tuple of what a
user passes as ``rules``.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from lazyinit import errors
from lazyinit.patterns import check_alike, pattern
from lazyinit.rules.change import Change, Frame, Layout, OneByOne, Wanted
from lazyinit.rules.renames import Ignore, Rename
from lazyinit.sources import Shape, Source

Patterns: TypeAlias = str | tuple[str, ...]


def as_stored(source: Source) -> Source:
    """Returns the source unchanged, for leaves that have the layout of their tensors."""
    return source


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """A value in place of tensors: ``Rule("**/mask", Constant(1.0))``.

    ``save`` writes no tensor for such a leaf.

    Attributes:
      value: a number, or an array of a shape that is broadcast to the leaf's.

    Raises:
      FillError: the value is no number or array of numbers.

    Example:
      >>> Constant(0.5)
      Constant(0.5)
    """

    value: Any  # Whatever makes a numpy array.

    def __post_init__(self) -> None:
        if np.asarray(self.value).dtype.kind in "OUS":
            raise errors.FillError(
                f"Constant: wanted a number or an array of numbers, got {self.value!r}."
            )

    def _identity(self) -> tuple[object, ...]:
        """Returns what two equal constants have in common, since arrays do not hash."""
        array = np.asarray(self.value)
        return array.dtype, array.shape, array.tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constant) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __repr__(self) -> str:
        return f"Constant({self.value!r})"


@dataclass(frozen=True, slots=True, repr=False)
class Rule:
    """Says that leaves of one pattern are made from tensors of another.

    In patterns ``*`` stands for a part of one key, ``**`` for any number of keys and ``{n}`` for
    a number; ``/`` and ``.`` mean the same. All patterns have the same wildcards in the same
    order. If only the tensors' patterns have a number, it counts tensors that are stacked; if
    only the leaves' patterns have it, it counts leaves that are unstacked.

    Attributes:
      leaf: the pattern of the leaf's path below ``at``: ``"**/kernel"``; several patterns if one
        tensor makes several leaves.
      tensor: the pattern of the tensor's name: ``"**.weight"``; several patterns if several
        tensors make one leaf; or a ``Constant``.
      layout: the change, or several in order, from the layout of the tensors to that of the
        leaves. It is never guessed from shapes. A function from source to source is allowed,
        but cannot be read backwards.
      across_collections: whether a pattern may also match the path without its Linen collection
        (the first key, in a tree that has ``params`` as a first key).
      optional: whether the rule may match nothing; if so, the report does not list it as unused.
      tied: whether the tensor makes this leaf only as a second one, if the leaf has no tensor of
        its own. Such a rule is left out where there is no tree.

    Raises:
      FillError: the patterns do not have the same wildcards, or the layout does not make as many
        leaves as there are patterns of leaves.

    Example:
      >>> from lazyinit.rules.layout import Transpose
      >>> rule = Rule("**/kernel", "**.weight", Transpose("o i -> i o"))
      >>> rule.tensor_for("encoder/dense/kernel")
      'encoder/dense/weight'
    """

    leaf: Patterns
    tensor: Patterns | Constant
    layout: Change | Sequence[Change] | Callable[[Source], Source] = as_stored
    across_collections: bool = False
    optional: bool = False
    tied: bool = False

    def __post_init__(self) -> None:
        for name in ("leaf", "tensor", "layout"):
            if isinstance(given := getattr(self, name), list):
                object.__setattr__(self, name, tuple(given))
        if self.layout == ():
            object.__setattr__(self, "layout", as_stored)
        check_alike(self, self.leaves, self.tensors)
        try:
            self.changes()
        except errors.FillError as error:
            raise errors.FillError(f"{self}: {error}") from None

    def __repr__(self) -> str:
        shown = [repr(self.leaf), repr(self.tensor)]
        if isinstance(self.layout, tuple):
            shown += [repr(list(self.layout))]
        elif self.layout is not as_stored:
            shown += [repr(self.layout)]
        shown += [f"{flag}=True" for flag in _FLAGS if getattr(self, flag)]
        return f"Rule({', '.join(shown)})"

    @property
    def leaves(self) -> tuple[str, ...]:
        """The patterns of the rule's leaves."""
        return _several(self.leaf)

    @property
    def tensors(self) -> tuple[str, ...]:
        """The patterns of the rule's tensors; empty if it has a ``Constant``."""
        return () if isinstance(self.tensor, Constant) else _several(self.tensor)

    @property
    def stacked(self) -> str:
        """The name of the number that only the patterns of tensors have, or ``""``."""
        return _extra(self.tensors, self.leaves) if self.tensors else ""

    @property
    def unstacked(self) -> str:
        """The name of the number that only the patterns of leaves have, or ``""``."""
        return _extra(self.leaves, self.tensors) if self.tensors else ""

    def changes(self) -> Layout:
        """Returns the rule's changes, and checks that they fit its patterns of tensors and leaves.

        Raises:
          FillError: the changes do not make as many leaves of the tensors as the rule has.
        """
        tensors = Frame(len(self.tensors or self.leaves), bool(self.stacked))
        return _layout(self.layout, tensors, Frame(len(self.leaves), bool(self.unstacked)))

    def tensor_for(self, path: str) -> str:
        """Returns the ``/``-joined name of the first tensor for a leaf, or ``""`` if it has none.

        A number that counts stacked tensors stays ``{n}`` in the name.
        """
        for leaf in self.leaves:
            if self.tensors and (found := pattern(leaf).match(path)):
                return pattern(self.tensors[0]).write(found)
        return ""


_FLAGS = ("across_collections", "optional", "tied")


def _several(patterns: Patterns) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else patterns


def _extra(these: tuple[str, ...], others: tuple[str, ...]) -> str:
    """Returns the number that the first of these patterns has and the others lack, or ``""``."""
    there = pattern(others[0]).numbers
    return next((number for number in pattern(these[0]).numbers if number not in there), "")


@functools.lru_cache(maxsize=4096)
def _layout(layout: Any, tensors: Frame, leaves: Frame) -> Layout:  # Any: what Rule.layout takes.
    """Makes a ``Layout`` of what a user wrote as the layout of a rule, and checks it.

    Raises:
      FillError: a part is no change, or the changes do not lead from the tensors to the leaves.
    """
    if layout is as_stored:
        changes = ()
    elif isinstance(layout, tuple):
        changes = layout
    else:
        changes = (layout if isinstance(layout, Change) else Applied(layout),)
    for change in changes:
        if not isinstance(change, Change):
            raise errors.FillError(
                f"wanted changes of layout such as Transpose('o i -> i o'), got {change!r}."
            )
    return Layout(changes, tensors, leaves)


@dataclass(frozen=True, slots=True)
class Applied(OneByOne):
    """A change that calls a user's function from source to source.

    Attributes:
      function: makes the leaf's source from the tensor's source.
    """

    function: Callable[[Source], Source]

    def wanted_before(self, wanted: Shape) -> Wanted:
        """Returns ``None``: a function does not say what shape it needs."""
        return None

    def changed(self, source: Source, wanted: Wanted) -> Source:
        """Returns what the function makes of the source."""
        return self.function(source)

    def restored(self, source: Source) -> Source:
        """Raises a ``FillError``: a function cannot be read backwards."""
        raise errors.FillError(
            f"wanted a layout that can be read backwards, got the function {self.function!r}. "
            "Write it as changes, such as Transpose and Rearrange."
        )


AnyRule: TypeAlias = Rule | Rename | Ignore
Rules: TypeAlias = Iterable[AnyRule] | None
"""The type of every ``rules`` argument: rules in order; ``None`` for none. It is iterated once."""


def as_rules(rules: Rules) -> tuple[AnyRule, ...]:
    """Returns a ``rules`` argument as a tuple.

    Raises:
      FillError: the argument is no iterable, or one of its elements is not a rule.
    """
    if rules is None:
        return ()
    listed = tuple(rules) if isinstance(rules, Iterable) else (rules,)
    for place, rule in enumerate(listed):
        if not isinstance(rules, Iterable) or not isinstance(rule, AnyRule):
            raise errors.FillError(
                f"rules[{place}]: wanted a sequence of Rule or Rename values, got "
                f"{type(rule).__name__}. Write rules=[rule] or rules=[rule, *lazyinit.TORCH]."
            )
    return listed
