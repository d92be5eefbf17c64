"""Folders that save wrote are loaded by transformers, by PyTorch's models too."""

import os
import re
import subprocess
import sys

os.environ.setdefault("USE_TORCH", "0")  # transformers would import it if it is there.

import jax
import numpy as np
import pytest
from real_weights import minilm

import lazyinit as li

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Theirs, about Flax.

LOAD = """
import sys, numpy as np, torch, transformers
model, info = getattr(transformers, sys.argv[2]).from_pretrained(sys.argv[1], output_loading_info=True)
assert not info["missing_keys"] and not info["mismatched_keys"], info
ids = torch.tensor(np.load(sys.argv[1] + "/ids.npy"))
with torch.no_grad():
    out = model.eval()(ids)
np.save(sys.argv[1] + "/out.npy", out.logits.numpy())
"""
SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
CASES = {
    "BertForSequenceClassification": (
        "Bert", SMALL | {"num_attention_heads": 4, "max_position_embeddings": 16}, li.maps.BERT
    ),
    "GPT2LMHeadModel": (
        "GPT2",
        {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16,
         "bos_token_id": 0, "eos_token_id": 0},
        li.maps.GPT2,
    ),
    "LlamaForCausalLM": (
        "Llama",
        SMALL | {"num_attention_heads": 4, "max_position_embeddings": 16},
        li.maps.LLAMA,
    ),
}  # fmt: skip


@pytest.mark.parametrize("size", ["5GB", 20_000])
@pytest.mark.parametrize("name", CASES)
def test_a_flax_model_becomes_a_pytorch_model_with_the_same_outputs(tmp_path, name, size):
    import transformers

    family, options, rules = CASES[name]
    config = getattr(transformers, f"{family}Config")(**options)
    flax_model = getattr(transformers, f"Flax{name}")(config, seed=0)
    params = {"params": jax.tree.map(np.asarray, flax_model.params)}
    config.architectures = [name]
    config.save_pretrained(tmp_path)
    li.save(params, tmp_path, rules=rules, max_shard_size=size)
    assert (tmp_path / "model.safetensors").exists() == (size == "5GB")
    ids = np.arange(8)[None] % 64
    np.save(tmp_path / "ids.npy", ids)
    env = {k: v for k, v in os.environ.items() if k != "USE_TORCH"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD, str(tmp_path), name],
        capture_output=True,
        text=True,
        env=env,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert not re.search("newly initialized|not used", done.stderr), done.stderr
    want = flax_model(ids).logits
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), want, atol=1e-4)
    lazy = jax.tree.map(lambda x: li.LazyParam(x.shape, x.dtype, jax.numpy.zeros), params)
    filled, _ = li.fill(lazy, tmp_path, rules, on_missing="error")
    jax.tree.map(np.testing.assert_array_equal, li.materialize(filled), params)


@pytest.mark.slow
def test_minilm_gets_a_new_head_in_one_call_and_is_saved_with_it(tmp_path):
    from transformers import BertConfig, FlaxBertForSequenceClassification

    config = BertConfig.from_pretrained(minilm(), num_labels=3)
    module = FlaxBertForSequenceClassification(config, _do_init=False).module
    ids = jax.ShapeDtypeStruct((1, 16), "int32")
    inputs = (ids, ids, ids, ids, None)
    key = jax.random.key(0)
    params, report = li.from_pretrained(
        module,
        minilm(),
        key,
        *inputs,
        rules=li.maps.BERT,
        at="params/bert",
        on_missing={"params/classifier/**": "init"},
        sharding=li.shard_fsdp(jax.make_mesh((8,), ("x",)), "x"),
    )
    assert report.missing == ("params/classifier/bias", "params/classifier/kernel")
    assert {r.kind for p, r in report.provenance.items() if "/bert/" in p} == {"stored"}
    li.save(params, tmp_path, rules=li.maps.BERT, max_shard_size="20MB")
    saved, own = li.open_checkpoint(tmp_path), li.open_checkpoint(minilm())
    assert saved["classifier.weight"].shape == (3, 384)
    trunk = {name: own[name.removeprefix("bert.")] for name in saved if "classifier" not in name}
    assert len(trunk) >= 100
    for name, source in trunk.items():
        everything = tuple(slice(None) for _ in source.shape)
        assert saved[name].read(everything).tobytes() == source.read(everything).tobytes()
