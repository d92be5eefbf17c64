"""Arrays in chunks, as TensorStore reads them: Zarr, in folders of their own or in one database.

Each array is opened by TensorStore, which Orbax writes with, so that a read fetches the chunks
that it needs and no others. ``orbax`` says which arrays there are.
"""

import functools
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lazyinit import errors
from lazyinit.sources import Index, Shape
from lazyinit.tensors.base import Tensor
from lazyinit.tensors.headers import DTYPES, FETCH_AGAIN, check_shape
from lazyinit.tensors.mapped import File

_CHUNKS = 2**22  # The most chunks of one read: even a chunk of one value takes some memory.
_OPEN = 512  # The most arrays kept open; of each, TensorStore keeps its header, no values.


@dataclass(frozen=True, slots=True)
class Location:
    """Where an array is, before it is opened.

    Attributes:
      folder: the folder of the checkpoint.
      key: the name of the array's own folder in there, or its name in the database.
      driver: TensorStore's word for the format: ``"zarr"`` or ``"zarr3"``.
      is_database: whether all arrays of the folder are in one database, OCDBT.
      is_complete: whether every chunk was written. A missing chunk was lost then; else its
        elements are the fill value.
    """

    folder: str
    key: str
    driver: str
    is_database: bool
    is_complete: bool


@dataclass(frozen=True, slots=True, repr=False)
class ChunkedTensor(Tensor):
    """A ``Source``: an array that lies in chunks. Reading fetches whole chunks.

    Attributes:
      files: the files that say where its chunks are, as they were when it was opened.
      name: its keys, joined by ``/``.
      shape: as stored.
      dtype: as stored.
      chunk: the shape of a chunk; no less than a chunk is read.
      location: where TensorStore finds it.
    """

    files: tuple[File, ...]
    name: str
    shape: Shape
    dtype: np.dtype
    chunk: Shape
    location: Location

    @property
    def origin(self) -> str:
        """The path of the folder."""
        return self.location.folder

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``, a copy, from the chunks that hold them.

        Raises:
          CheckpointError: the folder has changed since it was opened, or a chunk is damaged.
        """
        self.check()
        part = tuple(slice(*p.indices(n)) for p, n in zip(index, self.shape, strict=True))
        shape = [max(0, p.stop - p.start) for p in part]
        if 0 in shape:
            return np.empty(shape, self.dtype)
        # TensorStore allocates the result, and each chunk before it reads that, and ends the
        # process if there is not enough memory.
        chunk, memory = math.prod(self.chunk) * self.dtype.itemsize, _memory()
        if chunk > memory:
            raise errors.CheckpointError(
                f"{self.origin}: tensor {self.name!r}: wanted a chunk that fits into memory "
                f"({memory} bytes), got one of {chunk}. Save it again in smaller chunks."
            )
        size = math.prod(shape) * self.dtype.itemsize
        chunks = math.prod(
            -(-p.stop // n) - p.start // n for p, n in zip(part, self.chunk, strict=True)
        )
        if size > memory or chunks > _CHUNKS:
            raise errors.CheckpointError(
                f"{self.origin}: tensor {self.name!r}: wanted a part that fits into memory "
                f"({memory} bytes) and lies in at most {_CHUNKS} chunks, got {size} bytes in "
                f"{chunks}. Read less at a time. If it should be smaller, fetch it again."
            )
        try:
            return np.asarray(_opened(self.location, self.files)[part].read().result())
        except Exception as error:  # TensorStore's are plain ValueErrors and the like.
            raise errors.CheckpointError(
                f"{self.origin}: tensor {self.name!r}: its chunks cannot be read: "
                f"{error!s:.300}. {FETCH_AGAIN}"
            ) from error

    def check(self) -> None:
        """Raises ``CheckpointError`` if the folder is gone or has changed since it was opened."""
        for file in self.files:
            file.check()


def open_all(
    arrays: Mapping[str, tuple[Location, tuple[File, ...]]],
) -> Mapping[str, ChunkedTensor]:
    """Opens arrays: reads their headers, no value.

    Args:
      arrays: for each name, where the array is, and the files that say where its chunks are.

    Raises:
      CheckpointError: TensorStore is not installed, or cannot read a header.
    """
    # All are opened at once, as each may wait for the disk.
    opening = {name: _open(location) for name, (location, _) in arrays.items()}
    return {name: _tensor(name, future, *arrays[name]) for name, future in opening.items()}


def _tensor(name: str, future: Any, location: Location, files: tuple[File, ...]) -> ChunkedTensor:
    try:
        store = future.result()
        found = store.dtype.numpy_dtype
        shape, chunk = list(store.shape), store.chunk_layout.read_chunk.shape
    except Exception as error:  # TensorStore's are plain ValueErrors and the like.
        raise errors.CheckpointError(
            f"{location.folder}: tensor {name!r}: its header cannot be read: {error!s:.300}. "
            f"{FETCH_AGAIN}"
        ) from error
    dtype = DTYPES.get(found.name)
    if dtype is None:
        raise errors.CheckpointError(
            f"{location.folder}: tensor {name!r}: wanted a dtype among {', '.join(DTYPES)}, got "
            f"{found}. Save it as one of these."
        )
    chunk = tuple(chunk or ())  # None where there are no axes.
    checked = check_shape(location.folder, name, shape, dtype)
    if any(part > max(1, size) for part, size in zip(chunk, checked, strict=True)):
        raise errors.CheckpointError(
            f"{location.folder}: tensor {name!r}: wanted chunks no larger than {shape}, got "
            f"{list(chunk)}. {FETCH_AGAIN}"
        )
    return ChunkedTensor(files, name, checked, dtype, chunk, location)


def _open(
    location: Location,
) -> Any:  # Any: a future of TensorStore's, which has no types of use here.
    tensorstore = _import(location.folder)
    kvstore: Mapping[str, Any] = {"driver": "file", "path": f"{location.folder}/{location.key}/"}
    if location.is_database:
        kvstore = {
            "driver": "ocdbt",
            "base": {"driver": "file", "path": f"{location.folder}/"},
            "path": f"{location.key}/",
            "cache_pool": "cache_pool#index",
        }
    spec: dict[str, Any] = {"driver": location.driver, "kvstore": kvstore}
    if location.is_complete:
        spec["fill_missing_data_reads"] = False
    return tensorstore.open(spec, open=True, read=True, context=_context())


@functools.lru_cache(maxsize=_OPEN)
def _opened(location: Location, files: tuple[File, ...]) -> Any:
    # The files are part of the key: a folder that was written anew is opened anew.
    return _open(location).result()


def _memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@functools.cache
def _context() -> Any:
    """Returns the context of TensorStore that all arrays share: it says how much is cached."""
    import tensorstore

    # The index of a database is read again and again; values are read once and not kept.
    return tensorstore.Context(
        {"cache_pool#index": {"total_bytes_limit": 2**24}, "cache_pool": {"total_bytes_limit": 0}}
    )


def _import(folder: str) -> Any:
    try:
        import tensorstore
    except ImportError as error:
        raise errors.CheckpointError(
            f"{folder}: wanted the package tensorstore, which reads what Orbax writes, got none. "
            "Run pip install tensorstore."
        ) from error
    return tensorstore
