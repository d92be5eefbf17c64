"""Casts: values in another dtype, with the bits that NumPy's own casts give.

What a dtype cannot hold would wrap, or become infinite. That is refused unless it is asked for: a
value that is cast is rounded, and no more than that. Only the casts that can lose more are looked
at, so that one from bfloat16 to float32 costs what it always did.
"""

import functools

import jax.numpy as jnp
import numpy as np

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}  # By bytes.
_SIGNED = {2: np.int16, 4: np.int32}
_BUILT_IN, _FOREIGN = 1, 2  # What numpy.dtype.isbuiltin is for NumPy's dtypes and for others.


class Overflow(Exception):
    """A value that the dtype it was cast to cannot hold; whoever knows its tensor says which."""

    def __init__(self, value: np.generic, made: np.generic) -> None:
        """Takes the value, and what the cast made of it."""
        super().__init__(f"{value} ({value.dtype}) would become {made} ({made.dtype})")
        self.value, self.made = value, made


def cast_into(to: np.ndarray, values: np.ndarray, *, overflow: bool = False) -> None:
    """Writes values to an array of the same shape, cast to its dtype. For any thread.

    Args:
      to: what to write to.
      values: what to read.
      overflow: whether a value that the dtype cannot hold may wrap or become infinite.

    Raises:
      Overflow: one would. ``to`` then holds what the cast makes of them.
    """
    if to.dtype == values.dtype:
        # NumPy's own integers: it copies bfloat16 a sixth slower where the axes are reordered.
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
    """Tells whether a dtype has values of which a cast makes more than a rounded one.

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
    else:  # Rounding keeps order, so what lies between these is held if they are.
        largest = jnp.finfo(dtype).max
        values = np.array([0, -largest, largest, -np.inf, np.inf, np.nan], dtype)
    made = np.empty_like(values, to)
    _cast(made, values)
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(_lost(values, made).any())


def _lost(values: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Tells of each value whether a cast has made more of it than a rounded one."""
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
        if values.dtype.kind == "f":  # What has a fraction loses that alone.
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
    """Returns values in a dtype of NumPy's own, which holds each of them."""
    if values.dtype.isbuiltin != _FOREIGN:  # Of a reversed byte order it is none of both.
        return values
    is_whole = jnp.issubdtype(values.dtype, jnp.integer)
    return values.astype(np.int16 if is_whole else np.float32)


@functools.lru_cache(maxsize=64)
def _saturates_at(dtype: np.dtype) -> float:
    """Returns the largest value that is rounded to the last of a dtype without infinity or NaN.

    All that is larger becomes that last one, too. Of any other dtype it returns zero.
    """
    made = np.empty(3, dtype)
    _cast(made, np.array([np.inf, -np.inf, np.nan], np.float32))
    if not np.isfinite(_wide(made)).all():
        return 0.0
    largest = float(jnp.finfo(dtype).max)
    every = np.unique(_wide(np.arange(256, dtype=np.uint8).view(dtype)))
    return largest + (largest - float(every[every < largest].max())) / 2


def _is_all_finite(values: np.ndarray) -> bool:
    """Tells whether floats of 16 or 32 bits are all finite, fast; ``False`` of any others."""
    infinite = _infinite(values.dtype)
    if not values.size or infinite is None:
        return not values.size
    # The bits of floats are in the order of their sizes: what is not finite comes last, the
    # negative ones after the positive ones if they are read as unsigned.
    bits = _bits(values)
    signed = bits.view(_SIGNED[values.dtype.itemsize])
    return bool(signed.max() < infinite[0] and bits.max() < infinite[1])


@functools.lru_cache(maxsize=64)
def _infinite(dtype: np.dtype) -> tuple[int, int] | None:
    """Returns the bits of both infinities; ``None`` if these are no floats of 16 or 32 bits."""
    if dtype.itemsize not in _SIGNED or not jnp.issubdtype(dtype, jnp.floating):
        return None
    positive, negative = _bits(np.array([np.inf, -np.inf], dtype))
    return int(positive), int(negative)


def _bits(values: np.ndarray) -> np.ndarray:
    unsigned = _UNSIGNED.get(values.dtype.itemsize)
    return values if unsigned is None else values.view(unsigned)


@functools.lru_cache(maxsize=64)
def _table(dtype: np.dtype, to: np.dtype) -> np.ndarray:
    """Returns the bits, after a cast, of each of the values that a dtype of one byte has."""
    table = np.empty(256, to)
    _cast(table, np.arange(256, dtype=np.uint8).view(dtype))
    return _bits(table)


def _cast(to: np.ndarray, values: np.ndarray) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        try:
            np.copyto(to, values, casting="unsafe")
        except TypeError:  # ml_dtypes has no cast between some of its dtypes, as uint4 and int4.
            np.copyto(to, _wide(values), casting="unsafe")
