"""Orbax folders: which trees and steps are there, and the names of the arrays in a tree.

Orbax itself restores whole arrays into a tree that is known beforehand; here ``_METADATA``, which
names the tree's leaves, is read by us, and ``chunked`` reads the arrays. Orbax is not imported.

Layout of a folder (``orbax/checkpoint/_src/metadata/tree.py`` and its serialization modules):
``_METADATA`` is JSON, from the leaves to their keys and kinds; each array is Zarr, version 2 or 3,
either in a folder of its own or in one database of the folder, OCDBT, under its keys joined by
dots. A step of ``CheckpointManager`` or of Orbax v1 is a folder of such folders.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lazyinit import errors
from lazyinit.formats.chunked import Location, open_all
from lazyinit.tensors.base import Checkpoint
from lazyinit.tensors.headers import (
    FETCH_AGAIN,
    HEADER_LIMIT,
    NODE_LIMIT,
    is_text,
    parse_object,
)
from lazyinit.tensors.mapped import File

TREE = "_METADATA"
STEP = "_CHECKPOINT_METADATA"
_DATABASE = "manifest.ocdbt"
_UNFINISHED = ".orbax-checkpoint-tmp"  # In a folder's name, until Orbax has written all of it.
_ARRAYS = ("scalar", "np.ndarray", "jax.Array")  # What Orbax calls the leaves that are arrays.


def is_folder(folder: Path) -> bool:
    """Tells whether Orbax wrote a folder: a tree, a step, or a manager's steps."""
    return any((folder / name).is_file() for name in (TREE, STEP, _DATABASE)) or bool(
        _steps(folder)
    )


def open_folder(folder: Path) -> Checkpoint:
    """Opens a tree that Orbax saved: reads its names and the arrays' own headers, no value.

    A folder that holds one tree, as a step does, opens as that tree; one with one step, as that.

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
            f"{folder}: wanted one step, got {len(steps)}. Open the folder of one step; the newest "
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
    arrays: dict[str, tuple[Location, tuple[File, ...]]] = {}
    for name, key in names.items():
        there = folder / (_DATABASE if is_database else f"{key}/{own}")
        location = Location(str(folder.absolute()), key, driver, is_database, complete)
        try:
            arrays[name] = location, (file, File.at(there))
        except OSError as error:
            raise errors.CheckpointError(
                f"{folder}: tensor {name!r}: wanted its header {str(there)!r}, which cannot be "
                f"read: {error.strerror}. {FETCH_AGAIN}"
            ) from error
    return Checkpoint(str(folder), open_all(arrays))


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
