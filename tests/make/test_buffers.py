"""Buffers that JAX on CPU takes over."""

import jax
import ml_dtypes
import numpy as np
import pytest

from lazyinit.make.buffers import BLOCK, Blocks


@pytest.mark.parametrize("make", [Blocks().empty, Blocks().zeros])
@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (129, 65)])
def test_a_buffer_is_taken_as_it_is(make, shape):
    buffer = make(shape, ml_dtypes.bfloat16)
    assert buffer.shape == shape
    assert buffer.dtype == ml_dtypes.bfloat16
    if buffer.size > 1:
        assert jax.device_put(buffer).unsafe_buffer_pointer() == buffer.ctypes.data


def test_zeros_are_zero():
    assert not np.any(Blocks().zeros((1000,), "int32"))


def test_arrays_do_not_overlap():
    blocks = Blocks()
    sizes = [1, 63, 64, 65, 4096, BLOCK // 2, BLOCK // 2 - 64, BLOCK + 1, 1000]
    made = [blocks.empty((n,), "uint8") for n in sizes]
    for n, array in enumerate(made):
        array[:] = n
    assert all(np.all(array == n) for n, array in enumerate(made))


def test_small_arrays_share_a_block():
    blocks = Blocks()
    first, second = (blocks.empty((100,), "uint8") for _ in range(2))
    assert second.ctypes.data - first.ctypes.data == 128
