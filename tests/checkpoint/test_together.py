"""Two real processes on loopback save one sharded tree: the first writes, both read."""

import jax
import numpy as np
import pytest
from models import Decoder
from processes import two_processes
from safetensors.numpy import load_file

PROGRAM = """
folder, how = args
import lazyinit as li
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
error, steps = "", []
try:
    li.save(tree, folder, rules=li.TORCH, max_shard_size=3000, progress=steps.append)
except li.errors.WriteError as caught:
    error = str(caught)
done = [[last.done_bytes, last.total_bytes] for last in steps[-1:]]
say({"spread": spread, "error": error, "grown": grown, "progress": done})
"""


@pytest.mark.slow
def test_what_two_processes_hold_is_in_the_files_of_one(tmp_path):
    reports = two_processes(PROGRAM, str(tmp_path), "both work")
    assert all(report["spread"] > 0 and not report["error"] for report in reports)
    eager = Decoder(layers=2).init(jax.random.key(0), np.ones((1, 4), np.int32))
    total = sum(x.nbytes for x in jax.tree.leaves(eager))
    # Who writes tells of it.
    assert [report["progress"] for report in reports] == [[[total, total]], []]
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
def test_an_error_of_the_first_process_reaches_the_second(tmp_path):
    first, second = two_processes(PROGRAM, str(tmp_path), "one process fails")
    assert "file: it could not be written: File exists" in first["error"]
    assert "wanted the first process to write the checkpoint, but it" in second["error"]
