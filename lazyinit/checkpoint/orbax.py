"""Orbax folders: their tree of names, and arrays in chunks that TensorStore reads.

Orbax itself restores whole arrays into a tree that is known beforehand; here ``_METADATA``, which
names the tree's leaves, is read by us, and each array is opened by TensorStore, which Orbax
writes with, so that a read fetches the chunks that it needs and no others. Orbax is not imported.

Layout of a folder (``orbax/checkpoint/_src/metadata/tree.py`` and its serialization modules):
``_METADATA`` is JSON, from the leaves to their keys and kinds; each array is Zarr, version 2 or 3,
either in a folder of its own or in one database of the folder, OCDBT, under its keys joined by
dots. A step of ``CheckpointManager`` or of Orbax v1 is a folder of such folders.
"""

import functools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lazyinit import errors
from lazyinit.checkpoint.base import Checkpoint, Tensor
from lazyinit.checkpoint.headers import (
    DTYPES,
    FETCH_AGAIN,
    HEADER_LIMIT,
    NODE_LIMIT,
    check_shape,
    is_text,
    parse_object,
)
from lazyinit.checkpoint.mapped import File
from lazyinit.params import Index, Shape

TREE = "_METADATA"
STEP = "_CHECKPOINT_METADATA"
_DATABASE = "manifest.ocdbt"
_UNFINISHED = ".orbax-checkpoint-tmp"  # In a folder's name, until Orbax has written all of it.
_ARRAYS = ("scalar", "np.ndarray", "jax.Array")  # What Orbax calls the leaves that are arrays.
_OPEN = 512  # Arrays kept open at once: what TensorStore knows of them, no values.


def is_folder(folder: Path) -> bool:
    """Tells whether Orbax wrote a folder: a tree, a step, or a manager's steps."""
    return any((folder / name).is_file() for name in (TREE, STEP, _DATABASE)) or bool(
        _steps(folder)
    )


def open_folder(folder: Path) -> Checkpoint:
    """Opens a tree that Orbax saved: reads its names and the arrays' own headers, no value.

    A folder with one tree in it, as a step has, is that tree; so is a folder with one step.

    Raises:
      CheckpointError: the folder is damaged or unfinished, or holds several trees or steps: the
        message names the trees, or the newest step.
    """
    if _UNFINISHED in folder.name:
        raise errors.CheckpointError(
            f"{folder}: wanted a finished checkpoint, got a folder that Orbax did not finish. "
            "Open an earlier step, or save it again."
        )
    if (folder / TREE).is_file():
        return _open_tree(folder)
    trees = sorted(_folders(folder, TREE))
    if len(trees) == 1:
        return open_folder(trees[0])
    if trees:
        raise errors.CheckpointError(
            f"{folder}: wanted one tree, got {len(trees)}: "
            f"{', '.join(repr(tree.name) for tree in trees)}. Open one of these folders."
        )
    steps = _steps(folder)
    if len(steps) == 1:
        return open_folder(steps[0])
    if steps:
        raise errors.CheckpointError(
            f"{folder}: wanted one step, got {len(steps)}. Open one of their folders; the newest "
            f"is {str(steps[-1])!r}."
        )
    raise errors.CheckpointError(
        f"{folder}: wanted {TREE}, which names what Orbax saved, got a folder without it. It is "
        "incomplete, holds no arrays, or is older than Orbax 0.4: restore and save it with Orbax."
    )


def _steps(folder: Path) -> Sequence[Path]:
    def number(step: Path) -> tuple[int, str]:
        digits = step.name.rpartition("_")[2]
        return int(digits) if digits.isascii() and digits.isdigit() else -1, step.name

    return sorted(_folders(folder, STEP), key=number)


def _folders(folder: Path, file: str) -> Sequence[Path]:
    found = [path.parent for path in folder.glob(f"*/{file}")]
    return [path for path in found if _UNFINISHED not in path.name]


