"""Converts a checkpoint to another format, other names or another dtype, in bounded memory."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax
import numpy as np

from lazyinit import errors
from lazyinit.checkpoint import Checkpoint
from lazyinit.checkpoint.folder import local_path, planned, write_folder, write_single
from lazyinit.formats.flax_msgpack import write_msgpack
from lazyinit.formats.npz import write_npz
from lazyinit.formats.to_orbax import check_orbax, read_whole, write_orbax
from lazyinit.match.places import places_of
from lazyinit.match.translate import translate
from lazyinit.match.unmatch import unmatch
from lazyinit.params import cast_dtype
from lazyinit.progress import ProgressLike, Tell, reporting, watched
from lazyinit.rules.rule import AnyRule, Rules, as_rules
from lazyinit.sources import Source
from lazyinit.tensors.as_dtype import AsDtype
from lazyinit.tensors.memory import nested
from lazyinit.tensors.pieces import nbytes

Format: TypeAlias = Literal["by suffix", "orbax"]

_PT = {"format": "pt"}
_ONE_FILE = 2**62  # Bytes. No file is as large, so that all tensors go into one.
_WRITTEN = (".safetensors", ".npz", ".msgpack")
_NOT_WRITTEN = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".gguf", ".npy", ".json", ".zip")


def convert(
    checkpoint: Checkpoint,
    target: str | os.PathLike[str],
    *,
    rules: Rules = (),
    reverse: bool = False,
    dtype: Any = None,
    max_shard_size: int | str = "5GB",
    format: Format = "by suffix",
    progress: ProgressLike = False,
) -> Mapping[str, Source]:
    """Writes a checkpoint in another format, so that a reader always finds the old or the new one.

    Safetensors that are written get the checkpoint's metadata. The entry ``"format"``, which
    ``transformers`` wants, becomes ``"pt"`` if there are rules, or if the checkpoint has no such
    entry.

    Args:
      checkpoint: the opened checkpoint, of any format.
      target: a file whose suffix says the format (``.safetensors``, ``.npz``, ``.msgpack``), or
        any other path: a folder, which gets Hugging Face's safetensors.
      rules: rules that make leaves of the checkpoint's tensors; the leaves are written.
      reverse: whether to read the rules backwards: the checkpoint then has the leaves.
      dtype: a dtype (any that ``numpy`` takes) for the floating-point tensors.
      max_shard_size: bytes of values in one file of a folder.
      format: ``"orbax"`` lets Orbax write a folder, as a tree that nests at each ``/`` of a name.
        All tensors are then in memory at once.
      progress: as for ``materialize``.

    Returns:
      The sources that were written, by name.

    Raises:
      FillError: the rules do not say unambiguously what becomes of a tensor.
      SaveError: the target's format cannot hold a tensor.
      CastError: the dtype cannot hold a value.
      WriteError: the target cannot be written; what was there before is unchanged.
      CheckpointError: the checkpoint has changed, or is damaged.
    """
    path, rules = local_path(target), as_rules(rules)
    tensors = renamed(checkpoint, rules, reverse=reverse)
    if dtype is not None:
        tensors = {name: _cast(source, dtype) for name, source in tensors.items()}
    if not tensors:
        raise errors.SaveError(f"{checkpoint.origin}: wanted tensors to convert, got none.")
    metadata = {**_PT, **checkpoint.metadata, **(_PT if rules else {})}
    names = {id(source): name for name, source in tensors.items()}
    with reporting(progress, sum(map(nbytes, tensors.values()))) as tell:
        read = watched(tell, names)
        if format == "orbax":
            _write_orbax(path, tensors, tell)
        elif path.is_dir() or path.suffix not in (*_WRITTEN, *_NOT_WRITTEN):
            plans = planned(tensors, metadata=metadata, max_shard_size=max_shard_size)
            write_folder(path, plans, read)
        elif path.suffix == ".safetensors":
            (plan,) = planned(tensors, metadata=metadata, max_shard_size=_ONE_FILE)
            write_single(path, plan, read)
        elif path.suffix == ".npz":
            write_npz(path, tensors, read)
        elif path.suffix == ".msgpack":
            write_msgpack(path, tensors, read)
        else:
            raise errors.SaveError(
                f"{path}: wanted a folder, or a file that ends in {', '.join(_WRITTEN)}, got "
                f"{path.suffix!r}, which lazyinit reads but does not write."
            )
    return tensors


def _write_orbax(path: Path, tensors: Mapping[str, Source], tell: Tell) -> None:
    check_orbax(path, tensors)
    tree = nested(tensors)
    tell("write", str(path), 0)
    write_orbax(path, jax.tree.map(read_whole, tree, is_leaf=lambda x: not isinstance(x, dict)))
    tell("write", str(path), sum(map(nbytes, tensors.values())))


def renamed(
    checkpoint: Checkpoint, rules: Sequence[AnyRule], *, reverse: bool = False
) -> Mapping[str, Source]:
    """Returns what rules make of a checkpoint's tensors, by name; without rules, the checkpoint.

    Raises:
      FillError: the rules do not say unambiguously what becomes of a tensor.
    """
    if not rules:
        return checkpoint
    if not reverse:
        return translate(checkpoint, rules=rules)
    return unmatch(places_of(checkpoint), rules=rules)


def _cast(source: Source, dtype: Any) -> Source:
    wanted = cast_dtype(source.dtype, dtype)
    return source if wanted == source.dtype else AsDtype(source, np.dtype(wanted))
