"""Proposes rules for leaves that a checkpoint does not match, for people to read and paste.

A tree and a checkpoint come in, and a ``Suggestion`` goes out, whose text is Python source. Nothing
is applied. First the rules that exist are tried (``starts.py``), then names are paired
(``propose.py``). Layouts that nothing decides are listed as open (``decide.py``).
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lazyinit.checkpoint import Checkpoint, open_checkpoint
from lazyinit.match.match import match, named
from lazyinit.match.places import Place, places
from lazyinit.params import Thunk
from lazyinit.patterns import slashed
from lazyinit.rules.renames import Rename
from lazyinit.rules.rule import AnyRule, Rule, Rules, as_rules
from lazyinit.rules.torch import TORCH
from lazyinit.tools.decide import Decision
from lazyinit.tools.families import families
from lazyinit.tools.propose import Proposal, Proposals, propose
from lazyinit.tools.starts import READY, Base, Matched, best_base, fitting, matched, own_name
from lazyinit.view import html


@dataclass(frozen=True, slots=True, repr=False)
class Suggestion:
    """Proposed rules, for a person to read and then paste. ``str`` is Python source.

    Attributes:
      rules: the rules to pass to ``fill``.
      at: the subtree to pass to ``fill`` as ``at``.
      notes: what is doubtful and should be checked, one line each.
      open: groups of rules that are not among ``rules``, since nothing tells which layout a tensor
        has. Add the right one of each group.
      ambiguous: the tensors that are equally likely to make a leaf, by its path.
      unmatched_leaves: paths of the leaves that have no tensor even with these rules.
      unmatched_tensors: names of the tensors that make no leaf even with these rules.
    """

    rules: tuple[AnyRule, ...]
    at: str
    notes: tuple[str, ...]
    open: tuple[tuple[AnyRule, ...], ...]
    ambiguous: Mapping[str, tuple[str, ...]]
    unmatched_leaves: tuple[str, ...]
    unmatched_tensors: tuple[str, ...]

    def __str__(self) -> str:
        notes = [f"# {note}" for note in self.notes]
        told = [f"# {name}: {text}" for name, texts in self._doubts() for text in texts]
        return "\n".join([self._source(), *notes, *told])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html.page(html.source(self._source(), [("notes", self.notes), *self._doubts()]))

    def _source(self) -> str:
        at = [f"at = {self.at!r}"] * bool(self.at)
        return "\n".join([*at, "rules = [", *(f"    {x}," for x in _written(self.rules)), "]"])

    def _doubts(self) -> Iterator[tuple[str, Sequence[str]]]:
        """Yields what is not decided or not matched: the name of each kind, and its lines."""
        yield "open", [f"{' or '.join(map(str, some))}?" for some in self.open]
        told = [f"{leaf}: {' or '.join(tensors)}?" for leaf, tensors in self.ambiguous.items()]
        yield "ambiguous", _few(told)
        yield "unmatched leaf", _few(self.unmatched_leaves)
        yield "unmatched tensor", _few(self.unmatched_tensors)


def suggest_rules(
    tree: Any,
    checkpoint: str | os.PathLike[str] | Mapping[Any, Any],
    rules: Rules = (),
    *,
    at: str = "",
) -> Suggestion:
    """Proposes rules for the leaves that a checkpoint does not match yet; applies none.

    First it looks for an ``at`` and a prefix with which the given rules, ``TORCH`` or a ready map
    fit. Then it pairs the other leaves and tensors by numbers, shapes and the words of names. The
    shape of a tensor tells its layout, or else its siblings and PyTorch's conventions do. What
    cannot be told, such as which of two tensors of one shape makes a leaf, is listed, not guessed.

    Args:
      tree: any pytree (hence ``Any``), as ``fill`` takes it.
      checkpoint: as ``fill`` takes it. Only names and shapes are looked at; no value is read.
      rules: the rules that are known already.
      at: the path of the subtree that the checkpoint fills, if that is known.

    Returns:
      The rules, including the given ones, with notes on what is doubtful.

    Raises:
      CheckpointError: the checkpoint is broken, unsafe or of an unknown format.
      FillError: an element of ``rules`` is no rule.

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
      # head/kernel from out.w: the shapes say so, the names hardly.
    """
    opened = open_checkpoint(checkpoint)
    leaves = [place for place, leaf in places(tree) if _is_fillable(leaf)]
    base = best_base(leaves, opened, as_rules(rules), slashed(at).strip("/"))
    found = _found(leaves, opened, base)
    if any(each.rule in TORCH and not each.agrees(decision) for each, decision in found.known):
        base = base.plain()  # TORCH's names fit, but its layouts contradict the tensors' shapes.
        found = _found(leaves, opened, base)
    proposals = found.proposals
    across = not base.at and any(place.linen for place in leaves)

    def written(proposal: Proposal) -> tuple[Rule, ...]:
        return tuple(replace(rule, across_collections=across) for rule in proposal.rules)

    whole = base.rules(*(rule for each in proposals.chosen for rule in written(each)))
    matching = match(leaves, opened, rules=whole, at=base.at)
    fits = fitting(leaves, matching)
    taken = {t for path in fits for t in matching.matches[path].tensors} | matching.ignored
    taken |= {found.names[tensor] for each in proposals.open for tensor in each.tensors}
    ambiguous = {
        found.paths[leaf]: tuple(found.names[tensor] for tensor in candidates)
        for leaf, candidates in proposals.ambiguous.items()
    }
    said = {found.paths[leaf] for each in proposals.open for leaf in each.leaves} | {*ambiguous}
    return Suggestion(
        whole,
        base.at,
        (
            *(note for each in (*proposals.chosen, *proposals.open) for note in each.notes),
            *_notes(found.known),
            *_other_numbers(leaves, opened, base),
        ),
        tuple(map(written, proposals.open)),
        ambiguous,
        tuple(place.path for place in leaves if place.path not in fits | said),
        tuple(name for name in opened if name not in taken),
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """What a base makes, and the proposals for the other leaves.

    Attributes:
      proposals: the proposed rules for leaves that the base does not make.
      known: the leaves that the base makes of one tensor each, with decisions on their layouts.
      paths: the paths of the leaves that the base does not make, by their names in rules.
      names: each tensor's name in the checkpoint, by its name after renames.
    """

    proposals: Proposals
    known: tuple[tuple[Matched, Decision], ...]
    paths: Mapping[str, str]
    names: Mapping[str, str]


def _found(leaves: Sequence[Place], checkpoint: Checkpoint, base: Base) -> _Found:
    """Matches leaves by the rules of a base, and proposes rules for those that are left."""
    made = match(leaves, checkpoint, rules=base.rules(), at=base.at)
    fits = fitting(leaves, made)
    taken = {t for path in fits for t in made.matches[path].tensors} | made.ignored
    names, _ = named(checkpoint, [rule for rule in base.renames if isinstance(rule, Rename)])
    every = {name: checkpoint[tensor].shape for name, tensor in names.items()}
    left = [place for place in leaves if place.path not in fits and place.below(base.at)]
    known = tuple(matched(leaves, checkpoint, base))
    proposals = propose(
        {own_name(place, base): place.shape for place in left if place.shape is not None},
        {name: shape for name, shape in every.items() if names[name] not in taken},
        every=every,
        given=[each.pair for each in known],
        like=next(iter(checkpoint), ""),
    )
    paths = {own_name(place, base): place.path for place in left}
    return _Found(proposals, tuple(zip(known, proposals.given, strict=True)), paths, names)


def _notes(known: Sequence[tuple[Matched, Decision]]) -> Iterator[str]:
    """Yields what is doubtful about leaves that are made by their names or by ``TORCH``."""
    for each, decision in known:
        if decision.why and (each.rule is None or each.rule in TORCH):
            leaf, tensor = (
                family.name(["{n}"] * (len(family.words) - 1))
                for family in (*each.pair.leaves, *each.pair.tensors)
            )
            but = "" if each.agrees(decision) else "taken as stored, as the names are equal, but "
            yield f"{leaf} from {tensor}: {but}{decision.why}."


_MAXTEXT = {"token_embedder/embedding", "decoder/decoder_norm/scale"}
_OTHER_NUMBERS = ("query/kernel", "key/kernel", "scale", "embedding")
_PLAIN = ("k_norm.weight", "k_proj.bias")  # Tensors of Qwen 2 and 3, whose values MaxText keeps.


def _other_numbers(leaves: Sequence[Place], checkpoint: Checkpoint, base: Base) -> Iterator[str]:
    """Yields a note on leaves of MaxText whose values differ from the tensors, in any layout."""
    shapes = {own_name(place, base): place.shape or () for place in leaves}
    is_plain = any(name.endswith(_PLAIN) for name in checkpoint) and not any(
        name.endswith("post_feedforward_layernorm.weight") for name in checkpoint
    )
    if not {*shapes} >= _MAXTEXT or is_plain:
        return
    listed = [
        family.name(["{n}"] * (len(family.words) - 1))
        for family in families(shapes, numbered=True)
        if family.names[0].endswith(_OTHER_NUMBERS)
    ]
    yield (
        f"{tuple(listed)} from PyTorch's weights: MaxText keeps other numbers there in some "
        "families (queries divided, norms plus 1, rotary pairs). lazyinit.maps.maxtext(config) "
        "has them."
    )


def _is_fillable(leaf: Any) -> bool:  # Any: a leaf may be any Python object.
    is_array = isinstance(leaf, Thunk | jax.Array | np.ndarray | np.generic)
    return is_array and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _written(rules: Sequence[AnyRule]) -> list[str]:
    """Returns rules as Python source, with a ready map's rules written as its name."""
    for name, ready in READY.items():
        if set(ready) <= set(rules):
            kept = [str(rule) for rule in rules if rule not in ready]
            return [*kept, f"*{name}"]
    return [str(rule) for rule in rules]


def _few(lines: Iterable[str]) -> list[str]:
    """Returns the first ten lines, and one that says how many more there are."""
    listed = list(lines)
    more = [f"... and {len(listed) - 10} more"] * (len(listed) > 10)
    return [*listed[:10], *more]
