"""Compares the maps for MaxText with its own decoders, on folders that PyTorch writes.

    pip download --no-deps maxtext==0.2.5  # wants Python 3.12 or newer
    pip install --no-deps maxtext==0.2.5 pydantic pydantic-core annotated-types typing-inspection \
        omegaconf antlr4-python3-runtime==4.9.3 psutil aqtp absl-py jaxtyping cloudpickle
    python benchmarks/maps_of_maxtext.py  # all, or those that are named: "Llama 2" "Qwen 3"

For each model, scanned and not: ``li.from_pretrained`` into MaxText's NNX decoder on eight devices,
as its logical axes say, and the largest difference of its logits from PyTorch's. Without rules, but
for Llama, where no tree tells whether rotary pairs lie side by side. What MaxText imports and does
not need here (TPU kernels, datasets, clouds) is left out. No test does this: MaxText wants some 200
packages.

MaxText rounds a head that is the embedding to bfloat16, so that models with tied heads differ from
PyTorch by that; their untied relatives do not.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from maps_of_tunix import WRITE

import lazyinit as li

_ABSENT = (
    *("pathwaysutils", "tokamax", "vllm", "tunix", "tensorflow", "tensorflow_datasets"),
    *("datasets", "grain", "ml_goodput_measurement", "google", "gcsfs", "sentencepiece"),
    *("cloud_accelerator_diagnostics", "google_cloud_mldiagnostics", "tiktoken", "ml_collections"),
    *("drjax", "tensorboardX", "cloud_tpu_diagnostics", "jetstream", "PIL"),
)


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules that have every name, and nothing in it."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.partition(".")[0] in _ABSENT:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = MagicMock(name=spec.name)
        module.__name__, module.__path__, module.__spec__ = spec.name, [], None
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


_SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
}
_THEIRS = {
    "base_emb_dim": 32,
    "base_num_query_heads": 4,
    "base_num_kv_heads": 2,
    "base_mlp_dim": 48,
    "head_dim": 16,
    "vocab_size": 64,
    "rope_max_timescale": 10000,
}
_RUN = {
    "run_name": "maps",
    "enable_checkpointing": "false",
    "base_output_directory": tempfile.gettempdir(),
    "dataset_type": "synthetic",
    "per_device_batch_size": 1,
    "max_target_length": 16,
    "dtype": "float32",
    "weight_dtype": "float32",
    "skip_jax_distributed_system": "true",
    "attention": "dot_product",
    "matmul_precision": "highest",
    "override_model_config": "true",
}


@dataclass(frozen=True, slots=True)
class Family:
    """A model of transformers, and the same of MaxText.

    Attributes:
      cls: PyTorch's class, less ``ForCausalLM``.
      model: what MaxText calls it.
      arguments: what PyTorch's is made of, beside the sizes.
      theirs: the same for MaxText.
      layers: how many PyTorch's has.
      config: the class of its configuration.
      model_type: what ``config.json`` calls the family, if the class of transformers does not.
    """

    cls: str
    model: str
    arguments: dict[str, Any] = field(default_factory=dict)
    theirs: dict[str, Any] = field(default_factory=dict)
    layers: int = 2
    config: str = ""
    model_type: str = ""


_UNTIED = {"tie_word_embeddings": False}
_EPSILON = {"rms_norm_eps": 1e-5}
_SCALED = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_DENSE = {"megablox": "false", "sparse_matmul": "false", "capacity_factor": "-1.0"}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
_QWEN_MOE = _EXPERTS | {"moe_intermediate_size": 24, "norm_topk_prob": True} | _UNTIED
_GEMMA = {"query_pre_attn_scalar": 16}
_GEMMA_1 = {"hidden_activation": "gelu_pytorch_tanh"}
_GEMMA_3 = _GEMMA | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
_TEXT = {"use_multimodal": "false", "local_rope_max_timescale": 10000}

_YARN = {
    "rope_type": "yarn",
    "factor": 40.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
_LATENT = {"kv_lora_rank": 8, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12}
_DEEPSEEK = {
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "max_position_embeddings": 163840,
    "head_dim": 8,
}
_DEEPSEEK |= _LATENT | _UNTIED
_DEEPSEEK_2 = _DEEPSEEK | {
    "q_lora_rank": None,
    "n_shared_experts": 2,
    "topk_method": "greedy",
    "rope_scaling": _YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
}
_DEEPSEEK_3 = _DEEPSEEK | {
    "q_lora_rank": 16,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "rope_scaling": _YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
}
# transformers has no class for Kimi K2; its own says that it is DeepSeek's with other numbers.
_KIMI = _DEEPSEEK_3 | {
    "routed_scaling_factor": 2.827,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 131072,
    "rope_scaling": _DEEPSEEK_3["rope_scaling"] | {"factor": 32.0, "beta_fast": 1.0},
}
_GPT_OSS = {
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "rope_scaling": _YARN | {"factor": 32.0, "beta_fast": 32.0, "truncate": False},
}
_THEIR_DEEPSEEK = (
    _DENSE
    | _LATENT
    | {
        "base_num_kv_heads": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "base_moe_mlp_dim": 24,
        "first_num_dense_layers": 1,
    }
)

FAMILIES = {
    "Llama 2": Family("Llama", "llama2-7b", _EPSILON | _UNTIED),
    "Llama 3.1": Family("Llama", "llama3.1-8b", _EPSILON | _UNTIED | {"rope_scaling": _SCALED}),
    "Mistral": Family("Mistral", "mistral-7b", _EPSILON | _UNTIED),
    "Mixtral": Family(
        "Mixtral",
        "mixtral-8x7b",
        _EPSILON | {"num_local_experts": 4},
        _DENSE | {"num_experts": 4, "base_moe_mlp_dim": 48},
    ),
    "Qwen 2": Family("Qwen2", "qwen2.5-7b", _UNTIED),
    "Qwen 3": Family("Qwen3", "qwen3-8b", _UNTIED),
    "Qwen 3, tied": Family("Qwen3", "qwen3-0.6b", {"tie_word_embeddings": True}),
    "Qwen 3, MoE": Family(
        "Qwen3Moe", "qwen3-30b-a3b", _QWEN_MOE, _DENSE | _EXPERTS | {"base_moe_mlp_dim": 24}
    ),
    "Gemma 1, tied": Family("Gemma", "gemma-2b", _GEMMA_1),
    "Gemma 2, tied": Family("Gemma2", "gemma2-2b", _GEMMA, layers=4),
    "Gemma 3, tied": Family("Gemma3", "gemma3-4b", _GEMMA_3, _TEXT, 8, "Gemma3TextConfig"),
    "DeepSeek 2": Family(  # The class of transformers leaves out what mscale does to the softmax.
        "DeepseekV2", "deepseek2-16b", _DEEPSEEK_2, _THEIR_DEEPSEEK | {"mscale": 0.0}, 3
    ),
    "DeepSeek 3": Family(
        "DeepseekV3", "deepseek3-671b", _DEEPSEEK_3, _THEIR_DEEPSEEK | {"q_lora_rank": 16}, 3
    ),
    "GPT-OSS": Family(
        "GptOss",
        "gpt-oss-20b",
        _GPT_OSS | _UNTIED,
        _DENSE | {"num_experts": 4, "num_experts_per_tok": 2, "base_moe_mlp_dim": 48},
    ),
    "Kimi K2": Family(
        "DeepseekV3",
        "kimi-k2-1t",
        _KIMI,
        _THEIR_DEEPSEEK | {"q_lora_rank": 16},
        3,
        model_type="kimi_k2",
    ),
}


def settings_of(family: Family, *, scanned: bool) -> tuple[Any, Any]:
    """Returns MaxText's configuration of the same sizes, and its mesh."""
    from maxtext.configs import pyconfig
    from maxtext.utils import maxtext_utils

    spec = importlib.util.find_spec("maxtext.configs")
    assert spec is not None
    base = Path(next(iter(spec.submodule_search_locations or ()))) / "base.yml"
    layers = family.layers // 2 if family.cls == "Gemma2" else family.layers
    said: dict[str, Any] = _RUN | _THEIRS | family.theirs | {"model_name": family.model}
    said |= {"scan_layers": str(scanned).lower(), "base_num_decoder_layers": layers}
    config = pyconfig.initialize(["", str(base), *(f"{n}={value}" for n, value in said.items())])
    mesh = jax.sharding.Mesh(maxtext_utils.create_device_mesh(config), config.mesh_axes)
    return config, mesh


