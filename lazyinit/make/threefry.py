"""The Threefry-2x32 hash: JAX's default PRNG, where each random number is a function of its index.

It is written here twice. For traced arrays, it draws any part of an array without the rest. For
Python's integers, it folds a number into a key without a compiled program.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011),
with 20 rounds. The counters are those of JAX: ``jax.random.bits`` under
``jax_threefry_partitionable`` hashes the flat index of each element, as two words, and
``jax.random.fold_in`` hashes ``(0, data)``.
"""

from typing import Any

import numpy as np
from jax import lax

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_MASK = 0xFFFFFFFF
_PARITY = np.uint32(0x1BD11BDA)  # Skein's constant, under another name in the paper.


def threefry2x32(key: tuple[Any, Any], high: Any, low: Any) -> tuple[Any, Any]:
    """Hashes counters under a key.

    Args:
      key: the two words of the key, uint32[]; or of one key for each row, uint32[m].
      high: the first word of each counter, uint32[m,...].
      low: the second word of each counter, of the same shape.

    Returns:
      The two words of each hash, of the same shape.
    """
    # Calls of jax.lax are traced in a fifth of the time that the operators of arrays take.
    schedule = (key[0], key[1], lax.bitwise_xor(lax.bitwise_xor(key[0], key[1]), _PARITY))

    def injected(x: Any, word: Any) -> Any:
        return lax.add(x, lax.broadcast_in_dim(word, high.shape, range(np.ndim(word))))

    x, y = injected(high, schedule[0]), injected(low, schedule[1])
    for block in range(5):
        for rotation in _ROTATIONS[block % 2]:
            x = lax.add(x, y)
            left = lax.shift_left(y, np.uint32(rotation))
            right = lax.shift_right_logical(y, np.uint32(32 - rotation))
            y = lax.bitwise_xor(x, lax.bitwise_or(left, right))
        x = injected(x, schedule[(block + 1) % 3])
        y = injected(y, lax.add(schedule[(block + 2) % 3], np.uint32(block + 1)))
    return x, y


def fold_in(words: np.ndarray, data: int) -> np.ndarray:
    """Returns the words of the key that ``jax.random.fold_in`` returns, without calling JAX.

    Args:
      words: the words of a Threefry key, uint32[2].
      data: a 32-bit number.
    """
    # For one key, Python's integers are 15 times faster than arrays of one element.
    schedule = (int(words[0]), int(words[1]), int(words[0] ^ words[1] ^ _PARITY))
    x, y = schedule[0], data + schedule[1] & _MASK
    for block in range(5):
        for rotation in _ROTATIONS[block % 2]:
            x = x + y & _MASK
            y = x ^ (y << rotation & _MASK | y >> 32 - rotation)
        x = x + schedule[(block + 1) % 3] & _MASK
        y = y + schedule[(block + 2) % 3] + block + 1 & _MASK
    return np.array([x, y], np.uint32)
