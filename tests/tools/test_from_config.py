"""Shapes from a ``config.json`` alone: against PyTorch's models, and counts that are published."""

import json
import math

import pytest
from with_torch import run_with_torch

import lazyinit as li
from lazyinit.errors import CheckpointError, PlanError
from lazyinit.tools.cli import main
from lazyinit.tools.from_config import config_at, tree_of_config
from lazyinit.tools.planning import tree_of

SMALL = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "vocab_size": 96,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
CASES = {
    "Llama": [GROUPED, {**SMALL, "attention_bias": True, "mlp_bias": True}],
    "Mistral": [{**GROUPED, "head_dim": 16}],
    "Qwen2": [GROUPED, {**GROUPED, "tie_word_embeddings": True}],
    "Qwen3": [GROUPED, {**GROUPED, "head_dim": 16, "attention_bias": True}],
    "Qwen3Moe": [
        {**GROUPED, **EXPERTS},
        {**GROUPED, **EXPERTS, "mlp_only_layers": [0], "decoder_sparse_step": 2},
    ],
    "Gemma2": [GROUPED, {**GROUPED, "head_dim": 12}],
    "Gemma3": [GROUPED, {**GROUPED, "head_dim": 12, "attention_bias": True}],
    "GPT2": [
        {"n_embd": 48, "n_layer": 2, "n_head": 4, "vocab_size": 96, "n_positions": 32},
        {"n_embd": 48, "n_layer": 1, "n_head": 4, "vocab_size": 96, "n_inner": 72},
    ],
}


PYTORCH = """
import json, sys, torch, transformers
from pathlib import Path
shapes = {}
for name, (family, sizes) in json.loads(sys.argv[1]).items():
    cls = "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config"
    config = getattr(transformers, cls)(**sizes)
    config.save_pretrained(Path(sys.argv[2], name))
    head = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    with torch.device("meta"):
        model = getattr(transformers, head)(config)
    tied = getattr(model, "_tied_weights_keys", None) or () if config.tie_word_embeddings else ()
    state = model.state_dict()
    shapes[name] = {key: tuple(x.shape) for key, x in state.items() if key not in set(tied)}
Path(sys.argv[2], "shapes.json").write_text(json.dumps(shapes))
"""
NAMED = {f"{name}{n}": (name, some[n]) for name, some in CASES.items() for n in range(len(some))}


@pytest.fixture(scope="module")
def by_pytorch(tmp_path_factory):
    """A folder with a configuration for each case, and the shapes that PyTorch's models have."""
    folder = tmp_path_factory.mktemp("configs")
    run_with_torch(PYTORCH, json.dumps(NAMED), folder)
    return folder, json.loads((folder / "shapes.json").read_text())


@pytest.mark.parametrize("name", NAMED)
def test_a_configuration_gives_the_tensors_that_pytorch_saves(by_pytorch, name):
    folder, shapes = by_pytorch
    found = tree_of(str(folder / name))
    assert {key: list(leaf.shape) for key, leaf in found.items()} == shapes[name]


# Parameters, as the cards of the models on huggingface.co say them.
LLAMA = {"model_type": "llama", "vocab_size": 128256, "num_key_value_heads": 8}
PUBLISHED = [
    (
        {
            **LLAMA,
            "hidden_size": 16384,
            "intermediate_size": 53248,
            "num_hidden_layers": 126,
            "num_attention_heads": 128,
        },
        405_853_388_800,
    ),
    (
        {
            **LLAMA,
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "vocab_size": 32000,
        },
        68_976_648_192,
    ),
    (
        {
            "model_type": "gemma2",
            "hidden_size": 3584,
            "intermediate_size": 14336,
            "num_hidden_layers": 42,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 256,
            "vocab_size": 256000,
        },
        9_241_705_984,
    ),
]


@pytest.mark.parametrize(("config", "count"), PUBLISHED)
def test_a_configuration_gives_as_many_parameters_as_are_published(tmp_path, config, count):
    (tmp_path / "config.json").write_text(json.dumps({**config, "torch_dtype": "bfloat16"}))
    tree = tree_of_config(tmp_path / "config.json")
    assert sum(math.prod(leaf.shape) for leaf in tree.values()) == count
    planned = li.plan(tree, li.shard_fsdp("data=4,model=8", ("data", "model")), hosts=4)
    assert planned.bytes_of("load") == 2 * count
    assert max(planned.bytes_per_device.values()) < 1.01 * 2 * count / 32


def test_the_command_takes_a_configuration(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({**GROUPED, "model_type": "llama"}))
    for target in (tmp_path, tmp_path / "config.json"):
        arguments = ["plan", str(target), "--mesh", "data=2", "--fsdp", "data", "--hbm", "1GiB"]
        assert main(arguments) == 0
        assert capsys.readouterr().out.startswith("30 leaves: 30 load (")


def test_a_folder_with_weights_is_a_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**GROUPED, "model_type": "llama"}))
    (tmp_path / "tokenizer.json").write_text("{}")
    assert config_at(str(tmp_path)) == tmp_path / "config.json"
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert config_at(str(tmp_path)) is None
    assert config_at(str(tmp_path / "absent")) is None
    with pytest.raises(CheckpointError):
        tree_of(str(tmp_path))


def test_what_a_configuration_describes_cannot_be_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**GROUPED, "model_type": "llama"}))
    tree = tree_of(str(tmp_path))
    with pytest.raises(CheckpointError, match=r"config\.json: wanted a checkpoint, got a configur"):
        li.materialize(tree)
    leaf = tree["model.norm.weight"]
    with pytest.raises(CheckpointError, match="holds no values of 'model.norm.weight'"):
        leaf.source.read((slice(None),))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "wanted a configuration as JSON: "),
        ("[]", "wanted a model_type among gemma2, .*, got None"),
        ('{"model_type": "lama"}', r"got 'lama'; did you mean 'llama'\? Plan a"),
        ('{"model_type": ["llama"]}', r"wanted a model_type among .*, got \['llama'\]"),
        ('{"model_type": "llama"}', "wanted hidden_size to be 1 or more, got nothing"),
        (
            '{"model_type": "llama", "hidden_size": "8"}',
            "wanted hidden_size to be 1 or more, got '8'",
        ),
        (
            '{"model_type": "llama", "hidden_size": true}',
            "wanted hidden_size to be 1 or more, got True",
        ),
        ('{"model_type": "llama", "dtype": "b16"}', "wanted a dtype, got 'b16'"),
        (
            '{"model_type": "llama", "quantization_config": {"bits": 4}}',
            "wanted the configuration of a model that is not quantized, got one with a quant",
        ),
    ],
)
def test_what_is_no_configuration_is_refused(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(PlanError, match=rf"config\.json: .*{message}"):
        tree_of(str(tmp_path))