def compare(family: Family, name: str, folder: str, *, scanned: bool) -> str:
    """Returns what a row of the table says."""
    from maxtext.models import models

    config, mesh = settings_of(family, scanned=scanned)
    rules = None
    if family.cls == "Llama":
        said = json.loads((Path(folder) / "config.json").read_text())
        rules = li.maps.maxtext(said, scanned_layers=scanned, interleaved="3.1" in name)
    with mesh:
        model, report = li.from_pretrained(
            lambda rngs: models.Transformer(config, mesh, None, rngs=rngs),
            folder,
            nnx.Rngs(0),
            rules=rules,
            sharding=li.shard_by_metadata(mesh, config.logical_axis_rules),
            on_missing="error",
            on_unexpected="error",
        )
        outputs = np.load(f"{folder}/outputs.npz")
        ids = jnp.asarray(outputs["ids"])
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        graphdef, state = nnx.split(model)
        run = jax.jit(lambda state, *args: nnx.merge(graphdef, state)(*args, enable_dropout=False))
        made = run(state, ids, positions, jnp.ones_like(ids))
    made = np.asarray(made[0] if isinstance(made, tuple) else made, np.float32)
    difference = np.abs(made - outputs["logits"]).max()
    largest = np.abs(outputs["logits"]).max()
    return (
        f"{report.ready_map or 'given'} | {len(report.loaded)} | {difference:.1g} | {largest:.1g}"
    )


def main() -> None:
    """Prints the table, or the rows of the models that are named; differences are of logits."""
    sys.meta_path.insert(0, _Absent())
    print("| model | layers | map | leaves | to PyTorch | largest logit |")
    print("|---|---|---|---|---|---|")
    for name in sys.argv[1:] or FAMILIES:
        family = FAMILIES[name]
        with tempfile.TemporaryDirectory() as folder:
            arguments = _SIZES | {"num_hidden_layers": family.layers} | family.arguments
            config = family.config or f"{family.cls}Config"
            given = [folder, f"{family.cls}ForCausalLM", config, repr(arguments)]
            code = WRITE.replace("(2, 8)", "(8, 16)")  # A row for each device.
            command = [sys.executable, "-c", code, *given]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
            if family.model_type:
                file = Path(folder) / "config.json"
                said = json.loads(file.read_text()) | {"model_type": family.model_type}
                file.write_text(json.dumps(said))
            for scanned in (False, True):
                row = compare(family, name, folder, scanned=scanned)
                how = "scanned" if scanned else "apart"
                print(f"| {name} | {how} | {row} |", flush=True)


if __name__ == "__main__":
    main()
