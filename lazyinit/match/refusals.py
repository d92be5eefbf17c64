"""The messages of ``fill`` about leaves and tensors that do not fit together."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lazyinit.checkpoint import Checkpoint
from lazyinit.formats.gguf_names import ARCHITECTURE, MODEL_TYPES
from lazyinit.match.advise import advise
from lazyinit.match.places import Place
from lazyinit.match.report import LeafReport
from lazyinit.rules.rule import AnyRule, Rule
from lazyinit.rules.torch import TORCH
from lazyinit.sources import describe


def called(names: Sequence[str]) -> str:
    """Returns names in one line: up to three, or of more the first, the count and the last."""
    several = names if len(names) < 4 else (names[0], f"... ({len(names)})", names[-1])
    return ", ".join(several)


def mismatch(entry: LeafReport, problem: str, checkpoint: Checkpoint) -> str:
    """Returns the message for a leaf whose tensors have the wrong shape or kind, or a problem."""
    return (
        f"{entry.path}: the model wants {entry.array}, "
        f"{_held(entry, checkpoint)}{f'; {problem}' * bool(problem)}. "
        'Drop it with on_mismatch="init", or map it in rules.'
    )


def cast(entry: LeafReport, answer: str) -> str:
    """Returns the message for a tensor that may not be cast to the dtype of its leaf."""
    why = "it would lose precision or range" if answer == "lossless" else "nothing is to be cast"
    return (
        f"{entry.path}: the model wants {entry.array}, tensor {entry.tensor!r} holds "
        f"{describe(entry.stored_shape, entry.stored_dtype)}, and on_cast says that {why}. "
        'Allow it with on_cast="report", or give the model that dtype.'
    )


def unlike(path: str, leaf: Any, answer: Any) -> Iterator[str]:
    """Yields a message if a leaf that a policy returned is not like the one that it replaces."""
    wanted, got = describe(leaf.shape, leaf.dtype), describe(answer.shape, answer.dtype)
    if wanted != got:
        yield f"{path}: wanted on_mismatch to return a leaf of {wanted}, got one of {got}."


def _held(entry: LeafReport, checkpoint: Checkpoint) -> str:
    """Returns the part of a message that says which tensors there are, and what they hold."""
    if len(entry.tensors) < 2:
        what = "tensor " + repr(entry.tensor) if entry.tensors else entry.tensor
        return f"{what} holds {describe(entry.stored_shape, entry.stored_dtype)}"
    held = dict.fromkeys(
        describe(checkpoint[name].shape, checkpoint[name].dtype) for name in entry.tensors
    )
    each = " each" if len(held) == 1 else ""
    names = called(list(map(repr, entry.tensors)))
    return f"tensors {names} hold {called(list(held))}{each}"


def initialized(absent: Sequence[str], leaves: int, checkpoint: Checkpoint) -> str:
    """Returns the warning that leaves without a tensor will be initialized."""
    shown = ", ".join(absent[:10]) + f" and {len(absent) - 10} more" * (len(absent) > 10)
    return (
        f"{absent[0]}: {len(absent)} of {leaves} leaves have no tensor in {checkpoint.origin} and "
        f'keep their initial values: {shown}. If you mean this, say so with on_missing="init"; if '
        "not, map the leaves in rules."
    )


def missing(
    places: Sequence[Place],
    entries: Mapping[str, LeafReport],
    checkpoint: Checkpoint,
    at: str,
    rules: Sequence[AnyRule],
) -> Iterator[str]:
    """Yields a message for each leaf that no tensor makes."""
    makers = [rule for rule in rules if isinstance(rule, Rule)]
    for place in places:
        entry = entries[place.path]
        names = dict.fromkeys(name for name, _ in place.candidates(at, makers))
        tried = f"called {' or '.join(map(repr, names))}"
        if not names:
            tried = f"for it, because the leaf lies outside of at={at!r}"
        yield (
            f"{place.path}: the model wants {entry.array}, "
            f"{checkpoint.origin} holds no tensor {tried}. "
            'Make it with on_missing="init", or map it in rules.'
        )


def left_over(entry: LeafReport) -> str:
    """Returns the message for a tensor that makes no leaf."""
    return (
        f"{entry.path}: wanted a leaf for this tensor, {entry.array}, but "
        'the tree has none. Pass over it with on_unexpected="report", or map it in rules.'
    )


def nothing_matches(
    leaves: Sequence[Place], checkpoint: Checkpoint, rules: tuple[AnyRule, ...]
) -> str:
    """Returns the message that a checkpoint makes no leaf at all, with what might help."""
    rule_sets = [("", ()), ("lazyinit.TORCH", TORCH)]
    if rules and rules != TORCH:
        rule_sets.append(("rules", rules))
    advice = advise(leaves, checkpoint, rule_sets)
    problem = (
        f"{checkpoint.origin}: none of its {len(checkpoint)} tensors matches any of the tree's "
        f"{len(leaves)} leaves."
    )
    if advice:
        return f"{problem} {advice}"
    if checkpoint.metadata.get(ARCHITECTURE) in MODEL_TYPES and "output_norm.weight" in checkpoint:
        problem += " open_checkpoint(path, names='transformers') has the names of transformers."
    return (
        f"{problem} The tree has leaves such as {leaves[0].path!r}, the checkpoint has tensors "
        f"such as {next(iter(checkpoint))!r}. Say in rules which tensor makes which leaf, as in "
        "lazyinit.Rule('**/kernel', '**.weight'); lazyinit.suggest_rules(tree, checkpoint) "
        "proposes rules."
    )
