"""Safetensors: one file, or the shards that an index names, read through memory maps.

The official library is not used for reading: its numpy side has no bfloat16 and no float8
(``safe_open(..., framework="numpy")`` fails on both), and its slices are copies. Here a slice
is a view of the map, so ``jax.make_array_from_callback(shape, sharding, source.read)`` is the
whole loader: each device gets its bytes straight from the page cache.

Format: https://github.com/huggingface/safetensors#format. Eight bytes, little-endian, the
length of the header; the header, a JSON object from name to dtype, shape and offsets; then the
values. The values must lie without overlap and without holes, up to the end of the file ("the
byte buffer needs to be entirely indexed, and cannot contain holes"): the official reader
refuses anything else, and so does this one.

A file must not be cut short while a map of it is read: touching a page that is gone ends the
process with SIGBUS, which Python cannot catch. Each read compares the file's size and time
with those at opening; what happens between that look and the copy is beyond reach.
"""

import functools
import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import ml_dtypes
import numpy as np

from lazyinit import errors
from lazyinit.checkpoint.protocol import Checkpoint
from lazyinit.params import Index, Shape

_HEADER_LIMIT = 100_000_000  # Bytes; the format's own limit.
_MAPS = 256  # Maps kept open at once; each holds one file descriptor.
_MAX_NDIM = 64  # NumPy's.
_MAX_BYTES = 2**63 - 1
_FETCH_AGAIN = "It is damaged or incomplete: fetch it again."

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


@dataclass(frozen=True, slots=True)
class File:
    """A file as it was when it was opened, so that a later change is noticed.

    Attributes:
      path: absolute.
      size: bytes.
      mtime_ns: when it was last written, nanoseconds.
    """

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> "File":
        """Returns the file at ``path`` as it is now."""
        status = os.stat(path)
        return cls(os.path.abspath(path), status.st_size, status.st_mtime_ns)

    def check(self) -> None:
        """Raises a ``CheckpointError`` if the file is no longer the one that was opened."""
        try:
            now = File.at(self.path)
        except OSError as error:
            raise errors.CheckpointError(
                f"{self.path}: the file was opened but can no longer be read: "
                f"{error.strerror}. Open the checkpoint again."
            ) from error
        if now != self:
            raise errors.CheckpointError(
                f"{self.path}: the file has changed since it was opened ({self.size} bytes then, "
                f"{now.size} now). Open the checkpoint again."
            )


@functools.lru_cache(maxsize=_MAPS)
def _mapped(file: File) -> np.ndarray:
    # A view that outlives its place in the cache keeps its map alive by itself.
    return np.memmap(file.path, dtype=np.uint8, mode="r")


@dataclass(frozen=True, slots=True, repr=False)
class StoredTensor:
    """A ``Source``: a tensor in a safetensors file; reading gives a view of the file's map.

    Attributes:
      file: the file that it lies in.
      name: what the file calls it.
      shape: as stored.
      dtype: as stored.
      offset: where its first byte is, from the start of the file.
    """

    file: File
    name: str
    shape: Shape
    dtype: np.dtype
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def names(self) -> tuple[str, ...]:
        """The tensor's name, alone."""
        return (self.name,)

    @property
    def origin(self) -> str:
        """The path of the file."""
        return self.file.path

    def read(self, index: Index) -> np.ndarray:
        """Returns a read-only view of the values at ``index``.

        Raises:
          CheckpointError: the file has changed since it was opened.
        """
        self.file.check()
        whole = np.ndarray(self.shape, self.dtype, buffer=_mapped(self.file), offset=self.offset)
        return whole[(*index, ...)]

    def __repr__(self) -> str:
        return f"{os.path.basename(self.file.path)}:{self.name}"


