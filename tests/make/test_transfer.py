"""Loading onto devices that are no CPU, with CPU devices that say they are none: no other is here.

JAX on CPU takes host memory as the array itself. Where a test needs a device that copies,
``copying`` makes ``jax.device_put`` do so.
"""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from processes import two_processes
from safetensors.numpy import save_file

import lazyinit as li
from lazyinit import sharding as shardings
from lazyinit.make import read, transfer
from lazyinit.make.transfer import Host, Transfer
from lazyinit.make.ways import Job

MESH = jax.make_mesh((2, 4), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
SPECS = [None, P(), P("x"), P(None, "y"), P("y", "x"), P(("x", "y"))]


@pytest.fixture(autouse=True)
def pretending(monkeypatch):
    monkeypatch.setattr(shardings, "platform_of", lambda _: "gpu")


@pytest.fixture
def copying(monkeypatch):
    real = jax.device_put

    def put(values, *args):
        return real(jax.tree.map(np.array, values), *args)

    monkeypatch.setattr(jax, "device_put", put)
    monkeypatch.setattr(transfer, "_copies", lambda device, kind: True)


class Source:
    """A source in memory that notes what is read."""

    def __init__(self, values, fails_at=None):
        self.values, self.shape, self.dtype = values, values.shape, values.dtype
        self.sizes, self.fails_at = [], fails_at
        self.lock = threading.Lock()

    def read(self, index):
        with self.lock:
            self.sizes.append(self.values[index].size)
            if len(self.sizes) == self.fails_at:
                raise li.errors.CheckpointError("it has changed")
        return self.values[index]

    def check(self):
        pass


def place(spec):
    return None if spec is None else NamedSharding(MESH, spec)


def random(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def job(values, spec, dtype=None, **kwargs):
    source = Source(values, **kwargs)
    leaf = li.StoredParam(values.shape, values.dtype, source)
    return Job("w", leaf, place(spec), np.dtype(dtype or values.dtype))


def transferred(job, host=None, threads=2):
    with ThreadPoolExecutor(threads) as pool:
        one = Transfer(job, host or Host())
        for task in one.start(pool):
            task.result()
        return one.array()


def assert_placed(array, values, sharding):
    assert array.dtype == values.dtype
    np.testing.assert_array_equal(np.asarray(array), values)
    if sharding is not None:
        assert array.sharding == sharding
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), values[shard.index])


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("limit", [2**29, 4096, 64])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_each_device_gets_its_own_part_whatever_the_bound(monkeypatch, copying, spec, limit, dtype):
    monkeypatch.setattr(transfer, "HOST_BYTES", limit)
    monkeypatch.setattr(read, "PIECE", 3000)
    values = random(64, 24)
    host = Host()
    for _ in range(2):  # In the same blocks.
        array = transferred(job(values, spec, dtype), host, threads=4)
        assert_placed(array, values.astype(dtype), place(spec))
    assert host._used == 0


@pytest.mark.parametrize("shape", [(), (0, 8), (8, 0), (1,)])
@pytest.mark.parametrize("spec", [None, P()])
def test_leaves_of_no_and_of_one_element_arrive(shape, spec):
    values = random(*shape)
    assert_placed(transferred(job(np.asarray(values), spec)), values, place(spec))


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.bool_, ml_dtypes.float8_e4m3fn])
def test_every_dtype_arrives_as_it_is(dtype):
    values = random(8, 8).astype(dtype)  # 64 bits too, which JAX keeps off by default.
    for spec in (None, P("x")):
        assert_placed(transferred(job(values, spec)), values, place(spec))


def test_a_leaf_for_the_default_device_of_the_caller_is_not_committed_to_it():
    with jax.default_device(jax.devices()[3]):
        array = transferred(job(random(8), None))
    assert array.device == jax.devices()[3]
    assert not array.committed


def test_a_memory_kind_is_kept():
    one = job(random(8, 8), P())
    sharding = NamedSharding(MESH, P("x"), memory_kind="pinned_host")
    array = transferred(Job("w", one.leaf, sharding, one.dtype))
    assert array.sharding == sharding
    assert {s.data.sharding.memory_kind for s in array.addressable_shards} == {"pinned_host"}


@pytest.mark.parametrize("spec", SPECS)
def test_what_several_devices_hold_is_read_once(monkeypatch, spec):
    monkeypatch.setattr(read, "PIECE", 512)
    one = job(random(64, 24), spec)
    transferred(one)
    assert sum(one.leaf.source.sizes) == 64 * 24


