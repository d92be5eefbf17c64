"""Our Threefry against JAX's own."""

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from lazyinit.make.threefry import fold_in, threefry2x32

WORDS = st.integers(0, 2**32 - 1)


@hypothesis.given(WORDS, WORDS, WORDS)
def test_folding_a_number_in_gives_the_key_of_jax(first, second, data):
    words = np.array([first, second], np.uint32)
    key = jax.random.fold_in(jax.random.wrap_key_data(words), np.uint32(data))
    np.testing.assert_array_equal(fold_in(words, data), jax.random.key_data(key))


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_bits_follow_from_the_index(size):
    key = jax.random.key(5)
    words = np.asarray(jax.random.key_data(key))
    first, second = threefry2x32(
        (words[0], words[1]), np.zeros(size, np.uint32), np.arange(size, dtype=np.uint32)
    )
    np.testing.assert_array_equal(first ^ second, jax.random.bits(key, (size,)))


def test_the_hash_is_that_of_the_random123_library():
    # kat_vectors of Random123: threefry2x32, 20 rounds.
    for counter, key, wanted in [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ]:
        high, low = (np.array([x], np.uint32) for x in counter)
        found = threefry2x32((np.uint32(key[0]), np.uint32(key[1])), high, low)
        assert tuple(int(x[0]) for x in found) == wanted
