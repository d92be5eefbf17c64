"""Plans safetensors files: which tensor goes into which file, and the bytes of each header.

``safetensors`` describes the format, and reads it. In each file the widest dtypes come first, as
the official library puts them, so that each tensor is aligned for its dtype. No value is read here:
``folder`` writes them after the header, piece by piece.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lazyinit import errors
from lazyinit.formats.safetensors import METADATA, TYPES, stored_size
from lazyinit.sources import Source, describe
from lazyinit.tensors.headers import HEADER_LIMIT, is_text
from lazyinit.tensors.packed import FLOAT4, Packed
from lazyinit.tensors.pieces import nbytes

_ALIGNMENT = 64  # Bytes. Values start at a multiple of this, so that memory maps are aligned.
_NAMES: Mapping[np.dtype, str] = {dtype: name for name, dtype in TYPES.items()}


@dataclass(frozen=True, slots=True)
class FilePlan:
    """One safetensors file to be written.

    Attributes:
      tensors: name and source, in the order in which their values lie.
      header: the first bytes of the file, up to the first value.
      metadata: the header's text that is about no tensor.
    """

    tensors: tuple[tuple[str, Source], ...]
    header: bytes
    metadata: Mapping[str, str]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(nbytes(source) for _, source in self.tensors)


def problems(tensors: Mapping[str, Source]) -> Iterator[str]:
    """Yields a message for each tensor that a safetensors file cannot hold."""
    for name, source in tensors.items():
        if not isinstance(name, str) or name == METADATA or not is_text(name):
            yield (
                f"{name!r}: wanted a name that is UTF-8 text and not {METADATA!r}. Rename the "
                "tensor in rules."
            )
        elif np.dtype(source.dtype) not in _NAMES:
            yield (
                f"{name}: wanted a dtype that safetensors has ({', '.join(TYPES)}), got "
                f"{describe(source.shape, source.dtype)}. Cast it, or leave it out of the tree."
            )
        elif source.dtype == FLOAT4 and math.prod(source.shape) % 2:
            yield (
                f"{name}: wanted an even number of F4, of which a byte holds two, got "
                f"{describe(source.shape, source.dtype)}. Cast it."
            )


def plan_files(
    tensors: Mapping[str, Source], metadata: Mapping[str, str], limit: int
) -> list[FilePlan]:
    """Distributes tensors, in order, over files of at most ``limit`` bytes of values each.

    A larger tensor gets a file of its own.

    Raises:
      SaveError: a file's header would be larger than the format allows.
    """
    groups: list[list[tuple[str, Source]]] = [[]]
    room = limit
    for name, source in tensors.items():
        size = stored_size(source.shape, source.dtype)
        if size > room and groups[-1]:
            groups.append([])
            room = limit
        groups[-1].append((name, source))
        room -= size
    return [_plan(group, metadata) for group in groups]


def _plan(group: Sequence[tuple[str, Source]], metadata: Mapping[str, str]) -> FilePlan:
    ordered = tuple(sorted(group, key=lambda named: -named[1].dtype.itemsize))
    header: dict[str, object] = {METADATA: dict(metadata)} if metadata else {}
    offset = 0
    for name, source in ordered:
        end = offset + stored_size(source.shape, source.dtype)
        header[name] = {
            "dtype": _NAMES[np.dtype(source.dtype)],
            "shape": list(source.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    if len(text) > HEADER_LIMIT:
        raise errors.SaveError(
            f"safetensors: wanted a header of at most {HEADER_LIMIT} bytes, got {len(text)} for "
            f"{len(group)} tensors. Write more files, with a smaller max_shard_size."
        )
    lying = tuple((name, Packed(x) if x.dtype == FLOAT4 else x) for name, x in ordered)
    return FilePlan(lying, struct.pack("<Q", len(text)) + text, metadata)


def index_json(files: Sequence[tuple[str, FilePlan]]) -> bytes:
    """Returns the index that Hugging Face's libraries read: which file holds which tensor."""
    weight_map = {name: file for file, plan in files for name, _ in plan.tensors}
    total = sum(nbytes(source) for _, plan in files for _, source in plan.tensors)
    metadata = {"total_size": total, **files[0][1].metadata}
    index = {"metadata": metadata, "weight_map": weight_map}
    return json.dumps(index, indent=2, ensure_ascii=False).encode() + b"\n"
