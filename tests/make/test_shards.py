"""Shards in buffers of our own."""

import math
import warnings

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lazyinit.make.shards import ALIGNMENT, BLOCK, Blocks, Shards, aligned, arrays_of

MESH = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


@pytest.mark.parametrize("spec", [None, P(), P("a"), P("a", "b"), P(None, ("b", "a"))])
def test_shards_make_the_array_that_fills_them(spec):
    sharding = None if spec is None else NamedSharding(MESH, spec)
    whole = np.arange(128.0, dtype=np.float32).reshape(8, 16)
    shards = Shards("w", whole.shape, whole.dtype, sharding, Blocks())
    for at, buffer in shards.allocate().items():
        buffer[...] = whole[tuple(slice(*bounds) for bounds in at)]
    array = shards.array()
    np.testing.assert_array_equal(array, whole)
    assert sharding is None or array.sharding == sharding
    addresses = {s.data.unsafe_buffer_pointer() for s in array.addressable_shards}
    assert addresses == {buffer.ctypes.data for buffer in shards._buffers.values()}  # Taken over.


@pytest.mark.parametrize("spec", [P(), P("a")])
def test_what_devices_have_in_common_is_not_written_to_when_it_is_donated(spec):
    shards = Shards("w", (64, 64), np.dtype("float32"), NamedSharding(MESH, spec), Blocks())
    buffers = shards.allocate()
    for buffer in buffers.values():
        buffer[...] = 1
    made = shards.array()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # That it could not be donated.
        changed = jax.jit(lambda x: x * 2 + 1, donate_argnums=0, out_shardings=made.sharding)(made)
    for shard in changed.addressable_shards:
        np.testing.assert_array_equal(shard.data, 3)
    assert all((buffer == 1).all() for buffer in buffers.values())


def test_arrays_made_together_are_those_made_one_by_one():
    whole = np.arange(128.0).reshape(8, 16)  # float64, which JAX keeps off by default.
    filled = []
    for spec in (None, P("a"), None):
        sharding = None if spec is None else NamedSharding(MESH, spec)
        filled.append(Shards("w", whole.shape, whole.dtype, sharding, Blocks()))
        for at, buffer in filled[-1].allocate().items():
            buffer[...] = whole[tuple(slice(*bounds) for bounds in at)] + len(filled)
    made = arrays_of(filled)
    for n, array in enumerate(made):
        assert array.dtype == np.float64
        np.testing.assert_array_equal(array, whole + n + 1)
    assert [a.committed for a in made] == [False, True, False]
    addresses = [a.unsafe_buffer_pointer() for a in (made[0], made[2])]
    assert addresses == [filled[n].whole().ctypes.data for n in (0, 2)]  # Taken over.


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


def test_a_tiny_array_between_others_leaves_no_block_half_used():
    blocks, layer = Blocks(), [BLOCK // 4] * 8 + [BLOCK // 16] * 8 + [64]
    made = [blocks.empty((n,), "uint8") for n in layer * 10]
    used = {id(array.base) for array in made}
    assert len(used) == math.ceil(sum(layer) * 10 / BLOCK)


@pytest.mark.parametrize("make", [np.empty, np.zeros])
@pytest.mark.parametrize("pages", [1, 3])
def test_what_large_pages_hold_starts_with_one(make, pages):
    large = 2**21
    starts = [aligned(pages * large, make).ctypes.data for _ in range(4)]
    assert [start % large for start in starts] == [0] * 4
    assert aligned(pages * large + ALIGNMENT, make).ctypes.data % ALIGNMENT == 0
