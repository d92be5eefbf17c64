"""Folders of ``torch.distributed.checkpoint``: pieces of tensors in files of several ranks.

``.metadata`` is a pickle that says of each tensor its sizes, its pieces, and where each piece
lies: at an offset of a ``.distcp`` file, as a whole archive of ``torch.save``. Both are read as
``pytorch`` reads them: nothing runs, and PyTorch is not needed. The pieces have to lie as a grid,
which those of FSDP, DTensor and tensor parallelism do, and to hold every element that they promise.

Format: ``torch/distributed/checkpoint/metadata.py`` and ``filesystem.py``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lazyinit import errors
from lazyinit.formats import pytorch
from lazyinit.formats.pickled import Foreign, Name
from lazyinit.formats.zipped import read_directory
from lazyinit.sources import Shape, Source, describe
from lazyinit.tensors.base import Checkpoint
from lazyinit.tensors.headers import (
    DTYPES,
    FETCH_AGAIN,
    HEADER_LIMIT,
    check_shape,
    damaged,
    is_text,
)
from lazyinit.tensors.joined import Joined
from lazyinit.tensors.mapped import File, MappedTensor
from lazyinit.tensors.memory import HeldTensor
from lazyinit.tensors.pieces import nbytes
from lazyinit.tensors.refused import RefusedTensor

METADATA = ".metadata"


def is_folder(folder: Path) -> bool:
    """Tells whether a folder is one of ``torch.distributed.checkpoint``."""
    return (folder / METADATA).is_file()


def open_folder(folder: Path) -> Checkpoint:
    """Opens a folder: reads its metadata and the headers of all pieces, and no value.

    Names are those of the state dict, ``model.layers.0.weight``. Numbers are tensors with no
    dimensions.

    Raises:
      CheckpointError: the metadata or a piece is damaged, or a file is missing.
    """
    file = File.at(folder / METADATA)
    if file.size > HEADER_LIMIT:
        raise errors.CheckpointError(
            f"{file.path}: wanted metadata of at most {HEADER_LIMIT} bytes, got {file.size}. "
            "It is damaged, or no checkpoint."
        )
    tree = pytorch.read_plain_pickle(file)
    try:
        described, pieces = _read(tree)
    # A pickle of something else lacks these keys, or has values of other types.
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise errors.CheckpointError(
            f"{file.path}: wanted the metadata of torch.distributed.checkpoint, got something "
            f"else: {type(error).__name__} {error!s:.80}. {FETCH_AGAIN}"
        ) from error
    opened: dict[str, File] = {}
    tensors: dict[str, Source] = {}
    for name, said in described.items():
        found = {offset: _Piece(folder, opened, where) for offset, where in pieces[name].items()}
        source = _tensor(file, name, said, found)
        if source is not None:
            tensors[name] = source
    return Checkpoint(str(folder), tensors)


@dataclass(frozen=True, slots=True)
class _Said:
    """What the metadata says of a tensor; ``dtype`` is empty for an object of another kind."""

    dtype: str
    shape: Shape
    chunks: Mapping[Shape, Shape]  # The sizes of each piece, by its offsets.


@dataclass(frozen=True, slots=True)
class _Where:
    """Where the bytes of a piece lie, and whether they were changed (compressed, encrypted)."""

    file: str
    offset: int
    length: int
    is_changed: bool


@dataclass(frozen=True, slots=True)
class _Piece:
    """A piece of a tensor, whose file is opened only by ``open``."""

    folder: Path
    opened: dict[str, File]
    where: _Where

    def open(self, name: str) -> Source | None:
        """Returns the one tensor or number in the archive, as ``name``; ``None`` for all else."""
        path = self.folder / self.where.file
        if path.parent != self.folder or not path.is_file():
            raise errors.CheckpointError(
                f"{self.folder}: tensor {name!r}: wanted a piece in the file {self.where.file!r} "
                "of this folder, got none. Fetch the checkpoint again."
            )
        if self.where.file not in self.opened:
            self.opened[self.where.file] = File.at(path)
        file = self.opened[self.where.file]
        end = min(self.where.offset + self.where.length, file.size)
        members = read_directory(file, end)
        if not pytorch.is_archive(members):
            raise damaged(file.path, name, "a piece that torch.save wrote", list(members))
        opened = pytorch.open_archive(path, members, may_be_empty=True)
        held = opened.get("")  # A value that is all of an archive has no name.
        if not isinstance(held, MappedTensor | HeldTensor):
            return None
        # torch.save keeps the strides of an expanded tensor; this format writes every element, so
        # that no small file may ask for more memory than there is.
        room = end - self.where.offset
        if nbytes(held) > room:
            wanted = f"a piece of at most the {room} bytes that are stored"
            raise damaged(file.path, name, wanted, describe(held.shape, held.dtype))
        return replace(held, name=name)


def _read(
    tree: Any,  # Whatever the file holds.
) -> tuple[dict[str, _Said], dict[str, dict[Shape | None, _Where]]]:
    described = {}
    pieces: dict[str, dict[Shape | None, _Where]] = {}
    for name, said in tree["state_dict_metadata"].items():
        if not isinstance(name, str) or not is_text(name):
            raise ValueError("a name that is no text")
        described[name], pieces[name] = _said(said), {}
    for index, where in tree["storage_data"].values():
        offset = index.get("offset")
        there = _Where(
            where["relative_path"],
            where["offset"],
            where["length"],
            bool(where.get("transform_descriptors")),
        )
        counts = (there.offset, there.length, *(offset or ()))
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("a place that is no number")
        if not isinstance(there.file, str) or "\0" in there.file:
            raise ValueError("a file without a name")
        if not isinstance(index["fqn"], str):
            raise ValueError("a name that is no text")
        pieces[index["fqn"]][offset] = there
    return described, pieces


def _said(said: Any) -> _Said:
    if not isinstance(said, Foreign) or "properties" not in said:
        return _Said("", (), {})
    dtype = said["properties"]["state"][0]
    chunks = [(chunk["offsets"], chunk["sizes"]) for chunk in said["chunks"]]
    for counts in (said["size"], *(part for chunk in chunks for part in chunk)):
        if not isinstance(counts, tuple) or not all(type(c) is int and c >= 0 for c in counts):
            raise ValueError("sizes that are no numbers")
    return _Said(dtype.name if isinstance(dtype, Name) else "?", said["size"], dict(chunks))


def _tensor(
    file: File, name: str, said: _Said, pieces: Mapping[Shape | None, _Piece]
) -> Source | None:
    if any(piece.where.is_changed for piece in pieces.values()):
        problem = (
            "wanted uncompressed values, got a compressed piece. Save the checkpoint again without "
            "compression."
        )
        return RefusedTensor(file, name, problem, said.shape)
    if not said.dtype:
        return next(iter(pieces.values())).open(name) if pieces else None
    if said.dtype not in DTYPES:
        problem = (
            f"wanted a dtype among {', '.join(DTYPES)}, got {said.dtype:.40}. Save it in one of "
            "these."
        )
        return RefusedTensor(file, name, problem, said.shape)
    dtype = DTYPES[said.dtype]
    shape = check_shape(file.path, name, list(said.shape), dtype)
    grid = _grid(shape, said.chunks)
    if grid is None:
        problem = (
            "wanted pieces that form a grid and cover the tensor, got pieces that do not. Convert "
            "the checkpoint to a file of torch.save."
        )
        return RefusedTensor(file, name, problem, shape)
    parts: dict[Shape, Source] = {}
    for offset, sizes in said.chunks.items():
        piece = pieces.get(offset)
        held = piece.open(name) if piece is not None else None
        if held is None or (held.shape, held.dtype) != (sizes, dtype):
            wanted = f"a piece of {said.dtype}{list(sizes)} at {list(offset)}"
            raise damaged(file.path, name, wanted, held)
        parts[offset] = held
    return _joined(parts, grid, ())


def _grid(shape: Shape, chunks: Mapping[Shape, Shape]) -> list[list[int]] | None:
    """Returns where pieces begin along each axis; ``None`` unless they cover it as a grid."""
    fits = all(len(o) == len(s) == len(shape) for o, s in chunks.items())
    if not chunks or not fits:
        return None
    starts = [sorted({offset[axis] for offset in chunks}) for axis in range(len(shape))]
    if math.prod(map(len, starts)) != len(chunks) or any(along[0] for along in starts):
        return None
    ends = [
        dict(zip(along, (*along[1:], size), strict=True))
        for along, size in zip(starts, shape, strict=True)
    ]
    for offset, sizes in chunks.items():
        places = zip(offset, sizes, ends, strict=True)
        if any(start + size != end[start] for start, size, end in places):
            return None
    return starts


def _joined(parts: Mapping[Shape, Source], grid: Sequence[Sequence[int]], at: Shape) -> Source:
    if len(at) == len(grid):
        return parts[at]
    along = tuple(_joined(parts, grid, (*at, start)) for start in grid[len(at)])
    return along[0] if len(along) == 1 else Joined(along, len(at))