def test_blocks_are_filled_again_and_never_more_than_the_bound(monkeypatch, copying):
    monkeypatch.setattr(transfer, "HOST_BYTES", 4 * 8192)
    made, alive, host = [], [], Host()
    real = transfer.aligned

    def aligned(size):
        made.append(size)
        return real(size)

    def noted(piece, buffers):
        alive.append(host.alive)
        return real_read(piece, buffers)

    real_read = read.Piece.read_into
    monkeypatch.setattr(transfer, "aligned", aligned)
    monkeypatch.setattr(read.Piece, "read_into", noted)
    with ThreadPoolExecutor(8) as pool:
        many = [Transfer(job(random(64, 32, seed=n), P()), host) for n in range(20)]
        for task in [t for one in many for t in one.start(pool)]:
            task.result()
    for n, one in enumerate(many):
        np.testing.assert_array_equal(one.array(), random(64, 32, seed=n))
    assert len(made) <= 4
    assert max(alive) <= 4 * 8192
    assert host.alive == sum(made)


def test_a_shard_that_is_larger_than_the_bound_has_all_room_for_itself(monkeypatch, copying):
    monkeypatch.setattr(transfer, "HOST_BYTES", 4096)
    host = Host()
    small = host.take(1024)
    taken = []
    waiting = threading.Thread(target=lambda: taken.append(host.take(8192)))
    waiting.start()
    waiting.join(0.05)
    assert not taken
    host.give(small, again=True)
    waiting.join(60)
    assert host.alive == 8192  # What was kept is gone.
    host.give(taken[0], again=True)
    assert host.take(1024).size == 1024  # Not the large one: it would stay alive for little.


def test_a_block_that_jax_took_over_is_not_filled_again():
    host = Host()
    arrays = [transferred(job(random(64, 32, seed=n), P()), host) for n in range(4)]
    assert host.alive == 0
    for n, array in enumerate(arrays):
        np.testing.assert_array_equal(array, random(64, 32, seed=n))


@pytest.mark.parametrize(
    ("platform", "kind", "wanted"),
    [
        ("gpu", None, True),
        ("gpu", "device", True),
        ("tpu", "device", True),
        ("gpu", "pinned_host", False),
        ("cpu", None, False),
        ("METAL", None, False),  # One memory for both.
    ],
)
def test_only_devices_with_memory_of_their_own_copy(platform, kind, wanted):
    memory = SimpleNamespace(kind="device")
    device = SimpleNamespace(platform=platform, default_memory=lambda: memory)
    assert transfer._copies(device, kind) is wanted


def test_a_device_gets_one_copy_at_a_time_and_others_meanwhile(monkeypatch, copying):
    busy, most = dict.fromkeys(jax.devices(), 0), []
    real, lock = jax.device_put, threading.Lock()
    both = threading.Barrier(2)  # Two devices at once, or else this breaks.

    def put(values, places):
        devices = [next(iter(p.device_set)) for p in places]
        with lock:
            for d in devices:
                busy[d] += 1
            most.append(max(busy.values()))
        both.wait(timeout=60)
        made = real(values, places)
        with lock:
            for d in devices:
                busy[d] -= 1
        return made

    monkeypatch.setattr(jax, "device_put", put)
    host, jobs = Host(), []
    for n in range(8):
        one = job(random(8, 8, seed=n), P())
        place = SingleDeviceSharding(jax.devices()[n % 2])
        jobs.append(Job("w", one.leaf, place, one.dtype))
    with ThreadPoolExecutor(8) as pool:
        many = [Transfer(one, host) for one in jobs]
        for task in [t for one in many for t in one.start(pool)]:
            task.result()
    assert len(most) == 8
    assert max(most) == 1


def test_the_next_batch_is_read_while_one_is_copied(monkeypatch, copying):
    monkeypatch.setattr(transfer, "HOST_BYTES", 4096)
    real, one = jax.device_put, job(random(16, 128), P(("x", "y")))  # Four batches of 2 KiB.
    reads = one.leaf.source.sizes
    seen, moved = [], threading.Event()

    def noted(piece, buffers):
        real_read(piece, buffers)
        if len(reads) > 1:
            moved.set()

    def put(values, places):
        if not seen:
            assert moved.wait(timeout=60)  # Another read has ended during the copy.
        seen.append(len(values))
        return real(values, places)

    real_read = read.Piece.read_into
    monkeypatch.setattr(read.Piece, "read_into", noted)
    monkeypatch.setattr(jax, "device_put", put)
    assert_placed(transferred(one), one.leaf.source.values, one.sharding)
    assert seen == [2, 2, 2, 2]


