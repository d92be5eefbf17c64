"""The memory of replays, measured in a process of its own."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax
from measure import Measured
import lazyinit as li

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

def model(key, count=8, side=2048):
    init = jax.nn.initializers.orthogonal()
    return {f"w{n}": init(jax.random.fold_in(key, n), (side, side)) for n in range(count)}

shard = li.shard_fsdp(jax.make_mesh((8,), ("x",)), "x", min_size=1)
jax.block_until_ready(li.materialize(li.lazy(lambda key: model(key, 1))(jax.random.key(0)), sharding=shard))
tree = li.lazy(model)(jax.random.key(1))
planned = li.plan(tree, shard)
steady = planned.bytes_per_device
beside = max(planned.peak_bytes_per_device[d] - steady[d] for d in steady)
measured = Measured()
with measured:
    made = jax.block_until_ready(li.materialize(tree, sharding=shard))
print(measured.peak_bytes, sum(steady.values()) + beside, measured.peak_was_reset)
"""


@pytest.mark.slow
def test_orthogonal_leaves_take_no_more_than_is_planned():
    # What threads of LAPACK and XLA hold at the moment of the peak differs from run to run, by up
    # to 60 MB, and only ever adds: it is enough that one of three runs keeps to the plan. With what
    # is freed never given back, ten runs took 253 to 370 MB; as it is, 186 to 243.
    found = []
    for _ in range(3):
        peak, planned = _peak_and_planned()
        found.append(peak)
        # What is freed is given back after each 16 MiB of leaves.
        if peak <= 1.1 * planned + 2**24:
            return
    pytest.fail(f"planned {planned} bytes, got {found}")


def _peak_and_planned() -> tuple[int, int]:
    path = ":".join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    peak, planned, was_reset = done.stdout.split()
    if was_reset == "False":
        pytest.skip("the kernel does not reset the peak of a process's memory")
    return int(peak), int(planned)
