"""NumPy's ``.npz`` archives: members that are stored are mapped, compressed ones are streamed.

NumPy writes dtypes that are not its own as ``V`` and their size. Of these ``V2`` is read as
bfloat16, the only one of two bytes that JAX has; for one byte there are many, and none is guessed.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html. Its pickles are
never loaded.
"""

import io
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from lazyinit import errors
from lazyinit.checkpoint.deflated import DeflatedTensor, Stream
from lazyinit.checkpoint.headers import DTYPES, FETCH_AGAIN, check_shape, damaged
from lazyinit.checkpoint.mapped import File, MappedTensor
from lazyinit.checkpoint.protocol import Checkpoint
from lazyinit.checkpoint.zipped import Member
from lazyinit.params import Shape, Source
from lazyinit.sources.single import Transposed

_PREFIX = 10  # Bytes up to and with the length of a version 1 header; two more in version 2.
_HEADER_LIMIT = 10_000  # Bytes; NumPy's own limit.
_SUFFIX = ".npy"


def open_archive(path: str | os.PathLike[str], members: Mapping[str, Member]) -> Checkpoint:
    """Opens an archive: reads the headers of its members, no values.

    Args:
      path: of the archive.
      members: its table of contents.

    Raises:
      CheckpointError: the archive or a member is damaged, or a member is no array of numbers.
    """
    file = File.at(path)
    tensors: dict[str, Source] = {}
    for member in members.values():
        name = member.name.removesuffix(_SUFFIX)
        if name == member.name:
            raise errors.CheckpointError(
                f"{file.path}: wanted a zip archive of PyTorch ('.../data.pkl') or of NumPy "
                f"('.npy' members alone), got a member {member.name!r}. "
                "Pass its tensors as a mapping from name to array."
            )
        tensors[name] = _tensor(file, name, member)
    return Checkpoint(os.fspath(path), tensors)


def _tensor(file: File, name: str, member: Member) -> Source:
    with open(file.path, "rb") as opened:
        stream = Stream.over(opened, file.path, name, member)
        shape, is_fortran, dtype, start = _read_header(file.path, name, stream)
    nbytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if start + nbytes != member.size:
        wanted = f"{nbytes} bytes of values for {dtype}{list(shape)}"
        raise damaged(file.path, name, wanted, member.size - start)
    lying = shape[::-1] if is_fortran else shape
    source: Source
    if member.is_deflated:
        source = DeflatedTensor(file, name, lying, dtype, member, start)
    else:
        source = MappedTensor(file, name, lying, dtype, member.offset + start)
    return Transposed(source, tuple(reversed(range(len(shape))))) if is_fortran else source


def _read_header(path: str, name: str, stream: Stream) -> tuple[Shape, bool, np.dtype, int]:
    prefix = stream.read(_PREFIX)
    if not prefix.startswith(b"\x93NUMPY") or len(prefix) < _PREFIX:
        raise damaged(path, name, "a member that starts as NumPy's arrays do", prefix)
    version = prefix[6]
    if version not in (1, 2):
        raise damaged(path, name, "a header of version 1 or 2", version)
    prefix += stream.read(2) if version == 2 else b""
    length = int.from_bytes(prefix[8:], "little")
    if length > _HEADER_LIMIT:
        raise damaged(path, name, f"a header of at most {_HEADER_LIMIT} bytes", length)
    head = prefix + stream.read(length)
    parse: Any = np.lib.format.read_array_header_1_0  # NumPy's stubs leave it out.
    if version == 2:
        parse = np.lib.format.read_array_header_2_0
    try:
        shape, is_fortran, dtype = parse(io.BytesIO(head[8:]))
    except Exception as error:  # Whatever Python's parser makes of it, memory and recursion too.
        raise errors.CheckpointError(
            f"{path}: tensor {name!r}: wanted a header of NumPy's, got something else: "
            f"{error!s:.200}. {FETCH_AGAIN}"
        ) from error
    if dtype.hasobject:
        raise errors.CheckpointError(
            f"{path}: tensor {name!r}: wanted an array of numbers, got one of Python objects, "
            "which only a pickle could hold, and a pickle can run code. Save the file without it."
        )
    if dtype == np.dtype("V2"):
        dtype = DTYPES["bfloat16"]
    if dtype not in DTYPES.values():
        raise errors.CheckpointError(
            f"{path}: tensor {name!r}: wanted a dtype among {', '.join(DTYPES)}, little-endian, "
            f"got {dtype.str if dtype.names is None else dtype!r:.80}. Save it as one of these, "
            "or as safetensors."
        )
    return check_shape(path, name, list(shape), dtype), is_fortran, dtype, len(head)
