"""Keeps JAX from casting a scalar constant by NumPy while it traces, where XLA has other bits.

``make_jaxpr`` casts scalar constants at once, by NumPy, and from the precision in which Python
holds them. Eager JAX rounds a constant to its type first, and XLA casts it. The two differ where a
float goes to an integer or a bool (-1.7 is 255 or 0 as uint8, a subnormal is true or false), in a
NaN, and where a number is rounded once or twice (1.00048828135 as float16).

Drop when ``jax.make_jaxpr`` can be told not to fold constants.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import core


def cast_by_xla(x: Any, dtype: np.dtype) -> Any:
    """Returns what stands for ``x`` where it is cast, so that the result has the bits of XLA.

    Args:
      x: an array, a Python number, or a tracer of the trace that ``make_jaxpr`` began.
      dtype: what it is cast to.

    Returns:
      An array of no dimensions, of the type of ``x``, if ``x`` is a constant that NumPy casts
      otherwise than XLA may; else ``x`` itself.
    """
    constant = x.get_const() if isinstance(x, core.Tracer) else x
    if constant is None or isinstance(constant, jax.Array) or np.ndim(constant):
        return x
    aval = core.typeof(x)
    if not jnp.issubdtype(aval.dtype, jnp.inexact):
        return x
    with np.errstate(all="ignore"):
        value = np.asarray(constant, aval.dtype)
        if _is_cast_alike(value, dtype) and _bits(constant, dtype) == _bits(value, dtype):
            return x
    with core.set_current_trace(core.eval_trace):  # While it binds a primitive, JAX has no trace.
        return jnp.asarray(value)


def _is_cast_alike(value: np.ndarray, dtype: np.dtype) -> bool:
    """Tells whether NumPy casts a number as XLA does: between floats, or if it loses nothing."""
    if jnp.issubdtype(dtype, jnp.inexact):
        return bool(value == value)  # No NaN.
    real = np.real(value)
    return bool(real.astype(dtype).astype(real.dtype) == real)


def _bits(constant: Any, dtype: np.dtype) -> bytes:
    array = np.asarray(constant)
    is_real = jnp.issubdtype(array.dtype, np.complexfloating) and not jnp.issubdtype(
        dtype, np.complexfloating
    )
    return (np.real(array) if is_real else array).astype(dtype).tobytes()
