"""Two real processes on loopback, four devices each, one mesh over both."""

import jax
import numpy as np
import pytest
from models import Decoder
from processes import two_processes
from safetensors.numpy import save_file

PROGRAM = """
import lazyinit as li
from models import Decoder
mesh = jax.make_mesh((2, 4), ("x", "y"))
sharding = li.shard_fsdp(mesh, ("x", "y"), min_size=1)
ids = jax.ShapeDtypeStruct((1, 4), "int32")
tree = li.lazy(Decoder(layers=2)).init(jax.random.key(0), ids)
tree, report = li.fill(tree, args[0])
steps = []
made = li.materialize(tree, sharding=sharding, progress=steps.append)
held = {}
for keys, array in jax.tree_util.tree_leaves_with_path(made):
    name = jax.tree_util.keystr(keys, simple=True, separator="/")
    held[name] = [
        (str(shard.index), np.asarray(shard.data).tobytes().hex())
        for shard in array.addressable_shards
    ]
last = [steps[-1].done_bytes, steps[-1].total_bytes]
say({"loaded": report.loaded, "held": held, "progress": last})
"""


@pytest.mark.slow
def test_each_process_makes_and_reads_its_own_shards_of_the_same_arrays(tmp_path):
    eager = Decoder(layers=2).init(jax.random.key(0), np.ones((1, 4), np.int32))
    leaves = {
        jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x)
        for p, x in jax.tree_util.tree_leaves_with_path(eager)
    }
    stored = next(name for name, x in leaves.items() if x.ndim == 2)
    values = np.random.default_rng(0).random(leaves[stored].shape, dtype=np.float32)
    path = tmp_path / "one.safetensors"
    save_file({stored: values}, path)
    reports = two_processes(PROGRAM, str(path))
    # Each process tells of the whole tree, of which it makes its own part.
    total = sum(x.nbytes for x in leaves.values())
    assert [report["progress"] for report in reports] == [[total, total]] * 2
    for name, want in (leaves | {stored: values}).items():
        seen = np.zeros(want.shape, bool)
        for report in reports:
            assert report["loaded"] == [stored]
            assert len(report["held"][name]) == 4
            for index, data in report["held"][name]:
                index = eval(index, {"slice": slice})
                part = np.frombuffer(bytes.fromhex(data), want.dtype)
                np.testing.assert_array_equal(part, want[index].ravel())
                seen[index] = True
        assert seen.all(), name
