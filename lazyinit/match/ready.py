"""Which ready map is meant, where nobody said: one that explains all of a tree and a checkpoint.

The leaves of a tree, a checkpoint and the ``config.json`` beside it come in. A map goes out if it
is the only one for this family that has a tensor for every leaf, and a word for every tensor.
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
    """The rules that are meant.

    Attributes:
      name: of the map, ``""`` if it is none.
      rules: those of the map.
      why: why maps of this family are not meant; ``""`` if there is none, or one is.
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

    None is meant if the leaves go by the names of the tensors themselves. The embedding's copy
    that a model with a tied head saves needs no leaf.

    Args:
      leaves: those that are to be filled.
      checkpoint: names and shapes of which are looked at.
      config: what ``config.json`` says (any JSON): ``model_type`` is the family.
      at: the subtree under which the checkpoint hangs.
      ready: the maps that there are.

    Raises:
      FillError: several maps explain all of it.
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
            f"all of it, got {names}. Say which as rules=."
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
    """Returns what a map does not explain, or ``""``."""
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
    """Opens a checkpoint, and returns what is said of its model, which may be nothing.

    That is the ``config.json`` of a local folder, or the architecture that a GGUF file names: its
    tensors then go by the names of ``transformers``, as ready maps do.

    Args:
      checkpoint: what ``open_checkpoint`` takes.

    Raises:
      CheckpointError: as ``open_checkpoint`` does.
    """
    opened = open_checkpoint(checkpoint)
    if model_type := MODEL_TYPES.get(opened.metadata.get(ARCHITECTURE, "")):
        return as_transformers(opened), {"model_type": model_type}
    return opened, config_of(checkpoint)
