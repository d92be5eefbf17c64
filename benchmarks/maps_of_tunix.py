"""Compares the maps for google-tunix with its own loader, on folders that PyTorch writes.

    pip install --no-deps google-tunix==0.1.7 einops kagglehub kagglesdk
    python benchmarks/maps_of_tunix.py

For each model: ``li.from_pretrained`` onto eight devices, without rules, once as the model's
metadata says and once by ``li.shard_fsdp``, against ``create_model_from_safe_tensors`` on one.
Every leaf must be equal, what ``li.save`` writes must be what PyTorch wrote, and the largest
differences of logits are printed: to those of google-tunix's loader, on one device and as they are
sharded, and to PyTorch's. No test does this: google-tunix 0.1.7 brings 100 packages, and wants an
older safetensors than others do.
"""

import importlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import lazyinit as li

WRITE = """
import sys
import numpy as np, torch, transformers
folder, cls, config, arguments = sys.argv[1], sys.argv[2], sys.argv[3], eval(sys.argv[4])
torch.manual_seed(0)
model = getattr(transformers, cls)(getattr(transformers, config)(**arguments)).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.normal_(0, 0.1)
    ids = np.random.default_rng(0).integers(3, 64, (2, 8))
    logits = model(input_ids=torch.from_numpy(ids)).logits
model.save_pretrained(folder, max_shard_size="60KB")
np.savez(folder + "/outputs.npz", ids=ids, logits=logits)
"""
_SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "head_dim": 16}
_DECODER = _SIZES | {
    "vocab_size": 64,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rope_theta": 10000.0,
}
_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
}
_GEMMA = {"query_pre_attn_scalar": 16}
_GEMMA_1 = _GEMMA | {"hidden_activation": "gelu_pytorch_tanh"}
# Nine heads share three keys, as in SmolLM2-135M.
_SMOL = {"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 8, "hidden_size": 72}
_TIED, _UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}


@dataclass(frozen=True, slots=True)
class Family:
    """A model of transformers, and the same of google-tunix.

    Attributes:
      cls: PyTorch's class.
      config: the class of its configuration.
      arguments: what it is made of.
      package: of google-tunix, below ``tunix.models``.
      model: its class.
      loader: the module of its loader.
      theirs: what its configuration has beside the sizes.
    """

    cls: str
    config: str
    arguments: dict[str, Any]
    package: str
    model: str
    loader: str
    theirs: dict[str, Any]


def _family(
    name: str, arguments: dict[str, Any], model: str, config: str = "", **theirs: Any
) -> Family:
    package = {"Gemma": "gemma"}.get(model, model.lower())
    loader = "params_safetensors" if "Gemma" in model else "params"
    arguments = _DECODER | arguments
    return Family(
        f"{name}ForCausalLM", config or f"{name}Config", arguments, package, model, loader, theirs
    )


FAMILIES = {
    "Llama": _family("Llama", _UNTIED, "Llama3", norm_eps=1e-6, weight_tying=False),
    "Llama, tied": _family("Llama", _TIED, "Llama3", norm_eps=1e-6, weight_tying=True),
    "SmolLM2": _family("Llama", _SMOL | _TIED, "Llama3", norm_eps=1e-6, weight_tying=True),
    "Qwen 2": _family("Qwen2", _UNTIED, "Qwen2", norm_eps=1e-6, use_tied_embedding=False),
    "Qwen 3": _family("Qwen3", _TIED, "Qwen3", norm_eps=1e-6, use_tied_embedding=True),
    "Qwen 3, MoE": _family(
        "Qwen3Moe",
        _UNTIED | _EXPERTS,
        "Qwen3",
        norm_eps=1e-6,
        use_tied_embedding=False,
        num_experts=4,
        num_experts_per_tok=2,
        hidden_dim=24,
    ),
    "Gemma 1": _family("Gemma", _GEMMA_1, "Gemma"),
    "Gemma 2": _family("Gemma2", _GEMMA, "Gemma"),
    "Gemma 2, no shared keys": _family("Gemma2", _GEMMA | {"num_key_value_heads": 4}, "Gemma"),
    "Gemma 3": _family("Gemma3", _GEMMA, "Gemma3", "Gemma3TextConfig"),
}


def _models(package: str, module: str) -> Any:
    """Returns a module of google-tunix's models, without its trainers, which its root imports."""
    if "tunix" not in sys.modules:
        spec = importlib.util.find_spec("tunix")
        assert spec is not None
        root = types.ModuleType("tunix")
        root.__path__ = list(spec.submodule_search_locations or ())
        sys.modules["tunix"] = root
    return importlib.import_module(f"tunix.models.{package}.{module}")


