"""Finds the tensors that hold a tree's PRNG keys, by their names alone: rules do not apply."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import jax

from lazyinit import errors
from lazyinit.checkpoint import Checkpoint
from lazyinit.match.match import Match
from lazyinit.match.places import Place
from lazyinit.sources import Source, describe
from lazyinit.tensors.key_data import KEY_DATA, KeyData, implementation, is_typed_key, words
from lazyinit.tensors.memory import HeldTensor


def match_keys(
    leaves: Iterable[tuple[Place, Any]], checkpoint: Checkpoint, names: Mapping[str, str], at: str
) -> dict[str, Match]:
    """Finds the tensor that holds the words of each PRNG key.

    Args:
      leaves: the leaves that are typed keys, each after its place.
      checkpoint: the tensors.
      names: each tensor's name in the checkpoint, by its name after renames.
      at: the path of the subtree that the checkpoint fills; ``""`` for the whole tree.

    Returns:
      The match of each key that was found, by the path of its leaf.

    Raises:
      FillError: tensors hold keys of another implementation or shape; names all of them.
    """
    found: dict[str, Match] = {}
    problems = []
    # The tensor and the implementation that its name tells, by the name of the leaf.
    told: dict[str, tuple[str, str]] = {}
    for name, tensor in names.items():
        leaf_name, is_told, impl = name.rpartition(f"/{KEY_DATA}/")
        if is_told:
            told[leaf_name] = tensor, impl
    for place, leaf in leaves:
        tensor, impl = _words_of(place, names, told, at)
        if tensor and is_typed_key(checkpoint[tensor]):
            impl = implementation(checkpoint[tensor].dtype)
        if not tensor or (impl is None and checkpoint[tensor].dtype != "uint32"):
            continue  # A tensor that merely has the leaf's name need not hold a key.
        source, wanted = _as_words(checkpoint[tensor]), implementation(leaf.dtype)
        shape = (*leaf.shape, words(leaf.dtype))
        if impl not in (None, "", wanted):
            problems.append(
                f"{place.path}: the model wants keys of {wanted}, tensor {tensor!r} holds keys of "
                f"{impl}. Make the model with such keys, or leave the tensor out of the checkpoint."
            )
        elif source.shape != shape or source.dtype != "uint32":
            problems.append(
                f"{place.path}: the model wants keys of {wanted}, {describe(shape, 'uint32')} as "
                f"words, tensor {tensor!r} holds {describe(source.shape, source.dtype)}. Leave the "
                "tensor out of the checkpoint."
            )
        else:
            found[place.path] = Match((tensor,), KeyData(source, leaf.dtype))
    if problems:
        raise errors.FillError(errors.listing(problems))
    return found


def _as_words(source: Source) -> Source:
    """Returns the words of typed keys in memory, and any other source unchanged."""
    if isinstance(source, HeldTensor) and is_typed_key(source):
        return replace(source, array=jax.random.key_data(source.array))
    return source


def _words_of(
    place: Place, names: Mapping[str, str], told: Mapping[str, tuple[str, str]], at: str
) -> tuple[str, str | None]:
    """Returns the tensor of a key (``""`` if there is none), and the implementation in its name.

    The implementation is ``""`` if the name only tells that the tensor holds words, and ``None``
    if it is the leaf's own name.
    """
    for name in place.own_names(at):
        if name in told:
            return told[name]
        if (start := f"{name}/{KEY_DATA}") in names:
            return names[start], ""
        if name in names:
            return names[name], None
    return "", None
