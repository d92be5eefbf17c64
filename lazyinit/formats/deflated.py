"""Tensors that are compressed in zip archives; they are decompressed in blocks as they are read.

Reading a slice decompresses all bytes before its end, but takes memory for the slice alone.
"""

import contextlib
import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from lazyinit import errors
from lazyinit.formats.zipped import Member
from lazyinit.sources import Index, Shape
from lazyinit.tensors.base import Tensor
from lazyinit.tensors.headers import FETCH_AGAIN
from lazyinit.tensors.mapped import File
from lazyinit.tensors.spans import put, sizes, spans

_BLOCK = 2**20  # Bytes held at a time, compressed or not.


class Stream:
    """The bytes of a member, from first to last; ``zipfile`` decompresses and checks them."""

    def __init__(self, opened: BinaryIO, path: str, tensor: str, member: Member) -> None:
        """Starts at the first byte; works for as long as the archive stays open."""
        info = zipfile.ZipInfo(member.name)
        info.compress_type = zipfile.ZIP_DEFLATED if member.is_deflated else zipfile.ZIP_STORED
        info.compress_size, info.file_size = member.stored, member.size
        if member.crc is not None:  # Else zipfile checks none.
            info.CRC = member.crc
        opened.seek(member.offset)
        self._unzipped, self._where = (
            zipfile.ZipExtFile(opened, "r", info),
            f"{path}: tensor {tensor!r}",
        )

    def read(self, size: int) -> bytes:
        """Returns the next bytes, fewer only where the member ends.

        Raises:
          CheckpointError: they cannot be decompressed, or fail the archive's checksum.
        """
        try:
            return self._unzipped.read(size)
        except EOFError:  # The file was cut short; whoever misses bytes says so.
            return b""
        except zlib.error as error:
            raise errors.CheckpointError(
                f"{self._where}: its values cannot be decompressed: {error}. {FETCH_AGAIN}"
            ) from error
        except zipfile.BadZipFile as error:
            raise errors.CheckpointError(
                f"{self._where}: its values fail the archive's checksum. {FETCH_AGAIN}"
            ) from error

    def skip(self, size: int) -> None:
        """Passes over the next bytes."""
        while size > 0 and (part := self.read(min(size, _BLOCK))):
            size -= len(part)


@dataclass(frozen=True, slots=True, repr=False)
class DeflatedTensor(Tensor):
    """A ``Source``: a tensor that is compressed in a zip archive.

    Attributes:
      file: the archive.
      name: the name of the tensor, for messages.
      shape: as stored.
      dtype: as stored.
      member: the member of the archive that it lies in.
      start: where its values start in the decompressed member, in bytes.
    """

    file: File
    name: str
    shape: Shape
    dtype: np.dtype
    member: Member
    start: int

    @property
    def is_streamed(self) -> bool:
        """Always true: any reading starts at the first byte."""
        return True

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``, a copy.

        Raises:
          CheckpointError: the archive has changed since it was opened, or is damaged.
        """
        values = np.empty(sizes(self.shape, index), self.dtype)
        with self._opened() as stream:
            self._read(values, index, stream)
        return values

    def stream(self, limit: int) -> Iterator[np.ndarray]:
        """Yields the values in order, flat; the archive is decompressed once.

        Raises:
          CheckpointError: the archive has changed since it was opened, or is damaged.
        """
        size = self.dtype.itemsize
        with self._opened() as stream:
            stream.skip(self.start)
            left = math.prod(self.shape) * size
            while left:
                data = self._take(stream, min(max(limit // size, 1) * size, left))
                left -= len(data)
                yield np.frombuffer(data, self.dtype)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Stream]:
        self.file.check()
        try:
            with open(self.file.path, "rb") as opened:
                yield Stream(opened, self.file.path, self.name, self.member)
        except OSError as error:
            raise errors.CheckpointError(
                f"{self.file.path}: tensor {self.name!r}: the file can no longer be read: "
                f"{error.strerror or error}. Open the checkpoint again."
            ) from error

    def _read(self, values: np.ndarray, index: Index, stream: Stream) -> None:
        at = -self.start
        # What lies between two wanted runs has to be decompressed in any case.
        gap = self.member.size
        for span in spans(self.shape, self.dtype.itemsize, index, gap=gap, limit=_BLOCK):
            stream.skip(span.start - at)
            put(values, self.shape, span, self._take(stream, span.stop - span.start))
            at = span.stop

    def _take(self, stream: Stream, size: int) -> bytes:
        data = stream.read(size)
        if len(data) < size:
            raise errors.CheckpointError(
                f"{self.file.path}: tensor {self.name!r}: its values end too soon. {FETCH_AGAIN}"
            )
        return data
