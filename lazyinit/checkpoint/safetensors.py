"""Safetensors files: their header, read and validated here and nowhere else.

The official library is not used for reading: its numpy side has no bfloat16 and no float8
(``safe_open(..., framework="numpy")`` fails on both), and its slices are copies. Here a slice
is a view of the map, so ``jax.make_array_from_callback(shape, sharding, source.read)`` is the
whole loader: each device gets its bytes straight from the page cache.

Format: https://github.com/huggingface/safetensors#format. Eight bytes, little-endian, the
length of the header; the header, a JSON object from name to dtype, shape and offsets; then the
values. The values must lie without overlap and without holes, up to the end of the file ("the
byte buffer needs to be entirely indexed, and cannot contain holes"): the official reader
refuses anything else, and so does this one.
"""

import math
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lazyinit import errors
from lazyinit.checkpoint import ties
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
from lazyinit.checkpoint.protocol import Checkpoint
from lazyinit.params import Shape, Source

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
class Entry:
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

    entries: tuple[Entry, ...]
    metadata: Mapping[str, str]

    def tensors(self, make: Callable[[Entry], Source]) -> dict[str, Source]:
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
    metadata = header.pop("__metadata__", None)
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
) -> Entry:  # Any: whatever JSON holds there; this is what checks it.
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
    tensor = Entry(name, shape, dtype, start + begin)
    if end - begin != tensor.nbytes:
        wanted = f"data_offsets that span {tensor.nbytes} bytes for {dtype}{list(shape)}"
        raise damaged(path, name, wanted, offsets)
    if start + end > size:
        raise errors.CheckpointError(
            f"{path}: tensor {name!r}: its values end {start + end - size} bytes past "
            f"the end of the file. {FETCH_AGAIN}"
        )
    return tensor


def _check_layout(path: str, size: int, start: int, entries: Sequence[Entry]) -> None:
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
