"""Several processes and one checkpoint: each reads its own part, and all have the bits of one."""

import jax
import numpy as np
import pytest
import shares
from processes import in_processes
from safetensors.numpy import save_file

import lazyinit as li

PROGRAM = """
import lazyinit as li
import shares
from jax.sharding import AxisType
from lazyinit.tensors.mapped import MappedTensor

kind, folder = args
read = shares.counting(MappedTensor)
mesh = jax.make_mesh(
    (2, jax.device_count() // 2), ("x", "y"), axis_types=(getattr(AxisType, kind),) * 2
)
tree, _ = li.fill(shares.lazy(), folder, shares.RULES)
made = li.materialize(tree, sharding=shares.placed(mesh))
say({"read": read[0], "needed": shares.needed(made), "digest": str(li.digest(made))})
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.parametrize("count", [2, 4])
def test_each_process_reads_what_its_devices_hold_and_all_have_the_bits_of_one(
    tmp_path, count, kind
):
    random = np.random.default_rng(0)

    def tensor(*shape, dtype="float32"):
        return random.standard_normal(shape, dtype="float32").astype(dtype)

    tensors = {f"layers.{n}.weight": tensor(256, 128, dtype=jax.numpy.bfloat16) for n in range(4)}
    tensors |= {"embed": tensor(256, 128, dtype=jax.numpy.bfloat16), "norm": tensor(128)}
    tensors |= {"q.weight": tensor(128, 128), "plain.weight": tensor(128, 256)}
    save_file(tensors, tmp_path / "model.safetensors")

    reports = in_processes(count, PROGRAM, kind, str(tmp_path), devices=8 // count)
    here, _ = li.fill(shares.lazy(), tmp_path, shares.RULES)
    assert {report["digest"] for report in reports} == {str(li.digest(li.materialize(here)))}
    for report in reports:
        assert report["needed"] <= report["read"] <= 1.05 * report["needed"]
