"""PRNG keys in a checkpoint: their words, with the name of their implementation.

No format has a type for keys. A key is written as ``jax.random.key_data`` gives it, uint32 words
along a last axis. Its name, as in ``dropout.rngs.key.key_data.threefry2x32``, is that of the leaf,
then ``key_data``, then that of the implementation.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lazyinit import compat
from lazyinit.sources import Index, Shape, Source
from lazyinit.tensors.base import OfOne

KEY_DATA = "key_data"


def is_typed_key(leaf: Any) -> bool:
    """Tells whether a leaf (an array or a thunk) holds typed PRNG keys."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def implementation(dtype: Any) -> str:
    """Returns the name of the implementation of a dtype of keys: ``"threefry2x32"``."""
    return compat.key_impl(dtype)


def words(dtype: Any) -> int:
    """Returns how many words of uint32 a key of this dtype has."""
    return jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct((), dtype)).shape[-1]


@dataclass(frozen=True, slots=True, repr=False)
class KeyData(OfOne):
    """A ``Source`` of keys; ``read`` returns their words, with one axis more than the keys have.

    Attributes:
      source: the source of the words, uint32[..., words].
      dtype: JAX's dtype of the keys.
    """

    source: Source
    dtype: Any  # NumPy has no dtype of keys.

    @property
    def shape(self) -> Shape:
        """The shape of the keys."""
        return tuple(self.source.shape[:-1])

    def read(self, index: Index) -> np.ndarray:
        """Returns the words of the keys at ``index``."""
        return self.source.read((*index, slice(None)))

    def keys(self) -> jax.Array:
        """Returns the keys, on the default device."""
        data = np.ascontiguousarray(self.read((slice(None),) * len(self.shape)))
        return jax.random.wrap_key_data(jnp.asarray(data), impl=implementation(self.dtype))

    def __repr__(self) -> str:
        return repr(self.source)
