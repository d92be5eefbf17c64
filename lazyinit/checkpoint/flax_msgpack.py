"""Flax's msgpack files: walked for where each array's bytes lie, which are then mapped.

``flax.serialization.msgpack_restore`` and the ``msgpack`` library hold the whole file, and each
array once more. This walk reads the bytes between arrays alone. ``msgpack`` could not take part
in it: its ``Unpacker`` wants each extension (an array is one) in its buffer before it can skip it.

Format: https://github.com/msgpack/msgpack/blob/master/spec.md. Flax's extensions
(``flax/serialization.py``): 1 is an array, itself msgpack of (shape, dtype's name, bytes); 2 a
complex number, msgpack of (real, imaginary); 3 a NumPy scalar, written as an array. An array of
more than 2**30 bytes is a map of ``__msgpack_chunked_array__``, its shape, and flat pieces.
"""

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from lazyinit import errors
from lazyinit.checkpoint import nested
from lazyinit.checkpoint.headers import (
    DEPTH_LIMIT,
    DTYPES,
    FETCH_AGAIN,
    MAX_NDIM,
    NODE_LIMIT,
    check_shape,
    damaged,
)
from lazyinit.checkpoint.inline import InlineNumber
from lazyinit.checkpoint.mapped import File, MappedTensor
from lazyinit.checkpoint.pieces import PiecedTensor
from lazyinit.checkpoint.protocol import Checkpoint
from lazyinit.params import Shape, Source

_BUFFER = 512  # Bytes read at once between arrays.
_TEXT_LIMIT = 10_000  # Bytes of a key or of a dtype's name.
_CHUNKED = "__msgpack_chunked_array__"
_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3

# What a first byte says: the kind, and bytes of the length or struct code of the number after it.
_KINDS: Mapping[int, tuple[str, Any]] = {
    0xC0: ("nothing", 0),
    0xC2: ("false", 0),
    0xC3: ("true", 0),
    **{0xC4 + n: ("bytes", 1 << n) for n in range(3)},
    **{0xC7 + n: ("extension", 1 << n) for n in range(3)},
    **{0xCA + n: ("number", code) for n, code in enumerate((">f", ">d"))},
    **{0xCC + n: ("number", code) for n, code in enumerate((">B", ">H", ">I", ">Q"))},
    **{0xD0 + n: ("number", code) for n, code in enumerate((">b", ">h", ">i", ">q"))},
    **{0xD9 + n: ("text", 1 << n) for n in range(3)},
    **{0xDC + n: ("list", 2 << n) for n in range(2)},
    **{0xDE + n: ("map", 2 << n) for n in range(2)},
}


def is_first_byte(byte: int) -> bool:
    """Tells whether a file of Flax may start so: with a map, a list or an extension."""
    kind, _ = _KINDS.get(byte, ("", 0))
    return 0x80 <= byte <= 0x9F or 0xD4 <= byte <= 0xD8 or kind in ("map", "list", "extension")


@dataclass(frozen=True, slots=True)
class _Array:
    """An array as it was met on the walk; its dtype and shape are not checked yet."""

    shape: Any  # Whatever msgpack holds there.
    dtype: Any
    offset: int
    nbytes: int


