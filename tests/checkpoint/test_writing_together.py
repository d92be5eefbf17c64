"""Two real processes on loopback save one sharded tree: the first writes, both read."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from models import Decoder
from safetensors.numpy import load_file
from test_distributed import free_port

PROGRAM = """
import json, sys
import jax, numpy as np
rank, port, folder, how = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank)
import lazyinit as li
from lazyinit.checkpoint import pieces
from models import Decoder
mesh = jax.make_mesh((2, 4), ("x", "y"))
sharding = li.shard_fsdp(mesh, ("x", "y"), min_size=1)
ids = jax.ShapeDtypeStruct((1, 4), "int32")
tree = li.lazy(Decoder(layers=2)).init(jax.random.key(0), ids)
grown = max((x.shape, p) for p, x in li.paths.leaves_with_paths(tree) if x.ndim == 2)[1]
rows = np.ones((3, dict(li.paths.leaves_with_paths(tree))[grown].shape[1]), np.float32)
tree, _ = li.fill(tree, {grown: rows}, on_mismatch=li.overlap)
tree = li.materialize(tree, sharding=sharding)
spread = sum(not x.is_fully_addressable for x in jax.tree.leaves(tree))
if how == "one process fails":
    if rank == 0:
        open(folder + "/file", "w").close()
    folder += "/file"
error = ""
try:
    li.save(tree, folder, rules=li.TORCH, max_shard_size=3000)
except li.errors.WriteError as caught:
    error = str(caught)
report = {"spread": spread, "error": error, "grown": grown}
open(sys.argv[5], "w").write(json.dumps(report))  # Gloo writes to stdout.
"""


def run(folder, how, request, tmp_path_factory):
    port = free_port()
    here = str(request.config.rootpath / "tests")
    reports = [tmp_path_factory.mktemp("report") / "report.json" for _ in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), port, str(folder), how, str(report)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=here,
            text=True,
        )
        for rank, report in enumerate(reports)
    ]
    errors = [p.communicate(timeout=240)[1] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], errors[0][-2000:] + errors[1][-2000:]
    return [json.loads(report.read_text()) for report in reports]


@pytest.mark.slow
def test_what_two_processes_hold_is_in_the_files_of_one(tmp_path, request, tmp_path_factory):
    reports = run(tmp_path, "both work", request, tmp_path_factory)
    assert all(report["spread"] > 0 and not report["error"] for report in reports)
    eager = Decoder(layers=2).init(jax.random.key(0), np.ones((1, 4), np.int32))
    official = {}
    for path in tmp_path.glob("*.safetensors"):
        official |= load_file(path)
    kernels = [
        (jax.tree_util.keystr(p[1:], simple=True, separator="."), np.asarray(x))
        for p, x in jax.tree_util.tree_leaves_with_path(eager)
    ]
    assert len(official) == len(kernels)
    (grown,) = {report["grown"].partition("/")[2].replace("/", ".") for report in reports}
    kernels = [(name, np.array(x)) for name, x in kernels]
    dict(kernels)[grown][:3] = 1
    for name, want in kernels:
        if name.endswith(".kernel") and want.ndim == 2:
            got = official[name.removesuffix("kernel") + "weight"]
            np.testing.assert_array_equal(got, want.T, strict=True)
    assert (tmp_path / "model.safetensors.index.json").exists()


@pytest.mark.slow
def test_an_error_of_the_first_process_reaches_the_second(tmp_path, request, tmp_path_factory):
    first, second = run(tmp_path, "one process fails", request, tmp_path_factory)
    assert "file: it could not be written: File exists" in first["error"]
    assert "the first process could not write the checkpoint" in second["error"]
