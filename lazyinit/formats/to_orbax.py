"""Writes a tree of arrays as an Orbax folder, with Orbax itself.

MaxText, google-tunix and others restore with Orbax. It takes a whole tree at once, writes under
another name, and renames the folder as its last step.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lazyinit import errors
from lazyinit.sources import Source, describe


def check_orbax(folder: Path, arrays: Mapping[str, Any]) -> None:
    """Checks that Orbax can write these arrays there, before anything is made or written.

    Args:
      folder: the folder to write; nothing may be there.
      arrays: the arrays by path, each with a shape and a dtype: arrays, numbers, thunks or sources.

    Raises:
      SaveError: the path exists, Orbax is not installed, or Orbax cannot hold one of the arrays.
    """
    if folder.exists():
        raise errors.SaveError(
            f"{folder}: wanted a path where nothing is, got one that exists. Orbax would remove "
            "what is there before it writes the new checkpoint. Save elsewhere, then move it."
        )
    _orbax(folder)
    empty = [
        f"{path}: wanted an array with elements, as Orbax holds no other, got "
        f"{describe(array.shape, array.dtype)}. Leave it out of the tree, or write safetensors."
        for path, array in arrays.items()
        if 0 in np.shape(array)
    ]
    if empty:
        raise errors.SaveError(errors.listing(empty))


def write_orbax(folder: Path, tree: Any) -> None:  # Any: a pytree, as Orbax takes it.
    """Writes a pytree of arrays and numbers; several processes call it together.

    Raises:
      WriteError: Orbax could not write it.
    """
    orbax = _orbax(folder)
    try:
        with orbax.Checkpointer(orbax.StandardCheckpointHandler()) as checkpointer:
            checkpointer.save(folder.absolute(), args=orbax.args.StandardSave(tree))
    except Exception as error:  # Orbax's and TensorStore's are plain ValueErrors and the like.
        raise errors.WriteError(
            f"{folder}: Orbax could not write it: {error!s:.500}. Nothing is left at that path."
        ) from error


def read_whole(source: Source) -> np.ndarray:
    """Returns all values of a source: a view of the memory map, if they lie plainly in a file."""
    return source.read(tuple(slice(None) for _ in source.shape))


def _orbax(folder: Path) -> Any:  # Any: a module.
    try:
        import orbax.checkpoint as orbax
    except ImportError as error:
        raise errors.SaveError(
            f"{folder}: wanted the package orbax-checkpoint, which writes such folders, got none. "
            "Run pip install orbax-checkpoint."
        ) from error
    return orbax
