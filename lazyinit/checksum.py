"""Sums over the elements of an array that come out the same however the array is cut.

Each element is multiplied by a number that only its place decides, and the products are added up
modulo a prime. So each process can add up the blocks of an array that it holds, in any order, and
the sums of all blocks add up to the sum of the array.

The elements are taken as words of 16 bits (of 8, where an element has one byte). The number of a
place is a product of numbers drawn for its index along each axis: one for ``index // 256``, one for
``index % 256``, and one for the word within the element. That makes the sum a polynomial in the
numbers drawn, linear in each. By the lemma of Schwartz and Zippel, two given arrays of one shape
that differ have the same sum for at most a share ``(2 * ndim + 1) / PRIME`` of all draws. There are
``COLUMNS`` sums, each with its own draw: for arrays of up to seven axes that is less than
``2**-120``. The draws are fixed and public (SHAKE-128), so this holds against accidents, such as
another seed, a stale file or a flipped bit, not against somebody who builds two arrays on purpose.

A sum of at most ``2**13`` products of a word and a number below ``2**24`` is exact in a float64, in
any order: so the long sums are products of matrices.
"""

import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np

PRIME = 2**24 - 3
COLUMNS = 6

_BLOCK = 256  # Indices along an axis in one run: a place is its run and its index within the run.
_EXACT = 2**13  # The most products that are added up in one float64.
_WIDE = 256  # Words of a row of the matrix; shorter rows are joined along the next axis.
_PIECE = 2**17  # The most elements that are summed at a time: as float64 they fit into a cache.
# The most multiplications in one product of matrices. For more, OpenBLAS starts threads, which spin
# and wait for each other while other threads need the cores.
_PRODUCT = 2**18


def sums(values: np.ndarray, start: Sequence[int]) -> np.ndarray:
    """Returns the sums of a block of an array, int64[COLUMNS], each below ``PRIME``.

    Args:
      values: the block, of numbers or booleans.
      start: the index in the array of the block's first element, along each axis.
    """
    total = np.zeros(COLUMNS, np.int64)
    for index in cuts(values.shape, start, _PIECE):
        at = [first + cut.start for first, cut in zip(start, index, strict=True)]
        total += _piece(values[index], at)
    return total % PRIME


def cuts(shape: Sequence[int], start: Sequence[int], most: int) -> Iterator[tuple[slice, ...]]:
    """Yields indices that cut a block into pieces.

    Along each axis, a piece is made of whole runs of 256 indices, or lies within one run.

    Args:
      shape: the shape of the block.
      start: the index in the array of the block's first element, along each axis.
      most: the most elements in a piece, 1 or more.
    """
    of_axes: list[list[slice]] = []
    for first, size in zip(reversed(start), reversed(shape), strict=True):
        of_axes.append(list(_cuts_along(first, first + size, max(1, most))))
        most //= max((cut.stop - cut.start for cut in of_axes[-1]), default=1)
    return itertools.product(*reversed(of_axes))


def _cuts_along(start: int, stop: int, most: int) -> Iterator[slice]:
    """Cuts a range of indices into whole runs of 256, and parts of one such run."""
    at = start
    while at < stop:
        in_run = at % _BLOCK
        if in_run == 0 and most >= _BLOCK and stop - at >= _BLOCK:
            end = at + min(most, stop - at) // _BLOCK * _BLOCK
        else:
            end = min(stop, at - in_run + _BLOCK, at + most)
        yield slice(at - start, end - start)
        at = end


def _piece(values: np.ndarray, start: Sequence[int]) -> np.ndarray:
    """Returns the sums of one of the pieces that ``cuts`` makes, int64[COLUMNS]."""
    words = _words(values)
    weights: list[np.ndarray] = []  # [indices, COLUMNS] per axis; an axis of several runs has two.
    for axis, (first, size) in enumerate(zip(start, values.shape, strict=True)):
        run, place = divmod(first, _BLOCK)
        runs = _drawn(f"runs of axis {axis}", run, max(1, size // _BLOCK))
        inside = _drawn(f"axis {axis}", place, min(size, _BLOCK))
        weights += [runs, inside] if len(runs) > 1 else [inside * runs % PRIME]
    weights.append(_drawn("words", 0, words.shape[-1]))

    wide = weights.pop()
    while weights and len(wide) < _WIDE and len(wide) * len(weights[-1]) <= _EXACT:
        wide = (weights.pop()[:, None] * wide % PRIME).reshape(-1, COLUMNS)
    rows = words.reshape(-1, len(wide))
    factors = wide.astype(np.float64)
    added = np.empty((len(rows), COLUMNS))
    step = max(1, _PRODUCT // (len(wide) * COLUMNS))
    for n in range(0, len(rows), step):
        np.matmul(rows[n : n + step].astype(np.float64), factors, out=added[n : n + step])
    total = added.astype(np.int64) % PRIME
    for weight in reversed(weights):
        total = total.reshape(-1, len(weight), COLUMNS)
        total = (total * weight % PRIME).sum(1) % PRIME
    return total.reshape(COLUMNS)


def _words(values: np.ndarray) -> np.ndarray:
    """Returns the bits of the elements as words along one more axis, the lowest word first."""
    size = values.dtype.itemsize
    values = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).reshape(*values.shape, 1)
    if size > 1:
        return values.view("<u2")
    words = values.view(np.uint8)
    bits = _bits(values.dtype)
    # NumPy keeps an int4, for example, in a byte whose other bits may hold anything.
    return words if bits == 8 else words & np.uint8(2**bits - 1)


def _bits(dtype: np.dtype) -> int:
    if np.issubdtype(dtype, np.bool_):
        return 8
    return (jnp.iinfo if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo)(dtype).bits


def _drawn(what: str, start: int, count: int) -> np.ndarray:
    """Returns the numbers drawn for ``count`` indices: int64[count, COLUMNS], below ``PRIME``."""
    blocks = range(start // _BLOCK, -(-(start + count) // _BLOCK))
    drawn = [_drawn_block(what, block) for block in blocks]
    whole = drawn[0] if len(drawn) == 1 else np.concatenate(drawn)
    first = start % _BLOCK
    return whole[first : first + count]


@functools.lru_cache(maxsize=512)  # 12 KiB each.
def _drawn_block(what: str, block: int) -> np.ndarray:
    seed = hashlib.shake_128(f"lazyinit digest 1: {what}, block {block}".encode())
    words = np.frombuffer(seed.digest(_BLOCK * COLUMNS * 4), "<u4").astype(np.int64)
    return (words % PRIME).reshape(_BLOCK, COLUMNS)
