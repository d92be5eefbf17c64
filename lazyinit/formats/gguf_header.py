"""The header of a GGUF file: its metadata, and what it says of each tensor.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Little-endian numbers; a list of
metadata; for each tensor its name, sizes (the fastest first), type and place; then the values.
"""

import struct
from dataclasses import dataclass
from typing import Any

from lazyinit import errors
from lazyinit.sources import Shape
from lazyinit.tensors.headers import FETCH_AGAIN, HEADER_LIMIT, NODE_LIMIT, damaged, is_text

_VERSIONS = (2, 3)
_ALIGNMENT = 32  # Bytes, where the metadata does not say.
_ALIGNMENT_KEY = "general.alignment"
_MAX_NDIM = 4  # GGML_MAX_DIMS.
_STRING, _LIST = 8, 9
# The struct codes of scalars in the metadata, by the format's numbers.
_SCALARS = dict(enumerate(("<B", "<b", "<H", "<h", "<I", "<i", "<f", "<?"))) | {
    10: "<Q",
    11: "<q",
    12: "<d",
}
_SHOWN = 1000  # Characters of a text of metadata that are kept.


@dataclass(frozen=True, slots=True)
class GgufEntry:
    """What a header says of a tensor.

    Attributes:
      name: its name.
      shape: its sizes, the slowest first.
      kind: the number of its type.
      place: where its values start, in bytes from the first value of the file.
    """

    name: str
    shape: Shape
    kind: int
    place: int


class GgufHeader:
    """Reads a header from its first byte to its last, and checks each size that it states."""

    def __init__(self, file: Any, stream: Any) -> None:  # Any: see gguf.open_stream.
        """Starts at the first byte, where the stream is."""
        self._file, self._stream = file, stream
        self._left = min(file.size, HEADER_LIMIT)
        self._entries = NODE_LIMIT

    def read(self) -> tuple[dict[str, str], list[GgufEntry], int]:
        """Returns the metadata as text, the tensors, and the byte where the values start."""
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
        """Returns a value of metadata as text; for a list, the number of its entries."""
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

    def _entry(self) -> GgufEntry:
        name, ndim = self._text(), self._number("<I")
        if ndim > _MAX_NDIM:
            raise damaged(self._file.path, name, f"at most {_MAX_NDIM} sizes", ndim)
        shape = tuple(self._number("<Q") for _ in range(ndim))[::-1]
        return GgufEntry(name, shape, self._number("<I"), self._number("<Q"))
