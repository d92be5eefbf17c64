"""XLA cuts a large loop up for the cores of the machine. Which elements are in a part changes no bit.

XLA takes the number of cores from ``NPROC``, so that two cores pass for many.
"""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import re, sys
import jax, numpy as np
from jax.nn import initializers
import lazyinit as li
from lazyinit.make import proofs

sys.modules["lazyinit._materialize"].proofs_on = lambda _: proofs.TRUSTED
LEAVES = {
    "normal": initializers.normal(0.02),
    "truncated normal": initializers.truncated_normal(0.02),
    "scaled and moved": lambda *args: jax.random.normal(*args) * 0.3 + 0.7,
}
# Few rows are cut within a row, where the remainder of a part is computed without vectors.
SHAPES = [(2, 300_001), (500_003,), (5, 65_537)]
key = jax.random.key(0)
drawn = jax.jit(lambda key: jax.random.normal(key, SHAPES[0])).lower(key).compile().as_text()
print(max(re.findall(r'outer_dimension_partitions":\\["2","(\\d+)"', drawn), default="none"))
for name, init in LEAVES.items():
    for shape in SHAPES:
        for dtype in ("float32", "bfloat16"):
            made = li.materialize(li.lazy(init)(key, shape, dtype))
            if np.asarray(made).tobytes() != np.asarray(init(key, shape, dtype)).tobytes():
                print(name, shape, dtype)
"""


@pytest.mark.slow
def test_on_many_cores_leaves_have_the_bits_of_eager_jax():
    path = ":".join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "NPROC": "48"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    parts, *differ = done.stdout.splitlines()
    assert int(parts) == 24  # Of each of two rows: else the variable has lost its meaning.
    assert differ == []
