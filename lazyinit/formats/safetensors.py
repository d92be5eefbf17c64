"""Safetensors files: their header, read and validated here and nowhere else.

The official library is not used for reading: its numpy side has no bfloat16 and no float8
(``safe_open(..., framework="numpy")`` fails on both), and its slices are copies. Here a slice
is a view of the map, so ``jax.make_array_from_callback(shape, sharding, source.read)`` is the
whole loader: each device gets its bytes straight from the page cache.

Format: https://github.com/huggingface/safetensors#format. Eight bytes, little-endian, the
length of the header; the header, a JSON object from name to dtype, shape and offsets; then the
values. The values must lie without overlap and without holes, up to the end of the file ("the
byte buffer needs to be entirely indexed, and cannot contain holes"): the official reader
refuses anything else, and so does this one. ``to_safetensors`` writes such files.
"""

import math
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from lazyinit import errors
from lazyinit.formats import ties
from lazyinit.sources import Shape, Source
from lazyinit.tensors.base import Checkpoint
from lazyinit.tensors.headers import (
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
from lazyinit.tensors.mapped import File, MappedTensor
from lazyinit.tensors.packed import FLOAT4, nibbles
from lazyinit.tensors.refused import RefusedTensor
from lazyinit.tensors.views import reshaped

METADATA = "__metadata__"  # The header's key for text that is about no tensor.

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
        "F4": "float4_e2m1fn",
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


# These have six bits per value. The format does not say how they lie in bytes, and no library reads
# them.
_UNREAD = {"F6_E2M3": "float6_e2m3fn", "F6_E3M2": "float6_e3m2fn"}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """What a header says of one tensor.

    Attributes:
      name: its name.
      shape: as stored.
      dtype: as stored.
      offset: where its first byte is, from the start of the file.
      unread: the header's word for its dtype, if values of that dtype cannot be read; else empty.
    """

    name: str
    shape: Shape
    dtype: np.dtype
    offset: int
    unread: str = ""

    @property
    def nbytes(self) -> int:
        """How many bytes the tensor's values take in the file."""
        if self.unread:
            return math.prod(self.shape) * 6 // 8
        return stored_size(self.shape, self.dtype)

    def source(self, make: "Callable[[TensorEntry], Source]") -> Source:
        """Returns the source of the tensor; ``make`` makes one if its values are whole bytes."""
        if self.unread:
            held: Any = make(replace(self, shape=(self.nbytes,), dtype=TYPES["U8"], unread=""))
            problem = (
                f"wanted a dtype among {', '.join(TYPES)}, got {self.unread}: the format does not "
                "say how such values lie in bytes. Save it in another dtype."
            )
            return RefusedTensor(held.file, self.name, problem, self.shape, self.dtype)
        if self.dtype != FLOAT4:
            return make(self)
        # Two in a byte. If the last axis is odd, a byte may belong to two rows.
        is_odd = self.shape[-1:] == () or self.shape[-1] % 2
        *outer, last = (math.prod(self.shape),) if is_odd else self.shape
        held = replace(self, shape=(*outer, last // 2), dtype=TYPES["U8"])
        return reshaped(nibbles(make(held)), self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says before its values.

    Attributes:
      entries: its tensors, in order.
      metadata: its text that is about no tensor, by key.
    """

    entries: tuple[TensorEntry, ...]
    metadata: Mapping[str, str]

    def tensors(self, make: Callable[[TensorEntry], Source]) -> dict[str, Source]:
        """Returns the tensors by name; a tensor with several names is there under each."""
        found = {entry.name: entry.source(make) for entry in self.entries}
        return found | ties.read_note(self.metadata, found)

    def checkpoint(self, origin: str, make: Callable[[TensorEntry], Source]) -> Checkpoint:
        """Returns a checkpoint of the tensors and the metadata, without the note of ties."""
        said = {key: text for key, text in self.metadata.items() if key != ties.KEY}
        return Checkpoint(origin, self.tensors(make), said)


def open_file(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens one safetensors file: reads and validates its header, no values.

    Raises:
      CheckpointError: the file does what the format forbids; the message starts with the file.
    """
    file = File.at(path)
    with open(file.path, "rb") as stream:

        def read(start: int, stop: int) -> bytes:
            stream.seek(start)
            return stream.read(stop - start)

        header = read_header(file.path, file.size, read)
    return header.checkpoint(
        os.fspath(path), lambda e: MappedTensor(file, e.name, e.shape, e.dtype, e.offset)
    )


def read_header(path: str, size: int, read: Callable[[int, int], bytes]) -> Header:
    """Reads and validates the header of a file that lies anywhere.

    Args:
      path: its path or address; messages start with it.
      size: bytes of the file.
      read: returns the bytes from a start to a stop, fewer only if the file has ended.

    Returns:
      Its tensors, in the order of the header, and its metadata.

    Raises:
      CheckpointError: the file does what the format forbids.
    """
    text = _read_text(path, size, read)
    if not text.startswith(b"{"):
        raise errors.CheckpointError(
            f"{path}: wanted a header that is a JSON object, got one that starts with "
            f"{text[:8]!r}. It is damaged or of another format."
        )
    header = parse_object(path, text)
    metadata = header.pop(METADATA, None)
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
    kind = entry["dtype"] if isinstance(entry["dtype"], str) else ""
    unread = kind if kind in _UNREAD else ""
    dtype = np.dtype(getattr(ml_dtypes, _UNREAD[kind])) if unread else TYPES.get(kind)
    if dtype is None:
        raise damaged(path, name, f"a dtype among {', '.join(TYPES)}", entry["dtype"])
    shape = check_shape(path, name, entry["shape"], dtype)
    if not are_counts(offsets) or len(offsets) != 2:
        raise damaged(path, name, "data_offsets that are two non-negative integers", offsets)
    begin, end = offsets
    tensor = TensorEntry(name, shape, dtype, start + begin, unread)
    if unread and math.prod(shape) % 4:
        raise damaged(path, name, "as many values of six bits as fill whole bytes", shape)
    if dtype == FLOAT4 and math.prod(shape) % 2:
        raise damaged(path, name, "an even number of F4, of which a byte holds two", shape)
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


def stored_size(shape: Shape, dtype: np.dtype) -> int:
    """Returns the size of a tensor's values in bytes; two values of four bits share a byte."""
    count = math.prod(shape)
    return count // 2 if dtype == FLOAT4 else count * dtype.itemsize
