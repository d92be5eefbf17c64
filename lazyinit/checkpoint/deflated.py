"""Tensors that lie in zip archives under compression: decompressed as they are read, in blocks.

A slice costs the decompression of all that lies before its end, and memory for itself alone.
"""

import contextlib
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from lazyinit import errors
from lazyinit.checkpoint.base import Tensor
from lazyinit.checkpoint.headers import FETCH_AGAIN
from lazyinit.checkpoint.mapped import File
from lazyinit.checkpoint.spans import put, sizes, spans
from lazyinit.checkpoint.zipped import Member
from lazyinit.params import Index, Shape

_BLOCK = 2**20  # Bytes held at a time, compressed or not.


@dataclass(slots=True)
class Stream:
    """The bytes of a member, from first to last.

    Attributes:
      path: of the archive; messages start with it.
      tensor: what messages call the member.
      member: which one.
      blocks: what it decompresses to, block by block.
      held: bytes of a block that are not handed out yet.
    """

    path: str
    tensor: str
    member: Member
    blocks: Iterator[bytes]
    held: bytes = b""

    @classmethod
    def over(cls, opened: BinaryIO, path: str, tensor: str, member: Member) -> "Stream":
        """Returns the stream of a member, for as long as the archive stays open."""
        return cls(path, tensor, member, _blocks(opened, path, tensor, member))

    def read(self, size: int) -> bytes:
        """Returns the next bytes, fewer only where the member ends."""
        parts, wanted = [], size
        while wanted:
            if not self.held:
                self.held = next(self.blocks, b"")
            if not self.held:
                break
            part = self.held[:wanted]
            parts.append(part)
            wanted -= len(part)
            self.held = self.held[len(part) :]
        return b"".join(parts)

    def skip(self, size: int) -> None:
        """Passes over the next bytes."""
        while size > 0 and (part := self.read(min(size, _BLOCK))):
            size -= len(part)


def _blocks(opened: BinaryIO, path: str, tensor: str, member: Member) -> Iterator[bytes]:
    opened.seek(member.offset)
    inflate = zlib.decompressobj(-zlib.MAX_WBITS) if member.is_deflated else None
    left, made, crc, pending = member.stored, 0, 0, b""
    size = 512  # Of the first block, which is small: a header is all that most want of it.
    while True:
        if left and not pending:
            pending = opened.read(min(size, left))
            size, left = _BLOCK, left - len(pending)
            if not pending:
                return  # The file was cut short; who misses bytes says so.
        if inflate is None:
            block, pending = pending, b""
        else:
            try:
                block = inflate.decompress(pending, _BLOCK)
            except zlib.error as error:
                raise errors.CheckpointError(
                    f"{path}: tensor {tensor!r}: its values cannot be decompressed: {error}. "
                    f"{FETCH_AGAIN}"
                ) from error
            pending = inflate.unconsumed_tail
        made, crc = made + len(block), zlib.crc32(block, crc)
        if made > member.size or (made == member.size and crc != member.crc):
            raise errors.CheckpointError(
                f"{path}: tensor {tensor!r}: its values fail the archive's checksum. {FETCH_AGAIN}"
            )
        if block:
            yield block
        elif not left and not pending:
            return


@dataclass(frozen=True, slots=True, repr=False)
class DeflatedTensor(Tensor):
    """A ``Source``: a tensor under compression.

    Attributes:
      file: the archive.
      name: what the archive calls it.
      shape: as stored.
      dtype: as stored.
      member: where it lies.
      start: of its values, bytes from the member's first once decompressed.
    """

    file: File
    name: str
    shape: Shape
    dtype: np.dtype
    member: Member
    start: int

    @property
    def is_streamed(self) -> bool:
        """Always: any reading starts at its first byte."""
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
                yield Stream.over(opened, self.file.path, self.name, self.member)
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
