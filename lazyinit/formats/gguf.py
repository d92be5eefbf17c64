"""GGUF files, as llama.cpp has them: their header is read here, and quantized blocks by ``gguf``.

The package ``gguf`` (the extra of that name) knows which types of values there are, how large their
blocks are and how they are dequantized; a shard dequantizes its own blocks and no more. Its own
reader is not used: it keeps each entry of each list of metadata as an array (a vocabulary has some
hundred thousand), and believes any count that a file gives.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Little-endian numbers; a list of
metadata; for each tensor its name, sizes (the fastest first), type and place; then the values.
"""

import math
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from lazyinit import errors
from lazyinit.sources import Index, Shape, Source
from lazyinit.tensors.base import Checkpoint, OfOne, bounds, slices
from lazyinit.tensors.headers import (
    DTYPES,
    FETCH_AGAIN,
    HEADER_LIMIT,
    NODE_LIMIT,
    check_shape,
    damaged,
    is_text,
)
from lazyinit.tensors.mapped import File, MappedTensor, give_back
from lazyinit.tensors.refused import RefusedTensor

_VERSIONS = (2, 3)
_ALIGNMENT = 32  # Bytes, where the metadata does not say.
_ALIGNMENT_KEY = "general.alignment"
_MAX_NDIM = 4  # GGML_MAX_DIMS.
_STRING, _LIST = 8, 9
# By the numbers that the format gives them.
_SCALARS = dict(enumerate(("<B", "<b", "<H", "<h", "<I", "<i", "<f", "<?"))) | {
    10: "<Q",
    11: "<q",
    12: "<d",
}
_PLAIN = {
    0: "float32",
    1: "float16",
    24: "int8",
    25: "int16",
    26: "int32",
    27: "int64",
    28: "float64",
    30: "bfloat16",
}
_SHOWN = 1000  # Characters of a text of metadata that are kept.


@dataclass(frozen=True, slots=True)
class _Entry:
    """What a header says of a tensor; its place is counted from the first value."""

    name: str
    shape: Shape
    kind: int
    place: int