def open_file(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a file of ``flax.serialization``: notes where its arrays lie, reads no value.

    Numbers are tensors with no dimensions; text, bytes and ``None`` are passed over.

    Raises:
      CheckpointError: the file is damaged, nests without end, or holds an array of another kind.
    """
    file = File.at(path)
    with open(file.path, "rb", buffering=_BUFFER) as stream:
        walk = _Walk(file, stream)
        tree = walk.value(0)
        if walk.at != file.size:
            raise walk.broken(f"an end at byte {walk.at}", f"{file.size - walk.at} bytes more")
    tensors: dict[str, Source] = {}
    for name, leaf in nested.leaves(file.path, tree):
        if isinstance(leaf, _Array):
            tensors[name] = _tensor(file, name, leaf)
        elif isinstance(leaf, _Chunked):
            tensors[name] = _pieced(file, name, leaf)
        elif isinstance(leaf, bool | int | float | complex):
            tensors[name] = InlineNumber.of(file, name, leaf)
    return Checkpoint(os.fspath(path), tensors)


@dataclass(frozen=True, slots=True)
class _Chunked:
    """A map that stands for one array in pieces, not checked yet."""

    members: Mapping[Any, Any]


class _Walk:
    """A walk over a file from first byte to last; only what is no array's value is read."""

    def __init__(self, file: File, stream: BinaryIO) -> None:
        self.file, self.stream, self.at, self.nodes = file, stream, 0, 0

    def broken(self, wanted: str, got: object) -> errors.CheckpointError:
        return errors.CheckpointError(
            f"{self.file.path}: wanted {wanted}, got {got!s:.80}. {FETCH_AGAIN}"
        )

    def take(self, size: int, what: str) -> bytes:
        if self.at + size > self.file.size:
            left = self.file.size - self.at
            raise self.broken(f"{size} bytes of {what} at byte {self.at}", f"{left}, and the end")
        data = self.stream.read(size)
        if len(data) < size:
            raise self.broken(f"{self.file.size} bytes", f"{self.at + len(data)}, and the end")
        self.at += size
        return data

    def skip(self, size: int, what: str) -> None:
        if self.at + size > self.file.size:
            left = self.file.size - self.at
            raise self.broken(f"{size} bytes of {what} at byte {self.at}", f"{left}, and the end")
        self.at += size
        self.stream.seek(self.at)

    def head(self) -> tuple[str, Any]:
        """Returns the kind of the next value and its length, or itself if it is a number."""
        byte = self.take(1, "msgpack")[0]
        if byte < 0x80 or byte >= 0xE0:
            return "number", byte if byte < 0x80 else byte - 256
        if byte < 0xC0:
            kind = "map" if byte < 0x90 else "list" if byte < 0xA0 else "text"
            return kind, byte & (0x1F if kind == "text" else 0x0F)
        if 0xD4 <= byte <= 0xD8:
            return "extension", 1 << (byte - 0xD4)
        kind, more = _KINDS.get(byte, ("", 0))
        if not kind:
            raise self.broken(f"msgpack at byte {self.at - 1}", f"byte {byte:#x}")
        if kind == "number":
            return kind, struct.unpack(more, self.take(struct.calcsize(more), "a number"))[0]
        return kind, int.from_bytes(self.take(more, "a length"), "big")

    def value(self, depth: int) -> Any:  # Any: what the file holds.
        self.nodes += 1
        if depth > DEPTH_LIMIT:
            raise nested.too_deep(self.file.path)
        if self.nodes > NODE_LIMIT:
            raise self.broken(f"at most {NODE_LIMIT} values", "more")
        kind, size = self.head()
        match kind:
            case "number":
                return size
            case "true" | "false":
                return kind == "true"
            case "text" | "bytes":
                return self.skip(size, kind)
            case "list":
                return [self.value(depth + 1) for _ in self.counted(size)]
            case "map":
                return self.map(size, depth)
            case "extension":
                return self.extension(size)
        return None

    def counted(self, size: int) -> range:
        # Each member takes a byte at least: a count that the file has no room for is a lie.
        if size > self.file.size - self.at:
            raise self.broken(f"{size} values at byte {self.at}", "the end of the file before them")
        return range(size)

    def map(self, size: int, depth: int) -> Mapping[Any, Any] | _Chunked:
        members: dict[Any, Any] = {}
        for _ in self.counted(size):
            key = self.key()
            if key in members:
                raise self.broken("each key once", f"{key!r} twice")
            members[key] = self.value(depth + 1)
        return _Chunked(members) if _CHUNKED in members else members

    def key(self) -> str | int:
        kind, size = self.head()
        if kind == "number" and isinstance(size, int):
            return size
        return self.text(kind, size, "a key")

    def text(self, kind: str, size: int, what: str) -> str:
        if kind not in ("text", "bytes") or size > _TEXT_LIMIT:
            wanted = f"{what} at byte {self.at} that is text of at most {_TEXT_LIMIT} bytes"
            raise self.broken(wanted, f"{kind} of {size}")
        data = self.take(size, what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise self.broken(f"{what} at byte {self.at - size} in UTF-8", repr(data)) from None

    def extension(self, size: int) -> Any:
        code = self.take(1, "an extension")[0]
        end = self.at + size
        if end > self.file.size:
            raise self.broken(f"{size} bytes of an extension at byte {self.at}", "the end")
        if code not in (_ARRAY, _COMPLEX, _SCALAR):
            raise self.broken(
                f"an extension of Flax's (1, 2 or 3) at byte {self.at}", f"type {code}"
            )
        kind, count = self.head()
        if kind != "list" or count != (2 if code == _COMPLEX else 3):
            raise self.broken(f"an extension of Flax's at byte {self.at}", f"a {kind} of {count}")
        value = self.complex() if code == _COMPLEX else self.array()
        if self.at != end:
            raise self.broken(f"an extension that ends at byte {end}", f"{self.at}")
        return value

    def complex(self) -> complex:
        real, imaginary = self.head(), self.head()
        if (real[0], imaginary[0]) != ("number", "number"):
            raise self.broken(f"two numbers before byte {self.at}", f"{real[0]}, {imaginary[0]}")
        return complex(real[1], imaginary[1])

    def array(self) -> _Array:
        kind, count = self.head()
        if kind != "list" or count > MAX_NDIM:
            wanted = f"an array's shape of at most {MAX_NDIM} numbers before byte {self.at}"
            raise self.broken(wanted, f"a {kind} of {count}")
        # What is no number stays what it is, and check_shape refuses it.
        heads = [self.head() for _ in range(count)]
        shape = [size if kind == "number" else kind for kind, size in heads]
        dtype = self.text(*self.head(), "an array's dtype")
        kind, nbytes = self.head()
        if kind not in ("bytes", "text"):  # Old msgpack had no bytes of their own.
            raise self.broken(f"an array's bytes at byte {self.at}", kind)
        offset = self.at
        self.skip(nbytes, "an array")
        return _Array(shape, dtype, offset, nbytes)


def _dtype(file: File, name: str, array: _Array) -> np.dtype:
    dtype = DTYPES.get(array.dtype)
    if dtype is None:
        raise damaged(file.path, name, f"a dtype among {', '.join(DTYPES)}", array.dtype)
    return dtype


def _tensor(file: File, name: str, array: _Array) -> MappedTensor:
    dtype = _dtype(file, name, array)
    shape = check_shape(file.path, name, array.shape, dtype)
    tensor = MappedTensor(file, name, shape, dtype, array.offset)
    if tensor.nbytes != array.nbytes:
        wanted = f"{tensor.nbytes} bytes for {dtype}{list(shape)}"
        raise damaged(file.path, name, wanted, array.nbytes)
    return tensor


def _pieced(file: File, name: str, chunked: _Chunked) -> PiecedTensor:
    sizes, chunks = (chunked.members.get(key) for key in ("shape", "chunks"))
    listed = [_in_order(part) for part in (sizes, chunks)]
    pieces = listed[1]
    if not pieces or not all(isinstance(piece, _Array) for piece in pieces):
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
    """Returns what Flax made of a tuple, a map from "0", "1" and so on, as a list again."""
    if not isinstance(part, Mapping) or list(part) != [str(n) for n in range(len(part))]:
        return None
    return list(part.values())
