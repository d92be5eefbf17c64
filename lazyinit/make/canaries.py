"""The canaries: functions that the self-check makes in two ways, the fast one and replay.

The simplest come first, and later ones combine the operations of earlier ones. So the first canary
with other bits shows which kind of operation is to blame.

Nearly all of the time goes to compiling what replay runs: one program for each equation, dtype and
shape. So a canary has no more shapes and dtypes than can tell something. The fast way draws by a
program that knows no shape, so a shape matters where it may change the bits of eager JAX: in what
is compiled as one (the body of a ``jit`` or a ``scan``), and in what has no IEEE rounding
(``erf_inv``). An equation with one rounding, compiled alone, has the same bits in any shape. XLA
computes the 16-bit operations of a body in float32, whose canaries have all shapes. On an
accelerator, whole leaves are compiled as one, so each canary has the shapes ``FEW`` there, too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.nn import initializers

Init: TypeAlias = Callable[[Any, Sequence[int], Any], Any]  # From a key, a shape and a dtype.
Function: TypeAlias = Callable[[Any], Any]  # From an array to a tree of arrays.


@dataclass(frozen=True, slots=True)
class Canary:
    """One function, with the dtypes and shapes that it is tried on.

    Attributes:
      name: what it tries, for messages.
      function: an ``Init``; in ``CANARIES_BY_PARTS``, a ``Function``.
      dtypes: of the array that it makes or takes; it is tried with each.
      shapes: of the array that it makes or takes.
    """

    name: str
    function: Any  # Init or Function: the list decides.
    dtypes: Sequence[str]
    shapes: Sequence[tuple[int, ...]]


# Shapes that have shown differences: one that XLA cuts up for its threads, whose rows are no
# multiple of a vector; the same with few rows; one of whole vectors; one with a short last axis;
# one smaller than a vector. (The last two are never drawn, and stand here for what is compiled.)
_ONE = ((400, 513),)
FEW = ((3, 67), *_ONE)
_MANY = (*FEW, (2, 5, 192), (64, 3), ())


_normal = initializers.normal(0.02)


def _scaled(init: Init) -> Init:
    # Variance scaling needs two dimensions, for its fan-in and fan-out.
    def scaled(key: Any, shape: Sequence[int], dtype: Any) -> Any:
        return init(key, shape if len(shape) > 1 else (2, *(shape or (3,))), dtype)

    return scaled


_truncated = _scaled(initializers.lecun_normal())


def _small(key: Any, shape: Sequence[int], dtype: Any) -> Any:
    return jax.random.normal(key, shape, dtype) * 0.02


def _moved(key: Any, shape: Sequence[int], dtype: Any) -> Any:
    x = jax.random.normal(key, shape, dtype)
    return x * 0.3 + 0.7


def _products(key: Any, shape: Sequence[int], dtype: Any) -> Any:
    x = jax.random.uniform(key, shape, dtype)
    return x * 0.3 + x * 0.7 - 0.1


def _exact(key: Any, shape: Sequence[int], dtype: Any) -> Any:
    """Returns elements that each show the bits of one operation, so that no other hides them."""
    x = jax.random.uniform(key, shape, dtype)
    y = x * 16
    n = jnp.floor(y)
    x = jnp.maximum(jnp.minimum(x, 0.7), 0.3)
    x = jnp.where(n > 9, -x, x)
    x = jnp.where(n >= 12, jnp.abs(x), x)
    x = jnp.where(n >= 13, jnp.ceil(y), x)
    x = jnp.where(n >= 14, jax.lax.round(y), x)
    x = jnp.where(n <= 3, n, x)
    return jnp.where((n < 2) | (n > 14), jnp.sign(-x), x)


def _roots(key: Any, shape: Sequence[int], dtype: Any) -> Any:
    x = jax.random.uniform(key, shape, dtype) + 1
    return jax.lax.integer_pow(jnp.sqrt(x), 3) / (x + 0.5)


def _rows(init: Init) -> Init:
    def rows(key: Any, shape: Sequence[int], dtype: Any) -> Any:
        def row(_: None, key: Any) -> tuple[None, Any]:
            return None, init(key, shape, dtype)

        return jax.lax.scan(row, None, jax.random.split(key, 3))[1]

    return rows


def _moved_rows(key: Any, shape: Sequence[int], dtype: Any) -> Any:
    return jnp.moveaxis(_rows(_small)(key, shape, dtype), 0, 1)


def _vmapped_rows(key: Any, shape: Sequence[int], dtype: Any) -> Any:
    return jax.vmap(lambda key: _small(key, shape, dtype))(jax.random.split(key, 3))


def _bits(key: Any, shape: Sequence[int], dtype: Any) -> Any:
    return jax.random.bits(key, shape, dtype)


# The simplest come first. A kind is proven by the first canary that has it.
_HALVES = ("bfloat16", "float16")
CANARIES: Sequence[Canary] = (
    Canary("bits", _bits, ("uint32", "uint16", "uint8"), _ONE),
    Canary("uniform", jax.random.uniform, ("float32", *_HALVES), _ONE),  # "normal" runs it, too.
    Canary("comparisons", _exact, ("float32", "bfloat16"), _ONE),
    Canary("normal", _normal, ("float32",), _MANY),
    Canary("normal", _normal, (*_HALVES, "float64"), _ONE),
    Canary("powers and roots", _roots, ("float32", *_HALVES), _ONE),
    Canary("truncated normal", _truncated, ("float32",), FEW),
    Canary("truncated normal", _truncated, _HALVES, _ONE),
    Canary("scaled and moved", _moved, ("float32",), FEW),
    Canary("scaled and moved", _moved, _HALVES, _ONE),
    Canary("sum of products", _products, ("float32",), _ONE),
    Canary("rows of a scan", _rows(_small), ("float32",), FEW),
    Canary("rows of a scan", _rows(_truncated), ("bfloat16",), _ONE),  # Computes scalars, too.
    # Rows of these are made as in the two above, or by the equations of "scaled and moved".
    Canary("rows of a vmap", _vmapped_rows, ("float32",), _ONE),
    Canary("rows of a scan in a scan", _rows(_moved_rows), ("float32",), _ONE),
    Canary("rows of a vmap in a scan", _rows(_vmapped_rows), ("float32",), _ONE),
)


# Canaries that are computed by parts, from an array of two dimensions. An equation that several of
# them have in one dtype and shape is compiled once.


def _cast(x: Any) -> Any:
    return [x.astype(d) for d in ("float32", "bfloat16", "float16", "float8_e4m3fn", "int32")]


def _counted(x: Any) -> Any:
    return [x.astype("int32").astype(x.dtype), jnp.arange(x.shape[1]).astype(x.dtype)]


def _arithmetic(x: Any) -> Any:
    y = jnp.abs(x)
    return [x + y, x - y, x * y, -x, x**3, jnp.square(x), jnp.sqrt(y), x * 0.3]


def _divided(x: Any) -> Any:
    # The divisors are a literal, parts of the input, an array of equal values, a literal again.
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
    scale = jnp.max(jnp.abs(x).reshape(x.shape[0], -1, 2), axis=2, keepdims=True) / 127
    scale = jnp.where(scale == 0, 1, scale)
    whole = jnp.round(x.reshape(x.shape[0], -1, 2) / scale)
    return [scale, jnp.clip(whole, -128, 127).astype("int8").reshape(x.shape)]


PLACES = 4
"""How many parts these are cut into, along the first axis: each part has one row."""
_ROWS = ((PLACES, 134),)
_WIDE = ("float32", "bfloat16")
_FLOATS = (*_WIDE, "float16")
CANARIES_BY_PARTS: Sequence[Canary] = (
    Canary("casts", _cast, _FLOATS, _ROWS),
    Canary("numbers", _counted, _WIDE, _ROWS),
    Canary("arithmetic", _arithmetic, _FLOATS, _ROWS),
    Canary("comparisons", _compared, _WIDE, _ROWS),
    Canary("rounding", _rounded, _WIDE, _ROWS),
    Canary("reductions", _reduced, _WIDE, _ROWS),
    Canary("quotients", _divided, _FLOATS, _ROWS),
    Canary("quantized", _quantized, ("float32",), _ROWS),  # With 16 bits, it is computed whole.
)
