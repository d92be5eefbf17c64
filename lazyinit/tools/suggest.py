"""Proposes rules for leaves that a checkpoint does not match, for people to read and paste.

A tree and a checkpoint come in, and a ``Suggestion`` goes out, whose text is Python source. Nothing
is applied. First the rules that exist are tried, then names are paired (``propose.py``).
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lazyinit import errors, maps
from lazyinit.checkpoint import Checkpoint, open_checkpoint
from lazyinit.match.advise import guesses
from lazyinit.match.match import Matching, match, named
from lazyinit.match.places import Place, places
from lazyinit.params import Shape, Thunk
from lazyinit.patterns import slashed
from lazyinit.rules.renames import Rename, strip_prefix
from lazyinit.rules.rule import AnyRule, Rules, as_rules
from lazyinit.rules.torch import TORCH
from lazyinit.tools.pairing import families
from lazyinit.tools.propose import propose


@dataclass(frozen=True, slots=True, repr=False)
class Suggestion:
    """Rules that a person may paste, once they have read them. ``str`` is Python source.

    Attributes:
      rules: what ``fill`` would take.
      at: where the checkpoint would hang.
      notes: what is doubtful and should be checked, one line each.
      ambiguous: by the path of a leaf, the tensors that are equally likely to make it.
      unmatched_leaves: paths of the leaves that have no tensor even with these rules.
      unmatched_tensors: names of the tensors that make no leaf even with these rules.
    """

    rules: tuple[AnyRule, ...]
    at: str
    notes: tuple[str, ...]
    ambiguous: Mapping[str, tuple[str, ...]]
    unmatched_leaves: tuple[str, ...]
    unmatched_tensors: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"at = {self.at!r}"] * bool(self.at)
        lines += ["rules = [", *(f"    {text}," for text in _written(self.rules)), "]"]
        lines += [f"# {note}" for note in self.notes]
        told = [f"{leaf}: {' or '.join(tensors)}?" for leaf, tensors in self.ambiguous.items()]
        lines += [f"# ambiguous: {text}" for text in _few(told)]
        lines += [f"# unmatched leaf: {text}" for text in _few(self.unmatched_leaves)]
        lines += [f"# unmatched tensor: {text}" for text in _few(self.unmatched_tensors)]
        return "\n".join(lines)

    __repr__ = __str__


_READY: dict[str, Sequence[AnyRule]] = {
    "TORCH": TORCH,
    **{f"maps.{name}": getattr(maps, name) for name in maps.__all__ if name.isupper()},
}


def suggest_rules(
    tree: Any,
    checkpoint: str | os.PathLike[str] | Mapping[Any, Any],
    rules: Rules = (),
    *,
    at: str = "",
) -> Suggestion:
    """Proposes rules for the leaves that a checkpoint does not match yet; applies none.

    Looks for a place and a prefix at which the rules given, ``TORCH`` or a ready map fit, then
    pairs what is left by numbers, shapes and the words of names. What cannot be told, such as
    which of two tensors of one shape a leaf is made from, is listed, not guessed.

    Args:
      tree: any pytree (hence ``Any``), as ``fill`` takes it.
      checkpoint: as ``fill`` takes it. Names and shapes are looked at, no value is read.
      rules: what is known already.
      at: the subtree under which the checkpoint hangs, if that is known.

    Returns:
      The rules, the ones given among them, with notes on what is doubtful.

    Raises:
      CheckpointError: the checkpoint is broken, unsafe or of an unknown format.
      FillError: something in ``rules`` is no rule.

    Example:
      >>> import numpy as np
      >>> shapes = {"up": (2, 3), "down": (3, 2), "head": (2, 5)}
      >>> tree = {name: {"kernel": np.zeros(shape)} for name, shape in shapes.items()}
      >>> stored = {"up.w": (3, 2), "down.w": (2, 3), "out.w": (5, 2)}
      >>> print(suggest_rules(tree, {name: np.zeros(shape) for name, shape in stored.items()}))
      rules = [
          Rule('down/kernel', 'down.w', [Transpose('o i -> i o')]),
          Rule('head/kernel', 'out.w', [Transpose('o i -> i o')]),
          Rule('up/kernel', 'up.w', [Transpose('o i -> i o')]),
      ]
    """
    opened = open_checkpoint(checkpoint)
    leaves = [place for place, leaf in places(tree) if _is_fillable(leaf)]
    base = _best_base(_one_of_each(leaves), opened, as_rules(rules), slashed(at).strip("/"))
    paths, shapes, tensors, names = _unmatched(leaves, opened, base)
    proposals = propose(shapes, tensors, next(iter(opened), ""))
    across = not base.at and any(place.linen for place in leaves)
    found = tuple(replace(each.rule, across_collections=across) for each in proposals.chosen)
    whole = (*base.renames, *found, *base.makers)
    matching = match(leaves, opened, rules=whole, at=base.at)
    fitting = _fitting(leaves, matching)
    taken = {t for path in fitting for t in matching.matches[path].tensors} | matching.ignored
    ambiguous = {
        paths[leaf]: tuple(names[tensor] for tensor in candidates)
        for leaf, candidates in proposals.ambiguous.items()
    }
    left = {place.path for place in leaves} - fitting
    return Suggestion(
        whole,
        base.at,
        tuple(note for proposal in proposals.chosen for note in proposal.notes),
        ambiguous,
        tuple(place.path for place in leaves if place.path in left and place.path not in ambiguous),
        tuple(name for name in opened if name not in taken),
    )


def _is_fillable(leaf: Any) -> bool:  # Any: a leaf may be any Python object.
    is_array = isinstance(leaf, Thunk | jax.Array | np.ndarray | np.generic)
    return is_array and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


@dataclass(frozen=True, slots=True)
class _Base:
    """The rules to start from: those given and ready ones, and where the checkpoint hangs."""

    at: str
    renames: tuple[AnyRule, ...]
    makers: tuple[AnyRule, ...]


def _one_of_each(leaves: Sequence[Place]) -> list[Place]:
    """Returns one leaf of those whose names differ in their numbers alone."""
    by_name = {place.name: place for place in leaves}
    shapes = {place.name: place.shape for place in leaves if place.shape is not None}
    return [by_name[family.names[0]] for family in families(shapes, numbered=True)]


def _best_base(
    leaves: Sequence[Place], checkpoint: Checkpoint, rules: tuple[AnyRule, ...], at: str
) -> _Base:
    renames = tuple(rule for rule in rules if isinstance(rule, Rename))
    makers = tuple(rule for rule in rules if not isinstance(rule, Rename))
    best, most = _Base(at, renames, makers), len(leaves) // 2  # Fewer may match by chance.
    for ready in ((), *_READY.values()):
        new = tuple(rule for rule in ready if rule not in rules)
        tried = [(at, "")]
        if not rules:
            found = guesses(leaves, checkpoint, ready)[:3]
            tried += [(place, prefix) for place, prefix in found if not at or place == at]
        for place, prefix in tried:
            strip = (strip_prefix(prefix),) if prefix else ()
            try:
                made = match(leaves, checkpoint, rules=(*strip, *rules, *new), at=place)
            except errors.FillError:  # Two tensors that go by one name without the prefix.
                continue
            if (count := len(_fitting(leaves, made))) > most:
                best, most = _Base(place, (*strip, *renames), (*makers, *new)), count
    return best


def _fitting(leaves: Sequence[Place], found: Matching) -> set[str]:
    """Returns the paths of the leaves that are matched by tensors of their shape."""
    return {
        place.path
        for place in leaves
        if (made := found.matches.get(place.path)) is not None
        and not made.problem
        and made.source.shape == place.shape
    }


def _unmatched(
    leaves: Sequence[Place], checkpoint: Checkpoint, base: _Base
) -> tuple[dict[str, str], dict[str, Shape], dict[str, Shape], dict[str, str]]:
    """Returns what a base leaves unmatched.

    Returns:
      Paths and shapes of leaves by the names that rules know them by; shapes of tensors by their
      names once renamed, and what all tensors are called, by the same.
    """
    found = match(leaves, checkpoint, rules=(*base.renames, *base.makers), at=base.at)
    fitting = _fitting(leaves, found)
    taken = {t for path in fitting for t in found.matches[path].tensors} | found.ignored
    names, _ = named(checkpoint, [rule for rule in base.renames if isinstance(rule, Rename)])
    tensors = {name: checkpoint[t].shape for name, t in names.items() if t not in taken}
    shapes: dict[str, Shape] = {}
    paths: dict[str, str] = {}
    for place in leaves:
        if place.path not in fitting and place.shape is not None and place.below(base.at):
            name = place.below(base.at)
            if place.linen and not base.at:
                name = name.removeprefix("params/")
            shapes[name], paths[name] = place.shape, place.path
    return paths, shapes, tensors, names


def _written(rules: Sequence[AnyRule]) -> list[str]:
    """Returns rules as one writes them, those of a ready map by its name."""
    for name, ready in _READY.items():
        if set(ready) <= set(rules):
            kept = [str(rule) for rule in rules if rule not in ready]
            return [*kept, f"*{name}"]
    return [str(rule) for rule in rules]


def _few(lines: Iterable[str]) -> list[str]:
    listed = list(lines)
    more = [f"... and {len(listed) - 10} more"] * (len(listed) > 10)
    return [*listed[:10], *more]
