"""The Threefry-2x32 hash: JAX's default PRNG, where each random number is a function of its index.

Written over whatever has ``+ ^ << >>`` for uint32: NumPy arrays, to fold a number into a key
without a compiled program, and traced arrays, to draw any part of an array by itself.

Source: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011),
with 20 rounds. How JAX counts: ``jax.random.bits`` under ``jax_threefry_partitionable`` hashes
the flat index of each element, as two words; ``jax.random.fold_in`` hashes ``(0, data)``.
"""

from typing import Any, TypeAlias

import numpy as np

Words: TypeAlias = Any  # uint32 of any shape: np.ndarray, jax.Array, a tracer.

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)  # Skein's constant, under another name in the paper.


def threefry2x32(key: tuple[Words, Words], high: Words, low: Words) -> tuple[Words, Words]:
    """Hashes counters under a key.

    Args:
      key: its two words.
      high: the first word of each counter.
      low: the second.

    Returns:
      The two words of each hash.
    """
    schedule = (key[0], key[1], key[0] ^ key[1] ^ _PARITY)
    x, y = high + schedule[0], low + schedule[1]
    for block in range(5):
        for rotation in _ROTATIONS[block % 2]:
            x = x + y
            y = (y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation))
            y = x ^ y
        x = x + schedule[(block + 1) % 3]
        y = y + schedule[(block + 2) % 3] + np.uint32(block + 1)
    return x, y


def fold_in(words: np.ndarray, data: int) -> np.ndarray:
    """Returns the words of the key that ``jax.random.fold_in`` gives, without JAX.

    Args:
      words: of a threefry key, uint32[2].
      data: a 32-bit number.
    """
    key = words.reshape(2, 1)  # Arrays wrap around silently; NumPy's scalars warn.
    x, y = threefry2x32((key[0], key[1]), np.zeros(1, np.uint32), np.array([data], np.uint32))
    return np.concatenate([x, y])
