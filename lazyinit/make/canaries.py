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
Function: TypeAlias = Callable[[Any], Any]  # Of an array, to a tree of arrays.

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


def _scanned(rows: Init) -> Init:
    def scanned(key: Any, shape: Sequence[int], dtype: Any) -> Any:
        def step(_: None, key: Any) -> tuple[None, Any]:
            return None, rows(key, shape, dtype)

        return jax.lax.scan(step, None, jax.random.split(key, 2))[1]

    return scanned


def _bits(key: Any, shape: Sequence[int], dtype: Any) -> Any:
    return jax.random.bits(key, shape, dtype)


# From the simplest on. A kind is proven by the first canary that has it.
_WIDE = ("float32", "bfloat16")
_FLOATS = (*_WIDE, "float16")
CANARIES: Sequence[tuple[str, Init, Sequence[str]]] = (
    ("bits", _bits, ("uint32", "uint16", "uint8")),
    ("uniform", jax.random.uniform, _FLOATS),
    ("comparisons", _exact, _WIDE),
    ("normal", _normal, (*_FLOATS, "float64")),
    ("truncated normal", _scaled(initializers.lecun_normal()), _FLOATS),
    ("scaled and moved", _moved, _FLOATS),
    ("sum of products", _products, ("float32",)),
    ("powers and roots", _roots, ("float32",)),
    ("rows of a scan", _rows, _WIDE),
    ("rows of a vmap", _vmapped_rows, _WIDE),
    ("rows of a scan in a scan", _scanned(_rows), ("float32",)),
    ("rows of a vmap in a scan", _scanned(_vmapped_rows), ("float32",)),
)


# What is computed by parts, of an array of two dimensions.


def _cast(x: Any) -> Any:
    return [x.astype(d) for d in ("float32", "bfloat16", "float16", "float8_e4m3fn", "int32")]


def _counted(x: Any) -> Any:
    return [x.astype("int32").astype(x.dtype), jnp.arange(x.shape[1]).astype(x.dtype)]


def _arithmetic(x: Any) -> Any:
    y = jnp.abs(x)
    return [x + y, x - y, x * y, -x, x**2, x**3, jnp.square(x), jnp.sqrt(y), x * 0.3, x + 0.7]


def _divided(x: Any) -> Any:
    # By what a program repeats, by what comes in, and by what is computed of either.
    return [x / 3, x / x[:1], x / x[:, :1], x / jnp.full(x.shape, 3, x.dtype), x % 3]


def _compared(x: Any) -> Any:
    y = jnp.abs(x)
    told = [x > y, x >= y, x < y, x <= y, x == y, x != y, jnp.isfinite(x)]
    return [*told, jnp.clip(x, -1, 1), jnp.maximum(x, y), jnp.minimum(x, y), jnp.where(x < y, x, y)]


def _rounded(x: Any) -> Any:
    return [jnp.round(x), jnp.floor(x), jnp.ceil(x), jnp.sign(x)]


def _reduced(x: Any) -> Any:
    rows = jnp.abs(x).reshape(x.shape[0], -1, 2)
    return [rows.max(2), rows.min(2), rows.argmax(2), rows.argmin(2), rows.sum(2, dtype="int32")]


def _quantized(x: Any) -> Any:
    scale = jnp.max(jnp.abs(x.reshape(x.shape[0], -1, 2)), axis=2, keepdims=True) / 127
    scale = jnp.where(scale == 0, 1, scale)
    whole = jnp.round(x.reshape(x.shape[0], -1, 2) / scale)
    return [scale, jnp.clip(whole, -128, 127).astype("int8").reshape(x.shape)]


CANARIES_BY_PARTS: Sequence[tuple[str, Function, Sequence[str]]] = (
    ("casts", _cast, _FLOATS),
    ("numbers", _counted, _WIDE),
    ("arithmetic", _arithmetic, _FLOATS),
    ("comparisons", _compared, _WIDE),
    ("rounding", _rounded, _WIDE),
    ("reductions", _reduced, _WIDE),
    ("quotients", _divided, _FLOATS),
    ("quantized", _quantized, _FLOATS),
)

PLACES = 4
"""Devices over which these are cut along the first axis, so that each has one row."""
SHAPE_BY_PARTS = (PLACES, 134)


def shapes_of(init: Init, dtype: str) -> Sequence[tuple[int, ...]]:
    """Returns the shapes in which a canary is made."""
    return _MANY if init is _normal and dtype == "float32" else _FEW
