"""Checkpoints: files, folders and trees that hold named tensors, one module per format."""

from lazyinit.checkpoint.base import Checkpoint
from lazyinit.checkpoint.opening import open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
