"""Planning a large decoder on a mesh that is not there: seconds of a core, and memory.

``python benchmarks/plan.py llama-2-70b llama-3.1-405b`` records each in NNX and plans it with
adamw and gradients on 256 devices; with ``--smallest-mesh`` it looks for the fewest devices of
16 GiB.
"""

import sys
import time
from dataclasses import dataclass

import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AbstractMesh
from measure import status

import lazyinit as li
from lazyinit.abstract_meshes import MeshLike
from lazyinit.tools.planning import mesh_text, smallest_mesh


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a decoder.

    Attributes:
      layers: how many, unrolled.
      width: of the residual stream.
      hidden: of the feed-forward layer.
      heads: of queries, of 128 each.
      kv_heads: of keys and values.
      vocabulary: rows of the embedding and columns of the head.
    """

    layers: int
    width: int
    hidden: int
    heads: int
    kv_heads: int
    vocabulary: int


SHAPES = {
    "tiny": Shape(2, 256, 512, 2, 1, 1024),
    "llama-2-70b": Shape(80, 8192, 28672, 64, 8, 32000),
    "llama-3.1-405b": Shape(126, 16384, 53248, 128, 8, 128256),
}


class Layer(nnx.Module):
    """Nine parameters: two scales, q, k, v, o, gate, up, down."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs) -> None:
        def linear(n: int, m: int) -> nnx.Linear:
            init = nnx.initializers.normal(0.02)
            return nnx.Linear(
                n, m, use_bias=False, kernel_init=init, param_dtype=jnp.bfloat16, rngs=rngs
            )

        width, queries, keys = shape.width, 128 * shape.heads, 128 * shape.kv_heads
        self.attention_norm = nnx.RMSNorm(width, param_dtype=jnp.bfloat16, rngs=rngs)
        self.q, self.k, self.v = (linear(width, n) for n in (queries, keys, keys))
        self.o = linear(queries, width)
        self.mlp_norm = nnx.RMSNorm(width, param_dtype=jnp.bfloat16, rngs=rngs)
        self.gate, self.up = (linear(width, shape.hidden) for _ in range(2))
        self.down = linear(shape.hidden, width)


class Decoder(nnx.Module):
    """A decoder of ``9 * layers + 3`` parameters in bfloat16."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs) -> None:
        dtype = jnp.bfloat16
        self.embed = nnx.Embed(shape.vocabulary, shape.width, param_dtype=dtype, rngs=rngs)
        self.layers = nnx.List([Layer(shape, rngs) for _ in range(shape.layers)])
        self.norm = nnx.RMSNorm(shape.width, param_dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(
            shape.width, shape.vocabulary, use_bias=False, param_dtype=dtype, rngs=rngs
        )


def main(names: list[str], smallest: bool) -> None:
    """Prints a line for each decoder."""
    for name in names:
        start = time.process_time()
        _, state = li.lazy(Decoder)(SHAPES[name], nnx.Rngs(0))
        recorded = time.process_time()

        def price(mesh: MeshLike, state: nnx.State = state) -> li.Plan:
            shard = li.shard_fsdp(mesh, ("data", "model"))
            return li.plan(state, shard, optimizer=optax.adamw(1e-3), gradients=True)

        planned = price("data=16,model=16")
        text = str(planned)
        done = time.process_time()
        # Not ru_maxrss, which counts the process that started this one, too.
        memory = status("VmHWM") / 2**30
        print(
            f"{name}: recorded in {recorded - start:.1f} s, planned in {done - recorded:.1f} s, "
            f"{memory:.2f} GiB of memory; {text.splitlines()[-1]}"
        )
        if smallest:
            start = time.process_time()
            found = smallest_mesh(AbstractMesh((1, 1), ("data", "model")), price, "16GiB")
            assert found is not None
            took = time.process_time() - start
            fits = found[1].fits("16GiB")
            print(f"{name}: {mesh_text(found[0])} {fits}; found in {took:.1f} s")


if __name__ == "__main__":
    wanted = [name for name in sys.argv[1:] if name in SHAPES]
    main(wanted or list(SHAPES), "--smallest-mesh" in sys.argv)
