"""Flax's msgpack files: arrays are mapped where they lie, and written a piece at a time.

``flax.serialization.msgpack_restore`` and the ``msgpack`` library hold the whole file, and each
array once more. Here the file is walked for where each array's bytes lie (``msgpack_walk``).
``msgpack`` could not take part in that: its ``Unpacker`` wants each extension (an array is one) in
its buffer before it can skip it. What is written nests where a name has ``/``.
"""

import bisect
import itertools
import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lazyinit.formats.commit import replacing_file
from lazyinit.formats.msgpack_walk import ARRAY, CHUNKED, FoundArray, FoundChunks, Walk
from lazyinit.sources import Extent, Index, Shape, Source
from lazyinit.tensors.base import Checkpoint, Tensor
from lazyinit.tensors.headers import DTYPES, check_shape, damaged, named_leaves
from lazyinit.tensors.mapped import File, MappedTensor
from lazyinit.tensors.memory import nested, number
from lazyinit.tensors.pieces import Flow, Read, nbytes, pieces
from lazyinit.tensors.spans import put, sizes, spans

_BUFFER = 512  # Bytes read at once between arrays.
_BLOCK = 2**20  # The most bytes at a time; a block across two pieces is copied once more.
_CHUNK = 2**30  # Bytes of an array that is written in one piece: Flax's own limit.


