"""An array on any mesh is read piece by piece, from whichever devices hold it."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lazyinit.tensors.arrays import DeviceArray, _cut


def mesh(**options):
    return jax.make_mesh((2, 4), ("x", "y"), **options)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [(), ("x",), (None, "y"), (("x", "y"),), ("y", "x")])
def test_a_piece_is_gathered_from_the_shards_that_hold_it(spec, axis_type):
    want = np.arange(16 * 8, dtype=np.float32).reshape(16, 8)
    sharding = NamedSharding(mesh(axis_types=(axis_type,) * 2), PartitionSpec(*spec))
    source = DeviceArray("x", jax.device_put(want, sharding))
    for index in [(slice(0, 16), slice(0, 8)), (slice(3, 4), slice(1, 7)), (slice(7, 9), slice(None))]:  # fmt: skip
        np.testing.assert_array_equal(source.read(index), want[index])
    assert not source.is_spread
    assert (source.names, source.origin, source.extents) == (("x",), "the tree", ())
    assert repr(source) == "the tree:x"


def test_an_array_at_two_places_is_one_source():
    array = jax.numpy.ones(3)
    assert len({DeviceArray("a", array), DeviceArray("b", array)}) == 1
    assert DeviceArray("a", array) != DeviceArray("a", array + 1)
    DeviceArray("a", array).check()


def test_a_piece_is_cut_on_a_device_that_is_not_the_host():
    array = jax.numpy.arange(20.0).reshape(4, 5)
    got = _cut(array, [np.int32(1), np.int32(2)], (2, 3))
    np.testing.assert_array_equal(got, np.arange(20.0).reshape(4, 5)[1:3, 2:5])
