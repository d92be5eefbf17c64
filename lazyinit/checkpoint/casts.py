"""What a cast may change: the width of a number, never its kind."""

import jax.numpy as jnp
import numpy as np


def same_kind(one: np.dtype, other: np.dtype) -> bool:
    """Tells whether two dtypes are of one kind: float, integer, complex, or the very same.

    >>> same_kind(np.dtype("float32"), np.dtype("float16"))
    True
    >>> same_kind(np.dtype("float32"), np.dtype("int32"))
    False
    """
    return _kind(one) == _kind(other)


def _kind(dtype: np.dtype) -> object:
    kinds = (np.floating, np.integer, np.complexfloating)
    return next((kind for kind in kinds if jnp.issubdtype(dtype, kind)), dtype)
