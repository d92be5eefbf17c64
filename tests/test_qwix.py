"""Another library's quantization (qwix) of a lazy model: the bits of quantizing the model itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax import nnx
from jax.sharding import AxisType
from oracles import assert_same

import lazyinit as li

# qwix 0.1.8 calls much that Flax has renamed since.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

X = jnp.ones((2, 256))
TYPES = {"int8": None, "int4": None, "float8_e4m3fn": None, "nf4": 128}


class Net(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(256, 512, rngs=rngs)
        self.norm = nnx.LayerNorm(512, rngs=rngs)
        self.down = nnx.Linear(512, 256, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return self.down(self.norm(self.up(x)))


def quantize(graphdef, state, qtype):
    rule = qwix.QuantizationRule(module_path=".*", weight_qtype=qtype, tile_size=TYPES[qtype])
    model = nnx.merge(graphdef, state)
    return nnx.split(qwix.quantize_model(model, qwix.PtqProvider([rule]), X))


def add_lora(graphdef, state, qtype):
    provider = qwix.LoraProvider(
        module_path=".*", rank=4, alpha=2.0, weight_qtype=qtype, tile_size=TYPES[qtype]
    )
    model = nnx.merge(graphdef, state)
    return nnx.split(qwix.apply_lora_to_model(model, provider, X, rngs=nnx.Rngs(3)))


@functools.cache
def checked(function, qtype):
    """Returns a quantized model, recorded and eager; on one device they compute the same."""
    graphdef, state = li.lazy(Net)(nnx.Rngs(0))
    random = np.random.default_rng(0)
    held = {
        path.replace("/", "."): random.standard_normal(leaf.shape).astype(jnp.bfloat16)
        for path, leaf in ((x.path, x) for x in li.plan(state).leaves)
    }
    state, _ = li.fill(state, held)

    defined, lazy = li.lazy(lambda state: function(graphdef, state, qtype))(state)
    assert not any(isinstance(x, jax.Array) for x in jax.tree.leaves(lazy))
    eager_definition, eager = function(graphdef, li.materialize(state), qtype)
    alone = nnx.merge(defined, li.materialize(lazy))
    assert_same(alone(X), nnx.merge(eager_definition, eager)(X))
    return lazy, eager


@pytest.mark.parametrize("function", [quantize, add_lora])
@pytest.mark.parametrize("qtype", TYPES)
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_bfloat16_checkpoint_becomes_a_quantized_sharded_model(function, qtype, axis_type):
    lazy, eager = checked(function, qtype)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    made = li.materialize(lazy, sharding=li.shard_fsdp(mesh, "data", min_size=1))
    assert_same(made, eager)
    assert not made["down"]["kernel"]["array"]["qvalue"].sharding.is_fully_replicated
