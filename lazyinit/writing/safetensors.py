"""The safetensors layout, written: which bytes stand where, before any of them is read.

Format: https://github.com/huggingface/safetensors#format. Values lie without holes, the widest
dtypes first (as the official library writes them), so that each tensor is aligned for its dtype.
"""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lazyinit import errors
from lazyinit.checkpoint.headers import HEADER_LIMIT
from lazyinit.checkpoint.safetensors import TYPES
from lazyinit.params import Source, describe
from lazyinit.writing.pieces import nbytes

_ALIGNMENT = 64  # Bytes: where the first value starts, so that maps can be used as they are.
_METADATA = "__metadata__"


@dataclass(frozen=True, slots=True)
class FilePlan:
    """One safetensors file to be written.

    Attributes:
      tensors: name and source, in the order in which their values lie.
      header: the first bytes of the file, up to the first value.
      metadata: what the header says beside the tensors.
    """

    tensors: tuple[tuple[str, Source], ...]
    header: bytes
    metadata: Mapping[str, str]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(nbytes(source) for _, source in self.tensors)


def problems(tensors: Mapping[str, Source]) -> Iterator[str]:
    """Yields what of the tensors a safetensors file cannot hold."""
    for name, source in tensors.items():
        if not isinstance(name, str) or name == _METADATA or not _is_utf8(name):
            yield (
                f"{name!r}: wanted a name that is UTF-8 text and not {_METADATA!r}. Rename the "
                "tensor in rules."
            )
        elif np.dtype(source.dtype) not in _NAMES:
            yield (
                f"{name}: wanted a dtype that safetensors has ({', '.join(TYPES)}), got "
                f"{describe(source.shape, source.dtype)}. Cast it, or leave it out of the tree."
            )


def plan_files(
    tensors: Mapping[str, Source], metadata: Mapping[str, str], limit: int
) -> list[FilePlan]:
    """Parts tensors among files of at most ``limit`` bytes of values, in order.

    A tensor that is larger has a file of its own.

    Raises:
      SaveError: a file's header would be larger than the format allows.
    """
    groups: list[list[tuple[str, Source]]] = [[]]
    room = limit
    for name, source in tensors.items():
        size = nbytes(source)
        if size > room and groups[-1]:
            groups.append([])
            room = limit
        groups[-1].append((name, source))
        room -= size
    return [_plan(group, metadata) for group in groups]


def _plan(group: Sequence[tuple[str, Source]], metadata: Mapping[str, str]) -> FilePlan:
    ordered = tuple(sorted(group, key=lambda named: -named[1].dtype.itemsize))
    header: dict[str, object] = {_METADATA: dict(metadata)} if metadata else {}
    offset = 0
    for name, source in ordered:
        end = offset + nbytes(source)
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
            f"{len(group)} tensors. Write more files: a smaller max_shard_size."
        )
    return FilePlan(ordered, struct.pack("<Q", len(text)) + text, metadata)


def index_json(files: Sequence[tuple[str, FilePlan]]) -> bytes:
    """Returns the index that Hugging Face's libraries read: which file holds which tensor."""
    weight_map = {name: file for file, plan in files for name, _ in plan.tensors}
    total = sum(nbytes(source) for _, plan in files for _, source in plan.tensors)
    metadata = {"total_size": total, **files[0][1].metadata}
    index = {"metadata": metadata, "weight_map": weight_map}
    return json.dumps(index, indent=2, ensure_ascii=False).encode() + b"\n"


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


_NAMES: Mapping[np.dtype, str] = {dtype: name for name, dtype in TYPES.items()}
