"""Names and layouts of GGUF: how ``transformers`` reads such a file with PyTorch judges ours."""

import json
import re

import gguf
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from pipelines import indices
from reading import everything
from with_torch import run_with_torch

import lazyinit as li
from lazyinit import errors
from lazyinit.checkpoint import open_checkpoint
from lazyinit.tools import cli

# Sizes that differ wherever they may.
WIDTH, HIDDEN, HEADS, KV_HEADS, HEAD, WORDS, LAYERS, EXPERTS = 32, 48, 4, 2, 8, 24, 2, 3
ARCHITECTURES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "qwen3moe": "Qwen3Moe"}
TRANSFORMERS = """
import json, sys, numpy as np, torch, transformers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
folder, architectures, sizes = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
for architecture, family in architectures.items():
    config = getattr(transformers, f"{family}Config")(**sizes)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    path = f"{folder}/{architecture}.gguf"
    read = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    assert set(read) == set(model.state_dict())
    np.savez(f"{folder}/{architecture}.npz", **{name: x.numpy() for name, x in read.items()})
"""


def layer_of(architecture):
    """Returns the names and the shapes of a layer's tensors, as llama.cpp writes them."""
    shapes = {
        "attn_norm.weight": (WIDTH,),
        "attn_q.weight": (HEADS * HEAD, WIDTH),
        "attn_k.weight": (KV_HEADS * HEAD, WIDTH),
        "attn_v.weight": (KV_HEADS * HEAD, WIDTH),
        "attn_output.weight": (WIDTH, HEADS * HEAD),
        "ffn_norm.weight": (WIDTH,),
    }
    if architecture == "qwen2":
        shapes |= {f"attn_{x}.bias": shapes[f"attn_{x}.weight"][:1] for x in "qkv"}
    if architecture.startswith("qwen3"):
        shapes |= {"attn_q_norm.weight": (HEAD,), "attn_k_norm.weight": (HEAD,)}
    many, key = ((EXPERTS,), "_exps") if architecture == "qwen3moe" else ((), "")
    shapes |= {f"ffn_{x}{key}.weight": (*many, HIDDEN, WIDTH) for x in ("gate", "up")}
    shapes |= {f"ffn_down{key}.weight": (*many, WIDTH, HIDDEN)}
    return shapes | ({"ffn_gate_inp.weight": (EXPERTS, WIDTH)} if many else {})


def written(folder, architecture, *, heads=HEADS, extra=()):
    path = folder / f"{architecture}.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("small")
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    if heads:
        writer.add_head_count(heads)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD)
    writer.add_vocab_size(WORDS)
    if architecture == "qwen3moe":
        writer.add_expert_count(EXPERTS)
        writer.add_expert_feed_forward_length(HIDDEN)
    shapes = {"token_embd.weight": (WORDS, WIDTH), "output_norm.weight": (WIDTH,)}
    shapes |= {"output.weight": (WORDS, WIDTH)}
    for n in range(LAYERS):
        shapes |= {f"blk.{n}.{key}": shape for key, shape in layer_of(architecture).items()}
    random = np.random.default_rng(0)
    for name, shape in (*shapes.items(), *extra):
        kind = gguf.GGMLQuantizationType.F32
        values = random.standard_normal(shape, np.float32)
        if len(shape) > 1 and shape[-1] % 32 == 0 and "_q" in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            values = gguf.quants.quantize(values, kind)
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def refused(message):
    return pytest.raises(errors.CheckpointError, match=re.escape(message))


@pytest.fixture(scope="module")
def by_transformers(tmp_path_factory):
    """A folder with a file of each architecture, and what transformers reads in it, as ``.npz``."""
    folder = tmp_path_factory.mktemp("gguf")
    for architecture in ARCHITECTURES:
        written(folder, architecture)
    sizes = {
        "vocab_size": WORDS,
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "num_experts": EXPERTS,
        "moe_intermediate_size": HIDDEN,
    }
    run_with_torch(TRANSFORMERS, folder, json.dumps(ARCHITECTURES), json.dumps(sizes))
    return folder


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_names_and_values_are_those_that_transformers_reads(architecture, by_transformers):
    ours = open_checkpoint(by_transformers / f"{architecture}.gguf", names="transformers")
    with np.load(by_transformers / f"{architecture}.npz") as theirs:
        assert set(ours) == set(theirs)
        for name in theirs:
            np.testing.assert_array_equal(everything(ours[name]), theirs[name], err_msg=name)


