"""Flax's msgpack, written a piece at a time: what ``flax.serialization.msgpack_restore`` reads.

Keys nest where a name has ``/``. An array is an extension of type 1 that holds its shape, the name
of its dtype and its bytes; one of more than 2**30 bytes is cut into flat pieces, under a map that
says so.

Format: https://flax.readthedocs.io/en/latest/api_reference/flax.serialization.html, whose source
says what the pieces are called.
"""

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lazyinit import errors
from lazyinit.params import Source
from lazyinit.writing.commit import replacing_file
from lazyinit.writing.pieces import Flow, nbytes, pieces

_CHUNK = 2**30  # Bytes: Flax's own limit.
_ARRAY = 1  # Flax's type of extension.


def write_msgpack(path: Path, tensors: Mapping[str, Source]) -> None:
    """Writes tensors as one file, in place of the one that is there.

    Raises:
      SaveError: a name that stands for a tensor and for what is above another.
      WriteError: it cannot be written; the file that was there still is.
    """
    tree = _nested(tensors)
    with replacing_file(path) as stream:
        _write(stream, tree)


def _nested(tensors: Mapping[str, Source]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, source in tensors.items():
        *above, last = name.split("/")
        node = tree
        for key in above:
            node = node.setdefault(key, {}) if isinstance(node, dict) else node
        if not isinstance(node, dict) or last in node:
            raise errors.SaveError(
                f"{name}: wanted a name of its own, but another tensor's name begins with it, or "
                "it with another's: msgpack holds one or the other. Rename it in rules."
            )
        node[last] = source
    return tree


def _write(stream: BinaryIO, node: Any) -> None:
    if not isinstance(node, dict):
        _write_tensor(stream, node)
        return
    stream.write(_map(len(node)))
    for key, child in node.items():
        stream.write(_packed(key))
        _write(stream, child)


def _write_tensor(stream: BinaryIO, source: Source) -> None:
    flow, name = Flow(pieces(source)), str(source.dtype)
    if nbytes(source) <= _CHUNK:
        _write_array(stream, flow, tuple(source.shape), name, nbytes(source))
        return
    item = source.dtype.itemsize
    size, most = math.prod(source.shape), max(1, _CHUNK // item)
    starts = range(0, size, most)
    stream.write(_map(3))
    stream.write(_packed("__msgpack_chunked_array__") + _packed(True))
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
    stream.write(struct.pack(">BIb", 0xC9, len(head) + size, _ARRAY) + head)
    for part in flow.take(size):
        stream.write(part)


def _map(size: int) -> bytes:
    """Returns the head of a map of so many keys."""
    return bytes([0x80 | size]) if size < 16 else struct.pack(">BI", 0xDF, size)


def _packed(value: Any) -> bytes:
    """Returns a small value (text, a number, a tuple or a dict of these) as msgpack."""
    import msgpack

    packed = msgpack.packb(value)
    assert packed is not None  # As it is for all but a stream.
    return packed
