"""Resolves the ``dtype`` argument, which says what each leaf is cast to.

The argument has several forms (one dtype for all, ``"file"``, a mapping from paths to these). All
of them become one dtype per leaf, before anything is allocated.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from lazyinit import errors, paths
from lazyinit.derived import DerivedParam, origins
from lazyinit.params import cast_dtype

# Any: what jnp.dtype takes, and filters of Flax NNX as keys.
Dtype: TypeAlias = Any
DtypeLike: TypeAlias = "Dtype | Mapping[Any, Dtype] | None"


def resolve(
    dtype: DtypeLike, tree: Any, leaves: Sequence[tuple[str, Any]], selected: Sequence[bool]
) -> list[Any]:
    """Returns the dtype that each leaf will have: its own, unless another is asked for.

    Args:
      dtype: ``None``; a dtype for floating-point leaves, except for the statistics of a BatchNorm;
        ``"file"``, for the dtype that a leaf has in its checkpoint; or a mapping from globs and
        filters of NNX to one of these. The first that selects a leaf decides, also for statistics.
      tree: the tree (any pytree).
      leaves: the paths and leaves of the tree.
      selected: which of the leaves are to be cast; the others keep their dtypes.

    Raises:
      WordError: a part of ``dtype`` is no dtype.
      PathError: a glob or a filter selects nothing.
    """
    owns = [getattr(leaf, "dtype", None) for _, leaf in leaves]
    if dtype is None:
        return owns
    if isinstance(dtype, Mapping):
        choices: list[Any] = [None] * len(leaves)
        for pattern, wanted in reversed(list(dtype.items())):
            chosen = paths.select(pattern, tree)
            choices = [wanted if c else d for d, c in zip(choices, chosen, strict=True)]
    else:
        is_file = isinstance(dtype, str) and dtype == "file"
        kept = [not is_file and s for s in _statistics(tree)]
        choices = [None if k else dtype for k in kept]
    everything = zip(leaves, owns, choices, selected, strict=True)
    return [
        _target(path, leaf, own, wanted) if s and own is not None else own
        for (path, leaf), own, wanted, s in everything
    ]


def _target(path: str, leaf: Any, own: Any, wanted: Any) -> Any:
    """Returns the dtype that one leaf will have, given its own and the one that is wanted."""
    if isinstance(wanted, str) and wanted == "file":
        is_read = not isinstance(leaf, DerivedParam)  # A computed leaf is in no file.
        (source, *_) = (*(origins(leaf)[0] if is_read else ()), None)
        is_alike = source is not None and _is_float(source.dtype)
        # JAX makes float32 of float64, unless its setting jax_enable_x64 is on.
        return jax.dtypes.canonicalize_dtype(source.dtype) if is_alike and _is_float(own) else own
    try:
        return cast_dtype(own, wanted)
    except TypeError as error:
        raise errors.WordError(
            f"{path}: wanted dtype to be a dtype such as 'bfloat16', 'file', or a mapping from "
            f"paths to these, got {wanted!r:.80}."
        ) from error


def _is_float(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def _statistics(tree: Any) -> list[bool]:
    """Says for each leaf whether it is a running mean or variance, which rounds badly."""
    nnx = sys.modules.get("flax.nnx")
    found = []
    for keys, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=paths.is_variable):
        is_linen = paths.path_string(keys[:1]) == "batch_stats"
        is_nnx = paths.is_variable(node) and nnx is not None and isinstance(node, nnx.BatchStat)
        found += [is_linen or is_nnx] * len(jax.tree.leaves(node))
    return found
