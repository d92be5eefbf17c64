"""Casts values to another dtype, with the bits of NumPy's own casts.

A value that a dtype cannot hold would wrap, or become infinite. That is an error unless it is asked
for: a cast may round a value, but do nothing else to it. Only casts that could do more are checked,
so one from bfloat16 to float32 costs as much as in NumPy.
"""

import functools

import jax.numpy as jnp
import numpy as np

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}  # By size in bytes.
_SIGNED = {2: np.int16, 4: np.int32}
_BUILT_IN, _FOREIGN = 1, 2  # What numpy.dtype.isbuiltin is for NumPy's dtypes and for others.


class Overflow(Exception):
    """A cast met a value that the dtype cannot hold; a caller that knows the tensor names it."""

    def __init__(self, value: np.generic, made: np.generic) -> None:
        """Takes the value, and what the cast made of it."""
        super().__init__(f"{value} ({value.dtype}) would become {made} ({made.dtype})")
        self.value, self.made = value, made


def cast_into(to: np.ndarray, values: np.ndarray, *, overflow: bool = False) -> None:
    """Writes values to an array of the same shape, cast to its dtype. It is safe in any thread.

    Args:
      to: the array to write to.
      values: the values to cast.
      overflow: whether a value that the dtype cannot hold may wrap or become infinite.

    Raises:
      Overflow: a value would, and may not. ``to`` then holds the results of the cast all the same.
    """
    if to.dtype == values.dtype:
        # Copied as integers, since NumPy copies bfloat16 a sixth slower where axes are reordered.
        np.copyto(_bits(to), _bits(values))
        return
    if is_by_table(values.dtype):
        np.copyto(_bits(to), np.take(_table(values.dtype, to.dtype), _bits(values), mode="clip"))
    else:
        _cast(to, values)
    if not overflow and may_overflow(values.dtype, to.dtype) and not _is_all_finite(to):
        with np.errstate(over="ignore", invalid="ignore"):
            lost = _lost(values, to)
        if lost.any():
            raise Overflow(values[lost][0], to[lost][0])


def is_by_table(dtype: np.dtype) -> bool:
    """Tells whether values of a dtype are cast by looking them up: 8-bit floats and their like.

    It is 8 times faster than the casts of ``ml_dtypes``, and takes temporary memory.
    """
    return dtype.itemsize == 1 and dtype.isbuiltin != _BUILT_IN


@functools.lru_cache(maxsize=1024)
def may_overflow(dtype: np.dtype, to: np.dtype) -> bool:
    """Tells whether a dtype has values to which a cast does more than to round them.

    >>> may_overflow(np.dtype("float32"), jnp.dtype("bfloat16"))
    True
    >>> may_overflow(jnp.dtype("bfloat16"), np.dtype("float32"))
    False
    """
    if bool in (dtype, to):
        return False
    if is_by_table(dtype):
        values = np.arange(256, dtype=np.uint8).view(dtype)
    elif jnp.issubdtype(dtype, jnp.integer):
        values = np.array([0, np.iinfo(dtype).min, np.iinfo(dtype).max], dtype)
    else:  # Rounding keeps order: if a dtype holds these values, it holds all between them.
        largest = jnp.finfo(dtype).max
        values = np.array([0, -largest, largest, -np.inf, np.inf, np.nan], dtype)
    made = np.empty_like(values, to)
    _cast(made, values)
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(_lost(values, made).any())


def _lost(values: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Tells for each value whether a cast has done more to it than to round it."""
    dtype = made.dtype
    if np.iscomplexobj(values):
        parts = [np.real(values), np.imag(values)][: 2 if np.iscomplexobj(made) else 1]
        return functools.reduce(np.logical_or, (_lost(p, _like(p, made)) for p in parts))
    if np.iscomplexobj(made):
        return _lost(values, np.real(made))
    values = _wide(values)
    if jnp.issubdtype(dtype, jnp.integer):
        info = jnp.iinfo(dtype)
        low, high = int(info.min), int(info.max)
        if values.dtype.kind == "f":  # A value may lose its fraction.
            whole = np.trunc(values)
            return ~((whole >= float(low)) & (whole < float(high + 1)))
        return (values < low) | (values > high)
    if limit := _saturates_at(dtype):
        return ~(np.abs(values) <= limit)
    made = _wide(made)
    if values.dtype.kind != "f":
        return ~np.isfinite(made)
    return (np.isinf(values) != np.isinf(made)) | (np.isnan(values) != np.isnan(made))


def _like(part: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Casts the real or the imaginary part of complex values as ``made`` was cast."""
    cast = np.empty_like(part, np.real(made).dtype)
    _cast(cast, part)
    return cast


def _wide(values: np.ndarray) -> np.ndarray:
    """Returns values in a dtype of NumPy's own that holds each of them."""
    if values.dtype.isbuiltin != _FOREIGN:  # It is 0 for dtypes of another byte order.
        return values
    is_whole = jnp.issubdtype(values.dtype, jnp.integer)
    return values.astype(np.int16 if is_whole else np.float32)


@functools.lru_cache(maxsize=64)
def _saturates_at(dtype: np.dtype) -> float:
    """Returns the largest value that is rounded to the largest of a dtype without infinity and NaN.

    Any value beyond it becomes that largest one, too. For other dtypes it returns zero.
    """
    made = np.empty(3, dtype)
    _cast(made, np.array([np.inf, -np.inf, np.nan], np.float32))
    if not np.isfinite(_wide(made)).all():
        return 0.0
    largest = float(jnp.finfo(dtype).max)
    every = np.unique(_wide(np.arange(256, dtype=np.uint8).view(dtype)))
    return largest + (largest - float(every[every < largest].max())) / 2


def _is_all_finite(values: np.ndarray) -> bool:
    """Tells fast whether all values are finite floats of 16 or 32 bits, or there are none."""
    infinite = _infinite(values.dtype)
    if not values.size or infinite is None:
        return not values.size
    # As integers, floats of one sign are in the order of their sizes: those that are not finite
    # come last. Read as unsigned, the negative ones come after the positive ones.
    bits = _bits(values)
    signed = bits.view(_SIGNED[values.dtype.itemsize])
    return bool(signed.max() < infinite[0] and bits.max() < infinite[1])


@functools.lru_cache(maxsize=64)
def _infinite(dtype: np.dtype) -> tuple[int, int] | None:
    """Returns the bits of both infinities; ``None`` unless a dtype is 16 or 32 bits of float."""
    if dtype.itemsize not in _SIGNED or not jnp.issubdtype(dtype, jnp.floating):
        return None
    positive, negative = _bits(np.array([np.inf, -np.inf], dtype))
    return int(positive), int(negative)


def _bits(values: np.ndarray) -> np.ndarray:
    unsigned = _UNSIGNED.get(values.dtype.itemsize)
    return values if unsigned is None else values.view(unsigned)


@functools.lru_cache(maxsize=64)
def _table(dtype: np.dtype, to: np.dtype) -> np.ndarray:
    """Returns the bits that each of the 256 values of a one-byte dtype has after a cast."""
    table = np.empty(256, to)
    _cast(table, np.arange(256, dtype=np.uint8).view(dtype))
    return _bits(table)


def _cast(to: np.ndarray, values: np.ndarray) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        try:
            np.copyto(to, values, casting="unsafe")
        except TypeError:  # ml_dtypes has no cast between some of its dtypes, as uint4 and int4.
            np.copyto(to, _wide(values), casting="unsafe")
