"""Real processes that read what several of them hold, each a part, and pass it on to each other."""

import ml_dtypes
import numpy as np
import pytest
from processes import in_processes
from safetensors.numpy import save_file

PROGRAM = """
import lazyinit as li
import shares
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from lazyinit.tensors.mapped import MappedTensor
from lazyinit.make import spread

kind, folder = args
spread.LEAST = 0
mesh = jax.make_mesh(
    (2, jax.device_count() // 2), ("x", "y"), axis_types=(getattr(AxisType, kind),) * 2
)
specs = {"halves": P("x"), "quarters": P(None, "y")}
place = lambda path, leaf: NamedSharding(mesh, specs.get(path, P()))
opened = li.open_checkpoint(folder)
tree, _ = li.fill({n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in opened.items()}, folder)

read = shares.counting(MappedTensor)

def load(broadcast):
    read[0] = 0
    return li.materialize(tree, sharding=place, broadcast=broadcast), read[0]

def facts(array):
    held = [(str(s.device), str(s.index), np.asarray(s.data).tobytes().hex())
            for s in array.addressable_shards]
    return array.aval, array.sharding, held

(alone, whole), (shared, part) = load(False), load(True)
planned = [
    sum(li.plan(tree, place, broadcast=broadcast).reads[rank].values())
    for broadcast in (False, True)
]

def failing(self, index):
    raise li.errors.CheckpointError("the disk is gone")

if rank == 1:
    MappedTensor.read = failing
try:
    error = str(load(True))
except li.LazyinitError as raised:
    error = f"{type(raised).__name__}: {raised}"
say({
    "whole": whole, "part": part, "planned": planned, "error": error,
    "differ": [n for n in alone if facts(alone[n]) != facts(shared[n])],
})
"""


@pytest.mark.slow
@pytest.mark.parametrize(("count", "kind"), [(2, "Auto"), (2, "Explicit"), (4, "Explicit")])
def test_each_byte_is_read_by_one_process_and_all_have_the_bits_of_the_file(tmp_path, count, kind):
    bits = np.random.default_rng(0).integers(0, 256, 64 * 64 * 4, np.uint8)
    tensors = {
        # Every pattern of bits: XLA has no way to pass on most NaNs but as integers.
        "bfloat16": np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16).reshape(256, 256),
        "halves": bits.view(np.float32).reshape(64, 64),
        "quarters": bits.view(np.int8).reshape(64, 256),
        "odd": bits[: 4 * 9 * 63].view(np.float32).reshape(9, 63),
        "scalar": np.ones((), np.float16),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    reports = in_processes(count, PROGRAM, kind, str(tmp_path), devices=8 // count)

    size = sum(x.nbytes for x in tensors.values())
    for report in reports:
        assert report["differ"] == []
        assert report["planned"] == pytest.approx([report["whole"], report["part"]], rel=0.02)
    halved = ("halves",) if count == 2 else ("halves", "quarters")  # Of what is in a process.
    own = size - sum(tensors[name].nbytes // 2 for name in halved)
    assert [report["whole"] for report in reports] == [own] * count
    total = sum(report["part"] for report in reports)
    assert size <= total <= 1.01 * size
    assert max(report["part"] for report in reports) <= 1.05 * size / count

    # One that cannot read tells the others, before anybody waits in a collective.
    errors = [report["error"] for report in reports]
    assert errors.pop(1) == "CheckpointError: the disk is gone"
    told = "HostAbsentError: process 1: materialize failed there: CheckpointError: the disk is gone"
    assert errors == [told] * (count - 1)
