"""PyTorch's ``.bin``, ``.pt`` and ``.pth`` files, and archives of TorchScript.

PyTorch itself is not needed. The pickle says which part of which storage each tensor is;
``torch_pickle`` reads it, and runs nothing that it asks for. The storages lie in the file as plain
bytes, and are mapped: one member each of a zip archive
(https://docs.pytorch.org/docs/main/notes/serialization.html), or, in files from before PyTorch
1.6, one behind the other after five pickles (``_legacy_load`` in ``torch/serialization.py``).
"""

import io
import math
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lazyinit import errors
from lazyinit.formats.pickled import Odd, Storage, TensorSpec, plain
from lazyinit.formats.torch_pickle import CodeError, Reader
from lazyinit.formats.zipped import Member
from lazyinit.sources import Source
from lazyinit.tensors.base import Checkpoint
from lazyinit.tensors.headers import (
    DTYPES,
    FETCH_AGAIN,
    HEADER_LIMIT,
    check_shape,
    damaged,
    named_leaves,
)
from lazyinit.tensors.mapped import File, MappedTensor
from lazyinit.tensors.memory import HeldTensor, number
from lazyinit.tensors.refused import RefusedTensor

_PICKLE = "data.pkl"
_BYTE_ORDER = "byteorder"
_MAGIC = 0x1950A86A20F9469CFC6C  # torch.serialization.MAGIC_NUMBER


def is_archive(members: Mapping[str, Member]) -> bool:
    """Tells whether a zip archive is one that ``torch.save`` or ``torch.jit.save`` writes."""
    return _folder(members) is not None


def _folder(members: Mapping[str, Member]) -> str | None:
    # Everything lies in one folder, named after the file that was saved.
    found = [name for name in members if name.split("/")[1:] == [_PICKLE]]
    return found[0].removesuffix(_PICKLE) if len(found) == 1 else None


@dataclass(frozen=True, slots=True)
class _Record:
    """Where the values of a storage lie.

    Attributes:
      offset: the place of its first byte, from the start of the file.
      size: its size in bytes.
      name: its name, for messages.
    """

    offset: int
    size: int
    name: str


def open_archive(
    path: str | os.PathLike[str], members: Mapping[str, Member], *, may_be_empty: bool = False
) -> Checkpoint:
    """Opens a zip archive of PyTorch: reads its pickle, and no value.

    Dicts, lists and tuples in one another are named as paths: ``state_dict/encoder.weight``, and
    so are the parts of objects whose classes are not run. Numbers are tensors with no dimensions;
    text and ``None`` are passed over.

    Args:
      path: the path of the file.
      members: its table of contents.
      may_be_empty: whether the file may hold objects of classes that are not run, and no tensor.

    Raises:
      CheckpointError: the file is damaged, or holds no tensor and asks for code.
    """
    file = File.at(path)
    folder = _folder(members)
    assert folder is not None, members
    tree_bytes = members[folder + _PICKLE]
    if tree_bytes.is_deflated or tree_bytes.size > HEADER_LIMIT:
        raise errors.CheckpointError(
            f"{file.path}: wanted an uncompressed pickle of at most {HEADER_LIMIT} bytes, got one "
            f"of {tree_bytes.size}. Save it again with torch.save."
        )
    _check_byte_order(file, members.get(folder + _BYTE_ORDER))
    with open(file.path, "rb") as stream:
        stream.seek(tree_bytes.offset)
        reader, tree = _read(file.path, io.BytesIO(stream.read(tree_bytes.size)))

    def find(storage: Storage) -> _Record | None:
        member = members.get(f"{folder}data/{storage.key}")
        if member is None or member.is_deflated:
            return None
        return _Record(member.offset, member.size, member.name)

    return _checkpoint(path, file, reader, tree, find, may_be_empty=may_be_empty)


