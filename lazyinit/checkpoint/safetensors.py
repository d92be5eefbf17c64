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

import json
import math
import os
import struct
from collections import Counter
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from lazyinit import errors
from lazyinit.checkpoint.mapped import File, MappedTensor
from lazyinit.checkpoint.protocol import Checkpoint

HEADER_LIMIT = 100_000_000  # Bytes; the format's own limit.
_MAX_NDIM = 64  # NumPy's.
_MAX_BYTES = 2**63 - 1
FETCH_AGAIN = "It is damaged or incomplete: fetch it again."

_DTYPES: Mapping[str, np.dtype] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "BOOL": np.bool_,
        "U8": np.uint8,
        "I8": np.int8,
        "U16": np.uint16,
        "I16": np.int16,
        "U32": np.uint32,
        "I32": np.int32,
        "U64": np.uint64,
        "I64": np.int64,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
        "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F32": np.float32,
        "F64": np.float64,
        "C64": np.complex64,
    }.items()
}


def open_file(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens one safetensors file: reads and validates its header, no values.

    Raises:
      CheckpointError: anything that the format forbids; the file comes first, then the tensor.
    """
    file = File.at(path)
    header, start = _read_header(file)
    tensors = {name: _tensor(file, start, name, entry) for name, entry in header.items()}
    _check_layout(file, start, tensors)
    return Checkpoint(os.fspath(path), tensors)


def _read_header(file: File) -> tuple[dict[str, Any], int]:
    with open(file.path, "rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise errors.CheckpointError(
                f"{file.path}: wanted a safetensors file, which starts with 8 bytes, got "
                f"{len(prefix)}. {FETCH_AGAIN}"
            )
        (length,) = struct.unpack("<Q", prefix)
        if length > HEADER_LIMIT:
            raise errors.CheckpointError(
                f"{file.path}: wanted a safetensors header of at most {HEADER_LIMIT} bytes, got a "
                f"length of {length}. It is damaged or of another format."
            )
        if 8 + length > file.size:
            raise errors.CheckpointError(
                f"{file.path}: wanted a header of {length} bytes, but the file ends after "
                f"{file.size} bytes. {FETCH_AGAIN}"
            )
        text = stream.read(length)
    if not text.startswith(b"{"):
        raise errors.CheckpointError(
            f"{file.path}: wanted a header that is a JSON object, got one that starts with "
            f"{text[:8]!r}. It is damaged or of another format."
        )
    header = parse_object(file.path, text)
    metadata = header.pop("__metadata__", None)
    if not (metadata is None or is_text_map(metadata)):
        raise errors.CheckpointError(
            f"{file.path}: wanted '__metadata__' to map strings to strings, got {metadata!r:.80}. "
            "Write the file again with the official library."
        )
    return header, 8 + length


def parse_object(path: str, text: bytes) -> dict[str, Any]:
    """Parses a JSON object, and refuses a name that stands twice in it.

    Raises:
      CheckpointError: anything else; the message starts with ``path``.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) < len(pairs):
            ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
            raise errors.CheckpointError(f"{path}: the name {twice!r} stands twice. {FETCH_AGAIN}")
        return members

    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except errors.CheckpointError:
        raise
    # ValueError: also wrong UTF-8 and numbers of thousands of digits.
    except (ValueError, RecursionError) as error:
        raise errors.CheckpointError(
            f"{path}: wanted JSON in UTF-8, got something else: {error!s:.200}. {FETCH_AGAIN}"
        ) from error
    if not isinstance(parsed, dict):
        raise errors.CheckpointError(
            f"{path}: wanted a JSON object, got {type(parsed).__name__}. {FETCH_AGAIN}"
        )
    return parsed


def is_text_map(value: object) -> bool:
    """Tells whether a JSON value is an object with nothing but strings in it."""
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _tensor(
    file: File, start: int, name: str, entry: Any
) -> MappedTensor:  # Any: whatever JSON holds there; this is what checks it.
    def broken(wanted: str, got: object) -> errors.CheckpointError:
        return errors.CheckpointError(
            f"{file.path}: tensor {name!r}: wanted {wanted}, got {got!r:.80}. {FETCH_AGAIN}"
        )

    if not name.isascii() and name.encode("utf-8", "replace").decode() != name:
        raise broken("a name that is UTF-8 text", name)
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise broken("an object with dtype, shape and data_offsets", entry)
    shape, offsets = entry["shape"], entry["data_offsets"]
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise broken(f"a dtype among {', '.join(_DTYPES)}", entry["dtype"])
    if not _are_counts(shape) or len(shape) > _MAX_NDIM:
        raise broken(f"a shape of at most {_MAX_NDIM} non-negative integers", shape)
    if not _are_counts(offsets) or len(offsets) != 2:
        raise broken("data_offsets that are two non-negative integers", offsets)
    # NumPy multiplies the dimensions that are not zero even where there is nothing to hold.
    if math.prod(dim for dim in shape if dim) * dtype.itemsize > _MAX_BYTES:
        raise broken("a shape whose bytes can be counted in 63 bits", shape)
    begin, end = offsets
    nbytes = math.prod(shape) * dtype.itemsize
    if end - begin != nbytes:
        raise broken(f"data_offsets that span {nbytes} bytes for {dtype}{shape}", offsets)
    if start + end > file.size:
        raise errors.CheckpointError(
            f"{file.path}: tensor {name!r}: its values end {start + end - file.size} bytes past "
            f"the end of the file. {FETCH_AGAIN}"
        )
    return MappedTensor(file, name, tuple(shape), dtype, start + begin)


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(count) is int and count >= 0 for count in value)


def _check_layout(file: File, start: int, tensors: Mapping[str, MappedTensor]) -> None:
    end, before = start, "the header"
    for tensor in sorted(tensors.values(), key=lambda t: (t.offset, t.nbytes)):
        if tensor.offset != end:
            wrong = "overlaps" if tensor.offset < end else "leaves a hole after"
            raise errors.CheckpointError(
                f"{file.path}: tensor {tensor.name!r}: wanted its values at byte {end - start}, "
                f"got {tensor.offset - start}, which {wrong} {before}. {FETCH_AGAIN}"
            )
        end, before = tensor.offset + tensor.nbytes, repr(tensor.name)
    if end != file.size:
        raise errors.CheckpointError(
            f"{file.path}: {file.size - end} bytes after {before} belong to no tensor, "
            f"which the format forbids. {FETCH_AGAIN}"
        )
