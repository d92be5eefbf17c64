"""``rules_from``: reads the tables of tensor names of other libraries as rules.

google-tunix and bonsai keep a table for each model. It maps a regular expression for the names of
tensors to the path of a leaf, and to a new order of the axes. A table comes in, and rules go out,
so that it can be used as all rules are: in both directions, and for each shard alone.
"""

import enum
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lazyinit import errors
from lazyinit.checkpoint import Checkpoint, open_checkpoint
from lazyinit.patterns import pattern, slashed
from lazyinit.rules.change import Change
from lazyinit.rules.layout import Transpose
from lazyinit.rules.regexes import read_regex
from lazyinit.rules.renames import Ignore
from lazyinit.rules.reshape import Reshape
from lazyinit.rules.rule import AnyRule, Rule
from lazyinit.sources import Shape


def rules_from(
    table: Mapping[Any, Any],
    *,
    like: str | os.PathLike[str] | Mapping[Any, Any] | None = None,
) -> tuple[AnyRule, ...]:
    r"""Reads a table of tensor names, as google-tunix and bonsai keep one, as rules.

    Each entry maps a regular expression for whole names to the key of a leaf, in which ``\1``
    stands for the text of a group, and a transform. An entry may also be a key alone. The transform
    is ``None``, or a pair of a permutation and a shape, as ``numpy.transpose`` and then ``reshape``
    take them; each may be ``None``. A third element ``True`` means that the shape comes first. A
    member of an ``enum.Enum`` stands for its value. Tensors whose key is ``None``, or begins with
    ``unused``, are ignored.

    A table does not contain what a loader does after it: google-tunix stacks experts, and fuses
    the heads of Gemma. Put rules for that before these.

    Args:
      table: any mapping; its keys and values are checked here.
      like: a checkpoint with the tensors that the rules are for. The rules take from it the shapes
        that do not follow from a leaf, and can then be read backwards.

    Raises:
      FillError: an entry cannot be read; the message names it.

    Example:
      >>> table = {r"h\.([0-9]+)\.up\.weight": (r"layers.\1.up.kernel", ((1, 0), None))}
      >>> rules_from(table)[0].tensor_for("layers/3/up/kernel")
      'h/3/up/weight'
    """
    if not isinstance(table, Mapping):
        raise errors.FillError(
            "rules_from: wanted a mapping from regular expressions to keys and transforms, got "
            f"{type(table).__name__}. Call the function that makes it first."
        )
    checkpoint = None if like is None else open_checkpoint(like)
    rules: list[AnyRule] = []
    for regex, entry in table.items():
        try:
            rules += _entry(regex, entry, checkpoint)
        except errors.FillError as error:
            raise errors.FillError(
                f"rules_from: entry {_text(regex)!r}: {str(error).rstrip('.')}. Take it out of the "
                "table, and write a lazyinit.Rule for its tensors."
            ) from None
    return tuple(dict.fromkeys(rules))


def _text(regex: Any) -> Any:  # Any: a user may have written anything as a key.
    """Returns the text of a compiled regular expression, and anything else unchanged."""
    return regex.pattern if isinstance(regex, re.Pattern) else regex


def _entry(regex: Any, entry: Any, checkpoint: Checkpoint | None) -> list[AnyRule]:
    """Returns the rules for one entry of a table, in any of the forms that entries have.

    Raises:
      FillError: the entry has another form.
    """
    key, transform = entry if isinstance(entry, Sequence) and len(entry) == 2 else (entry, None)
    if isinstance(entry, str):
        key, transform = entry, None
    regex = _text(regex)
    if not isinstance(regex, str) or not (key is None or isinstance(key, str)):
        raise errors.FillError(
            f"wanted a key, or a key and a transform, of a regular expression, got {entry!r}"
        )
    is_unused = key is None or slashed(key).split("/")[0] == "unused"
    pairs = read_regex(regex, "" if is_unused else str(key))
    if is_unused:
        return [Ignore(tensor) for tensor, _ in pairs]
    permutation, shape, shape_first = _transform(transform)
    return [
        _rule(leaf, tensor, permutation, shape, shape_first=shape_first, checkpoint=checkpoint)
        for tensor, leaf in pairs
    ]


def _transform(given: Any) -> tuple[Sequence[int], Shape, bool]:
    """Returns the permutation, the shape, and whether the shape is first; ``()`` for ``None``."""
    given = given.value if isinstance(given, enum.Enum) else given
    parts = (None, None) if given is None else given
    if not isinstance(parts, Sequence) or len(parts) not in (2, 3):
        raise errors.FillError(f"wanted a transform (permutation, shape) or None, got {given!r}")
    permutation, shape = (_sizes(part, given) for part in parts[:2])
    if sorted(permutation) != list(range(len(permutation))):
        raise errors.FillError(f"wanted a permutation of the axes first, got {given!r}")
    return permutation, shape, len(parts) == 3 and bool(parts[2])


def _sizes(part: Any, given: Any) -> Shape:
    """Returns a permutation or a shape as a tuple; ``()`` for ``None``."""
    if part is None:
        return ()
    if not isinstance(part, Sequence) or not all(isinstance(size, int) for size in part):
        raise errors.FillError(f"wanted a transform (permutation, shape) or None, got {given!r}")
    return tuple(part)


def _rule(
    leaf: str,
    tensor: str,
    permutation: Sequence[int],
    shape: Shape,
    *,
    shape_first: bool,
    checkpoint: Checkpoint | None,
) -> Rule:
    """Returns the rule for one pattern of tensors.

    The checkpoint tells the tensors' shape, so that the rule can be read backwards.

    Raises:
      FillError: the pattern fits several tensors that would make one leaf.
    """
    changes: list[Change] = []
    if tuple(permutation) != tuple(range(len(permutation))):
        names = [f"a{axis}" for axis in range(len(permutation))]
        moved = [names[axis] for axis in permutation]
        changes.append(Transpose(f"{' '.join(names)} -> {' '.join(moved)}"))
    if shape_first and shape:
        changes.insert(0, Reshape(shape, _shape_of(tensor, checkpoint)))
    elif shape:
        stored = _shape_of(tensor, checkpoint)
        axes = permutation or range(len(stored))
        back = tuple(stored[axis] for axis in axes) if len(stored) == len(axes) else ()
        changes.append(Reshape(shape, back))
    if missing := set(pattern(tensor).numbers) - set(pattern(leaf).numbers):
        raise errors.FillError(
            f"wanted a leaf for each tensor, got {leaf!r} for all the tensors that "
            f"{{{missing.pop()}}} counts in {tensor!r}"
        )
    return Rule(leaf, tensor, changes, across_collections=True, optional=True)


def _shape_of(tensor: str, checkpoint: Checkpoint | None) -> Shape:
    """Returns the shape of the tensors that fit a pattern; ``()`` if they differ or none fits."""
    fits = pattern(tensor)
    shapes = {s.shape for name, s in (checkpoint or {}).items() if fits.match(slashed(name))}
    return shapes.pop() if len(shapes) == 1 else ()