@pytest.mark.parametrize("fails_at", [1, 3])
def test_an_error_of_the_file_is_raised_once_and_leaves_the_blocks_free(
    monkeypatch, copying, fails_at
):
    monkeypatch.setattr(read, "PIECE", 1024)
    monkeypatch.setattr(transfer, "HOST_BYTES", 2**13)
    host, one = Host(), job(random(64, 32), P("x"), fails_at=fails_at)
    with ThreadPoolExecutor(4) as pool:
        tasks = Transfer(one, host).start(pool)
    found = [task.exception() for task in tasks]
    assert [type(e) for e in found if e] == [li.errors.CheckpointError]
    assert host._used == 0
    assert_placed(transferred(job(random(8), None), host), random(8), None)


def test_an_error_of_the_file_is_that_of_materialize(monkeypatch):
    monkeypatch.setattr(read, "PIECE", 1024)
    good, bad = job(random(64, 32), P()).leaf, job(random(64, 32), P(), fails_at=3).leaf
    with pytest.raises(li.errors.CheckpointError, match="it has changed"):
        li.materialize({"a": good, "b": bad, "c": good}, sharding=place(P("x")))


def test_an_error_of_the_device_is_raised_and_the_block_is_not_filled_again(monkeypatch):
    monkeypatch.setattr(transfer, "_copies", lambda device, kind: True)
    host = Host()

    def full(*args):
        raise RuntimeError("RESOURCE_EXHAUSTED")

    monkeypatch.setattr(jax, "device_put", full)
    with pytest.raises(RuntimeError, match="EXHAUSTED"):
        transferred(job(random(8), None), host)
    assert host.alive == 0


def test_too_little_host_memory_is_said_with_the_path(monkeypatch):
    def none(size):
        raise MemoryError("no room")

    monkeypatch.setattr(transfer, "aligned", none)
    host = Host()
    wanted = r"w: wanted host memory for 256 bytes of float32\[8,8\], got none: no room\. Cut"
    with pytest.raises(MemoryError, match=wanted):
        transferred(job(random(8, 8), None), host)
    assert host.alive == 0


def test_a_tree_of_many_leaves_is_read_onto_several_devices(tmp_path, monkeypatch, copying):
    monkeypatch.setattr(read, "PIECE", 2048)
    monkeypatch.setattr(transfer, "HOST_BYTES", 2**14)
    specs = itertools.cycle(SPECS)
    values = {f"w{n}": random(64, 8 * (n % 5 + 1), seed=n) for n in range(30)}
    save_file(values, tmp_path / "model.safetensors")
    leaves = {n: li.LazyParam(v.shape, v.dtype, lambda key: None) for n, v in values.items()}
    tree, _ = li.fill(leaves, tmp_path / "model.safetensors")
    placed = {name: place(next(specs)) for name in values}
    made = li.materialize(tree, sharding=placed)
    for name, array in made.items():
        assert_placed(array, values[name], placed[name])


PROGRAM = """
from test_transfer import Source, np, li, shardings, random
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
shardings.platform_of = lambda _: "gpu"
theirs = NamedSharding(Mesh(np.array(jax.devices()[4:6]), ("x",)), P("x"))
leaf = li.StoredParam((4, 4), np.dtype("float32"), source := Source(random(4, 4)))
made = li.materialize({"w": leaf}, sharding=theirs)["w"]
held = {str(s.index[0]): np.asarray(s.data).tolist() for s in made.addressable_shards}
say([made.shape, str(made.dtype), held, sum(source.sizes)])
"""


def test_a_process_without_a_shard_gets_an_array_without_one():
    none, all_of_it = two_processes(PROGRAM)
    assert none == [[4, 4], "float32", {}, 0]
    assert all_of_it[3] == 16
    values = random(4, 4)
    assert all_of_it[2] == {
        "slice(0, 2, None)": values[:2].tolist(),
        "slice(2, 4, None)": values[2:].tolist(),
    }
