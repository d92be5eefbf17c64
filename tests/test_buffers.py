"""Buffers that JAX on CPU takes over."""

import jax
import ml_dtypes
import numpy as np
import pytest

from lazyinit.buffers import aligned_empty, aligned_zeros


@pytest.mark.parametrize("make", [aligned_empty, aligned_zeros])
@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (129, 65)])
def test_a_buffer_is_taken_as_it_is(make, shape):
    buffer = make(shape, ml_dtypes.bfloat16)
    assert buffer.shape == shape
    assert buffer.dtype == ml_dtypes.bfloat16
    if buffer.size > 1:
        assert jax.device_put(buffer).unsafe_buffer_pointer() == buffer.ctypes.data


def test_zeros_are_zero():
    assert not np.any(aligned_zeros((1000,), "int32"))