@dataclass(frozen=True, slots=True)
class _Array:
    """What says where an array is: TensorStore's driver and path, before it is opened."""

    folder: str
    key: str
    driver: str
    is_database: bool
    is_complete: bool


@dataclass(frozen=True, slots=True, repr=False)
class OrbaxTensor(Tensor):
    """A ``Source``: an array that lies in chunks. Reading fetches whole chunks.

    Attributes:
      files: those that say where its chunks are, as they were when it was opened.
      name: its keys, joined by ``/``.
      shape: as stored.
      dtype: as stored.
      chunk: the shape of a chunk; no less than a chunk is read.
      array: how TensorStore is to open it.
    """

    files: tuple[File, ...]
    name: str
    shape: Shape
    dtype: np.dtype
    chunk: Shape
    array: _Array

    @property
    def origin(self) -> str:
        """The path of the folder."""
        return self.array.folder

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``, a copy, from the chunks that hold them.

        Raises:
          CheckpointError: the folder has changed since it was opened, or a chunk is damaged.
        """
        self.check()
        part = tuple(slice(*p.indices(n)) for p, n in zip(index, self.shape, strict=True))
        empty = [max(0, p.stop - p.start) for p in part]
        if 0 in empty:
            return np.empty(empty, self.dtype)
        # TensorStore makes room for a chunk before it looks at one, and ends the process if there
        # is none.
        chunk, memory = math.prod(self.chunk) * self.dtype.itemsize, _memory()
        if chunk > memory:
            raise errors.CheckpointError(
                f"{self.origin}: tensor {self.name!r}: wanted a chunk that fits into memory "
                f"({memory} bytes), got one of {chunk}. Save it again in smaller chunks."
            )
        try:
            return np.asarray(_opened(self.array, self.files)[part].read().result())
        except Exception as error:  # TensorStore's are plain ValueErrors and the like.
            raise errors.CheckpointError(
                f"{self.origin}: tensor {self.name!r}: its chunks cannot be read: "
                f"{error!s:.300}. {FETCH_AGAIN}"
            ) from error

    def check(self) -> None:
        """Raises ``CheckpointError`` if the folder is gone or has changed since it was opened."""
        for file in self.files:
            file.check()


def _open_tree(folder: Path) -> Checkpoint:
    path = folder / TREE
    file = File.at(path)
    with path.open("rb") as stream:
        text = stream.read(HEADER_LIMIT + 1)
    if len(text) > HEADER_LIMIT:
        raise errors.CheckpointError(
            f"{path}: wanted a tree of at most {HEADER_LIMIT} bytes, got a larger file. "
            f"{FETCH_AGAIN}"
        )
    tree = parse_object(str(path), text)
    names = _names(str(path), tree.get("tree_metadata"))
    # Orbax writes OCDBT in one database, whose absence says that each array has its own folder.
    is_database = (folder / _DATABASE).is_file()
    driver = "zarr3" if tree.get("use_zarr3") else "zarr"
    complete = tree.get("store_array_data_equal_to_fill_value") is True
    own = {"zarr3": "zarr.json", "zarr": ".zarray"}[driver]
    arrays = {
        name: _Array(str(folder.absolute()), key, driver, is_database, complete)
        for name, key in names.items()
    }
    files: dict[str, tuple[File, ...]] = {}
    for name, key in names.items():
        there = folder / (_DATABASE if is_database else f"{key}/{own}")
        try:
            files[name] = (file, File.at(there))
        except OSError as error:
            raise errors.CheckpointError(
                f"{folder}: tensor {name!r}: wanted its header {str(there)!r}, which cannot be "
                f"read: {error.strerror}. {FETCH_AGAIN}"
            ) from error
    # All at once: each may wait for the disk.
    opening = {name: _open(array) for name, array in arrays.items()}
    tensors = {
        name: _tensor(name, future, arrays[name], files[name]) for name, future in opening.items()
    }
    return Checkpoint(str(folder), tensors)


def _names(path: str, tree: Any) -> Mapping[str, str]:  # Any: whatever JSON holds there.
    """Returns the key under which each array is stored, by its name."""

    def broken(wanted: str, got: object) -> errors.CheckpointError:
        return errors.CheckpointError(f"{path}: wanted {wanted}, got {got!r:.80}. {FETCH_AGAIN}")

    if not isinstance(tree, dict) or len(tree) > NODE_LIMIT:
        raise broken("'tree_metadata' to describe the leaves", tree)
    names: dict[str, str] = {}
    for leaf, entry in tree.items():
        match entry:
            case {
                "key_metadata": list(listed),
                "value_metadata": {"value_type": kind, **rest},
            }:
                keys: list[Any] = [k.get("key") if isinstance(k, dict) else k for k in listed]
            case _:
                raise broken(f"keys and a kind for leaf {leaf!r}", entry)
        if rest.get("skip_deserialize") or kind not in _ARRAYS:
            continue
        if not keys or not all(isinstance(key, str) and is_text(key) for key in keys):
            raise broken(f"keys that are text for leaf {leaf!r}", keys)
        name, key = "/".join(keys), ".".join(keys)
        # The key becomes a path, which must not leave the folder.
        if {"", ".", ".."} & set(key.split("/")) or "\0" in key or "\\" in key:
            raise broken(f"a leaf {leaf!r} that lies inside the folder", key)
        if name in names:
            raise errors.CheckpointError(
                f"{path}: two tensors are called {name!r}. Rename one where they were saved."
            )
        names[name] = key
    return names


def _tensor(name: str, future: Any, array: _Array, files: tuple[File, ...]) -> OrbaxTensor:
    try:
        store = future.result()
        found = store.dtype.numpy_dtype
        shape, chunk = list(store.shape), store.chunk_layout.read_chunk.shape
    except Exception as error:  # TensorStore's are plain ValueErrors and the like.
        raise errors.CheckpointError(
            f"{array.folder}: tensor {name!r}: its header cannot be read: {error!s:.300}. "
            f"{FETCH_AGAIN}"
        ) from error
    dtype = DTYPES.get(found.name)
    if dtype is None:
        raise errors.CheckpointError(
            f"{array.folder}: tensor {name!r}: wanted a dtype among {', '.join(DTYPES)}, got "
            f"{found}. Save it as one of these."
        )
    chunk = tuple(chunk or ())  # None where there are no axes.
    checked = check_shape(array.folder, name, shape, dtype)
    if any(part > max(1, size) for part, size in zip(chunk, checked, strict=True)):
        raise errors.CheckpointError(
            f"{array.folder}: tensor {name!r}: wanted chunks no larger than {shape}, got "
            f"{list(chunk)}. {FETCH_AGAIN}"
        )
    return OrbaxTensor(files, name, checked, dtype, chunk, array)


def _open(array: _Array) -> Any:  # Any: a future of TensorStore's, which has no types of use here.
    tensorstore = _import(array.folder)
    kvstore: Mapping[str, Any] = {"driver": "file", "path": f"{array.folder}/{array.key}/"}
    if array.is_database:
        kvstore = {
            "driver": "ocdbt",
            "base": {"driver": "file", "path": f"{array.folder}/"},
            "path": f"{array.key}/",
            "cache_pool": "cache_pool#index",
        }
    spec: dict[str, Any] = {"driver": array.driver, "kvstore": kvstore}
    if array.is_complete:
        # Then a chunk that is not there was lost; it is not all zeros.
        spec["fill_missing_data_reads"] = False
    return tensorstore.open(spec, open=True, read=True, context=_context())


@functools.lru_cache(maxsize=_OPEN)
def _opened(array: _Array, files: tuple[File, ...]) -> Any:
    # The files are part of the key: a folder that was written anew is opened anew.
    return _open(array).result()


def _memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@functools.cache
def _context() -> Any:
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
            f"{folder}: wanted TensorStore, which Orbax writes with, got none. "
            "Run pip install tensorstore."
        ) from error
    return tensorstore
