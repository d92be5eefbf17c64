"""Fills a tree of thunks from a checkpoint: names and headers only, nothing is read or made."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from lazyinit import errors, paths
from lazyinit.advise import advise
from lazyinit.checkpoint import Checkpoint, open_checkpoint
from lazyinit.match import Match, Matching, Place, View, match, places, slashed
from lazyinit.params import LazyParam, StoredParam, Thunk, describe
from lazyinit.report import Entry, Report
from lazyinit.rules import TORCH, AnyRule, Rule, check_rules

OnMissing = Literal["init", "error"]
OnUnexpected = Literal["report", "ignore", "error"]
OnMismatch = Literal["error", "init"]


def fill(
    tree: Any,
    checkpoint: str | os.PathLike[str] | Mapping[Any, Any],
    rules: Iterable[AnyRule] = (),
    *,
    at: str = "",
    on_missing: OnMissing = "init",
    on_unexpected: OnUnexpected = "report",
    on_mismatch: OnMismatch = "error",
) -> tuple[Any, Report]:
    """Replaces each leaf that a checkpoint has by a ``StoredParam``; reads headers only.

    Names that equal a path match by themselves, whether joined by ``/`` or ``.``; rules say what
    else does. A leaf keeps its own dtype: a tensor of another dtype of the same kind (float,
    integer, complex, bool) is cast when it is read. Layout follows the rule, never the shape.

    Args:
      tree: any pytree (hence ``Any``). Thunks and arrays are matched; other leaves, and PRNG
        keys, stay as they are.
      checkpoint: a file, a folder, a mapping of arrays (nested or flat), or what
        ``open_checkpoint`` returned.
      rules: how the checkpoint's names and layouts differ; ``lazyinit.TORCH`` for PyTorch's.
      at: the subtree under which the checkpoint hangs, ``"params/bert"``.
      on_missing: ``"init"`` leaves a leaf that the checkpoint lacks to be initialized.
      on_unexpected: what to do with a tensor that makes no leaf.
      on_mismatch: ``"init"`` leaves a leaf whose tensor has another shape or kind as it was.

    Returns:
      The tree, filled, and a report of what was done.

    Raises:
      CheckpointError: the checkpoint is broken, unsafe or of an unknown format.
      FillError: no tensor matches at all, some do not fit, or a policy says so.
      PathError: ``at`` names no subtree.

    Example:
      >>> import jax, numpy as np
      >>> from lazyinit.params import LazyParam
      >>> from lazyinit.rules import TORCH
      >>> zeros = jax.nn.initializers.zeros
      >>> tree = {"params": {"fc": {"kernel": LazyParam((2, 3), "float32", zeros)}}}
      >>> tree, report = fill(tree, {"fc.weight": np.ones((3, 2), "float32")}, TORCH)
      >>> tree["params"]["fc"]["kernel"]
      StoredParam(float32[2,3], the mapping:fc.weight.T)
      >>> report.loaded
      ('params/fc/kernel',)
    """
    _check_policy("on_missing", on_missing, get_args(OnMissing))
    _check_policy("on_unexpected", on_unexpected, get_args(OnUnexpected))
    _check_policy("on_mismatch", on_mismatch, get_args(OnMismatch))
    rules = check_rules(rules)
    opened = open_checkpoint(checkpoint)
    everything = places(tree)
    at = _check_at(at, [place for place, _ in everything])
    fillable = [place for place, leaf in everything if _is_fillable(leaf)]
    _check_distinct(place for place, leaf in everything if _is_array_like(leaf))
    if not opened:
        raise errors.FillError(
            f"{opened.origin}: the checkpoint holds no tensors. Is it the right one?"
        )
    found = match(fillable, opened, rules=rules, at=at)
    if fillable and not found.matches:
        raise errors.FillError(_nothing_matches(fillable, opened, rules))

    entries = {
        place.path: _entry(place, leaf, found.matches.get(place.path), opened)
        for place, leaf in everything
        if _is_array_like(leaf)
    }
    extra = () if on_unexpected == "ignore" else _unexpected(opened, found)
    problems: list[str] = []
    if on_mismatch == "error":
        problems += _mismatched(entries.values(), found.matches, opened)
    if on_missing == "error":
        missing = [place for place in fillable if entries[place.path].status == "missing"]
        problems += _missing(missing, entries, opened, View.of(fillable, at), rules)
    if on_unexpected == "error":
        problems += _left_over(extra)
    if problems:
        raise errors.FillError(errors.listing(problems))

    leaves = [
        StoredParam(leaf.shape, leaf.dtype, found.matches[place.path].source, path=place.path)
        if place.path in entries and entries[place.path].status == "loaded"
        else leaf
        for place, leaf in everything
    ]
    report = Report(opened.origin, (*entries.values(), *extra), found.unused_rules)
    return paths.replace_leaves(tree, leaves), report


def _check_policy(argument: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise errors.FillError(
            f"{argument}: wanted one of {', '.join(map(repr, allowed))}, got {value!r}."
        )


def _check_at(at: str, leaves: Sequence[Place]) -> str:
    at = slashed(at).strip("/")
    if at and not any(place.name.startswith(at + "/") for place in leaves):
        subtrees = {"/".join(keys[:n]) for keys in _keys(leaves) for n in range(1, len(keys))}
        raise errors.PathError(
            f"{at}: at= wants a subtree of the tree, which has none at this path"
            f"{errors.nearest(at, sorted(subtrees))}"
        )
    return at


def _keys(leaves: Sequence[Place]) -> Iterator[list[str]]:
    return (place.name.split("/") for place in leaves)


def _check_distinct(leaves: Iterable[Place]) -> None:
    paths_by_name: dict[str, str] = {}
    for place in leaves:
        if place.name in paths_by_name:
            raise errors.FillError(
                f"{place.path}: wanted one leaf of this name, but {paths_by_name[place.name]!r} "
                "goes by it too, as '.' and '/' mean the same. Fill them as trees of their own."
            )
        paths_by_name[place.name] = place.path


def _is_array_like(leaf: object) -> bool:
    return isinstance(leaf, Thunk | jax.Array | np.ndarray | np.generic)


def _is_fillable(leaf: Any) -> bool:  # Any: a leaf may be any Python object.
    return _is_array_like(leaf) and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _entry(place: Place, leaf: Any, found: Match | None, checkpoint: Checkpoint) -> Entry:
    if found is None:
        status = "missing" if isinstance(leaf, LazyParam) else "kept"
        return Entry(place.path, status, leaf.shape, leaf.dtype, "", leaf.shape, leaf.dtype)
    source = found.source
    fits = source.shape == leaf.shape and _kind(source.dtype) == _kind(leaf.dtype)
    first = checkpoint[found.tensors[0]] if found.tensors else source
    return Entry(
        place.path,
        "loaded" if fits and not found.problem else "mismatched",
        leaf.shape,
        leaf.dtype,
        _called(found.tensors) or repr(source),
        first.shape,
        first.dtype,
        found.tensors,
    )


def _called(names: Sequence[str]) -> str:
    """Returns names for people: one, a few, or the first and the last of many."""
    several = names if len(names) < 4 else (names[0], f"... ({len(names)})", names[-1])
    return ", ".join(several)


def _kind(dtype: np.dtype) -> object:
    """Returns what a cast must not change: the kind of number, however wide and signed."""
    kinds = (np.floating, np.integer, np.complexfloating)
    return next((kind for kind in kinds if jnp.issubdtype(dtype, kind)), dtype)


def _unexpected(checkpoint: Checkpoint, found: Matching) -> tuple[Entry, ...]:
    used = {tensor for each in found.matches.values() for tensor in each.tensors} | found.ignored
    return tuple(
        Entry(name, "unexpected", tensor.shape, tensor.dtype, name, tensor.shape, tensor.dtype)
        for name, tensor in checkpoint.items()
        if name not in used
    )


def _mismatched(
    entries: Iterable[Entry], matches: Mapping[str, Match], checkpoint: Checkpoint
) -> Iterator[str]:
    for entry in entries:
        if entry.status == "mismatched":
            problem = matches[entry.path].problem
            yield (
                f"{entry.path}: the model wants {describe(entry.shape, entry.dtype)}, "
                f"{_held(entry, checkpoint)}{f'; {problem}' * bool(problem)}. "
                'Drop it with on_mismatch="init", or map it in rules.'
            )


def _held(entry: Entry, checkpoint: Checkpoint) -> str:
    """Says which tensors hold what."""
    if len(entry.tensors) < 2:
        what = "tensor " + repr(entry.tensor) if entry.tensors else entry.tensor
        return f"{what} holds {describe(entry.stored_shape, entry.stored_dtype)}"
    held = dict.fromkeys(
        describe(checkpoint[name].shape, checkpoint[name].dtype) for name in entry.tensors
    )
    each = " each" if len(held) == 1 else ""
    names = _called(list(map(repr, entry.tensors)))
    return f"tensors {names} hold {_called(list(held))}{each}"


def _missing(
    missing: Sequence[Place],
    entries: Mapping[str, Entry],
    checkpoint: Checkpoint,
    view: View,
    rules: Sequence[AnyRule],
) -> Iterator[str]:
    makers = [rule for rule in rules if isinstance(rule, Rule)]
    for place in missing:
        entry = entries[place.path]
        names = dict.fromkeys(name for name, _ in view.candidates(place, makers))
        tried = " or ".join(map(repr, names)) or f"anything, as it lies outside at={view.at!r}"
        yield (
            f"{place.path}: the model wants {describe(entry.shape, entry.dtype)}, "
            f"{checkpoint.origin} holds no tensor called {tried}. "
            'Make it with on_missing="init", or map it in rules.'
        )


def _left_over(extra: Iterable[Entry]) -> Iterator[str]:
    for entry in extra:
        yield (
            f"{entry.path}: wanted a leaf for this tensor, {describe(entry.shape, entry.dtype)}, "
            'the tree has none. Pass over it with on_unexpected="report", or map it in rules.'
        )


def _nothing_matches(
    leaves: Sequence[Place], checkpoint: Checkpoint, rules: tuple[AnyRule, ...]
) -> str:
    rule_sets = [("", ()), ("lazyinit.TORCH", TORCH)]
    if rules and rules != TORCH:
        rule_sets.append(("rules", rules))
    advice = advise(leaves, checkpoint, rule_sets)
    problem = (
        f"{checkpoint.origin}: none of its {len(checkpoint)} tensors matches any of the tree's "
        f"{len(leaves)} leaves."
    )
    if advice.count:
        return f"{problem} {advice.text} would match {advice.count}."
    return (
        f"{problem} The tree has leaves such as {leaves[0].path!r}, the checkpoint tensors such as "
        f"{next(iter(checkpoint))!r}. Say in rules which makes which: "
        "lazyinit.Rule('**/kernel', '**.weight'). Some are proposed by "
        "lazyinit.suggest_rules(tree, checkpoint)."
    )
