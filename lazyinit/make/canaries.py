"""The canaries: initializers that the self-check makes both ways, in the fast one and by replay.

They come from the simplest on, and later ones combine what earlier ones have. So the first canary
with other bits shows which kind of operation is to blame.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.nn import initializers

Init: TypeAlias = Callable[[Any, Sequence[int], Any], Any]  # From a key, a shape and a dtype.

# Shapes that have shown differences: rows that are not a multiple of a vector, what XLA cuts up for
# its threads; vectors alone, short last axes, and what is smaller than a vector.
_FEW = ((3, 67), (400, 513))
_MANY = (*_FEW, (2, 5, 192), (64, 3), ())


_normal = initializers.normal(0.02)


def _scaled(init: Init) -> Init:
    # Variance scaling wants a fan in and a fan out.
    def scaled(key: Any, shape: Sequence[int], dtype: Any) -> Any:
        return init(key, shape if len(shape) > 1 else (2, *(shape or (3,))), dtype)

    return scaled


def _moved(key: Any, shape: Sequence[int], dtype: Any) -> Any:
    x = jax.random.normal(key, shape, dtype)
    return x * 0.3 + 0.7


def _products(key: Any, shape: Sequence[int], dtype: Any) -> Any:
    x = jax.random.uniform(key, shape, dtype)
    return x * 0.3 + x * 0.7 - 0.1


def _exact(key: Any, shape: Sequence[int], dtype: Any) -> Any:
    x = jax.random.uniform(key, shape, dtype)
    x = jnp.where(jnp.abs(x) > 0.5, -x, jnp.maximum(jnp.minimum(x, 0.4), 0.1))
    x = jnp.where(x >= 0.3, jnp.sign(x), jnp.floor(x) + jnp.ceil(x))
    return jnp.where((x < 0.2) | (x <= 0.1), x, jax.lax.round(x)).astype(dtype)


def _roots(key: Any, shape: Sequence[int], dtype: Any) -> Any:
    x = jax.random.uniform(key, shape, dtype) + 1
    return jax.lax.integer_pow(jnp.sqrt(x), 3) / (x + 0.5)


def _rows(key: Any, shape: Sequence[int], dtype: Any) -> Any:
    def row(_: None, key: Any) -> tuple[None, Any]:
        return None, jax.random.normal(key, shape, dtype) * 0.02

    return jax.lax.scan(row, None, jax.random.split(key, 3))[1]


def _vmapped_rows(key: Any, shape: Sequence[int], dtype: Any) -> Any:
    def row(key: Any) -> Any:
        return jax.random.normal(key, shape, dtype) * 0.02

    return jax.vmap(row)(jax.random.split(key, 3))


def _bits(key: Any, shape: Sequence[int], dtype: Any) -> Any:
    return jax.random.bits(key, shape, dtype)


# From the simplest on. A kind is proven by the first canary that has it.
_FLOATS = ("float32", "bfloat16", "float16")
CANARIES: Sequence[tuple[str, Init, Sequence[str]]] = (
    ("bits", _bits, ("uint32", "uint16", "uint8")),
    ("uniform", jax.random.uniform, _FLOATS),
    ("comparisons", _exact, ("float32", "bfloat16")),
    ("normal", _normal, (*_FLOATS, "float64")),
    ("truncated normal", _scaled(initializers.lecun_normal()), _FLOATS),
    ("scaled and moved", _moved, _FLOATS),
    ("sum of products", _products, ("float32",)),
    ("powers and roots", _roots, ("float32",)),
    ("rows of a scan", _rows, ("float32", "bfloat16")),
    ("rows of a vmap", _vmapped_rows, ("float32", "bfloat16")),
)


def shapes_of(init: Init, dtype: str) -> Sequence[tuple[int, ...]]:
    """Returns the shapes in which a canary is made."""
    return _MANY if init is _normal and dtype == "float32" else _FEW
