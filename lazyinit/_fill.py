"""The verb ``fill``: a tree and a checkpoint -> the filled tree and a report.

The leaves are matched with the tensors by name (``match``), the policies say what happens to leaves
and tensors that do not fit, and all problems are raised as one error. No value is read or made.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from lazyinit import agree, errors, paths
from lazyinit.checkpoint import Checkpoint, open_checkpoint
from lazyinit.derived import DerivedParam, origins
from lazyinit.match import refusals
from lazyinit.match.asked import Asked, is_array_like, is_fillable, stored_leaf
from lazyinit.match.follow import Leaders, tied
from lazyinit.match.match import Match, match, named
from lazyinit.match.places import Place, places
from lazyinit.match.policies import (
    CastWord,
    MismatchWord,
    MissingWord,
    OnCast,
    OnMismatch,
    OnMissing,
    OnUnexpected,
    Policy,
    UnexpectedWord,
)
from lazyinit.match.random_keys import match_keys
from lazyinit.match.report import LeafReport, Report, Status
from lazyinit.params import LazyParam, Thunk
from lazyinit.patterns import slashed
from lazyinit.rules.renames import Rename
from lazyinit.rules.rule import Rules, as_rules
from lazyinit.tensors.as_dtype import same_kind
from lazyinit.tensors.key_data import KeyData, is_typed_key
from lazyinit.tensors.quantized import kept_as
from lazyinit.view.provenance import provenance


@agree.telling
def fill(
    tree: Any,
    checkpoint: str | os.PathLike[str] | Mapping[Any, Any],
    rules: Rules = (),
    *,
    at: str = "",
    on_missing: OnMissing = "warn",
    on_unexpected: OnUnexpected = "report",
    on_mismatch: OnMismatch = "error",
    on_cast: OnCast = "report",
) -> tuple[Any, Report]:
    """Replaces each leaf that a checkpoint has by a ``StoredParam``; reads headers only.

    A tensor whose name equals the path of a leaf matches it without a rule. The keys in the name
    may be joined by ``/`` or by ``.``. Rules say which other names match, and how the layout
    differs; a layout is never guessed from a shape. A leaf keeps its own dtype: a tensor of another
    dtype of the same kind (float, integer, complex, bool) is cast when it is read; see ``on_cast``.

    Args:
      tree: any pytree (hence ``Any``). Thunks, arrays and ``jax.ShapeDtypeStruct`` are matched;
        other leaves are unchanged. A Python number (a ``TrainState``'s step) becomes the array
        that the checkpoint has for it, if it has one. A PRNG key is filled from its words
        (``key_data``). Keys and counts of NNX streams that the checkpoint lacks are kept.
      checkpoint: a file, a folder, a mapping of arrays (nested or flat), or what
        ``open_checkpoint`` returned.
      rules: how names and layouts in the checkpoint differ from those of the tree;
        ``lazyinit.TORCH`` for PyTorch's.
      at: the path of the subtree that the checkpoint fills, ``"params/bert"``; ``""`` for the whole
        tree.
      on_missing: what to do with a leaf that the checkpoint lacks. ``"warn"`` lets it be
        initialized, with one warning for all such leaves below ``at``; ``"init"`` gives no warning;
        ``"error"`` refuses it; a callable ``(path, leaf)`` returns one of these words.
      on_unexpected: ``"report"``, ``"ignore"`` or ``"error"`` for a tensor that makes no leaf; or a
        callable ``(name, source)`` that returns one of these.
      on_mismatch: what to do with a leaf whose tensor has another shape or kind. ``"error"``
        refuses it; ``"init"`` leaves it as it was; a callable ``(path, leaf, source)``, such as
        ``lazyinit.overlap``, returns one of these words or another leaf, or raises ``FillError``.
      on_cast: what to do with a leaf whose tensor has another dtype of the same kind. ``"report"``
        rounds the values to the leaf's dtype, and a value that this dtype cannot hold is an error
        when it is read; ``"overflow"`` lets such a value wrap or become infinite; ``"lossless"``
        refuses a dtype that would round or overflow; ``"error"`` refuses every cast; a callable
        ``(path, leaf, source)`` returns one of these words.

    Each policy may be a mapping from globs to such words and callables, over paths (for
    ``on_unexpected`` over names of tensors): ``{"params/head/**": "init"}``. The first glob that
    matches decides. A case that no glob matches is an error, so end with ``"**"`` to avoid it.

    Returns:
      The filled tree, and a report of what was done.

    Raises:
      CheckpointError: the checkpoint is broken, unsafe or of an unknown format.
      FillError: no tensor matches at all, some tensors do not fit, or a policy refuses a case.
      PathError: ``at`` names no subtree, or a glob of a policy matches nothing.

    Example:
      >>> import jax, numpy as np
      >>> from lazyinit.params import LazyParam, Thunk
      >>> from lazyinit.rules.torch import TORCH
      >>> zeros = jax.nn.initializers.zeros
      >>> tree = {"params": {"fc": {"kernel": LazyParam((2, 3), "float32", zeros)}}}
      >>> tree, report = fill(tree, {"fc.weight": np.ones((3, 2), "float32")}, TORCH)
      >>> tree["params"]["fc"]["kernel"]
      StoredParam(float32[2,3], the mapping:fc.weight.T)
      >>> report.loaded
      ('params/fc/kernel',)
    """
    rules = as_rules(rules)
    opened = open_checkpoint(checkpoint)
    everything = places(tree)
    known = [place.path for place, leaf in everything if is_array_like(leaf)]
    on_missing, on_mismatch, on_cast = (
        paths.by_path(given, tree) for given in (on_missing, on_mismatch, on_cast)
    )
    cast_policy = Policy.of("on_cast", on_cast, get_args(CastWord), known)
    missing_policy = Policy.of("on_missing", on_missing, get_args(MissingWord), known)
    mismatch_policy = Policy.of("on_mismatch", on_mismatch, get_args(MismatchWord), known)
    unexpected_policy = Policy.of(
        "on_unexpected", on_unexpected, get_args(UnexpectedWord), list(opened)
    )
    at = _check_at(at, [place for place, _ in everything])
    fillable = [place for place, leaf in everything if is_fillable(leaf)]
    _check_distinct(place for place, leaf in everything if is_array_like(leaf))
    if not opened:
        raise errors.FillError(
            f"{opened.origin}: wanted a checkpoint with tensors, got one without any. Check that "
            "it is the right one."
        )
    numbers = [place for place, leaf in everything if _is_number(leaf)]
    found = match([*fillable, *numbers], opened, rules=rules, at=at)
    if keys := [(place, leaf) for place, leaf in everything if is_typed_key(leaf)]:
        names, _ = named(opened, [rule for rule in rules if isinstance(rule, Rename)])
        by_path = match_keys(keys, opened, names, at)
        found = replace(found, matches={**found.matches, **by_path})
    if fillable and not found.matches:
        raise errors.FillError(refusals.nothing_matches(fillable, opened, rules))

    leaves = [leaf for _, leaf in everything]
    # A number becomes the array that JAX would make of it; it is never reported as missing.
    everything = [
        (p, _as_array(x) if _is_number(x) and p.path in found.matches else x) for p, x in everything
    ]
    entries: dict[str, LeafReport] = {}
    filled: dict[str, Any] = {}  # Any: a policy may put any kind of leaf in place of another.
    of_streams = paths.of_random_streams(tree)
    for (place, leaf), of_stream in zip(everything, of_streams, strict=True):
        if not is_array_like(leaf):
            continue
        path, matched = place.path, found.matches.get(place.path)
        status = _status(leaf, matched, of_stream or is_typed_key(leaf))
        if matched is not None and status == "loaded":
            filled[path] = stored_leaf(path, leaf, matched.source)
        entries[path] = _entry(filled.get(path, leaf), matched, opened, path, status)
    asked = Asked(missing_policy, mismatch_policy, unexpected_policy, cast_policy)
    filled |= asked.cast(everything, entries, found)
    loaded = [
        (place.path, leaf, filled[place.path]) for place, leaf in everything if place.path in filled
    ]
    same, conflicts = tied(loaded)
    filled |= same
    asked.problems += conflicts
    adapted = asked.mismatched(everything, entries, found, opened)
    filled |= _follow(everything, {**filled, **adapted}, entries)
    absent = asked.missing(everything, entries, at)
    asked.problems += refusals.missing(absent, entries, opened, at, rules)
    extra = asked.unexpected(opened, found)
    if asked.problems:
        raise errors.FillError(errors.listing(asked.problems))

    if asked.to_warn_of:
        errors.warn(refusals.initialized(asked.to_warn_of, len(fillable), opened))
    for path, leaf in adapted.items():
        entries[path] = _entry(leaf, found.matches[path], opened, path, "adapted")
    filled |= adapted
    placed = [filled.get(p.path, x) for (p, _), x in zip(everything, leaves, strict=True)]
    tree = paths.replace_leaves(tree, placed)
    return tree, Report(
        opened.origin,
        (*entries.values(), *extra),
        found.unused_rules,
        provenance(tree),
        dequantized=opened.dequantized,
    )


def _follow(
    everything: Sequence[tuple[Place, Any]],
    filled: Mapping[str, Any],
    entries: dict[str, LeafReport],
) -> dict[str, Thunk]:
    """Returns the replacements of leaves that follow filled ones, by path; updates ``entries``."""
    leaves = [(place.path, leaf) for place, leaf in everything if isinstance(leaf, Thunk)]
    leaders = Leaders((path, leaf, filled[path]) for path, leaf in leaves if path in filled)
    found: dict[str, Thunk] = {}
    for path, leaf in leaves:
        if path in filled or entries[path].status not in ("missing", "kept"):
            continue
        if follower := leaders.follower(leaf):
            found[path] = follower.leaf
            entries[path] = LeafReport.of(
                path,
                follower.leaf,
                status="derived",
                tensor="",
                stored_shape=leaf.shape,
                stored_dtype=leaf.dtype,
                follows=follower.of,
            )
    return found


def _check_at(at: str, leaves: Sequence[Place]) -> str:
    """Returns ``at`` with ``/`` between its keys, and checks that the tree has such a subtree."""
    at = slashed(at).strip("/")
    if at and not any(place.name.startswith(at + "/") for place in leaves):
        subtrees = {"/".join(keys[:n]) for keys in _keys(leaves) for n in range(1, len(keys))}
        raise errors.PathError(
            f"{at}: wanted at= to be the path of a subtree, but no leaf of the tree lies below it"
            f"{errors.nearest(at, sorted(subtrees))}"
        )
    return at


def _keys(leaves: Sequence[Place]) -> Iterator[list[str]]:
    return (place.name.split("/") for place in leaves)


def _check_distinct(leaves: Iterable[Place]) -> None:
    """Raises a ``FillError`` if two leaves have the same name, with ``.`` read as ``/``."""
    paths_by_name: dict[str, str] = {}
    for place in leaves:
        if place.name in paths_by_name:
            raise errors.FillError(
                f"{place.path}: wanted a leaf with a name of its own, but for a tensor it has the "
                f"same name as {paths_by_name[place.name]!r}, because '.' and '/' mean the same "
                "there. Put the two leaves into separate trees, and fill each."
            )
        paths_by_name[place.name] = place.path


def _is_number(leaf: object) -> bool:
    return isinstance(leaf, bool | int | float | complex) and not isinstance(leaf, np.generic)


def _as_array(number: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((), jnp.result_type(number))


def _status(leaf: Any, found: Match | None, of_stream: bool) -> Status:
    """Returns the status of a leaf; ``of_stream`` tells whether it is state of a random stream."""
    if isinstance(found and found.source, KeyData):
        return "loaded"
    if found is None:
        is_read = bool(origins(leaf)[0])  # From an earlier checkpoint, all of it or a part.
        kinds = LazyParam | DerivedParam | jax.ShapeDtypeStruct
        is_open = isinstance(leaf, kinds) and not is_read and not of_stream
        return "missing" if is_open else "kept"
    fits = found.source.shape == leaf.shape and same_kind(found.source.dtype, leaf.dtype)
    return "loaded" if fits and not found.problem else "mismatched"


def _entry(
    leaf: Any, found: Match | None, checkpoint: Checkpoint, path: str, status: Status
) -> LeafReport:
    """Returns the entry of a leaf in the report."""
    tensors = found.tensors if found else ()
    first = checkpoint[tensors[0]] if tensors else found.source if found else leaf
    if tensors:
        first = kept_as(first, leaf.dtype)
    return LeafReport.of(
        path,
        leaf,
        status=status,
        tensor=refusals.called(tensors) or (repr(found.source) if found else ""),
        stored_shape=first.shape,
        stored_dtype=first.dtype,
        tensors=tensors,
    )
