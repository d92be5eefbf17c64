"""The verb ``abstract``: a tree -> the shapes, dtypes and shardings that its arrays will have."""

from typing import Any

import jax
import jax.numpy as jnp

from lazyinit import paths as tree_paths
from lazyinit import sharding as shardings
from lazyinit.params import placement_of


def abstract(tree: Any, sharding: shardings.ShardingLike = None) -> Any:
    """Returns a tree with a ``jax.ShapeDtypeStruct`` in place of each thunk and array.

    Such a tree can be passed to Orbax's ``restore``, ``jax.jit(f).lower`` or ``jax.eval_shape``.

    Args:
      tree: any pytree with thunks, arrays or ``ShapeDtypeStruct`` among its leaves.
      sharding: as for ``materialize``; each struct has the sharding that its array would get. With
        ``None``, the struct of a thunk has the sharding that ``materialize`` would give it, and
        that of an array has the array's own. A mesh may be without devices here: an
        ``AbstractMesh``, or text such as ``"data=4,model=8"``.

    Returns:
      The tree, in the same containers. Leaves that have no shape are unchanged.

    Raises:
      ShardingError: a sharding does not fit a leaf.

    Example:
      >>> import jax, flax.linen as nn, lazyinit as li
      >>> x = jax.ShapeDtypeStruct((1, 4), "float32")
      >>> tree = li.lazy(nn.Dense(3)).init(jax.random.key(0), x)
      >>> li.abstract(tree)["params"]["kernel"]
      ShapeDtypeStruct(shape=(4, 3), dtype=float32)
    """
    leaves = tree_paths.leaves_with_paths(tree)
    everything = [True] * len(leaves)
    placements = shardings.resolve(sharding, tree, leaves, everything, needs_devices=False)
    structs = [
        _struct(leaf, placement_of(leaf) if placement is None else placement)
        for (_, leaf), placement in zip(leaves, placements, strict=True)
    ]
    return tree_paths.replace_leaves(tree, structs)


def _struct(leaf: Any, sharding: jax.sharding.Sharding | None) -> Any:
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        return leaf
    weak_type = bool(getattr(leaf, "weak_type", False))
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    dtype = leaf.dtype if is_key else jnp.dtype(leaf.dtype)
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding, weak_type=weak_type)
