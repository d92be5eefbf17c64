"""Tensors that lie in files as plain bytes, read through memory maps.

A file must not be cut short while a map of it is read: touching a page that is gone ends the
process with SIGBUS, which Python cannot catch. Each read compares the file's size and time
with those at opening; what happens between that look and the copy is beyond reach.
"""

import functools
import io
import math
import mmap
import os
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lazyinit import errors
from lazyinit.sources import Extent, Index, Shape
from lazyinit.tensors.base import Tensor

_MAPS = 256  # Maps kept open at once; each holds one file descriptor.


@dataclass(frozen=True, slots=True)
class File:
    """A file as it was when it was opened, so that a later change is noticed.

    Attributes:
      path: its absolute path.
      size: its size in bytes.
      mtime_ns: when it was last written, in nanoseconds.
    """

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> "File":
        """Returns the file at ``path`` as it is now.

        Raises:
          OSError: as ``os.stat`` does.
        """
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
    try:
        bytes_of_file = np.memmap(file.path, dtype=np.uint8, mode="r", shape=(file.size,))
    # NumPy and mmap raise ValueError for a file that is shorter than its map.
    except (OSError, ValueError) as error:
        raise errors.CheckpointError(
            f"{file.path}: the file cannot be mapped into memory: {error}. Open the checkpoint "
            "again."
        ) from error
    _maps[file.path] = bytes_of_file
    return bytes_of_file


_maps: "weakref.WeakValueDictionary[str, np.memmap]" = weakref.WeakValueDictionary()


def release(extents: Iterable[Extent]) -> None:
    """Frees the memory in which maps hold these bytes; they are read again when touched.

    Mapped pages count as this process's memory until the system wants them for something else.
    """
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    for extent in extents:
        held = _maps.get(extent.file)
        if held is not None and isinstance(held.base, mmap.mmap) and extent.stop > extent.start:
            start = extent.start - extent.start % mmap.PAGESIZE
            held.base.madvise(mmap.MADV_DONTNEED, start, extent.stop - start)


def give_back(values: np.ndarray) -> None:
    """Frees the memory pages under a view of a map; they are read again when touched.

    Pages that hold other bytes, too, stay. Arrays that are not views of a map are left alone.
    """
    base: Any = values
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    pages = getattr(base, "_mmap", None)
    if not isinstance(pages, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED") or not values.size:
        return
    low, high = (int(a) - base.ctypes.data for a in np.lib.array_utils.byte_bounds(values))
    start, stop = -(-low // mmap.PAGESIZE) * mmap.PAGESIZE, high // mmap.PAGESIZE * mmap.PAGESIZE
    if stop > start:
        pages.madvise(mmap.MADV_DONTNEED, start, stop - start)


@dataclass(frozen=True, slots=True, repr=False)
class MappedTensor(Tensor):
    """A ``Source``: a tensor of a file; reading gives a view of the file's map.

    Attributes:
      file: the file that it lies in.
      name: its name in the file.
      shape: as stored.
      dtype: as stored.
      offset: where its first element is, in bytes from the start of the file.
      steps: the strides in bytes, if it is a view of a larger storage; a stride of zero repeats one
        row. Empty if it lies in C order. A tensor with strides has no axis of size 0.
    """

    file: File
    name: str
    shape: Shape
    dtype: np.dtype
    offset: int
    steps: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        """The size of its values in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def extents(self) -> tuple[Extent, ...]:
        """The run of bytes from its first element to its last."""
        length = self.nbytes
        if self.steps:
            last = ((size - 1) * step for size, step in zip(self.shape, self.steps, strict=True))
            length = sum(last) + self.dtype.itemsize
        return (Extent(self.file.path, self.offset, self.offset + length),)

    @property
    def is_streamed(self) -> bool:
        """Whether it lies in C order."""
        return not self.steps

    def read(self, index: Index) -> np.ndarray:
        """Returns a read-only view of the values at ``index``.

        Raises:
          CheckpointError: the file has changed since it was opened.
        """
        self.file.check()
        held, steps = _mapped(self.file), self.steps or None
        whole = np.ndarray(self.shape, self.dtype, held, offset=self.offset, strides=steps)
        return whole[(*index, ...)]

    def stream(self, limit: int) -> Iterator[np.ndarray]:
        """Yields the values in order, flat, without a map; a piece is valid until the next one.

        Raises:
          CheckpointError: the file has changed since it was opened, or is cut short meanwhile.
        """
        self.file.check()
        size = self.dtype.itemsize
        buffer = np.empty(min(max(limit // size, 1) * size, self.nbytes), np.uint8)
        with open(self.file.path, "rb", buffering=0) as opened:
            opened.seek(self.offset)
            for start in range(0, self.nbytes, max(len(buffer), 1)):
                part = buffer[: self.nbytes - start]
                if not _read_fully(opened, part):
                    raise errors.CheckpointError(
                        f"{self.file.path}: tensor {self.name!r}: the file was cut short while it "
                        "was read. Fetch it again."
                    )
                yield part.view(self.dtype)


def _read_fully(opened: io.FileIO, buffer: np.ndarray) -> bool:
    done = 0
    while done < len(buffer) and (count := opened.readinto(buffer[done:].data)):
        done += count
    return done == len(buffer)
