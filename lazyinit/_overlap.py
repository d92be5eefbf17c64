"""Fills leaves of which a checkpoint has only a part: a grown vocabulary, more positions.

A leaf and a tensor of another size come in; an ``OverlapParam`` goes out. The part that both have,
counted from the first element of each dimension, is read from the checkpoint. The initializer makes
the rest.
"""

from typing import Any

from lazyinit import errors
from lazyinit.params import LazyParam, OverlapParam, StoredParam, placement_of
from lazyinit.sources import Source, describe
from lazyinit.tensors.as_dtype import same_kind
from lazyinit.tensors.views import cut


def overlap(path: str, leaf: Any, source: Source) -> OverlapParam | StoredParam:
    """Reads the part that a leaf and a tensor of another size share, and initializes the rest.

    Pass it as ``fill(..., on_mismatch=lazyinit.overlap)``. The common part starts at the first
    element of each dimension. The rest has the bits that eager ``init`` gives there.

    Args:
      path: the path of the leaf.
      leaf: a ``LazyParam``; any thunk (hence ``Any``) if the tensor covers all of it.
      source: the tensor, in the layout of the leaf.

    Returns:
      The leaf that replaces it: a ``StoredParam`` if the tensor covers all of it.

    Raises:
      FillError: the tensor has another number of dimensions or another kind of number, or the leaf
        has no initializer to make the rest.

    Example:
      >>> import jax, numpy as np, lazyinit as li
      >>> tree = {"embedding": li.LazyParam((5, 2), "float32", jax.numpy.zeros)}
      >>> checkpoint = {"embedding": np.ones((3, 2), "float32")}
      >>> tree, report = li.fill(tree, checkpoint, on_mismatch=li.overlap)
      >>> tree["embedding"]
      OverlapParam(float32[5,2], the mapping:embedding, zeros)
      >>> report.adapted
      ('embedding',)
    """
    wanted, got = describe(leaf.shape, leaf.dtype), describe(source.shape, source.dtype)
    names = ", ".join(map(repr, source.names))
    if len(leaf.shape) != len(source.shape) or not same_kind(leaf.dtype, source.dtype):
        raise errors.FillError(
            f"{path}: lazyinit.overlap wants a tensor with {len(leaf.shape)} dimensions of "
            f"{leaf.dtype.name} or its kind for {wanted}, but {names} holds {got}. Give this path "
            'another policy: on_mismatch={"' + path + '": "init", "**": lazyinit.overlap}.'
        )
    common = tuple(map(min, leaf.shape, source.shape))
    ends = {axis: (0, size) for axis, size in enumerate(common)}
    stored = source if common == source.shape else cut(source, ends)
    if common == leaf.shape:
        sharding = placement_of(leaf)
        return StoredParam(leaf.shape, leaf.dtype, stored, sharding=sharding, path=path)
    if not isinstance(leaf, LazyParam):
        raise errors.FillError(
            f"{path}: lazyinit.overlap wants a leaf that is not made yet, to initialize what "
            f"{names} ({got}) lacks of {wanted}, got {type(leaf).__name__}. Fill the tree that "
            "lazy(...) returned."
        )
    return OverlapParam(leaf.shape, leaf.dtype, leaf, stored, path=path)
