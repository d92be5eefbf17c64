"""Checkpoints: files, folders and trees that hold named tensors, one module per format."""

from lazyinit.checkpoint.opening import open_checkpoint
from lazyinit.checkpoint.protocol import Checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
