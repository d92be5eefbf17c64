"""Two real processes on loopback, four devices each, one mesh over both."""

import json
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from models import Decoder
from safetensors.numpy import save_file

PROGRAM = """
import json, sys
import jax, numpy as np
rank, port, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank)
import lazyinit as li
from models import Decoder
mesh = jax.make_mesh((2, 4), ("x", "y"))
sharding = li.shard_fsdp(mesh, ("x", "y"), min_size=1)
ids = jax.ShapeDtypeStruct((1, 4), "int32")
tree = li.lazy(Decoder(layers=2)).init(jax.random.key(0), ids)
tree, report = li.fill(tree, path)
made = li.materialize(tree, sharding=sharding)
held = {}
for keys, array in jax.tree_util.tree_leaves_with_path(made):
    name = jax.tree_util.keystr(keys, simple=True, separator="/")
    held[name] = [
        (str(shard.index), np.asarray(shard.data).tobytes().hex())
        for shard in array.addressable_shards
    ]
print(json.dumps({"loaded": report.loaded, "held": held}))
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


@pytest.mark.slow
def test_each_process_makes_and_reads_its_own_shards_of_the_same_arrays(tmp_path, request):
    eager = Decoder(layers=2).init(jax.random.key(0), np.ones((1, 4), np.int32))
    leaves = {
        jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x)
        for p, x in jax.tree_util.tree_leaves_with_path(eager)
    }
    stored = next(name for name, x in leaves.items() if x.ndim == 2)
    values = np.random.default_rng(0).random(leaves[stored].shape, dtype=np.float32)
    path = tmp_path / "one.safetensors"
    save_file({stored: values}, path)
    port = free_port()
    here = str(request.config.rootpath / "tests")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), port, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=here,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [p.communicate(timeout=240) for p in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs[0][1][-2000:]
    reports = [json.loads(out.splitlines()[-1]) for out, _ in outputs]
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
