"""Walks over a msgpack file of Flax to find its values, and where each array's bytes lie.

Only what stands between arrays is read. Every length and count that the file states is checked
against the bytes that are left, so that a hostile file costs neither memory nor time.

Format: https://github.com/msgpack/msgpack/blob/master/spec.md. Flax's extensions
(``flax/serialization.py``): 1 is an array, itself msgpack of (shape, dtype's name, bytes); 2 a
complex number, msgpack of (real, imaginary); 3 a NumPy scalar, written as an array. An array of
more than 2**30 bytes is a map of ``__msgpack_chunked_array__``, its shape, and flat pieces.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from lazyinit import errors
from lazyinit.tensors.headers import DEPTH_LIMIT, FETCH_AGAIN, MAX_NDIM, NODE_LIMIT, too_deep
from lazyinit.tensors.mapped import File

CHUNKED = "__msgpack_chunked_array__"
ARRAY = 1  # Flax's type of extension for an array.
_COMPLEX, _SCALAR = 2, 3
_TEXT_LIMIT = 10_000  # Bytes of a key or of a dtype's name.

# For each first byte, the kind of its value, and what comes next: the size in bytes of a length, or
# the struct code of a number.
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
    """Tells whether a file of Flax may start with this byte: a map, a list or an extension."""
    kind, _ = _KINDS.get(byte, ("", 0))
    return 0x80 <= byte <= 0x9F or 0xD4 <= byte <= 0xD8 or kind in ("map", "list", "extension")


@dataclass(frozen=True, slots=True)
class FoundArray:
    """An array as it was met on the walk; its dtype and shape are not checked yet."""

    shape: Any  # Whatever msgpack holds there.
    dtype: Any
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class FoundChunks:
    """A map that stands for one array in pieces, not checked yet."""

    members: Mapping[Any, Any]


class Walk:
    """Walks over a file from its first byte to its last, and skips the values of arrays."""

    def __init__(self, file: File, stream: BinaryIO) -> None:
        """Starts at the first byte of an opened file."""
        self.file, self.stream, self.at, self.nodes = file, stream, 0, 0

    def broken(self, wanted: str, got: object) -> errors.CheckpointError:
        """Returns the error for a file that breaks a rule of the format."""
        return errors.CheckpointError(
            f"{self.file.path}: wanted {wanted}, got {got!s:.80}. {FETCH_AGAIN}"
        )

    def _take(self, size: int, what: str) -> bytes:
        if self.at + size > self.file.size:
            left = self.file.size - self.at
            raise self.broken(f"{size} bytes of {what} at byte {self.at}", f"{left}, and the end")
        data = self.stream.read(size)
        if len(data) < size:
            raise self.broken(f"{self.file.size} bytes", f"{self.at + len(data)}, and the end")
        self.at += size
        return data

    def _skip(self, size: int, what: str) -> None:
        if self.at + size > self.file.size:
            left = self.file.size - self.at
            raise self.broken(f"{size} bytes of {what} at byte {self.at}", f"{left}, and the end")
        self.at += size
        self.stream.seek(self.at)

    def _head(self) -> tuple[str, Any]:
        """Reads the kind of the next value, and its length; for a number, the number itself."""
        byte = self._take(1, "msgpack")[0]
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
            return kind, struct.unpack(more, self._take(struct.calcsize(more), "a number"))[0]
        return kind, int.from_bytes(self._take(more, "a length"), "big")

    def value(self, depth: int = 0) -> Any:  # Any: what the file holds.
        """Reads the next value: numbers, lists and dicts as they are, an array as where it lies.

        Text and bytes are skipped, and become ``None``.

        Raises:
          CheckpointError: the file is damaged, or nested too deep.
        """
        self.nodes += 1
        if depth > DEPTH_LIMIT:
            raise too_deep(self.file.path)
        if self.nodes > NODE_LIMIT:
            raise self.broken(f"at most {NODE_LIMIT} values", "more")
        kind, size = self._head()
        match kind:
            case "number":
                return size
            case "true" | "false":
                return kind == "true"
            case "text" | "bytes":
                return self._skip(size, kind)
            case "list":
                return [self.value(depth + 1) for _ in self._counted(size)]
            case "map":
                return self._map(size, depth)
            case "extension":
                return self._extension(size)
        return None

    def _counted(self, size: int) -> range:
        # Each member takes a byte at least: a count that the file has no room for is a lie.
        if size > self.file.size - self.at:
            raise self.broken(f"{size} values at byte {self.at}", "the end of the file before them")
        return range(size)

    def _map(self, size: int, depth: int) -> Mapping[Any, Any] | FoundChunks:
        members: dict[Any, Any] = {}
        for _ in self._counted(size):
            key = self._key()
            if key in members:
                raise self.broken("each key once", f"{key!r} twice")
            members[key] = self.value(depth + 1)
        return FoundChunks(members) if CHUNKED in members else members

    def _key(self) -> str | int:
        kind, size = self._head()
        if kind == "number" and isinstance(size, int):
            return size
        return self._text(kind, size, "a key")

    def _text(self, kind: str, size: int, what: str) -> str:
        if kind not in ("text", "bytes") or size > _TEXT_LIMIT:
            wanted = f"{what} at byte {self.at} that is text of at most {_TEXT_LIMIT} bytes"
            raise self.broken(wanted, f"{kind} of {size}")
        data = self._take(size, what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise self.broken(f"{what} at byte {self.at - size} in UTF-8", repr(data)) from None

    def _extension(self, size: int) -> Any:
        code = self._take(1, "an extension")[0]
        end = self.at + size
        if end > self.file.size:
            raise self.broken(f"{size} bytes of an extension at byte {self.at}", "the end")
        if code not in (ARRAY, _COMPLEX, _SCALAR):
            raise self.broken(
                f"an extension of Flax's (1, 2 or 3) at byte {self.at}", f"type {code}"
            )
        kind, count = self._head()
        if kind != "list" or count != (2 if code == _COMPLEX else 3):
            raise self.broken(f"an extension of Flax's at byte {self.at}", f"a {kind} of {count}")
        value = self._complex() if code == _COMPLEX else self._array()
        if self.at != end:
            raise self.broken(f"an extension that ends at byte {end}", f"{self.at}")
        return value

    def _complex(self) -> complex:
        real, imaginary = self._head(), self._head()
        if (real[0], imaginary[0]) != ("number", "number"):
            raise self.broken(f"two numbers before byte {self.at}", f"{real[0]}, {imaginary[0]}")
        return complex(real[1], imaginary[1])

    def _array(self) -> FoundArray:
        kind, count = self._head()
        if kind != "list" or count > MAX_NDIM:
            wanted = f"an array's shape of at most {MAX_NDIM} numbers before byte {self.at}"
            raise self.broken(wanted, f"a {kind} of {count}")
        # What is no number stays what it is, and check_shape refuses it.
        heads = [self._head() for _ in range(count)]
        shape = [size if kind == "number" else kind for kind, size in heads]
        dtype = self._text(*self._head(), "an array's dtype")
        kind, nbytes = self._head()
        if kind not in ("bytes", "text"):  # Old msgpack had no bytes of their own.
            raise self.broken(f"an array's bytes at byte {self.at}", kind)
        offset = self.at
        self._skip(nbytes, "an array")
        return FoundArray(shape, dtype, offset, nbytes)
