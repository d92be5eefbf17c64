"""Finds the ready map that explains all of a tree and a checkpoint, where the user gives no rules.

The leaves of a tree, a checkpoint and the ``config.json`` beside it come in. A map goes out if it
is the only one of its family that has a tensor for every leaf, and that no tensor is left over.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lazyinit import errors
from lazyinit.checkpoint import Checkpoint, open_checkpoint
from lazyinit.checkpoint.config import config_of
from lazyinit.checkpoint.dequantized import is_of_no_weight
from lazyinit.formats.gguf_names import ARCHITECTURE, MODEL_TYPES, as_transformers
from lazyinit.maps.ready_maps import READY, ReadyMap
from lazyinit.match.match import match
from lazyinit.match.places import Place
from lazyinit.patterns import pattern, slashed
from lazyinit.rules.rule import AnyRule

_HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Meant:
    """The ready map that was found, or why none was.

    Attributes:
      name: the name of the map; ``""`` if none was found.
      rules: the rules of the map.
      why: why each map of this family does not fit; ``""`` if one does, or if none was tried.
    """

    name: str = ""
    rules: tuple[AnyRule, ...] = ()
    why: str = ""


def find_map(
    leaves: Sequence[Place],
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    *,
    at: str = "",
    ready: Sequence[ReadyMap] = READY,
) -> Meant:
    """Returns the one map that explains every leaf and every tensor.

    No map is tried if the leaves have the tensors' own names. If the configuration ties the head
    to the embedding, the head's tensor needs no leaf.

    Args:
      leaves: the places of the leaves that are to be filled.
      checkpoint: the tensors; only their names and shapes are looked at.
      config: the content of ``config.json`` (any JSON); its ``model_type`` is the family.
      at: the path of the subtree that the checkpoint fills; ``""`` for the whole tree.
      ready: the maps to choose from.

    Raises:
      FillError: several maps explain every leaf and every tensor.
    """
    family = config.get("model_type")
    known = [each for each in ready if family in each.model_types]
    if not known or not leaves or not _doubt(leaves, checkpoint, ReadyMap("", (), ()), config, at):
        return Meant()
    doubts = {each: _doubt(leaves, checkpoint, each, config, at) for each in known}
    fits = [each for each, doubt in doubts.items() if not doubt]
    if len(fits) > 1:
        names = " and ".join(f"lazyinit.maps.{each.name}" for each in fits)
        raise errors.FillError(
            f"{checkpoint.origin}: wanted one ready map for model_type {family!r} that explains "
            f"all of it, but {names} all do. Pass the right one as rules=..."
        )
    if fits:
        return Meant(fits[0].name, fits[0].rules_for(config))
    listed = "; ".join(f"lazyinit.maps.{each.name} {doubt}" for each, doubt in doubts.items())
    return Meant(why=f"No ready map for model_type {family!r} explains all of it: {listed}.")


def _doubt(
    leaves: Sequence[Place],
    checkpoint: Checkpoint,
    ready: ReadyMap,
    config: Mapping[str, Any],
    at: str,
) -> str:
    """Returns what a map does not explain; ``""`` if it explains every leaf and every tensor."""
    try:
        rules = ready.rules_for(config)
    except errors.FillError as error:
        return f"cannot be made: {error}".rstrip(".")
    found = match(leaves, checkpoint, rules=rules, at=at)
    for place in leaves:
        if place.path not in found.matches or not found.matches[place.path].complete:
            return f"has no tensor for {place.path}"
    taken = {tensor for made in found.matches.values() for tensor in made.tensors} | found.ignored
    parts = [pattern(text) for text in ready.parts]
    for tensor in checkpoint:
        is_copy = tensor == _HEAD and config.get("tie_word_embeddings") is True
        is_apart = any(part.match(slashed(tensor)) for part in parts) or is_of_no_weight(tensor)
        if tensor not in taken and not is_copy and not is_apart:
            return f"has no leaf for tensor {tensor!r}"
    return ""


def with_config(checkpoint: Any) -> tuple[Checkpoint, Mapping[str, Any]]:
    """Opens a checkpoint, and returns it with the configuration of its model, which may be empty.

    A local folder's configuration is its ``config.json``. A GGUF file names an architecture: that
    gives the ``model_type``, and the tensors get their names in ``transformers``, which ready maps
    use.

    Args:
      checkpoint: what ``open_checkpoint`` takes.

    Raises:
      CheckpointError: as ``open_checkpoint`` does.
    """
    opened = open_checkpoint(checkpoint)
    if model_type := MODEL_TYPES.get(opened.metadata.get(ARCHITECTURE, "")):
        return as_transformers(opened), {"model_type": model_type}
    return opened, config_of(checkpoint)
