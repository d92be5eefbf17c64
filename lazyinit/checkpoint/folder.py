"""Writes named sources as a Hugging Face folder or one file, and plans all before it writes."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from lazyinit import errors
from lazyinit.checkpoint.beside import SideFile
from lazyinit.formats import ties
from lazyinit.formats.commit import replacing_checkpoint, replacing_file
from lazyinit.formats.to_safetensors import FilePlan, index_json, plan_files, problems
from lazyinit.sizes import bytes_of
from lazyinit.sources import Source
from lazyinit.tensors.pieces import Read, as_bytes, pieces


def local_path(target: str | os.PathLike[str]) -> Path:
    """Returns the path of a file or folder to write.

    Raises:
      SaveError: the target is an address.
    """
    if "://" in os.fspath(target):
        raise errors.SaveError(
            f"{os.fspath(target)}: wanted a path on this machine, got an address. Write to a path "
            "here, and upload what is there."
        )
    return Path(target)


def planned(
    tensors: Mapping[str, Source], *, metadata: Mapping[str, str], max_shard_size: int | str
) -> list[FilePlan]:
    """Plans the files of a checkpoint, and raises all that can be wrong with its tensors.

    Raises:
      SaveError: a name or a dtype is one that safetensors lacks, metadata is not text, or
        ``max_shard_size`` is not a size. Problems of names, dtypes and metadata are collected.
    """
    limit = bytes_of(max_shard_size, "max_shard_size", errors.SaveError)
    wrong = list(problems(tensors))
    wrong += [
        f"metadata: wanted keys and values that are text, got {key!r}: {value!r:.80}."
        for key, value in metadata.items()
        if not isinstance(key, str) or not isinstance(value, str)
    ]
    if wrong:
        raise errors.SaveError(errors.listing(wrong))
    kept, tied = ties.without_ties(tensors)
    return plan_files(kept, {**metadata, **ties.note(tied)}, limit)


def write_folder(
    folder: Path,
    plans: Sequence[FilePlan],
    read: Read = pieces,
    *,
    beside: Sequence[SideFile] = (),
) -> None:
    """Writes planned files into a folder, in place of the checkpoint that is there.

    Args:
      folder: the folder, which is made if it is not there.
      plans: what ``planned`` returned.
      read: yields the values of a source, in order.
      beside: files that come along.

    Raises:
      WriteError: the files cannot be written; the checkpoint that was there is still there.
      CheckpointError: a file that a tensor lies in is gone or has changed, or a file that comes
        along is gone.
    """
    for plan in plans:
        for _, source in plan.tensors:
            source.check()
    with replacing_checkpoint(folder, len(plans), [file.name for file in beside]) as staged:
        for file in beside:
            with staged.create(file.name) as stream:
                _copy(file, stream)
        for name, plan in zip(staged.names, plans, strict=True):
            with staged.create(name) as stream:
                write_file(stream, plan, read)
        if len(plans) > 1:
            with staged.create(staged.index) as stream:
                stream.write(index_json(list(zip(staged.names, plans, strict=True))))


def _copy(file: SideFile, stream: BinaryIO) -> None:
    try:
        source = file.path.open("rb")
    except OSError as error:
        raise errors.CheckpointError(
            f"{file.path}: wanted to copy this file, but it can no longer be read: "
            f"{error.strerror}. Save again."
        ) from error
    with source:
        shutil.copyfileobj(source, stream)


def write_single(path: Path, plan: FilePlan, read: Read = pieces) -> None:
    """Writes one planned file, in place of the one that is there.

    Raises:
      WriteError: the file cannot be written; the one that was there is still there.
      CheckpointError: a file that a tensor lies in is gone or has changed.
    """
    for _, source in plan.tensors:
        source.check()
    with replacing_file(path) as stream:
        write_file(stream, plan, read)


def write_file(stream: BinaryIO, plan: FilePlan, read: Read = pieces) -> None:
    """Writes one safetensors file: its header, then its values, in order."""
    stream.write(plan.header)
    for _, source in plan.tensors:
        for piece in read(source):
            stream.write(as_bytes(piece))
            del piece  # Frees the array that it may be a view of, if that was made on demand.
