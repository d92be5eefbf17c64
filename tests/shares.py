"""A model whose checkpoint has transposed, stacked and split tensors; what a process needs of it."""

import threading

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import lazyinit as li

RULES = [
    li.Rule("layers/kernel", "layers.{n}.weight", [li.Transpose("o i -> i o"), li.Stack(axis=0)]),
    li.Rule("heads", "q.weight", li.Rearrange("(h k) d -> d h k")),
    li.Rule("plain/kernel", "plain.weight", li.Transpose("o i -> i o")),
]
SPECS = {
    "embed": P(("x", "y")),
    "layers/kernel": P(None, "x", "y"),
    "heads": P("y", "x"),
    "plain/kernel": P("x"),
    "norm": P(),
}


def model(key):
    return {
        "embed": jax.random.normal(key, (256, 128), jnp.bfloat16),
        "layers": {"kernel": jax.random.normal(key, (4, 128, 256), jnp.bfloat16)},
        "heads": jax.random.normal(key, (128, 8, 16)),
        "plain": {"kernel": jax.random.normal(key, (256, 128))},
        "norm": jnp.ones(128),
    }


def lazy():
    return li.lazy(model)(jax.random.key(0))


def placed(mesh):
    return lambda path, leaf: NamedSharding(mesh, SPECS[path])


def needed(made):
    """Returns the bytes of what this process holds; a copy on several devices counts once."""
    return sum(
        shard.data.nbytes
        for array in jax.tree.leaves(made)
        for shard in {str(s.index): s for s in array.addressable_shards}.values()
    )


def counting(tensors):
    """Counts the bytes that tensors of a class are read for; returns a list of that one number."""
    read, lock, real = [0], threading.Lock(), tensors.read

    def counted(self, index):
        values = real(self, index)
        with lock:
            read[0] += values.nbytes
        return values

    tensors.read = counted
    return read
