"""Shards in buffers of our own."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lazyinit.making.buffers import Blocks
from lazyinit.making.shards import Shards

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
    addresses = [s.data.unsafe_buffer_pointer() for s in array.addressable_shards]
    assert len(set(addresses)) == len(addresses)
