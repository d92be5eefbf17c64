"""NumPy's ``.npz`` archives: members that are stored are mapped, compressed ones are streamed.

Archives are written a piece at a time, without compression. NumPy writes a dtype that is not its
own as ``V`` and its size. ``V2`` is read as bfloat16, the only such dtype of two bytes in JAX. As
there are many of one byte, ``V1`` is neither read nor written.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html. Arrays that are
pickled in it are never loaded.
"""

import io
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lazyinit import errors
from lazyinit.formats.commit import replacing_file
from lazyinit.formats.deflated import DeflatedTensor, Stream
from lazyinit.formats.zipped import Member
from lazyinit.sources import Shape, Source, describe
from lazyinit.tensors.base import Checkpoint
from lazyinit.tensors.headers import DTYPES, FETCH_AGAIN, check_shape, damaged
from lazyinit.tensors.mapped import File, MappedTensor
from lazyinit.tensors.pieces import Read, as_bytes, nbytes, pieces
from lazyinit.tensors.refused import RefusedTensor
from lazyinit.tensors.views import transposed

_PREFIX = 10  # Bytes up to and with the length of a version 1 header; two more in version 2.
_HEADER_LIMIT = 10_000  # Bytes; NumPy's own limit.
_SUFFIX = ".npy"
_LARGE = 2**31 - 2**20  # Bytes; from here on a member needs 64-bit sizes.


def open_archive(path: str | os.PathLike[str], members: Mapping[str, Member]) -> Checkpoint:
    """Opens an archive: reads the headers of its members, no values.

    Args:
      path: the path of the archive.
      members: its table of contents.

    Raises:
      CheckpointError: the archive or a member is damaged. A member that is no array of numbers
        is refused when it is read.
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


def open_array(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a file of ``numpy.save``; its one array has the file's name, without its ending.

    Raises:
      CheckpointError: the file is damaged, or other bytes come after the array.
    """
    file, name = File.at(path), Path(path).stem
    found = arrays_in_order(file, [name])
    if found[name][1] < file.size:
        raise errors.CheckpointError(
            f"{file.path}: wanted one array, got {file.size - found[name][1]} bytes after it. If "
            "Equinox wrote the file, say which tree it is of: open_checkpoint(path, like=tree)."
        )
    return Checkpoint(os.fspath(path), {name: found[name][0]})


def arrays_in_order(file: File, names: Sequence[str]) -> dict[str, tuple[Source, int]]:
    """Returns arrays that ``numpy.save`` wrote one after the other, each with the byte after it.

    Args:
      file: a file that starts with the first array.
      names: names for the arrays, in order; fewer are returned if the file ends before.

    Raises:
      CheckpointError: the file is damaged, or ends within an array.
    """
    found: dict[str, tuple[Source, int]] = {}
    start = 0
    for name in names:
        if start >= file.size and found:
            break
        left = file.size - start
        member = Member(name, start, left, left, is_deflated=False, crc=None)
        with open(file.path, "rb") as opened:
            header = _read_header(file.path, name, Stream(opened, file.path, name, member))
        shape, _, dtype, begin = header
        size = begin + int(np.prod(shape, dtype=object)) * dtype.itemsize
        if size <= left:
            member = Member(name, start, size, size, is_deflated=False, crc=None)
        start += member.size
        found[name] = (_tensor(file, name, member), start)
    return found


def _tensor(file: File, name: str, member: Member) -> Source:
    with open(file.path, "rb") as opened:
        stream = Stream(opened, file.path, name, member)
        shape, is_fortran, dtype, start = _read_header(file.path, name, stream)
    if problem := _problem(dtype):
        return RefusedTensor(file, name, problem, shape, dtype)
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
    return transposed(source, tuple(reversed(range(len(shape))))) if is_fortran else source


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
    if dtype == np.dtype("V2"):
        dtype = DTYPES["bfloat16"]
    return check_shape(path, name, list(shape), dtype), is_fortran, dtype, len(head)


def _problem(dtype: np.dtype) -> str:
    """Returns why values of a dtype cannot be read; ``""`` if they can."""
    if dtype.hasobject:
        return (
            "wanted an array of numbers, got one of Python objects, which lie in the file as a "
            "pickle, and a pickle can run code. Save the file without this array."
        )
    if dtype not in DTYPES.values():
        return (
            f"wanted a dtype among {', '.join(DTYPES)}, little-endian, got "
            f"{dtype.str if dtype.names is None else dtype!r:.80}. Save it as one of these, "
            "or as safetensors."
        )
    return ""


def write_npz(path: Path, tensors: Mapping[str, Source], read: Read = pieces) -> None:
    """Writes tensors as one archive, in place of the file that is there.

    Args:
      path: the path of the file.
      tensors: the tensors by name.
      read: yields the values of a source, in order.

    Raises:
      SaveError: a tensor has a name or a dtype that could not be read back.
      WriteError: the file cannot be written; the one that was there is still there.
    """
    if problems := list(_problems(tensors)):
        raise errors.SaveError(errors.listing(problems))
    with (
        replacing_file(path) as stream,
        zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive,
    ):
        for name, source in tensors.items():
            member = zipfile.ZipInfo(f"{name}.npy")  # Dated 1980, for equal bytes each time.
            with archive.open(member, "w", force_zip64=nbytes(source) > _LARGE) as entry:
                entry.write(_array_header(source))
                for piece in read(source):
                    entry.write(as_bytes(piece))


def _problems(tensors: Mapping[str, Source]) -> Iterator[str]:
    for name, source in tensors.items():
        dtype = np.dtype(source.dtype)
        if _is_foreign(dtype) and dtype != ml_dtypes.bfloat16:
            yield (
                f"{name}: wanted a dtype that .npz can hold, got "
                f"{describe(source.shape, source.dtype)}. Cast it (--dtype), or write safetensors."
            )
        if name.startswith("/") or ".." in name.split("/") or "\\" in name or "\0" in name:
            yield (
                f"{name!r}: wanted a name that is a plain path in an archive. Rename it in rules, "
                "or write safetensors."
            )


def _is_foreign(dtype: np.dtype) -> bool:
    return dtype.isbuiltin == 2  # NumPy's number for dtypes that others registered.


def _array_header(source: Source) -> bytes:
    header = io.BytesIO()
    dtype = np.dtype(source.dtype)
    descr = "|V2" if _is_foreign(dtype) else np.lib.format.dtype_to_descr(dtype)
    facts = {"descr": descr, "fortran_order": False, "shape": tuple(source.shape)}
    np.lib.format.write_array_header_1_0(header, facts)
    return header.getvalue()
