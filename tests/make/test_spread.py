"""Which process reads which part of a leaf that several hold: against what each device holds."""

from collections import Counter

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import lazyinit as li
from lazyinit import compat
from lazyinit.abstract_meshes import MeshDevice
from lazyinit.errors import HostsError, WordError
from lazyinit.make import spread as module
from lazyinit.make.ways import Job
from lazyinit.params import StoredParam
from lazyinit.tensors.memory import HeldTensor
from lazyinit.tensors.views import BoxView

GRIDS = [(8, 1), (1, 8), (2, 4), (4, 2)]


@pytest.fixture(scope="module", autouse=True)
def everything_is_large():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LEAST", 0)
        yield


def job_of(shape, sharding, *, dtype="float32", turned=False):
    held = HeldTensor("w", np.zeros(shape[::-1] if turned else shape, dtype))
    axes = tuple(range(len(shape)))
    box = tuple((0, n) for n in held.shape)
    source = BoxView(held, box, axes[::-1]) if turned else held
    return Job("w", StoredParam(shape, np.dtype(dtype), source), sharding, np.dtype(dtype))


def processes_of(hosts):
    return [MeshDevice(n, n * hosts // 8) for n in range(8)]


def holders(sharding, shape, hosts):
    """Returns for each element how many processes hold it."""
    held = {}
    for n, index in enumerate(sharding.devices_indices_map(shape).values()):
        held.setdefault(n * hosts // 8, np.zeros(shape, int))[index] = 1
    return sum(held.values())


@settings(max_examples=60, deadline=None)
@given(
    grid=st.sampled_from(GRIDS),
    hosts=st.sampled_from([2, 4, 8]),
    rows=st.integers(1, 3),
    columns=st.integers(1, 20),
    spec=st.sampled_from([P(), P("a"), P("b"), P(("a", "b")), P(None, None)]),
    is_explicit=st.booleans(),
    turned=st.booleans(),
)
def test_each_element_is_read_by_one_process(grid, hosts, rows, columns, spec, is_explicit, turned):
    kind = AxisType.Explicit if is_explicit else AxisType.Auto
    mesh = jax.make_mesh(grid, ("a", "b"), axis_types=(kind,) * 2)
    shape = (8 * rows, columns)
    sharding = NamedSharding(mesh, spec)
    found = module.spread_of(job_of(shape, sharding, turned=turned), processes_of(hosts))
    held = holders(sharding, shape, hosts)
    if found is None:
        is_cut = any(spec) and shape[0] // 8 * columns < 64  # Then its parts may not divide.
        assert held.max() == 1 or is_cut
        return
    assert held.max() > 1
    rest = tuple(slice(n) for n in shape)
    read = holders(found.sharding, found.leaf.shape, hosts)[rest]
    assert (read == 1).all()
    assert np.prod(found.leaf.shape) < 2 * np.prod(shape)


def test_what_lies_together_in_a_file_is_read_together():
    everywhere = NamedSharding(jax.make_mesh((8,), ("a",)), P())
    for turned, want in ((False, P("a", None)), (True, P(None, "a"))):
        found = module.spread_of(job_of((16, 16), everywhere, turned=turned), processes_of(2))
        assert found.sharding.spec == want


def test_what_does_not_divide_gets_more_rows():
    everywhere = NamedSharding(jax.make_mesh((8,), ("a",)), P())
    found = module.spread_of(job_of((3, 10), everywhere), processes_of(4))
    assert (found.leaf.shape, found.sharding.spec) == ((3, 16), P(None, "a"))
    assert found.leaf.source.shape == (3, 10)


def test_a_few_elements_are_read_by_all():
    mesh = jax.make_mesh((8,), ("a",))
    everywhere = NamedSharding(mesh, P())
    assert module.spread_of(job_of((3,), everywhere), processes_of(2)) is None
    assert module.spread_of(job_of((), everywhere), processes_of(2)) is None
    # A shard of three rows, that all are cut over "a" already.
    halves = NamedSharding(jax.make_mesh((2, 4), ("a", "b")), P("a"))
    assert module.spread_of(job_of((6,), halves), processes_of(4)) is None


def test_what_one_process_holds_is_read_as_it_is():
    here = SingleDeviceSharding(jax.devices()[0])
    everywhere = NamedSharding(jax.make_mesh((8,), ("a",)), P())
    packed = job_of((8, 8), everywhere, dtype=ml_dtypes.int4)
    assert module.spread_of(packed, processes_of(2)) is None
    pinned = everywhere.with_memory_kind("unpinned_host")
    for sharding, hosts in ((None, 2), (here, 2), (everywhere, 1)):
        assert module.spread_of(job_of((8, 8), sharding), processes_of(hosts)) is None
    default = jax.devices()[0].default_memory().kind
    is_default = default == "unpinned_host"
    found = module.spread_of(job_of((8, 8), pinned), processes_of(2))
    assert (found is not None) == is_default


@pytest.mark.parametrize(
    "dtype", ["bfloat16", "float8_e5m2", "float8_e4m3fn", "float16", "bool", "int8"]
)
@pytest.mark.parametrize("shape", [(32, 8), (9, 8)])
def test_a_gathered_leaf_has_all_bits_of_what_was_read(dtype, shape):
    # One process is enough: the program is that of several.
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    everywhere = NamedSharding(jax.make_mesh((8,), ("a",)), P())
    job = job_of(shape, everywhere, dtype=dtype)
    read = module.spread_of(job, processes_of(2))
    words = np.random.default_rng(0).integers(0, 2**16, read.leaf.shape, np.uint16)
    every = words.view(dtype) if dtype.itemsize == 2 else (words >> 8).astype(np.uint8).view(dtype)
    if dtype.name == "bool":
        every = (words % 2).astype(dtype)
    spread = jax.device_put(every, read.sharding)
    met = []
    made = module.gathered([(read, spread)], [(job, read)], lambda: met.append(len(met)))
    ((given_job, array),) = made
    assert (given_job, met) == (job, [0])
    assert array.sharding == everywhere
    assert np.asarray(array).tobytes() == every[: shape[0]].tobytes()
    assert spread.is_deleted()


def test_other_leaves_pass_at_once():
    job = job_of((8,), None)
    others = [(job, jax.numpy.ones(8))]
    assert list(module.gathered(iter(others), [], lambda: None)) == others


def test_cpu_devices_without_a_network_are_named(monkeypatch):
    everywhere = NamedSharding(jax.make_mesh((8,), ("a",)), P())
    job = job_of((8, 8), everywhere)
    monkeypatch.setattr(compat, "setting", lambda name: None)
    module.check_network([])
    with pytest.raises(HostsError, match=r"^w: broadcast=True wants a network between .*=None\. S"):
        module.check_network([(job, job)])


def test_broadcast_is_a_bool():
    with pytest.raises(WordError, match=r"^broadcast: wanted True or False, got 'one'\.$"):
        li.materialize({}, broadcast="one")


def test_one_process_has_nothing_to_pass_on():
    tree, _ = li.fill({"w": jax.ShapeDtypeStruct((8, 8), "float32")}, {"w": np.ones((8, 8), "f")})
    everywhere = NamedSharding(jax.make_mesh((8,), ("a",)), P())
    made = li.materialize(tree, sharding=everywhere, broadcast=True)["w"]
    assert made.sharding == everywhere
    assert Counter(np.asarray(made).ravel().tolist()) == {1.0: 64}
