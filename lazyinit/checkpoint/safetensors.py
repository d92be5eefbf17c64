"""Safetensors files: their header, read, validated and written here and nowhere else.

The official library is not used for reading: its numpy side has no bfloat16 and no float8
(``safe_open(..., framework="numpy")`` fails on both), and its slices are copies. Here a slice
is a view of the map, so ``jax.make_array_from_callback(shape, sharding, source.read)`` is the
whole loader: each device gets its bytes straight from the page cache.

Format: https://github.com/huggingface/safetensors#format. Eight bytes, little-endian, the
length of the header; the header, a JSON object from name to dtype, shape and offsets; then the
values. The values must lie without overlap and without holes, up to the end of the file ("the
byte buffer needs to be entirely indexed, and cannot contain holes"): the official reader
refuses anything else, and so does this one. What is written has the widest dtypes first, as the
official library has it, so that each tensor is aligned for its dtype.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lazyinit import errors
from lazyinit.checkpoint import ties
from lazyinit.checkpoint.base import Checkpoint
from lazyinit.checkpoint.headers import (
    DTYPES,
    FETCH_AGAIN,
    HEADER_LIMIT,
    are_counts,
    check_shape,
    damaged,
    is_text,
    is_text_map,
    parse_object,
)
from lazyinit.checkpoint.mapped import File, MappedTensor
from lazyinit.checkpoint.pieces import nbytes
from lazyinit.params import Shape, Source, describe

_ALIGNMENT = 64  # Bytes: where the first value is written, so that maps can be used as they are.
_METADATA = "__metadata__"

TYPES: Mapping[str, np.dtype] = {
    name: DTYPES[dtype]
    for name, dtype in {
        "BOOL": "bool",
        "U8": "uint8",
        "I8": "int8",
        "U16": "uint16",
        "I16": "int16",
        "U32": "uint32",
        "I32": "int32",
        "U64": "uint64",
        "I64": "int64",
        "F8_E4M3": "float8_e4m3fn",
        "F8_E5M2": "float8_e5m2",
        "F8_E4M3FNUZ": "float8_e4m3fnuz",
        "F8_E5M2FNUZ": "float8_e5m2fnuz",
        "F8_E8M0": "float8_e8m0fnu",
        "F16": "float16",
        "BF16": "bfloat16",
        "F32": "float32",
        "F64": "float64",
        "C64": "complex64",
    }.items()
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """What a header says of one tensor.

    Attributes:
      name: of the tensor.
      shape: as stored.
      dtype: as stored.
      offset: of its first byte, from the start of the file.
    """

    name: str
    shape: Shape
    dtype: np.dtype
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says before its values.

    Attributes:
      entries: its tensors, in order.
      metadata: text by text.
    """

    entries: tuple[TensorEntry, ...]
    metadata: Mapping[str, str]

    def tensors(self, make: Callable[[TensorEntry], Source]) -> dict[str, Source]:
        """Returns the tensors by name; one that has several names is there under each."""
        found = {entry.name: make(entry) for entry in self.entries}
        return found | ties.read_note(self.metadata, found)


