"""Whether a quantized folder is read as numbers, where nobody said: so, unless the tree keeps it.

The leaves of a tree, a checkpoint and its ``config.json`` come in, and the checkpoint goes out: its
weights as the numbers that they stand for, or as it is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lazyinit.checkpoint import Checkpoint
from lazyinit.checkpoint.config import quantization_of
from lazyinit.checkpoint.dequantized import dequantized
from lazyinit.match.places import Place
from lazyinit.patterns import slashed


def as_numbers(
    leaves: Sequence[Place], checkpoint: Checkpoint, config: Mapping[str, Any], *, at: str = ""
) -> Checkpoint:
    """Returns a checkpoint with its weights as numbers, if its configuration says they are none.

    A tree that has a leaf for a scale, or for another tensor that would be gone, keeps weights
    quantized itself: then the checkpoint stays as it is.

    Args:
      leaves: those that are to be filled.
      checkpoint: as its files have it.
      config: what ``config.json`` says (any JSON).
      at: the subtree under which the checkpoint hangs.

    Raises:
      CheckpointError: a method that is not dequantized, or a configuration and tensors that do not
        go together.
    """
    said = quantization_of(config)
    if not said or not checkpoint:
        return checkpoint
    at = slashed(at).strip("/")
    made = dequantized(checkpoint, said)
    gone = {slashed(name) for name in checkpoint if name not in made}
    is_kept = any(name in gone for place in leaves for name in place.own_names(at))
    return checkpoint if is_kept else made
