"""A checkpoint of any format -> one of another, under other names: streamed, in bounded memory."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lazyinit import errors
from lazyinit.checkpoint import Checkpoint
from lazyinit.checkpoint.flax_msgpack import write_msgpack
from lazyinit.checkpoint.folder import local_path, planned, write_folder, write_single
from lazyinit.checkpoint.npz import write_npz
from lazyinit.checkpoint.safetensors import FilePlan
from lazyinit.checkpoint.views import AsDtype
from lazyinit.match.places import places_of
from lazyinit.match.translate import translate
from lazyinit.match.unmatch import unmatch
from lazyinit.params import Source, cast_dtype
from lazyinit.rules.rule import AnyRule, Rules, as_rules

_METADATA = {"format": "pt"}
_ONE_FILE = 2**62  # Bytes: more than there can be in one.
_NOT_WRITTEN = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".gguf", ".npy", ".json", ".zip")


def convert(
    checkpoint: Checkpoint,
    target: str | os.PathLike[str],
    *,
    rules: Rules = (),
    reverse: bool = False,
    dtype: Any = None,
    max_shard_size: int | str = "5GB",
) -> Mapping[str, Source]:
    """Writes a checkpoint in another format; a reader of the target finds the old or the new.

    Args:
      checkpoint: opened, of any format.
      target: a file whose suffix says the format (``.safetensors``, ``.npz``, ``.msgpack``); or a
        folder, which gets Hugging Face's safetensors: what is one already, or ends otherwise.
      rules: what the tensors become: from the names of the checkpoint to those of leaves.
      reverse: whether the rules are read from leaves to tensors.
      dtype: a dtype (whatever ``numpy`` takes for one) for the floating-point tensors.
      max_shard_size: bytes of values in one file of a folder.

    Returns:
      What was written, by name.

    Raises:
      FillError: the rules do not say unambiguously what becomes of a tensor.
      SaveError: the target's format cannot hold a tensor.
      WriteError: it cannot be written; the old one is left as it was.
      CheckpointError: the checkpoint has changed, or is damaged.
    """
    path = local_path(target)
    tensors = _renamed(checkpoint, as_rules(rules), reverse)
    if dtype is not None:
        tensors = {name: _cast(source, dtype) for name, source in tensors.items()}
    if not tensors:
        raise errors.SaveError(f"{checkpoint.origin}: wanted tensors to convert, got none.")
    if path.is_dir() or path.suffix not in (*_WRITTEN, *_NOT_WRITTEN):
        write_folder(path, _planned(tensors, max_shard_size))
    elif path.suffix in _WRITTEN:
        _WRITTEN[path.suffix](path, tensors)
    else:
        raise errors.SaveError(
            f"{path}: wanted a folder, or a file that ends in {', '.join(_WRITTEN)}, got "
            f"{path.suffix!r}, which is read and not written."
        )
    return tensors


def _write_safetensors(path: Path, tensors: Mapping[str, Source]) -> None:
    write_single(path, *_planned(tensors, _ONE_FILE))


_WRITTEN: Mapping[str, Callable[[Path, Mapping[str, Source]], None]] = {
    ".safetensors": _write_safetensors,
    ".npz": write_npz,
    ".msgpack": write_msgpack,
}


def _renamed(
    checkpoint: Checkpoint, rules: tuple[AnyRule, ...], reverse: bool
) -> Mapping[str, Source]:
    if not rules:
        return checkpoint
    if not reverse:
        return translate(checkpoint, rules=rules)
    return unmatch(places_of(checkpoint), rules=rules)


def _cast(source: Source, dtype: Any) -> Source:
    wanted = cast_dtype(source.dtype, dtype)
    return source if wanted == source.dtype else AsDtype(source, np.dtype(wanted))


def _planned(tensors: Mapping[str, Source], size: int | str) -> list[FilePlan]:
    return planned(tensors, metadata=_METADATA, max_shard_size=size)