def open_pickle(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a file of ``torch.save`` from before its archives: reads its pickles, and no value.

    Raises:
      CheckpointError: as ``open_archive``.
    """
    file = File.at(path)
    with open(file.path, "rb") as stream:
        head = _Head(stream, file.size)
        reader, magic = _read(file.path, head)
        if magic != _MAGIC:  # Not of torch.save: NumPy's arrays lie in the pickle.
            if not isinstance(magic, dict | list | tuple) and reader.asked is None:
                raise errors.CheckpointError(
                    f"{file.path}: wanted tensors or arrays, got a pickle of one "
                    f"{type(magic).__name__}. Save them with torch.save, or as safetensors."
                )
            return _checkpoint(path, file, reader, magic, lambda storage: None)
        _read(file.path, head)  # The version, of which there is one.
        _, system = _read(file.path, head)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise errors.CheckpointError(
                f"{file.path}: wanted little-endian values, got values in another order of bytes. "
                "Save it again on a little-endian machine."
            )
        reader, tree = _read(file.path, head)
        _, keys = _read(file.path, head)
        records = _lay(file, stream, keys, reader.storages)
    return _checkpoint(path, file, reader, tree, lambda storage: records.get(storage.key))


def _lay(
    file: File, stream: Any, keys: Any, storages: Mapping[str, Storage]
) -> dict[str, _Record]:  # Any: a file, and whatever the file says.
    """Returns where each storage lies; each is a count, then the values, in order of ``keys``."""
    found: dict[str, _Record] = {}
    for key in keys if isinstance(keys, list) else ():
        if not isinstance(key, str) or key not in storages:
            break  # Its size is not known, and so not where the next one lies.
        count = int.from_bytes(stream.read(8), "little")
        start = stream.tell()
        size = count * DTYPES[storages[key].dtype].itemsize
        if start + size > file.size:
            raise errors.CheckpointError(
                f"{file.path}: wanted {size} bytes of values in storage {key!r}, got "
                f"{file.size - start}. {FETCH_AGAIN}"
            )
        found[key] = _Record(start, size, f"storage {key}")
        stream.seek(start + size)
    return found


def read_plain_pickle(file: File) -> Any:  # Any: whatever the file holds.
    """Reads a pickle as plain values, without running anything.

    Raises:
      CheckpointError: the pickle is damaged, or calls something whose only use is to run code.
    """
    with open(file.path, "rb") as stream:
        return _read(file.path, _Head(stream, file.size))[1]


class _Head:
    """A file whose pickles, which come before its values, are read up to a limit of bytes."""

    def __init__(self, stream: Any, size: int) -> None:  # Any: a binary file.
        self._stream, self._size = stream, size

    def read(self, size: int) -> bytes:
        self._check(size)
        return self._stream.read(size)

    def readline(self) -> bytes:
        line = self._stream.readline(2**16)
        self._check(0)
        return line

    def _check(self, size: int) -> None:
        end = self._stream.tell() + size
        if end > min(HEADER_LIMIT, self._size):
            raise pickle.UnpicklingError(
                f"it goes on to byte {end} of {self._size}, and {HEADER_LIMIT} are allowed"
            )


def _read(path: str, stream: Any) -> tuple[Reader, Any]:  # Any: whatever the file holds.
    reader = Reader(stream)
    try:
        return reader, reader.load()
    except CodeError as error:
        raise _asks_for_code(path, str(error)) from error
    # The interpreter of pickles checks nothing: a broken one raises whatever Python does.
    except Exception as error:
        raise errors.CheckpointError(
            f"{path}: wanted a file of torch.save, got a pickle that cannot be read: "
            f"{type(error).__name__}: {error!s:.200}. {FETCH_AGAIN}"
        ) from error


def _asks_for_code(path: str, name: str) -> errors.CheckpointError:
    return errors.CheckpointError(
        f"{path}: wanted tensors in dicts and lists, got a pickle that asks for code: {name:.200}. "
        "Nothing was run. If you trust the file, load it with torch.load(..., weights_only=False) "
        "and save its state_dict() alone."
    )


def _checkpoint(
    path: str | os.PathLike[str],
    file: File,
    reader: Reader,
    tree: Any,  # Whatever the file holds.
    find: Callable[[Storage], _Record | None],
    *,
    may_be_empty: bool = False,
) -> Checkpoint:
    tensors = dict(_sources(file, tree, find))
    if reader.asked is not None and not tensors and not may_be_empty:
        raise _asks_for_code(file.path, str(reader.asked))
    return Checkpoint(os.fspath(path), tensors)


def _sources(
    file: File, tree: Any, find: Callable[[Storage], _Record | None]
) -> Iterator[tuple[str, Source]]:  # Any: whatever the file holds.
    for name, leaf in named_leaves(file.path, tree, plain):
        if isinstance(leaf, TensorSpec):
            yield name, _tensor(file, name, leaf, find)
        elif isinstance(leaf, Odd):
            yield name, RefusedTensor(file, name, leaf.problem)
        elif isinstance(leaf, np.ndarray):
            yield name, HeldTensor(name, leaf, file.path, (file,))
        elif isinstance(leaf, int) and not -(2**63) <= leaf < 2**64:
            bits = leaf.bit_length()
            problem = f"wanted an integer of at most 64 bits, got one of {bits}. Save it as text."
            yield name, RefusedTensor(file, name, problem)
        elif isinstance(leaf, bool | int | float | complex):
            yield name, number(file, name, leaf)


def _check_byte_order(file: File, record: Member | None) -> None:
    if record is None:
        return  # Written by a version that knew one order only.
    with open(file.path, "rb") as stream:
        stream.seek(record.offset)
        order = stream.read(min(record.size, 16))
    if record.is_deflated or order != b"little":
        raise errors.CheckpointError(
            f"{file.path}: wanted little-endian values, got {order!r}. "
            "Save it again on a little-endian machine."
        )


def _tensor(
    file: File, name: str, spec: TensorSpec, find: Callable[[Storage], _Record | None]
) -> Source:
    dtype = DTYPES.get(spec.dtype)
    if dtype is None:
        problem = (
            f"wanted a dtype among {', '.join(DTYPES)}, got {spec.dtype:.40}. Save it in one of "
            "these."
        )
        return RefusedTensor(file, name, problem)
    shape = check_shape(file.path, name, list(spec.shape), dtype)
    if not math.prod(shape):
        return MappedTensor(file, name, shape, dtype, 0)
    record = find(spec.storage)
    if record is None:
        raise damaged(file.path, name, "values stored as they are in the file", spec.storage)
    steps = tuple(step * dtype.itemsize for step in spec.stride)
    begin = spec.offset * dtype.itemsize
    length = sum((size - 1) * step for size, step in zip(shape, steps, strict=True))
    if begin < 0 or min(steps, default=0) < 0 or begin + length + dtype.itemsize > record.size:
        got = f"{record.size} bytes in {record.name}"
        raise damaged(file.path, name, f"bytes {begin} to {begin + length + dtype.itemsize}", got)
    offset = record.offset + begin
    return MappedTensor(file, name, shape, dtype, offset, () if spec.is_contiguous else steps)
