"""Decides whether a quantized checkpoint is dequantized, where the user did not say.

The leaves of a tree, a checkpoint and its ``config.json`` come in. The checkpoint goes out:
dequantized, or unchanged if the tree itself holds quantized weights.
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
    """Returns the checkpoint dequantized, if its configuration says that it is quantized.

    If the tree has a leaf for a tensor that dequantizing removes (a scale, say), the model works on
    quantized weights itself, and the checkpoint is returned unchanged.

    Args:
      leaves: the places of the leaves that are to be filled.
      checkpoint: the tensors as the files hold them.
      config: the content of ``config.json`` (any JSON).
      at: the path of the subtree that the checkpoint fills; ``""`` for the whole tree.

    Raises:
      CheckpointError: the quantization method is not supported, or the tensors are not those that
        the configuration promises.
    """
    said = quantization_of(config)
    if not said or not checkpoint:
        return checkpoint
    at = slashed(at).strip("/")
    made = dequantized(checkpoint, said)
    gone = {slashed(name) for name in checkpoint if name not in made}
    is_kept = any(name in gone for place in leaves for name in place.own_names(at))
    return checkpoint if is_kept else made
