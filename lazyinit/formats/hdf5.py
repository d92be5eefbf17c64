"""HDF5 files, as Keras writes them: contiguous datasets are mapped, others read by ``h5py``.

``h5py`` says what a file holds. A dataset that lies contiguously, without filters, has a place in
the file (``get_offset``), and is mapped. Of a dataset in chunks, only those that an index needs are
read.

Links to other files are not followed, and datasets whose values lie in other files are refused.
"""

import math
import os
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from lazyinit import errors
from lazyinit.sources import Index, Shape, Source
from lazyinit.tensors.base import Checkpoint, Tensor
from lazyinit.tensors.headers import DTYPES, FETCH_AGAIN, NODE_LIMIT, check_shape, damaged
from lazyinit.tensors.mapped import File, MappedTensor
from lazyinit.tensors.refused import RefusedTensor

_RATIO = 1032  # No stream of deflate expands further: https://zlib.net/zlib_tech.html.


def open_file(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens an HDF5 file: reads what its groups say of its datasets, and no value.

    Raises:
      CheckpointError: the file is damaged, or h5py is not installed.
    """
    file = File.at(path)
    h5py = _import(file.path)
    tensors: dict[str, Source] = {}

    def visit(name: str, node: Any) -> None:  # Any: of h5py.
        if len(tensors) > NODE_LIMIT:
            raise ValueError(f"more than {NODE_LIMIT} datasets")
        if isinstance(node, h5py.Dataset):
            tensors[name] = _source(file, name, node)

    try:
        with h5py.File(file.path, "r") as opened:
            opened.visititems(visit)
    except errors.CheckpointError:
        raise
    # h5py raises errors of many types for a damaged file.
    except Exception as error:
        raise _broken(file.path, error) from error
    return Checkpoint(os.fspath(path), tensors)


def _import(path: str) -> ModuleType:
    try:
        import h5py
    except ImportError as error:
        raise errors.CheckpointError(
            f"{path}: wanted h5py, which reads HDF5 files, got none. "
            "Run pip install 'lazyinit-jax[h5]'."
        ) from error
    return h5py


def _broken(path: str, error: Exception) -> errors.CheckpointError:
    return errors.CheckpointError(
        f"{path}: wanted an HDF5 file, got one that h5py does not read: {error!s:.200}. "
        f"{FETCH_AGAIN}"
    )


def _source(file: File, name: str, dataset: Any) -> Source:  # Any: h5py.Dataset.
    if dataset.shape is None:
        return RefusedTensor(file, name, "wanted an array, got a dataset without a shape.")
    if dataset.is_virtual or dataset.external:
        problem = (
            "wanted values in this file, got a dataset whose values lie in other files. Copy them "
            "into this file."
        )
        return RefusedTensor(file, name, problem, dataset.shape)
    dtype = dataset.dtype
    if dtype.itemsize == 2 and dataset.attrs.get("dtype") == "bfloat16":  # As Keras marks it.
        dtype = DTYPES["bfloat16"]
    if dtype not in DTYPES.values():
        problem = (
            f"wanted a dtype among {', '.join(DTYPES)}, little-endian, got {dtype!s:.40}. Save it "
            "as one of these."
        )
        return RefusedTensor(file, name, problem, dataset.shape)
    shape = check_shape(file.path, name, list(dataset.shape), dtype)
    size, stored = math.prod(shape) * dtype.itemsize, dataset.id.get_storage_size()
    if size > stored * _RATIO:
        raise damaged(file.path, name, f"{size} bytes of values", f"{stored} bytes")
    place = dataset.id.get_offset()
    if place is None or not size:
        return HdfTensor(file, name, shape, dtype)
    if place + size > file.size:
        raise damaged(file.path, name, f"values before byte {file.size}", place + size)
    return MappedTensor(file, name, shape, dtype, place)


@dataclass(frozen=True, slots=True, repr=False)
class HdfTensor(Tensor):
    """A ``Source``: a dataset that lies in chunks.

    Attributes:
      file: the file that it lies in.
      name: its path in the file.
      shape: as stored.
      dtype: as stored.
    """

    file: File
    name: str
    shape: Shape
    dtype: np.dtype

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``; reads only the chunks that hold them.

        Raises:
          CheckpointError: the file has changed since it was opened, or a chunk is damaged.
        """
        self.file.check()
        h5py = _import(self.file.path)
        try:
            with h5py.File(self.file.path, "r") as opened:
                values = np.asarray(opened[self.name][index])
        except Exception as error:
            raise _broken(f"{self.file.path}: tensor {self.name!r}", error) from error
        return values.view(self.dtype) if values.dtype != self.dtype else values
