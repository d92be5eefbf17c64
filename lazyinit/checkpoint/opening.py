"""Opens a checkpoint of any format. The content of a file tells its format, never its name."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from lazyinit import errors
from lazyinit.checkpoint import folders
from lazyinit.formats.foreign import foreign, format_of, is_json, not_weights
from lazyinit.tensors.base import Checkpoint
from lazyinit.tensors.headers import HEADER_LIMIT

_SUFFIXES = (".safetensors", ".msgpack", ".npz", ".npy", ".bin", ".pt", ".pth", ".gguf", ".h5")


def open_checkpoint(
    checkpoint: str | os.PathLike[str] | Mapping[Any, Any],
    *,
    like: Any = None,  # A pytree.
    names: Literal["file", "transformers"] = "file",
    dequantize: bool = False,
) -> Checkpoint:  # Any: keys may be what dict keys may be, values nested mappings or arrays.
    """Opens a checkpoint: validates its headers and reads no value.

    Args:
      checkpoint: a file of safetensors, of Flax's msgpack, of NumPy, PyTorch, GGUF or HDF5; a
        Hugging Face folder, or its index; an Orbax folder; the address of safetensors or
        GGUF (``https://``, ``s3://``, ``gs://``, ``hf://``); or a mapping of arrays, nested, or
        flat with names joined by ``/`` or ``.``.
      like: for a file of Equinox, which holds no names: the tree that was saved, or one of thunks
        or shapes, which says what its arrays are called.
      names: ``"file"`` for the names that the file has; ``"transformers"``, for a GGUF file of
        Llama, Qwen 2, Qwen 3 or Qwen 3 MoE, for the names and layouts that ``transformers`` would
        give its tensors, which the rules of ``lazyinit.maps`` know.
      dequantize: whether to give quantized weights as the numbers that they stand for, under the
        names that they have if nothing is quantized. The checkpoint must be a Hugging Face folder
        on this machine whose ``config.json`` has a ``quantization_config``. ``from_pretrained``
        without rules does this by itself.

    Returns:
      The tensors by name, to be read later, in part.

    Raises:
      CheckpointError: there is no checkpoint, or it is broken, unsafe or of a format that is
        not read, or quantized in a way that is not dequantized; the message starts with the file.

    Example:
      >>> import numpy as np
      >>> checkpoint = open_checkpoint({"dense": {"kernel": np.ones((2, 3))}})
      >>> checkpoint["dense/kernel"].shape
      (2, 3)
    """
    errors.check_word("names", names, ("file", "transformers"))
    if names == "transformers":
        from lazyinit.formats import gguf_names

        return gguf_names.as_transformers(open_checkpoint(checkpoint, like=like))
    if dequantize:
        return _open_dequantized(checkpoint, like)
    if like is not None:
        return _open_like(checkpoint, like)
    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    if isinstance(checkpoint, Mapping):
        from lazyinit.tensors import memory

        return memory.open_tree(checkpoint)
    if not isinstance(checkpoint, str | os.PathLike):
        raise errors.CheckpointError(
            f"checkpoint: wanted a path, a mapping from names to arrays, or what open_checkpoint "
            f"returns, got {type(checkpoint).__name__}."
        )
    if "://" in os.fspath(checkpoint):
        from lazyinit.formats import remote

        return remote.open_url(os.fspath(checkpoint))
    path = Path(checkpoint)
    with _told(path):
        return _open_folder(path) if path.is_dir() else _open_file(path)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns an error of the operating system into one that names the checkpoint."""
    try:
        yield
    # Python raises ValueError for a path with a null byte in it.
    except (OSError, ValueError) as error:
        if isinstance(error, errors.CheckpointError):
            raise
        raise errors.CheckpointError(
            f"{path}: the checkpoint cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error


def _open_dequantized(checkpoint: Any, like: Any) -> Checkpoint:  # Any: see open_checkpoint.
    from lazyinit.checkpoint.config import config_of, quantization_of
    from lazyinit.checkpoint.dequantized import dequantized

    opened = open_checkpoint(checkpoint, like=like)
    said = quantization_of(config_of(checkpoint))
    if not said:
        raise errors.CheckpointError(
            f"{opened.origin}: dequantize=True wants a folder on this machine whose config.json "
            "has a quantization_config, got none. Leave dequantize= out, and say in rules with "
            "lazyinit.Dequantize which scales belong to which values."
        )
    return dequantized(opened, said)


def _open_like(checkpoint: Any, like: Any) -> Checkpoint:  # Any: see open_checkpoint.
    is_path = isinstance(checkpoint, str | os.PathLike) and "://" not in os.fspath(checkpoint)
    path = Path(checkpoint) if is_path else None
    with _told(path or Path()):
        is_file = path is not None and path.is_file()
        if path is None or (is_file and format_of(_head(path)) != "npy"):
            raise errors.CheckpointError(
                f"{path or 'checkpoint'}: like= wants a file of Equinox on this machine, got a "
                "checkpoint whose tensors have names. Leave like= out."
            )
        from lazyinit.formats import equinox

        return equinox.open_file(path, like)


def _open_folder(folder: Path) -> Checkpoint:
    for name in folders.OWN_NAMES:
        if (folder / name).is_file():
            return _open_file(folder / name)
    there = sorted(entry.name for entry in folder.iterdir())
    if newest := folders.find_newest(folder, there):
        return _open_folder(newest) if newest.is_dir() else _open_file(newest)
    from lazyinit.formats import orbax, torch_distributed

    if torch_distributed.is_folder(folder):
        return torch_distributed.open_folder(folder)
    if orbax.is_folder(folder):
        return orbax.open_folder(folder)
    if variant := folders.find_variant(folder, there):
        return _open_file(variant)
    if (shards := folders.open_shards(folder, there, _open_file)) is not None:
        return shards
    read = [name for name in there if name.endswith((*_SUFFIXES, ".index.json"))]
    if read:
        found = f"{read[0]!r} is there. Pass that file itself."
    elif there:
        found = f"it holds {', '.join(map(repr, there[:5]))}{', ...' * (len(there) > 5)}."
    else:
        found = "it is empty."
    raise errors.CheckpointError(
        f"{folder}: wanted {', '.join(folders.OWN_NAMES[:6])} or what Orbax writes in this "
        f"folder, but {found}"
    )


def _open_file(path: Path) -> Checkpoint:
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise errors.CheckpointError(
            f"{path}: there is no such file or folder{errors.nearest(path.name, siblings)}"
        )
    head = _head(path)
    if path.name.endswith(".index.json") or _is_index(path, head):
        return _open_index(path)
    if kind := foreign(head):
        raise not_weights(str(path), kind)
    match format_of(head):
        case "zip":
            return _open_zip(path)
        case "hdf5":
            from lazyinit.formats import hdf5

            return hdf5.open_file(path)
        case "gguf":
            from lazyinit.formats import gguf

            return gguf.open_file(path)
        case "npy":
            from lazyinit.formats import npz

            return npz.open_array(path)
        case "pickle":
            from lazyinit.formats import pytorch

            return pytorch.open_pickle(path)
        case "msgpack":
            from lazyinit.formats import flax_msgpack

            return flax_msgpack.open_file(path)
    from lazyinit.formats import safetensors

    return safetensors.open_file(path)


_HEAD = 512  # The first bytes of a file, which tell its format.


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


def _is_index(path: Path, head: bytes) -> bool:
    """Tells whether a file is an index, such as that of a variant, whatever its name."""
    if not is_json(head) or path.stat().st_size > HEADER_LIMIT:
        return False
    return b'"weight_map"' in path.read_bytes()


def _open_zip(path: Path) -> Checkpoint:
    from lazyinit.formats import npz, pytorch
    from lazyinit.formats.zipped import read_directory
    from lazyinit.tensors.mapped import File

    members = read_directory(File.at(path))
    is_torch = pytorch.is_archive(members)
    return pytorch.open_archive(path, members) if is_torch else npz.open_archive(path, members)


def _open_index(path: Path) -> Checkpoint:
    from lazyinit.formats import sharded

    def open_shard(name: str) -> Checkpoint:
        shard = path.parent / name
        if not shard.is_file():
            raise FileNotFoundError(name)
        return _open_file(shard)

    with path.open("rb") as stream:
        text = stream.read(HEADER_LIMIT + 1)
    is_own = path.name in folders.OWN_NAMES
    return sharded.open_index(
        str(path),
        text,
        origin=str(path.parent if is_own else path),
        siblings=[entry.name for entry in path.parent.iterdir()],
        open_shard=open_shard,
    )
