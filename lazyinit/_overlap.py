"""Leaves that a checkpoint holds in part: a grown vocabulary, longer positions.

What the leaf and the tensor have in common, from the first element of each dimension on, comes
from the checkpoint; the rest is what the initializer gives there.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lazyinit import errors
from lazyinit.checkpoint.views import cut, same_kind
from lazyinit.params import LazyParam, Shape, Source, StoredParam, Thunk, describe, label


@dataclass(frozen=True, slots=True, repr=False)
class OverlapParam(Thunk):
    """A parameter that is initialized, and then read from a checkpoint in part. A pytree leaf.

    Attributes:
      shape: the shape that the array will have.
      dtype: the dtype that it will have.
      rest: makes the whole array; what of it is not overwritten stays.
      stored: what is written over its first elements, in each dimension.
      path: where in the tree it was filled in; only messages use it.
    """

    shape: Shape
    dtype: np.dtype
    rest: LazyParam
    stored: Source
    path: str = field(default="", kw_only=True, compare=False)

    @property
    def stored_nbytes(self) -> int:
        """Bytes of the part that comes from the checkpoint, once made."""
        return int(np.prod(self.stored.shape)) * self.dtype.itemsize

    def __repr__(self) -> str:
        parts = (describe(self.shape, self.dtype), repr(self.stored), label(self.rest.init_fn))
        return f"OverlapParam({', '.join(parts)})"


def overlap(path: str, leaf: Any, source: Source) -> OverlapParam | StoredParam:
    """Keeps what a leaf and a tensor of another size have in common, and initializes the rest.

    For ``fill(..., on_mismatch=lazyinit.overlap)``. The common part starts at the first element
    of each dimension. The rest has the bits that eager ``init`` gives there.

    Args:
      path: of the leaf.
      leaf: a ``LazyParam``; any thunk (hence ``Any``) if the tensor covers all of it.
      source: the tensor, in the layout of the leaf.

    Returns:
      The leaf to put in its place: a ``StoredParam`` if the tensor covers all of it.

    Raises:
      FillError: another number of dimensions, another kind of number, or nothing to make the
        rest from.

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
            f"{leaf.dtype.name} or its kind for {wanted}, {names} holds {got}. Give this path "
            'another policy: on_mismatch={"' + path + '": "init", "**": lazyinit.overlap}.'
        )
    common = tuple(map(min, leaf.shape, source.shape))
    ends = {axis: (0, size) for axis, size in enumerate(common)}
    stored = source if common == source.shape else cut(source, ends)
    if common == leaf.shape:
        return StoredParam(leaf.shape, leaf.dtype, stored, path=path)
    if not isinstance(leaf, LazyParam):
        raise errors.FillError(
            f"{path}: lazyinit.overlap wants a leaf that is not made yet, to initialize what "
            f"{names} ({got}) lacks of {wanted}, got {type(leaf).__name__}. Fill the tree that "
            "lazy(...) returned."
        )
    return OverlapParam(leaf.shape, leaf.dtype, leaf, stored, path=path)