def open_file(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a GGUF file: reads its header, no value.

    A quantized tensor is one of float32. One of a type that the package ``gguf`` does not know is
    refused when it is read; the others are not.

    Raises:
      CheckpointError: the file is damaged.
    """
    file = File.at(path)
    with open(file.path, "rb") as stream:
        return open_stream(os.fspath(path), file, stream, MappedTensor)


def open_stream(origin: str, file: Any, stream: Any, lies: Callable[..., Source]) -> Checkpoint:
    """Opens a file that lies anywhere, as ``open_file`` does.

    Args:
      origin: what the checkpoint is called.
      file: a local or a remote file.
      stream: stands at its first byte; has ``read(size)`` and ``tell()``.
      lies: makes the source of plain values, of the file, a name, a shape, a dtype and an offset.

    Raises:
      CheckpointError: the file is damaged.
    """
    metadata, entries, start = _Header(file, stream).read()
    tensors: dict[str, Source] = {}
    for entry in entries:
        if entry.name in tensors:
            raise errors.CheckpointError(
                f"{file.path}: the name {entry.name!r} stands twice. {FETCH_AGAIN}"
            )
        tensors[entry.name] = _source(file, entry, start, lies)
    return Checkpoint(origin, tensors, metadata)


class _Header:
    """Reads a header from first to last; nothing that it promises is believed before it is read."""

    def __init__(self, file: Any, stream: Any) -> None:  # Any: see open_stream.
        self._file, self._stream = file, stream
        self._left = min(file.size, HEADER_LIMIT)
        self._entries = NODE_LIMIT

    def read(self) -> tuple[dict[str, str], list[_Entry], int]:
        """Returns the metadata as text, the tensors, and where the first value is."""
        if (mark := self._bytes(4)) != b"GGUF":
            raise self._broken("its mark", mark)
        version = self._number("<I")
        if version not in _VERSIONS:
            raise self._broken(f"version {' or '.join(map(str, _VERSIONS))}", version)
        tensors, count = self._number("<Q"), self._number("<Q")
        metadata: dict[str, str] = {}
        for _ in range(self._counted(count)):
            key = self._text()
            metadata[key] = self._value(self._number("<I"))
        entries = [self._entry() for _ in range(self._counted(tensors))]
        text = metadata.get(_ALIGNMENT_KEY, str(_ALIGNMENT))
        if not text.isdecimal() or not 0 < int(text) <= 2**20 or int(text) & (int(text) - 1):
            raise self._broken("an alignment that is a power of two", text)
        return metadata, entries, -(-self._stream.tell() // int(text)) * int(text)

    def _broken(self, wanted: str, got: object) -> errors.CheckpointError:
        return errors.CheckpointError(
            f"{self._file.path}: wanted a GGUF header with {wanted}, got {got!r:.80}. {FETCH_AGAIN}"
        )

    def _bytes(self, size: int) -> bytes:
        if size > self._left:
            raise self._broken(f"at most {self._left} bytes more", size)
        self._left -= size
        return self._stream.read(size)

    def _number(self, form: str) -> Any:  # Any: int, float or bool.
        data = self._bytes(struct.calcsize(form))
        if len(data) < struct.calcsize(form):
            raise self._broken("a number", data)
        return struct.unpack(form, data)[0]

    def _counted(self, count: int) -> int:
        if count > self._entries:
            raise self._broken(f"at most {NODE_LIMIT} entries", count)
        self._entries -= count
        return count

    def _text(self) -> str:
        text = self._bytes(self._number("<Q")).decode("utf-8", "replace")
        if not is_text(text):
            raise self._broken("text", text)
        return text

    def _value(self, kind: int, depth: int = 0) -> str:
        """Returns a value of metadata as text; of a list how many entries it has."""
        if kind == _STRING:
            return self._text()[:_SHOWN]
        if kind in _SCALARS:
            return str(self._number(_SCALARS[kind]))
        if kind != _LIST or depth > 8:
            raise self._broken("a type of metadata from 0 to 12", kind)
        of, count = self._number("<I"), self._number("<Q")
        if of in _SCALARS:
            self._bytes(count * struct.calcsize(_SCALARS[of]))
        else:
            for _ in range(self._counted(count)):
                if of == _STRING:
                    self._bytes(self._number("<Q"))
                else:
                    self._value(of, depth + 1)
        return f"a list of {count}"

    def _entry(self) -> _Entry:
        name, ndim = self._text(), self._number("<I")
        if ndim > _MAX_NDIM:
            raise damaged(self._file.path, name, f"at most {_MAX_NDIM} sizes", ndim)
        shape = tuple(self._number("<Q") for _ in range(ndim))[::-1]
        return _Entry(name, shape, self._number("<I"), self._number("<Q"))


def _source(file: Any, entry: _Entry, start: int, lies: Callable[..., Source]) -> Source:
    """Returns what reads a tensor: its bytes as they are, its blocks, or a refusal.

    Raises:
      CheckpointError: its sizes do not go with its type, or with the file.
    """
    if entry.kind in _PLAIN:
        dtype = DTYPES[_PLAIN[entry.kind]]
        return _bytes_of(file, entry, entry.shape, dtype, start, lies)
    blocks = _blocks(entry)
    if isinstance(blocks, str):
        return RefusedTensor(file, entry.name, blocks, entry.shape)
    count, size = blocks
    *outer, last = entry.shape or (0,)
    if not last or last % count:
        wanted = f"a last axis that blocks of {count} values fill"
        raise damaged(file.path, entry.name, wanted, list(entry.shape))
    check_shape(file.path, entry.name, list(entry.shape), np.dtype("float32"))
    lying = (*outer, last // count * size)
    held = _bytes_of(file, entry, lying, DTYPES["uint8"], start, lies)
    return GgufTensor(held, entry.shape, entry.kind, count, size)


def _bytes_of(
    file: Any,
    entry: _Entry,
    shape: Shape,
    dtype: np.dtype,
    start: int,
    lies: Callable[..., Source],
) -> Source:
    shape = check_shape(file.path, entry.name, list(shape), dtype)
    end = start + entry.place + math.prod(shape) * dtype.itemsize
    if end > file.size:
        raise errors.CheckpointError(
            f"{file.path}: tensor {entry.name!r}: its values end {end - file.size} bytes past the "
            f"end of the file. {FETCH_AGAIN}"
        )
    return lies(file, entry.name, shape, dtype, start + entry.place)


def _blocks(entry: _Entry) -> tuple[int, int] | str:
    """Returns how many values a block of a quantized tensor holds, and how many bytes it takes.

    Where nobody here dequantizes its type, a message says so instead.
    """
    gguf = _import()
    if gguf is None:
        return (
            "wanted the package gguf, which knows its type, got none. Run pip install "
            "'lazyinit-jax[gguf]'."
        )
    try:
        kind = gguf.GGMLQuantizationType(entry.kind)
        count, size = gguf.GGML_QUANT_SIZES[kind]
        gguf.quants.dequantize(np.zeros(size, np.uint8), kind)
    # What gguf raises of a number that is no type, a type without a size, one that it cannot read.
    except (ValueError, KeyError, NotImplementedError):
        return (
            f"wanted a type that the package gguf dequantizes, got type {entry.kind}. Get a newer "
            "gguf, or a file of another type, such as Q8_0 or BF16."
        )
    return count, size


def _import() -> ModuleType | None:
    try:
        import gguf
        import gguf.quants
    except ImportError:
        return None
    return gguf


@dataclass(frozen=True, slots=True, repr=False)
class GgufTensor(OfOne):
    """A ``Source``: a quantized tensor, as float32.

    Attributes:
      source: its bytes; each row is some whole blocks.
      shape: counted in values.
      kind: the number of its type.
      count: values in a block.
      size: bytes of a block.
    """

    source: Source
    shape: Shape
    kind: int
    count: int
    size: int

    @property
    def dtype(self) -> np.dtype:
        """What blocks are dequantized to."""
        return DTYPES["float32"]

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``: their blocks are dequantized, and cut."""
        *outer, (start, stop) = bounds(index, self.shape)
        first = start // self.count
        last = max(first, -(-stop // self.count))
        held = self.source.read(slices([*outer, (first * self.size, last * self.size)]))
        gguf = _import()
        assert gguf is not None  # It was there when the file was opened.
        if not held.size:
            values = np.empty((*held.shape[:-1], (last - first) * self.count), np.float32)
        else:
            # The scale of a damaged block may be no number; then its values are none, either.
            with np.errstate(all="ignore"):
                kind = gguf.GGMLQuantizationType(self.kind)
                values = gguf.quants.dequantize(np.ascontiguousarray(held), kind)
        give_back(held)
        begin = start - first * self.count
        return values[..., begin : begin + stop - start]

    def __repr__(self) -> str:
        return f"{self.source!r}.dequantized"