def open_file(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a file of ``flax.serialization``: notes where its arrays lie, reads no value.

    Numbers are tensors with no dimensions; text, bytes and ``None`` are passed over.

    Raises:
      CheckpointError: the file is damaged, is nested too deep, or has an array of another dtype.
    """
    file = File.at(path)
    with open(file.path, "rb", buffering=_BUFFER) as stream:
        walk = Walk(file, stream)
        tree = walk.value()
        if walk.at != file.size:
            raise walk.broken(f"an end at byte {walk.at}", f"{file.size - walk.at} bytes more")
    tensors: dict[str, Source] = {}
    for name, leaf in named_leaves(file.path, tree):
        if isinstance(leaf, FoundArray):
            tensors[name] = _tensor(file, name, leaf)
        elif isinstance(leaf, FoundChunks):
            tensors[name] = _pieced(file, name, leaf)
        elif isinstance(leaf, bool | int | float | complex):
            tensors[name] = number(file, name, leaf)
    return Checkpoint(os.fspath(path), tensors)


@dataclass(frozen=True, slots=True, repr=False)
class PiecedTensor(Tensor):
    """A ``Source``: an array that was flattened and cut into pieces of one dtype.

    Attributes:
      name: its name in the file.
      shape: the shape of the whole.
      pieces: the pieces, in order; each has one dimension.
    """

    name: str
    shape: Shape
    pieces: tuple[MappedTensor, ...]

    @property
    def dtype(self) -> np.dtype:
        """The dtype of every piece."""
        return self.pieces[0].dtype

    @property
    def file(self) -> File:
        """The file that all pieces lie in."""
        return self.pieces[0].file

    @property
    def is_streamed(self) -> bool:
        """Always true."""
        return True

    @property
    def extents(self) -> tuple[Extent, ...]:
        """The run of bytes of each piece."""
        return tuple(extent for piece in self.pieces for extent in piece.extents)

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``, a copy.

        Raises:
          CheckpointError: the file has changed since it was opened.
        """
        values = np.empty(sizes(self.shape, index), self.dtype)
        # The pieces are mapped, so bytes between wanted runs are skipped, not read.
        gap = sum(piece.nbytes for piece in self.pieces)
        for span in spans(self.shape, self.dtype.itemsize, index, gap=gap, limit=_BLOCK):
            put(values, self.shape, span, self._bytes(span.start, span.stop))
        return values

    def _bytes(self, start: int, stop: int) -> memoryview:
        ends = list(itertools.accumulate(piece.nbytes for piece in self.pieces))
        parts: list[np.ndarray] = []
        for place in range(bisect.bisect_right(ends, start), len(ends)):
            begin = ends[place] - self.pieces[place].nbytes
            if begin >= stop:
                break
            within = slice(
                (max(start, begin) - begin) // self.dtype.itemsize,
                (min(stop, ends[place]) - begin) // self.dtype.itemsize,
            )
            parts.append(self.pieces[place].read((within,)).view(np.uint8))
        return (parts[0] if len(parts) == 1 else np.concatenate(parts)).data

    def stream(self, limit: int) -> Iterator[np.ndarray]:
        """Yields the values in order, flat, one piece after the other."""
        return itertools.chain.from_iterable(piece.stream(limit) for piece in self.pieces)


def _dtype(file: File, name: str, array: FoundArray) -> np.dtype:
    dtype = DTYPES.get(array.dtype)
    if dtype is None:
        raise damaged(file.path, name, f"a dtype among {', '.join(DTYPES)}", array.dtype)
    return dtype


def _tensor(file: File, name: str, array: FoundArray) -> MappedTensor:
    dtype = _dtype(file, name, array)
    shape = check_shape(file.path, name, array.shape, dtype)
    tensor = MappedTensor(file, name, shape, dtype, array.offset)
    if tensor.nbytes != array.nbytes:
        wanted = f"{tensor.nbytes} bytes for {dtype}{list(shape)}"
        raise damaged(file.path, name, wanted, array.nbytes)
    return tensor


def _pieced(file: File, name: str, chunked: FoundChunks) -> PiecedTensor:
    sizes, chunks = (chunked.members.get(key) for key in ("shape", "chunks"))
    listed = [_in_order(part) for part in (sizes, chunks)]
    pieces = listed[1]
    if not pieces or not all(isinstance(piece, FoundArray) for piece in pieces):
        raise damaged(file.path, name, "a shape and the pieces of an array", chunks)
    dtype = _dtype(file, name, pieces[0])
    shape: Shape = check_shape(file.path, name, listed[0], dtype)
    lying = tuple(_tensor(file, name, piece) for piece in pieces)
    if any(len(piece.shape) != 1 or piece.dtype != dtype for piece in lying):
        got = [f"{piece.dtype}{list(piece.shape)}" for piece in lying]
        raise damaged(file.path, name, f"flat pieces of {dtype}", got)
    if sum(piece.shape[0] for piece in lying) != math.prod(shape):
        got = [piece.shape[0] for piece in lying]
        raise damaged(file.path, name, f"{math.prod(shape)} elements in its pieces", got)
    return PiecedTensor(name, shape, lying)


def _in_order(part: object) -> list[Any] | None:
    """Returns the list that Flax wrote as a map from "0", "1" and so on; ``None`` if it is none."""
    if not isinstance(part, Mapping) or list(part) != [str(n) for n in range(len(part))]:
        return None
    return list(part.values())


def write_msgpack(path: Path, tensors: Mapping[str, Source], read: Read = pieces) -> None:
    """Writes tensors as one file, in place of the one that is there.

    Args:
      path: the path of the file.
      tensors: the tensors by name.
      read: yields the values of a source, in order.

    Raises:
      SaveError: a tensor has a name that is also a folder of other names, as ``a`` beside ``a/b``.
      WriteError: the file cannot be written; the one that was there is still there.
    """
    tree = nested(tensors)
    with replacing_file(path) as stream:
        _write(stream, tree, read)


def _write(stream: BinaryIO, node: Any, read: Read) -> None:
    if not isinstance(node, dict):
        _write_tensor(stream, node, read)
        return
    stream.write(_map(len(node)))
    for key, child in node.items():
        stream.write(_packed(key))
        _write(stream, child, read)


def _write_tensor(stream: BinaryIO, source: Source, read: Read) -> None:
    flow, name = Flow(read(source)), str(source.dtype)
    if nbytes(source) <= _CHUNK:
        _write_array(stream, flow, tuple(source.shape), name, nbytes(source))
        return
    item = source.dtype.itemsize
    size, most = math.prod(source.shape), max(1, _CHUNK // item)
    starts = range(0, size, most)
    stream.write(_map(3))
    stream.write(_packed(CHUNKED) + _packed(True))
    shape = {str(n): size for n, size in enumerate(source.shape)}
    stream.write(_packed("shape") + _packed(shape))
    stream.write(_packed("chunks") + _map(len(starts)))
    for n, start in enumerate(starts):
        count = min(most, size - start)
        stream.write(_packed(str(n)))
        _write_array(stream, flow, (count,), name, count * item)


def _write_array(
    stream: BinaryIO, flow: Flow, shape: tuple[int, ...], dtype: str, size: int
) -> None:
    head = b"\x93" + _packed(shape) + _packed(dtype)
    head += struct.pack(">BI", 0xC6, size)  # Binary data with a length of 32 bits.
    stream.write(struct.pack(">BIb", 0xC9, len(head) + size, ARRAY) + head)
    for part in flow.take(size):
        stream.write(part)


def _map(size: int) -> bytes:
    """Returns the first bytes of a msgpack map that has ``size`` keys."""
    return bytes([0x80 | size]) if size < 16 else struct.pack(">BI", 0xDF, size)


def _packed(value: Any) -> bytes:
    """Returns a small value (text, a number, a tuple or a dict of these) as msgpack."""
    import msgpack

    packed = msgpack.packb(value)
    assert packed is not None  # As it is for all but a stream.
    return packed
