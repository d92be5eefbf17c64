"""A plain function of JAX is recorded where there is no Flax."""

import forked
import pytest

BLOCKED = """
import sys

assert "flax" not in sys.modules  # JAX and lazyinit are imported already.

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "flax":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
"""
RECORDED = """
import jax, jax.numpy as jnp, numpy as np
import lazyinit as li

def init(key, n):
    first, second = jax.random.split(key)
    return {"w": jax.random.normal(first, (4, 70)), "b": jnp.zeros(70) + n, "k": second}

for key in (jax.random.key(3), jax.random.PRNGKey(3)):
    tree = li.lazy(init)(key, np.float32(2))
    assert isinstance(tree["w"], li.LazyParam), tree
    made, want = li.materialize(tree), init(key, np.float32(2))
    for name in ("w", "b"):
        assert made[name].tobytes() == want[name].tobytes(), name
print("recorded", li.plan(tree))
"""
IMPORTED_WITHIN = """
import jax, jax.numpy as jnp, sys
import lazyinit as li

def build(key):
    from flax import nnx

    class Model(nnx.Module):
        def __init__(self):
            self.bare = jax.random.normal(key, (4, 70))

    return Model()

assert "flax" not in sys.modules
graphdef, state = li.lazy(build)(jax.random.key(3))
from flax import nnx

want = nnx.split(build(jax.random.key(3)))
assert jax.tree.structure(want[1]) == jax.tree.structure(state)
assert li.materialize(state)["bare"].tobytes() == want[1]["bare"].tobytes()
print("recorded")
"""


@pytest.mark.parametrize("script", [BLOCKED + RECORDED, IMPORTED_WITHIN])
def test_a_function_is_recorded_in_a_process_without_flax(script):
    assert forked.run(script).startswith("recorded")
