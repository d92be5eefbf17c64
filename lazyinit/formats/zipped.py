"""Zip archives: where each member's bytes lie. Both NumPy's ``.npz`` and PyTorch's files are zips.

Python's ``zipfile`` reads the table of contents, up to a limit of bytes. What that says of a member
is then compared with the member's own header, which other readers go by.

Format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, sections 4.3.7 and 4.3.12.
"""

import io
import os
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

from lazyinit import errors
from lazyinit.tensors.headers import FETCH_AGAIN
from lazyinit.tensors.mapped import File

_DIRECTORY_LIMIT = 2**25  # Bytes of a table of contents: some 300,000 members.
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_DEFLATE_RATIO = 1032  # No stream of deflate expands further: https://zlib.net/zlib_tech.html.
_ENCRYPTED = 1


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an archive.

    Attributes:
      name: its name in the archive.
      offset: where its first byte, compressed or not, is from the start of the file.
      stored: how many bytes it takes in the file.
      size: how many bytes it has once decompressed.
      is_deflated: whether it is compressed by ``deflate``, the only method that is read.
      crc: the CRC-32 of its decompressed bytes; ``None`` if it is not known.
    """

    name: str
    offset: int
    stored: int
    size: int
    is_deflated: bool
    crc: int | None


class _Bounded(io.FileIO):
    """A file that refuses to read more than a limit at once, as ``zipfile`` believes any length.

    It seems to end at a given byte; ``zipfile`` looks for the table of contents before that.
    """

    def __init__(self, path: str, end: int) -> None:
        super().__init__(path)
        self._end = end

    def seek(self, offset: int, whence: int = 0, /) -> int:
        if whence == os.SEEK_END:
            offset, whence = max(0, self._end + offset), os.SEEK_SET
        return super().seek(offset, whence)

    def read(self, size: int | None = -1, /) -> bytes:
        left = self._end - self.tell()  # A read allocates what it asks for.
        wanted = left if size is None or size < 0 else size
        data = super().read(max(0, min(wanted, left, _DIRECTORY_LIMIT + 1)))
        if data is None or len(data) > _DIRECTORY_LIMIT:
            raise zipfile.BadZipFile(f"more than {_DIRECTORY_LIMIT} bytes of contents")
        return data


def read_directory(file: File, end: int | None = None) -> Mapping[str, Member]:
    """Returns the members of an archive by name, in its order; reads none of them.

    Args:
      file: the file that the archive lies in; other bytes may come before the archive.
      end: the byte after the archive, from the start of the file; by default the file's end.

    Raises:
      CheckpointError: two members share a name or bytes, one ends past the end of the file, is
        encrypted or compressed in another way than ``deflate``, or the table is damaged.
    """
    with _Bounded(file.path, file.size if end is None else end) as stream:
        try:
            with zipfile.ZipFile(stream) as archive:  # pyright: ignore[reportArgumentType]  # FileIO
                infos, table = archive.infolist(), archive.start_dir
        # zipfile raises any of these for a damaged archive.
        except (
            zipfile.BadZipFile,
            NotImplementedError,  # What zipfile says of a method or a version it does not know.
            ValueError,
            EOFError,
            struct.error,
        ) as error:
            raise errors.CheckpointError(
                f"{file.path}: wanted a zip archive, got a damaged one: {error!s:.200}. "
                f"{FETCH_AGAIN}"
            ) from error
        members: dict[str, Member] = {}
        for info in infos:
            if not info.filename:
                raise errors.CheckpointError(
                    f"{file.path}: wanted members with names, got one without. {FETCH_AGAIN}"
                )
            if info.filename in members:
                raise errors.CheckpointError(
                    f"{file.path}: the name {info.filename!r} stands twice. {FETCH_AGAIN}"
                )
            if not info.is_dir():
                members[info.filename] = _member(file, stream, info)
    _check_layout(file, members, table)
    return members


def _member(file: File, stream: io.FileIO, info: zipfile.ZipInfo) -> Member:
    def broken(problem: str) -> errors.CheckpointError:
        return errors.CheckpointError(f"{file.path}: member {info.filename!r}: {problem}")

    if info.flag_bits & _ENCRYPTED:
        raise broken("it is encrypted. Decrypt the archive first.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise broken(
            f"wanted compression method 0 (stored) or 8 (deflated), got {info.compress_type}. "
            "Save it again with numpy.savez or numpy.savez_compressed."
        )
    is_deflated = info.compress_type == zipfile.ZIP_DEFLATED
    ratio = _DEFLATE_RATIO if is_deflated else 1
    if info.file_size > info.compress_size * ratio or (
        not is_deflated and info.file_size != info.compress_size
    ):
        raise broken(
            f"its {info.compress_size} bytes cannot become the {info.file_size} bytes that it "
            f"promises. {FETCH_AGAIN}"
        )
    head = b""
    if 0 <= info.header_offset < file.size:
        stream.seek(info.header_offset)
        head = stream.read(_LOCAL_HEADER.size)
    if len(head) < _LOCAL_HEADER.size or not head.startswith(b"PK\x03\x04"):
        raise broken(f"wanted its header at byte {info.header_offset}, got none. {FETCH_AGAIN}")
    _, name_length, extra_length = _LOCAL_HEADER.unpack_from(head)
    local = stream.read(name_length)
    if local not in _encodings(info):
        raise broken(f"its own header calls it {local!r:.80}. {FETCH_AGAIN}")
    offset = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    return Member(info.filename, offset, info.compress_size, info.file_size, is_deflated, info.CRC)


def _encodings(info: zipfile.ZipInfo) -> tuple[bytes, ...]:
    name = info.orig_filename
    return (name.encode("utf-8"), name.encode("cp437", "replace"))


def _check_layout(file: File, members: Mapping[str, Member], end: int) -> None:
    before, stop = "the start of the file", 0
    for member in sorted(members.values(), key=lambda m: (m.offset, m.stored)):
        if member.offset < stop:
            raise errors.CheckpointError(
                f"{file.path}: member {member.name!r}: its bytes overlap {before}. {FETCH_AGAIN}"
            )
        before, stop = repr(member.name), member.offset + member.stored
    if stop > end:
        raise errors.CheckpointError(
            f"{file.path}: member {before}: it ends {stop - end} bytes past the last place for "
            f"members. {FETCH_AGAIN}"
        )