def test_any_part_of_turned_rows_is_that_part_of_the_whole(tmp_path):
    opened = open_checkpoint(written(tmp_path, "llama"), names="transformers")
    source = opened["model.layers.1.self_attn.q_proj.weight"]
    whole = everything(source).copy()
    assert source.names == ("blk.1.attn_q.weight",)

    @settings(max_examples=30)
    @given(indices(source.shape))
    def check(index):
        np.testing.assert_array_equal(source.read(index), whole[index])

    check()


class Attention(nnx.Module):
    def __init__(self, rngs):
        def linear(heads):
            return nnx.LinearGeneral(WIDTH, (heads, HEAD), use_bias=False, rngs=rngs)

        self.query, self.key, self.value = linear(HEADS), linear(KV_HEADS), linear(KV_HEADS)
        self.out = nnx.LinearGeneral((HEADS, HEAD), WIDTH, axis=(-2, -1), use_bias=False, rngs=rngs)


class Gated(nnx.Module):
    def __init__(self, rngs):
        self.gate = nnx.Linear(WIDTH, HIDDEN, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(WIDTH, HIDDEN, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, use_bias=False, rngs=rngs)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.attention_norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.attention = Attention(rngs)
        self.mlp_norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.mlp = Gated(rngs)


class Decoder(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(WORDS, WIDTH, rngs=rngs)
        self.layers = nnx.List([Block(rngs) for _ in range(LAYERS)])
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, WORDS, use_bias=False, rngs=rngs)


def test_from_pretrained_takes_a_gguf_file_by_itself(by_transformers):
    path = by_transformers / "llama.gguf"
    model, report = li.from_pretrained(Decoder, path, nnx.Rngs(0))
    assert (report.ready_map, report.missing, report.unexpected) == ("LLAMA_NNX", (), ())
    with np.load(by_transformers / "llama.npz") as theirs:
        query = theirs["model.layers.0.self_attn.q_proj.weight"]
    wanted = query.reshape(HEADS, HEAD, WIDTH).transpose(2, 0, 1)
    np.testing.assert_array_equal(model.layers[0].attention.query.kernel[...], wanted)


def test_rules_for_the_names_of_transformers_are_told_how_to_get_them(tmp_path):
    _, state = li.lazy(Decoder)(rngs=nnx.Rngs(0))
    advice = r"open_checkpoint\(path, names='transformers'\) has the names of transformers"
    with pytest.raises(errors.FillError, match=advice):
        li.fill(state, written(tmp_path, "llama"), li.maps.LLAMA_NNX)


def test_a_tensor_that_transformers_does_not_have_keeps_its_name(tmp_path):
    path = written(tmp_path, "llama", extra=[("rope_freqs.weight", (4,))])
    assert "rope_freqs.weight" in open_checkpoint(path, names="transformers")


def test_a_converted_file_has_the_names_of_transformers(tmp_path, capsys):
    path = written(tmp_path, "qwen3")
    command = ["convert", str(path), str(tmp_path / "folder"), "--names", "transformers"]
    assert cli.main(command) == 0
    assert "left out:" not in capsys.readouterr().out
    there, opened = (
        open_checkpoint(tmp_path / "folder"),
        open_checkpoint(path, names="transformers"),
    )
    for name, source in opened.items():
        np.testing.assert_array_equal(everything(there[name]), everything(source))


def test_an_architecture_that_is_not_known_is_refused_and_the_file_still_opens(tmp_path):
    path = written(tmp_path, "gemma")
    with refused(
        f"{path}: names='transformers' wants a GGUF file of a model among llama, qwen2, qwen3, "
        "qwen3moe, got the architecture 'gemma'. Leave names= out"
    ):
        open_checkpoint(path, names="transformers")
    assert "blk.0.attn_q.weight" in open_checkpoint(path)


def test_another_format_is_refused_and_so_is_another_word():
    with refused("qwen3moe, got no architecture. Leave names= out"):
        open_checkpoint({"a": np.ones(2)}, names="transformers")
    with pytest.raises(li.LazyinitError, match="names: wanted one of 'file', 'transformers', got"):
        open_checkpoint({"a": np.ones(2)}, names="transformer")  # pyright: ignore


@pytest.mark.parametrize("heads", [None, 3])
def test_heads_that_do_not_fit_the_rows_are_refused(tmp_path, heads):
    path = written(tmp_path, "llama", heads=heads)
    with refused(
        "tensor 'blk.0.attn_q.weight': wanted rows that llama.attention.head_count divides in "
        f"pairs, got 32 rows and {heads or 'none'} heads. Leave names= out."
    ):
        open_checkpoint(path, names="transformers")