def config_of(family: Family) -> Any:
    """Returns google-tunix's configuration of the same sizes."""
    lib, sizes = _models(family.package, "model"), family.arguments
    is_gemma = "gemma" in family.package
    theirs: dict[str, Any] = {
        "num_layers": sizes["num_hidden_layers"],
        "num_embed" if is_gemma else "vocab_size": sizes["vocab_size"],
        "embed_dim": sizes["hidden_size"],
        "hidden_dim": sizes["intermediate_size"],
        "num_heads": sizes["num_attention_heads"],
        "head_dim": sizes["head_dim"],
        "num_kv_heads": sizes["num_key_value_heads"],
    }
    if family.package == "gemma":
        is_second = family.config == "Gemma2Config"
        theirs |= {
            "final_logit_softcap": 30.0 if is_second else None,
            "attn_logits_soft_cap": 50.0 if is_second else None,
            "use_post_attn_norm": is_second,
            "use_post_ffw_norm": is_second,
            "attention_types": (lib.AttentionType.GLOBAL,) * sizes["num_hidden_layers"],
        }
    elif is_gemma:
        theirs |= {
            "sliding_window_size": 4096,
            "param_dtype": jnp.float32,
            "global_base_frequency": 10_000,
        }
    else:
        theirs["rope_theta"] = 10_000
    return lib.ModelConfig(**theirs | family.theirs)


def logits_of(model: Any, ids: np.ndarray, *, sharded: bool = False) -> np.ndarray:
    """Returns what a model of google-tunix computes, on one device or where its arrays lie."""
    graphdef, state = nnx.split(model)
    if not sharded:
        state = jax.device_put(state, jax.devices()[0])
    length = ids.shape[1]
    positions = jnp.broadcast_to(jnp.arange(length), ids.shape)
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (len(ids), length, length))
    run = jax.jit(lambda state, *args: nnx.merge(graphdef, state)(*args)[0])
    return np.asarray(run(state, jnp.asarray(ids), positions, None, mask), np.float32)


def loaded(family: Family, folder: str, axis_type: jax.sharding.AxisType) -> tuple[Any, Any]:
    """Returns a model that ``from_pretrained`` loads onto eight devices, and the report."""
    config = config_of(family)
    pairs = 1 if family.arguments["num_attention_heads"] % 2 else 2
    mesh = jax.make_mesh((8 // pairs, pairs), ("fsdp", "tp"), axis_types=(axis_type,) * 2)
    is_auto = axis_type is jax.sharding.AxisType.Auto
    sharding = li.shard_by_metadata(mesh) if is_auto else li.shard_fsdp(mesh, "fsdp", 64)
    cls = getattr(_models(family.package, "model"), family.model)
    options: dict[str, Any] = {"on_missing": "error", "on_unexpected": "error"}
    model, report = li.from_pretrained(
        cls, folder, nnx.Rngs(params=0), config, sharding=sharding, **options
    )
    assert any(not x.is_fully_replicated for x in jax.tree.leaves(nnx.state(model)))
    return model, report


def is_written_back(model: Any, ready: str, folder: str) -> bool:
    """Tells whether ``li.save`` writes what PyTorch wrote."""
    with tempfile.TemporaryDirectory() as saved:
        li.save(nnx.state(model), saved, rules=getattr(li.maps, ready))
        mine, theirs = (li.open_checkpoint(each) for each in (saved, folder))
        every = {name: tuple(map(slice, source.shape)) for name, source in theirs.items()}
        return set(mine) == set(theirs) and all(
            np.array_equal(mine[name].read(i), theirs[name].read(i)) for name, i in every.items()
        )


def compare(family: Family, folder: str) -> str:
    """Returns what a row of the table says."""
    arguments = [folder, family.cls, family.config, repr(family.arguments)]
    subprocess.run([sys.executable, "-c", WRITE, *arguments], check=True, stderr=subprocess.DEVNULL)
    outputs = np.load(f"{folder}/outputs.npz")
    mine, report = loaded(family, folder, jax.sharding.AxisType.Auto)
    other, _ = loaded(family, folder, jax.sharding.AxisType.Explicit)
    made = logits_of(mine, outputs["ids"])
    is_same = is_written_back(mine, report.ready_map, folder)
    differences = [np.abs(made - logits_of(mine, outputs["ids"], sharded=True)).max()]
    if family.cls == "GemmaForCausalLM":  # Theirs knows the names of Gemma 2 alone.
        equal = "-"
    else:
        load = _models(family.package, family.loader).create_model_from_safe_tensors
        theirs = load(folder, config_of(family))
        leaves = [jax.tree.leaves(nnx.state(each)) for each in (theirs, mine, other)]
        equal = sum(
            x.dtype == y.dtype == z.dtype and np.array_equal(x, y) and np.array_equal(x, z)
            for x, y, z in zip(*leaves, strict=True)
        )
        differences.append(np.abs(made - logits_of(theirs, outputs["ids"])).max())
    differences += [np.nan] * (len(differences) < 2)
    differences.append(np.abs(made - outputs["logits"]).max())
    shown = [f"{x:.1g}" for x in (*differences, np.abs(made).max())]
    count = len(report.loaded)
    return " | ".join([report.ready_map, f"{equal} of {count}", "yes" if is_same else "NO", *shown])


def main() -> None:
    """Prints the table; differences are the largest, of logits."""
    print(
        "| model | map | leaves equal, both ways | written back | sharded to one device "
        "| to google-tunix | to PyTorch | largest logit |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, family in FAMILIES.items():
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {name} | {compare(family, str(Path(folder)))} |", flush=True)


if __name__ == "__main__":
    main()
