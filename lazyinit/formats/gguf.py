"""GGUF files, as llama.cpp has them: ``gguf_header`` reads their header, ``gguf`` their blocks.

The package ``gguf`` (the extra of that name) knows which types of values there are, how large their
blocks are and how they are dequantized; a shard dequantizes its own blocks and no more. Its own
reader is not used: it keeps each entry of each list of metadata as an array (a vocabulary has some
hundred thousand), and believes any count that a file gives.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from lazyinit import errors
from lazyinit.formats.gguf_header import GgufEntry, GgufHeader
from lazyinit.sources import Index, Shape, Source
from lazyinit.tensors.base import Checkpoint, OfOne, bounds, slices
from lazyinit.tensors.headers import DTYPES, FETCH_AGAIN, check_shape, damaged
from lazyinit.tensors.mapped import File, MappedTensor, give_back
from lazyinit.tensors.pieces import indices
from lazyinit.tensors.refused import RefusedTensor

_TOGETHER = 2**17  # Values that the package makes at a time, so that they stay in the cache.

# The dtypes of values that are not quantized, by the format's numbers.
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


def open_file(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a GGUF file: reads its header, no value.

    A quantized tensor reads as float32. A tensor whose type the package ``gguf`` does not know
    can be listed, but raises an error when it is read.

    Raises:
      CheckpointError: the file is damaged.
    """
    file = File.at(path)
    with open(file.path, "rb") as stream:
        return open_stream(os.fspath(path), file, stream, MappedTensor)


def open_stream(origin: str, file: Any, stream: Any, make: Callable[..., Source]) -> Checkpoint:
    """Opens a file that lies anywhere, as ``open_file`` does.

    Args:
      origin: the name of the checkpoint, for messages.
      file: a local or a remote file.
      stream: a stream at the first byte of the file, with ``read(size)`` and ``tell()``.
      make: makes the source of values that are not quantized, from the file, a name, a shape, a
        dtype and an offset in bytes.

    Raises:
      CheckpointError: the file is damaged.
    """
    metadata, entries, start = GgufHeader(file, stream).read()
    tensors: dict[str, Source] = {}
    for entry in entries:
        if entry.name in tensors:
            raise errors.CheckpointError(
                f"{file.path}: the name {entry.name!r} stands twice. {FETCH_AGAIN}"
            )
        tensors[entry.name] = _source(file, entry, start, make)
    return Checkpoint(origin, tensors, metadata)


def _source(file: Any, entry: GgufEntry, start: int, make: Callable[..., Source]) -> Source:
    """Returns the source of a tensor: of plain values, of blocks, or one that refuses to read.

    Raises:
      CheckpointError: the sizes do not fit the type of the tensor, or the file.
    """
    if entry.kind in _PLAIN:
        dtype = DTYPES[_PLAIN[entry.kind]]
        return _bytes_of(file, entry, entry.shape, dtype, start, make)
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
    held = _bytes_of(file, entry, lying, DTYPES["uint8"], start, make)
    return GgufTensor(held, entry.shape, entry.kind, count, size)


def _bytes_of(
    file: Any,
    entry: GgufEntry,
    shape: Shape,
    dtype: np.dtype,
    start: int,
    make: Callable[..., Source],
) -> Source:
    shape = check_shape(file.path, entry.name, list(shape), dtype)
    end = start + entry.place + math.prod(shape) * dtype.itemsize
    if end > file.size:
        raise errors.CheckpointError(
            f"{file.path}: tensor {entry.name!r}: its values end {end - file.size} bytes past the "
            f"end of the file. {FETCH_AGAIN}"
        )
    return make(file, entry.name, shape, dtype, start + entry.place)


def _blocks(entry: GgufEntry) -> tuple[int, int] | str:
    """Returns how many values a block of a quantized tensor holds, and how many bytes it takes.

    Returns a message instead if the type cannot be dequantized here.
    """
    gguf = _import()
    if gguf is None:
        return (
            "wanted the package gguf, which reads its type, got none. Run pip install "
            "'lazyinit-jax[gguf]'."
        )
    try:
        kind = gguf.GGMLQuantizationType(entry.kind)
        count, size = gguf.GGML_QUANT_SIZES[kind]
        gguf.quants.dequantize(np.zeros(size, np.uint8), kind)
    # gguf raises these for a number that is no type, a type without a size or a dequantizer.
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
      source: its bytes (uint8); each row consists of whole blocks.
      shape: its shape, counted in values.
      kind: the number of its type.
      count: how many values a block holds.
      size: how many bytes a block takes.
    """

    source: Source
    shape: Shape
    kind: int
    count: int
    size: int

    @property
    def dtype(self) -> np.dtype:
        """The dtype that blocks are dequantized to, float32."""
        return DTYPES["float32"]

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``; dequantizes only the blocks that hold them."""
        *outer, (start, stop) = bounds(index, self.shape)
        first = start // self.count
        last = max(first, -(-stop // self.count))
        held = self.source.read(slices([*outer, (first * self.size, last * self.size)]))
        gguf = _import()
        assert gguf is not None  # It was there when the file was opened.
        kind = gguf.GGMLQuantizationType(self.kind)
        blocks = held.reshape(*held.shape[:-1], last - first, self.size)
        values = np.empty((*blocks.shape[:-1], self.count), np.float32)
        # The scale of a damaged block may be NaN; its values then are, too.
        with np.errstate(all="ignore"):
            for part in indices(blocks.shape[:-1], self.count, _TOGETHER):
                those, made = blocks[part], values[part]
                rows = those.reshape(-1, those.shape[-2] * self.size)
                made[...] = gguf.quants.dequantize(rows, kind).reshape(made.shape)
        give_back(held)
        begin = start - first * self.count
        flat = values.reshape(*held.shape[:-1], (last - first) * self.count)
        return flat[..., begin : begin + stop - start]

    def __repr__(self) -> str:
        return f"{self.source!r}.dequantized"