def open_file(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens one safetensors file: reads and validates its header, no values.

    Raises:
      CheckpointError: anything that the format forbids; the file comes first, then the tensor.
    """
    file = File.at(path)
    with open(file.path, "rb") as stream:

        def read(start: int, stop: int) -> bytes:
            stream.seek(start)
            return stream.read(stop - start)

        header = read_header(file.path, file.size, read)
    tensors = header.tensors(lambda e: MappedTensor(file, e.name, e.shape, e.dtype, e.offset))
    return Checkpoint(os.fspath(path), tensors)


def read_header(path: str, size: int, read: Callable[[int, int], bytes]) -> Header:
    """Reads and validates the header of a file that lies anywhere.

    Args:
      path: its path or address; messages start with it.
      size: bytes of the file.
      read: returns the bytes from a start to a stop, fewer only if the file has ended.

    Returns:
      Its tensors, in the order of the header, and its metadata.

    Raises:
      CheckpointError: anything that the format forbids.
    """
    text = _read_text(path, size, read)
    if not text.startswith(b"{"):
        raise errors.CheckpointError(
            f"{path}: wanted a header that is a JSON object, got one that starts with "
            f"{text[:8]!r}. It is damaged or of another format."
        )
    header = parse_object(path, text)
    metadata = header.pop(_METADATA, None)
    if not (metadata is None or is_text_map(metadata)):
        raise errors.CheckpointError(
            f"{path}: wanted '__metadata__' to map strings to strings, got {metadata!r:.80}. "
            "Write the file again with the official library."
        )
    start = 8 + len(text)
    entries = [_entry(path, size, start, name, entry) for name, entry in header.items()]
    _check_layout(path, size, start, entries)
    return Header(tuple(entries), metadata or {})


def _read_text(path: str, size: int, read: Callable[[int, int], bytes]) -> bytes:
    prefix = read(0, min(8, size))
    if len(prefix) < 8:
        raise errors.CheckpointError(
            f"{path}: wanted a safetensors file, which starts with 8 bytes, got "
            f"{len(prefix)}. {FETCH_AGAIN}"
        )
    (length,) = struct.unpack("<Q", prefix)
    if length > HEADER_LIMIT:
        raise errors.CheckpointError(
            f"{path}: wanted a safetensors header of at most {HEADER_LIMIT} bytes, got a "
            f"length of {length}. It is damaged or of another format."
        )
    text = read(8, 8 + length) if 8 + length <= size else b""
    if len(text) != length:
        raise errors.CheckpointError(
            f"{path}: wanted a header of {length} bytes, but the file ends after {size} bytes. "
            f"{FETCH_AGAIN}"
        )
    return text


def _entry(
    path: str, size: int, start: int, name: str, entry: Any
) -> TensorEntry:  # Any: whatever JSON holds there; this is what checks it.
    if not is_text(name):
        raise damaged(path, name, "a name that is UTF-8 text", name)
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise damaged(path, name, "an object with dtype, shape and data_offsets", entry)
    offsets = entry["data_offsets"]
    dtype = TYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise damaged(path, name, f"a dtype among {', '.join(TYPES)}", entry["dtype"])
    shape = check_shape(path, name, entry["shape"], dtype)
    if not are_counts(offsets) or len(offsets) != 2:
        raise damaged(path, name, "data_offsets that are two non-negative integers", offsets)
    begin, end = offsets
    tensor = TensorEntry(name, shape, dtype, start + begin)
    if end - begin != tensor.nbytes:
        wanted = f"data_offsets that span {tensor.nbytes} bytes for {dtype}{list(shape)}"
        raise damaged(path, name, wanted, offsets)
    if start + end > size:
        raise errors.CheckpointError(
            f"{path}: tensor {name!r}: its values end {start + end - size} bytes past "
            f"the end of the file. {FETCH_AGAIN}"
        )
    return tensor


def _check_layout(path: str, size: int, start: int, entries: Sequence[TensorEntry]) -> None:
    end, before = start, "the header"
    for tensor in sorted(entries, key=lambda t: (t.offset, t.nbytes)):
        if tensor.offset != end:
            wrong = "overlaps" if tensor.offset < end else "leaves a hole after"
            raise errors.CheckpointError(
                f"{path}: tensor {tensor.name!r}: wanted its values at byte {end - start}, "
                f"got {tensor.offset - start}, which {wrong} {before}. {FETCH_AGAIN}"
            )
        end, before = tensor.offset + tensor.nbytes, repr(tensor.name)
    if end != size:
        raise errors.CheckpointError(
            f"{path}: {size - end} bytes after {before} belong to no tensor, "
            f"which the format forbids. {FETCH_AGAIN}"
        )


@dataclass(frozen=True, slots=True)
class FilePlan:
    """One safetensors file to be written.

    Attributes:
      tensors: name and source, in the order in which their values lie.
      header: the first bytes of the file, up to the first value.
      metadata: what the header says beside the tensors.
    """

    tensors: tuple[tuple[str, Source], ...]
    header: bytes
    metadata: Mapping[str, str]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(nbytes(source) for _, source in self.tensors)


def problems(tensors: Mapping[str, Source]) -> Iterator[str]:
    """Yields a message for each tensor that a safetensors file cannot hold."""
    for name, source in tensors.items():
        if not isinstance(name, str) or name == _METADATA or not is_text(name):
            yield (
                f"{name!r}: wanted a name that is UTF-8 text and not {_METADATA!r}. Rename the "
                "tensor in rules."
            )
        elif np.dtype(source.dtype) not in _NAMES:
            yield (
                f"{name}: wanted a dtype that safetensors has ({', '.join(TYPES)}), got "
                f"{describe(source.shape, source.dtype)}. Cast it, or leave it out of the tree."
            )


def plan_files(
    tensors: Mapping[str, Source], metadata: Mapping[str, str], limit: int
) -> list[FilePlan]:
    """Parts tensors among files of at most ``limit`` bytes of values, in order.

    A tensor that is larger has a file of its own.

    Raises:
      SaveError: a file's header would be larger than the format allows.
    """
    groups: list[list[tuple[str, Source]]] = [[]]
    room = limit
    for name, source in tensors.items():
        size = nbytes(source)
        if size > room and groups[-1]:
            groups.append([])
            room = limit
        groups[-1].append((name, source))
        room -= size
    return [_plan(group, metadata) for group in groups]


def _plan(group: Sequence[tuple[str, Source]], metadata: Mapping[str, str]) -> FilePlan:
    ordered = tuple(sorted(group, key=lambda named: -named[1].dtype.itemsize))
    header: dict[str, object] = {_METADATA: dict(metadata)} if metadata else {}
    offset = 0
    for name, source in ordered:
        end = offset + nbytes(source)
        header[name] = {
            "dtype": _NAMES[np.dtype(source.dtype)],
            "shape": list(source.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    if len(text) > HEADER_LIMIT:
        raise errors.SaveError(
            f"safetensors: wanted a header of at most {HEADER_LIMIT} bytes, got {len(text)} for "
            f"{len(group)} tensors. Write more files: a smaller max_shard_size."
        )
    return FilePlan(ordered, struct.pack("<Q", len(text)) + text, metadata)


def index_json(files: Sequence[tuple[str, FilePlan]]) -> bytes:
    """Returns the index that Hugging Face's libraries read: which file holds which tensor."""
    weight_map = {name: file for file, plan in files for name, _ in plan.tensors}
    total = sum(nbytes(source) for _, plan in files for _, source in plan.tensors)
    metadata = {"total_size": total, **files[0][1].metadata}
    index = {"metadata": metadata, "weight_map": weight_map}
    return json.dumps(index, indent=2, ensure_ascii=False).encode() + b"\n"


_NAMES: Mapping[np.dtype, str] = {dtype: name for name, dtype in TYPES.items()}
