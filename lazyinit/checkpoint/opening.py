"""Opens a checkpoint of any format. The content of a file tells its format, never its name."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lazyinit import errors
from lazyinit.checkpoint.base import Checkpoint
from lazyinit.checkpoint.headers import HEADER_LIMIT

# What the first bytes of a file say it is, for formats that are known but not read.
_OTHERS = {
    b"\x93NUMPY": "a NumPy .npy file, which holds one array and no name",
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF file",
}
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
_WAY_OUT = "Convert it to safetensors, or pass its tensors as a mapping from name to array."
# The order in which transformers looks for them.
_OWN_NAMES = tuple(
    name + index
    for name in ("model.safetensors", "pytorch_model.bin", "flax_model.msgpack")
    for index in ("", ".index.json")
)
_SUFFIXES = (".safetensors", ".index.json", ".msgpack", ".npz", ".bin", ".pt", ".pth")


def open_checkpoint(
    checkpoint: str | os.PathLike[str] | Mapping[Any, Any],
) -> Checkpoint:  # Any: keys may be what dict keys may be, values nested mappings or arrays.
    """Opens a checkpoint: validates its headers and reads no value.

    Args:
      checkpoint: a file of safetensors, of Flax's msgpack, of NumPy's ``.npz`` or of PyTorch; a
        Hugging Face folder, or its index; an Orbax folder; the address of safetensors
        (``https://``, ``s3://``, ``gs://``, ``hf://``); or a mapping of arrays, nested, or flat
        with names joined by ``/`` or ``.``.

    Returns:
      The tensors by name, to be read later, in part.

    Raises:
      CheckpointError: there is no checkpoint, or it is broken, unsafe or of a format that is
        not read; the message starts with the file.

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
    if "://" in os.fspath(checkpoint):
        from lazyinit.checkpoint import remote

        return remote.open_url(os.fspath(checkpoint))
    path = Path(checkpoint)
    try:
        return _open_folder(path) if path.is_dir() else _open_file(path)
    # ValueError: what the system says of a path with a null byte in it.
    except (OSError, ValueError) as error:
        if isinstance(error, errors.CheckpointError):
            raise
        raise errors.CheckpointError(
            f"{path}: the checkpoint cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error


def _open_folder(folder: Path) -> Checkpoint:
    for name in _OWN_NAMES:
        if (folder / name).is_file():
            return _open_file(folder / name)
    from lazyinit.checkpoint import orbax

    if orbax.is_folder(folder):
        return orbax.open_folder(folder)
    there = sorted(entry.name for entry in folder.iterdir())
    read = [name for name in there if name.endswith(_SUFFIXES)]
    if read:
        found = f"{read[0]!r} is there. Pass that file itself."
    elif there:
        found = f"it holds {', '.join(map(repr, there[:5]))}{', ...' * (len(there) > 5)}."
    else:
        found = "it is empty."
    raise errors.CheckpointError(
        f"{folder}: wanted {', '.join(_OWN_NAMES)} or what Orbax writes in this folder; {found}"
    )


def _open_file(path: Path) -> Checkpoint:
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise errors.CheckpointError(
            f"{path}: there is no such file or folder{errors.nearest(path.name, siblings)}"
        )
    if path.name.endswith(".index.json"):
        return _open_index(path)
    with path.open("rb") as file:
        head = file.read(9)
    for magic, kind in _OTHERS.items():
        if head.startswith(magic):
            raise errors.CheckpointError(
                f"{path}: wanted a safetensors, msgpack, .npz or PyTorch file, got {kind}; that "
                f"format is not read yet. {_WAY_OUT}"
            )
    if head.startswith(_ZIP):
        return _open_zip(path)
    from lazyinit.checkpoint import flax_msgpack, msgpack_walk, safetensors

    # The first eight bytes of safetensors are a length, of which the format allows but 27 bits.
    may_be_msgpack = bool(head) and msgpack_walk.is_first_byte(head[0]) and any(head[4:8])
    if head[8:] == b"{" and not may_be_msgpack:
        return safetensors.open_file(path)
    if head.startswith(_PICKLES):
        from lazyinit.checkpoint import pytorch

        return pytorch.open_pickle(path)
    if head and msgpack_walk.is_first_byte(head[0]):
        return flax_msgpack.open_file(path)
    return safetensors.open_file(path)


def _open_zip(path: Path) -> Checkpoint:
    from lazyinit.checkpoint import npz, pytorch
    from lazyinit.checkpoint.mapped import File
    from lazyinit.checkpoint.zipped import read_directory

    members = read_directory(File.at(path))
    is_torch = pytorch.is_archive(members)
    return pytorch.open_archive(path, members) if is_torch else npz.open_archive(path, members)


def _open_index(path: Path) -> Checkpoint:
    from lazyinit.checkpoint import sharded

    def open_shard(name: str) -> Checkpoint:
        shard = path.parent / name
        if not shard.is_file():
            raise FileNotFoundError(name)
        return _open_file(shard)

    with path.open("rb") as stream:
        text = stream.read(HEADER_LIMIT + 1)
    is_own = path.name in _OWN_NAMES
    return sharded.open_index(
        str(path),
        text,
        origin=str(path.parent if is_own else path),
        siblings=[entry.name for entry in path.parent.iterdir()],
        open_shard=open_shard,
    )
