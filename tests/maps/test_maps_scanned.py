"""Maps for scanned layers: the values, what the model computes, and how much is read."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from pipelines import Counting, assert_equal, count, filled, refused, values, written
from safetensors.numpy import save_file

import lazyinit as li
from lazyinit import maps
from lazyinit.checkpoint import Checkpoint, open_checkpoint
from lazyinit.match.translate import translate
from lazyinit.rules.rule import as_rules
from lazyinit.tensors.memory import open_tree

LAYERS, D, F, V = 4, 32, 64, 128
RULES = maps.scanned(maps.LLAMA, "model.layers.{n}", "model/layers")


class Norm(nn.Module):
    @nn.compact
    def __call__(self, x):
        weight = self.param("weight", nn.initializers.normal(), x.shape[-1:])
        return weight * x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        q, k, v = (nn.Dense(D, use_bias=False, name=f"{name}_proj")(x) for name in "qkv")
        weights = nn.softmax(q @ k.swapaxes(-1, -2) / D**0.5)
        return nn.Dense(D, use_bias=False, name="o_proj")(weights @ v)


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        gate, up = (nn.Dense(F, use_bias=False, name=f"{name}_proj")(x) for name in ("gate", "up"))
        return nn.Dense(D, use_bias=False, name="down_proj")(nn.silu(gate) * up)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = x + Attention(name="self_attn")(Norm(name="input_layernorm")(x))
        return x + Mlp(name="mlp")(Norm(name="post_attention_layernorm")(x)), None


class Layers(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        for n in range(LAYERS):
            x, _ = Block(name=str(n))(x, None)
        return x, None


class Model(nn.Module):
    scan: bool

    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(V, D, name="embed_tokens")(ids)
        layers = Layers
        if self.scan:
            axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            layers = nn.scan(Block, length=LAYERS, **axes)
        x, _ = layers(name="layers")(x, None)
        return Norm(name="norm")(x)


class Decoder(nn.Module):
    scan: bool

    @nn.compact
    def __call__(self, ids):
        return nn.Dense(V, use_bias=False, name="lm_head")(Model(self.scan, name="model")(ids))


def tensors_of_a_checkpoint():
    random = np.random.default_rng(0)
    shapes = {
        "self_attn.q_proj": (D, D),
        "self_attn.k_proj": (D, D),
        "self_attn.v_proj": (D, D),
        "self_attn.o_proj": (D, D),
        "mlp.gate_proj": (F, D),
        "mlp.up_proj": (F, D),
        "mlp.down_proj": (D, F),
        "input_layernorm": (D,),
        "post_attention_layernorm": (D,),
    }
    shapes = {f"model.layers.{n}.{name}": s for n in range(LAYERS) for name, s in shapes.items()}
    shapes |= {"model.embed_tokens": (V, D), "model.norm": (D,), "lm_head": (V, D)}
    return {f"{n}.weight": random.standard_normal(s, "float32") / 8 for n, s in shapes.items()}


class CountingBytes:
    """A source that counts the bytes it is asked for."""

    def __init__(self, source, counts):
        self._source, self._counts = source, counts

    def __getattr__(self, name):
        return getattr(self._source, name)

    def read(self, index):
        values = self._source.read(index)
        self._counts.append(values.nbytes)
        return values


def test_a_scanned_decoder_filled_from_unscanned_layers_computes_the_same(tmp_path):
    save_file(tensors_of_a_checkpoint(), tmp_path / "model.safetensors")
    ids = jnp.arange(16).reshape(2, 8)
    key = jax.random.key(0)
    plain, report = li.fill(
        li.lazy(Decoder(False)).init(key, ids), tmp_path, maps.LLAMA, on_missing="error"
    )
    assert report.unexpected == ()
    plain = li.materialize(plain)

    counts = []
    opened = open_checkpoint(tmp_path)
    counted = Checkpoint(
        opened.origin, {name: CountingBytes(source, counts) for name, source in opened.items()}
    )
    tree = li.lazy(Decoder(True)).init(key, ids)
    tree, report = li.fill(tree, counted, RULES, on_missing="error")
    assert report.unexpected == report.unused_rules == ()
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharding = li.shard_by_rules(
        mesh,
        [
            ("params/model/layers/mlp/**", P("x", None, "y")),  # Layers on devices.
            ("params/model/layers/**/kernel", P(None, "x", "y")),
            ("params/model/layers/**", P(None, "y")),
            ("params/lm_head/kernel", P("x", "y")),
            ("**", P("x")),
        ],
    )
    scanned = li.materialize(tree, sharding=sharding)
    needed = sum(
        shard.data.nbytes for leaf in jax.tree.leaves(scanned) for shard in leaf.addressable_shards
    )
    assert 0 < sum(counts) <= 1.05 * needed
    np.testing.assert_allclose(
        Decoder(True).apply(scanned, ids), Decoder(False).apply(plain, ids), rtol=1e-4, atol=1e-5
    )
    stacked = np.stack(
        [plain["params"]["model"]["layers"][str(n)]["mlp"]["up_proj"]["kernel"] for n in range(4)]
    )
    np.testing.assert_array_equal(
        scanned["params"]["model"]["layers"]["mlp"]["up_proj"]["kernel"], stacked
    )


def test_a_shard_of_a_stacked_transposed_leaf_reads_its_own_bytes_alone():
    arrays = {f"h.{n}.w": count(8, 6) + n for n in range(4)}
    sources = {name: Counting(name, x) for name, x in arrays.items()}
    rule = li.Rule("w", "h.{n}.w", [li.Transpose("o i -> i o"), li.Stack(axis=1)])
    tree = {"w": li.LazyParam((6, 4, 8), "float32", jax.nn.initializers.zeros)}
    tree, _ = li.fill(tree, Checkpoint("memory", sources), [rule])
    index = (slice(0, 3), slice(1, 3), slice(2, 4))
    values = tree["w"].source.read(index)
    np.testing.assert_array_equal(values, np.stack([x.T for x in arrays.values()], axis=1)[index])
    assert [source.read_count for source in sources.values()] == [0, 6, 6, 0]


def scanned_leaves(axis=0):
    tensors = tensors_of_a_checkpoint()
    flat = {}
    for name in {n.partition(".0.")[2] for n in tensors if ".0." in n}:
        stack = [tensors[f"model.layers.{n}.{name}"].T for n in range(LAYERS)]
        leaf = name.replace("proj.weight", "proj.kernel").replace(".", "/")
        flat[f"model/layers/{leaf}"] = np.stack(stack, axis)
    flat["model/embed_tokens/embedding"] = tensors["model.embed_tokens.weight"]
    flat["model/norm/weight"] = tensors["model.norm.weight"]
    flat["lm_head/kernel"] = tensors["lm_head.weight"].T
    return tensors, flat


@pytest.mark.parametrize("axis", [0, 1])
def test_scanned_rules_go_there_and_back_with_a_tree_and_without(axis):
    tensors, flat = scanned_leaves(axis)
    rules = maps.scanned(maps.LLAMA, "model.layers.{n}", "model/layers", axis=axis)
    leaves, report = filled(flat, tensors, rules)
    assert_equal(dict(sorted(leaves.items())), dict(sorted(flat.items())))
    assert report.unexpected == ()
    back = values(written(flat, rules))
    assert_equal(dict(sorted(back.items())), dict(sorted(tensors.items())))
    made = values(translate(open_tree(tensors), rules=as_rules(rules)))
    assert_equal(dict(sorted(made.items())), dict(sorted(flat.items())))


def test_rules_for_layers_in_a_list_are_scanned_too():
    rules = maps.scanned(maps.GPT2_NNX, "h.{n}", "layers")
    tensors = {f"h.{n}.attn.c_attn.weight": count(4, 12) + n for n in range(3)}
    q, k, v = np.split(np.stack(list(tensors.values())), 3, axis=-1)
    flat = {
        f"layers/attention/{name}/kernel": x.reshape(3, 4, 2, 2)
        for name, x in (("query", q), ("key", k), ("value", v))
    }
    leaves, _ = filled(flat, tensors, rules)
    assert_equal(leaves, dict(sorted(flat.items())))
    assert_equal(values(written(flat, rules)), tensors)


def test_two_stacks_of_layers_are_scanned_one_after_the_other():
    rules = maps.scanned(maps.T5, "encoder.block.{n}", "encoder/block")
    rules = maps.scanned(rules, "decoder.block.{n}", "decoder/block")
    tensors = {
        f"{side}.block.{n}.layer.0.SelfAttention.q.weight": count(2, 3) + n
        for side in ("decoder", "encoder")
        for n in range(2)
    }
    flat = {
        f"{side}/block/layer/0/SelfAttention/q/kernel": np.stack([count(3, 2)] * 2)
        for side in ("decoder", "encoder")
    }
    leaves, report = filled(flat, tensors, rules)
    assert report.unexpected == ()
    for path in flat:
        np.testing.assert_array_equal(leaves[path], np.stack([(count(2, 3) + n).T for n in (0, 1)]))


def test_sizes_are_said_where_an_axis_is_so_called():
    (rule,) = maps.sized([li.Rule("a", "b", li.Rearrange("(h k) -> h k"))], h=2, g=3)
    assert rule == li.Rule("a", "b", [li.Rearrange("(h k) -> h k", h=2)])
    rest = (li.Ignore("x"), li.Rule("a", "b"), li.Rule("c", li.Constant(1.0)))
    assert maps.sized(rest, h=2) == rest


@pytest.mark.parametrize("tensor", ["model.layers", "model.{n}.{m}"])
def test_a_layer_without_its_number_is_refused(tensor):
    with refused(
        f"scanned: wanted the name of a numbered layer, such as 'model.layers.{{n}}', got {tensor!r}"
    ):
        maps.scanned(maps.LLAMA, tensor, "layers")
