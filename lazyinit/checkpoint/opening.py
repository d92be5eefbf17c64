"""Opens a checkpoint of any format; the format is told by content, never by a file's name."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lazyinit import errors
from lazyinit.checkpoint.protocol import Checkpoint

# What the first bytes of a file say it is, for formats that are known but not read yet.
_OTHERS = {
    b"PK\x03\x04": "a zip archive (PyTorch .bin/.pt, or NumPy .npz)",
    b"\x80\x02": "a pickle (PyTorch .bin/.pt)",
    b"\x93NUMPY": "a NumPy .npy file",
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF file",
}
_WAY_OUT = "Convert it to safetensors, or pass its tensors as a mapping from name to array."


def open_checkpoint(
    checkpoint: str | os.PathLike[str] | Mapping[Any, Any],
) -> Checkpoint:  # Any: keys may be what dict keys may be, values nested mappings or arrays.
    """Opens a checkpoint: validates its headers and reads no value.

    Args:
      checkpoint: a safetensors file; a Hugging Face folder with ``model.safetensors`` or
        ``model.safetensors.index.json`` (or that index itself); or a mapping of arrays, nested,
        or flat with names joined by ``/`` or ``.``.

    Returns:
      The tensors by name, to be read later, in part.

    Raises:
      CheckpointError: there is no checkpoint, or it is broken, unsafe or of a format that is
        not read yet; the message starts with the file.

    Example:
      >>> import numpy as np
      >>> checkpoint = open_checkpoint({"dense": {"kernel": np.ones((2, 3))}})
      >>> checkpoint["dense/kernel"].shape
      (2, 3)
    """
    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    if isinstance(checkpoint, Mapping):
        from lazyinit.checkpoint import memory

        return memory.open_tree(checkpoint)
    if not isinstance(checkpoint, str | os.PathLike):
        raise errors.CheckpointError(
            f"checkpoint: wanted a path or a mapping from name to array, "
            f"got {type(checkpoint).__name__}. Pass open_checkpoint's result or one of those."
        )
    path = Path(checkpoint)
    if "://" in os.fspath(checkpoint):
        raise errors.CheckpointError(
            f"{os.fspath(checkpoint)}: remote checkpoints are not read yet. Download it first."
        )
    try:
        return _open_folder(path) if path.is_dir() else _open_file(path)
    except OSError as error:
        raise errors.CheckpointError(
            f"{path}: the checkpoint cannot be read: {error.strerror or error}"
        ) from error


def _open_folder(folder: Path) -> Checkpoint:
    # The order in which transformers looks for them.
    for name in ("model.safetensors", "model.safetensors.index.json"):
        if (folder / name).is_file():
            return _open_file(folder / name)
    there = sorted(entry.name for entry in folder.iterdir())
    unread = [name for name in there if name.endswith((".bin", ".pt", ".pth", ".msgpack", ".npz"))]
    own_names = [
        name for name in there if name.endswith((".safetensors", ".safetensors.index.json"))
    ]
    if own_names:
        found = f"{own_names[0]!r} is there. Pass that file itself."
    elif unread:
        found = f"{unread[0]!r} is there; that format is not read yet. {_WAY_OUT}"
    elif there:
        found = f"it holds {', '.join(map(repr, there[:5]))}{', ...' * (len(there) > 5)}."
    else:
        found = "it is empty."
    raise errors.CheckpointError(
        f"{folder}: wanted model.safetensors or model.safetensors.index.json in this folder; "
        f"{found}"
    )


def _open_file(path: Path) -> Checkpoint:
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise errors.CheckpointError(
            f"{path}: there is no such file or folder{errors.nearest(path.name, siblings)}"
        )
    if path.name.endswith(".index.json"):
        from lazyinit.checkpoint import sharded

        return sharded.open_index(path)
    with path.open("rb") as file:
        head = file.read(8)
    for magic, kind in _OTHERS.items():
        if head.startswith(magic):
            raise errors.CheckpointError(
                f"{path}: wanted a safetensors file, got {kind}; that format is not read yet. "
                f"{_WAY_OUT}"
            )
    from lazyinit.checkpoint import safetensors

    return safetensors.open_file(path)
