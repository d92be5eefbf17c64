"""Equinox's files: the leaves of a tree, each as ``numpy.save`` writes it, one after the other.

``equinox.tree_serialise_leaves`` writes no names, so a tree says which array is which: its leaves
that are arrays or numbers, in order.

Format: https://docs.kidger.site/equinox/api/serialisation/.
"""

import os
from typing import Any

import jax
import numpy as np

from lazyinit import errors, paths
from lazyinit.formats.npz import arrays_in_order
from lazyinit.params import Thunk
from lazyinit.sources import describe
from lazyinit.tensors.base import Checkpoint
from lazyinit.tensors.mapped import File

_ARRAYS = Thunk | jax.Array | jax.ShapeDtypeStruct | np.ndarray | np.generic
_NUMBERS = bool | int | float | complex


def open_file(path: str | os.PathLike[str], like: Any) -> Checkpoint:  # Any: a pytree.
    """Opens a file: reads the headers of its arrays, no values.

    Args:
      path: the path of the file.
      like: a tree with the leaves that were saved, as arrays, thunks, shapes and numbers. Leaves of
        other types are skipped, as Equinox does.

    Raises:
      CheckpointError: the file is damaged, or its arrays are not those of the tree.
    """
    file = File.at(path)
    leaves = {
        paths.path_string(keys): leaf
        for keys, leaf in jax.tree_util.tree_leaves_with_path(like)
        if isinstance(leaf, _ARRAYS | _NUMBERS)
    }
    found = arrays_in_order(file, list(leaves))
    problems = [
        f"{file.path}: {name}: wanted an array of shape {list(shape)}, got "
        f"{describe(source.shape, source.dtype)}. Pass the tree that was saved as like=."
        for name, (source, _) in found.items()
        if source.shape != (shape := tuple(getattr(leaves[name], "shape", ())))
    ]
    end = max((stop for _, stop in found.values()), default=0)
    if len(found) < len(leaves) or end < file.size:
        rest = f", and {file.size - end} bytes more" * (end < file.size)
        problems.append(
            f"{file.path}: wanted {len(leaves)} arrays, as like= has, got {len(found)}{rest}. "
            "Pass the tree that was saved as like=."
        )
    if problems:
        raise errors.CheckpointError(errors.listing(problems))
    return Checkpoint(os.fspath(path), {name: source for name, (source, _) in found.items()})