def open_file(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens one safetensors file: reads and validates its header, no values.

    Raises:
      CheckpointError: anything that the format forbids; the file comes first, then the tensor.
    """
    file = File.at(path)
    header, start = _read_header(path, file)
    tensors = {name: _tensor(path, file, start, name, entry) for name, entry in header.items()}
    _check_layout(path, file, start, tensors)
    return Checkpoint(os.fspath(path), tensors)


def _read_header(path: str | os.PathLike[str], file: File) -> tuple[dict[str, Any], int]:
    with open(path, "rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise errors.CheckpointError(
                f"{path}: wanted a safetensors file, which starts with 8 bytes, got {len(prefix)}. "
                f"{_FETCH_AGAIN}"
            )
        (length,) = struct.unpack("<Q", prefix)
        if length > _HEADER_LIMIT:
            raise errors.CheckpointError(
                f"{path}: wanted a safetensors header of at most {_HEADER_LIMIT} bytes, got a length "
                f"of {length}. It is damaged or of another format."
            )
        if 8 + length > file.size:
            raise errors.CheckpointError(
                f"{path}: wanted a header of {length} bytes, but the file ends after {file.size} "
                f"bytes. {_FETCH_AGAIN}"
            )
        text = stream.read(length)
    if not text.startswith(b"{"):
        raise errors.CheckpointError(
            f"{path}: wanted a header that is a JSON object, got one that starts with {text[:8]!r}. "
            "It is damaged or of another format."
        )
    header = _parse_json(path, text)
    metadata = header.pop("__metadata__", None)
    if not (metadata is None or _is_text_map(metadata)):
        raise errors.CheckpointError(
            f"{path}: wanted '__metadata__' to map strings to strings, got {metadata!r:.80}. "
            "Write the file again with the official library."
        )
    return header, 8 + length


def _parse_json(path: str | os.PathLike[str], text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in members if names.count(name) > 1)
            raise errors.CheckpointError(
                f"{path}: the name {twice!r} stands twice in the header. {_FETCH_AGAIN}"
            )
        return members

    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except errors.CheckpointError:
        raise
    # ValueError: also wrong UTF-8 and numbers of thousands of digits.
    except (ValueError, RecursionError) as error:
        raise errors.CheckpointError(
            f"{path}: wanted JSON in UTF-8, got something else: {error!s:.200}. {_FETCH_AGAIN}"
        ) from error
    if not isinstance(parsed, dict):
        raise errors.CheckpointError(
            f"{path}: wanted a JSON object, got {type(parsed).__name__}. {_FETCH_AGAIN}"
        )
    return parsed


def _is_text_map(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _tensor(
    path: str | os.PathLike[str], file: File, start: int, name: str, entry: Any
) -> StoredTensor:  # Any: whatever JSON holds there; this is what checks it.
    def broken(wanted: str, got: object) -> errors.CheckpointError:
        return errors.CheckpointError(
            f"{path}: tensor {name!r}: wanted {wanted}, got {got!r:.80}. {_FETCH_AGAIN}"
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
            f"{path}: tensor {name!r}: its values end {start + end - file.size} bytes past the end "
            f"of the file. {_FETCH_AGAIN}"
        )
    return StoredTensor(file, name, tuple(shape), dtype, start + begin)


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(count) is int and count >= 0 for count in value)


def _check_layout(
    path: str | os.PathLike[str], file: File, start: int, tensors: Mapping[str, StoredTensor]
) -> None:
    end, before = start, "the header"
    for tensor in sorted(tensors.values(), key=lambda t: (t.offset, t.nbytes)):
        if tensor.offset != end:
            wrong = "overlaps" if tensor.offset < end else "leaves a hole after"
            raise errors.CheckpointError(
                f"{path}: tensor {tensor.name!r}: wanted its values at byte {end - start}, got "
                f"{tensor.offset - start}, which {wrong} {before}. {_FETCH_AGAIN}"
            )
        end, before = tensor.offset + tensor.nbytes, repr(tensor.name)
    if end != file.size:
        raise errors.CheckpointError(
            f"{path}: {file.size - end} bytes after {before} belong to no tensor, which the format "
            f"forbids. {_FETCH_AGAIN}"
        )


def open_index(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens the shards that a Hugging Face index (``*.safetensors.index.json``) names.

    A shard may be a symbolic link, also to outside the folder: Hugging Face's cache is made of
    them. What the index itself says is not trusted: a name that climbs out is refused.

    Raises:
      CheckpointError: the index or a shard is broken, unsafe or missing; the file comes first.
    """
    folder = Path(path).parent
    weight_map = _read_weight_map(path)
    for shard in dict.fromkeys(weight_map.values()):
        _check_shard(path, folder, shard)
    shards = {shard: open_file(folder / shard) for shard in dict.fromkeys(weight_map.values())}
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            raise errors.CheckpointError(
                f"{path}: tensor {name!r}: wanted it in {shard!r}, which does not hold it"
                f"{errors.nearest(name, shards[shard])}. {_FETCH_AGAIN}"
            )
    origin = str(folder) if Path(path).name == "model.safetensors.index.json" else os.fspath(path)
    return Checkpoint(origin, {name: shards[shard][name] for name, shard in weight_map.items()})


def _read_weight_map(path: str | os.PathLike[str]) -> dict[str, str]:
    with open(path, "rb") as stream:
        text = stream.read(_HEADER_LIMIT + 1)
    if len(text) > _HEADER_LIMIT:
        raise errors.CheckpointError(
            f"{path}: wanted an index of at most {_HEADER_LIMIT} bytes, got a larger file. "
            f"{_FETCH_AGAIN}"
        )
    weight_map = _parse_json(path, text).get("weight_map")
    if weight_map is None or not _is_text_map(weight_map):
        raise errors.CheckpointError(
            f"{path}: wanted 'weight_map' to map tensor names to file names, got "
            f"{weight_map!r:.80}. {_FETCH_AGAIN}"
        )
    return weight_map


def _check_shard(path: str | os.PathLike[str], folder: Path, shard: str) -> None:
    parts = PurePosixPath(shard).parts
    if not parts or ".." in parts or parts[0] == "/" or any(c in shard for c in "\\:\0"):
        raise errors.CheckpointError(
            f"{path}: wanted shards inside the folder of the index, got {shard!r}, which is unsafe "
            "to follow. Put the shard beside the index and name it plainly."
        )
    if not (folder / shard).is_file():
        siblings = [file.name for file in folder.iterdir() if file.name.endswith(".safetensors")]
        raise errors.CheckpointError(
            f"{path}: the shard {shard!r} is missing from the folder"
            f"{errors.nearest(shard, siblings)}. Fetch it, or fetch the checkpoint again."
        )
