"""Ready maps on checkpoints that PyTorch saves: the Flax models compute what PyTorch's do."""

import os

os.environ.setdefault("USE_TORCH", "0")  # PyTorch runs in a process of its own.

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import FAMILIES, clip_as_before, config_of, module_of
from real_weights import minilm, package_folder
from with_torch import run_with_torch

import lazyinit as li
from lazyinit import maps

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Theirs, about the end of Flax models.
]

SAVE = """
import json, sys
import numpy as np, torch, transformers
name, family, config, inputs, folder = json.loads(sys.argv[1])
torch.manual_seed(0)
model = getattr(transformers, name)(getattr(transformers, family + "Config")(**config)).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.normal_(0, 0.1)
    inputs = {k: torch.from_numpy(np.load(f"{folder}/{k}.npy")) for k in inputs}
    outputs = model(**inputs)
np.savez(f"{folder}/outputs.npz", **{k: v for k, v in outputs.items() if torch.is_tensor(v)})
model.save_pretrained(folder, safe_serialization=True)
"""


def inputs_of(name):
    """Returns the inputs of PyTorch's model by name, and those of Flax's module in order."""
    random = np.random.default_rng(0)
    ids = random.integers(3, 64, (2, 8))
    ones, positions = np.ones_like(ids), np.arange(8)[None]
    image = random.standard_normal((2, 3, 32, 32), "float32")
    words = {"input_ids": ids, "attention_mask": ones}
    family = FAMILIES[name][0]
    if family == "Bert":
        return words | {"token_type_ids": 0 * ids}, (ids, ones, 0 * ids, positions, None)
    if family == "T5":
        return words | {"decoder_input_ids": ids[:, ::-1].copy()}, (ids, ones, ids[:, ::-1], ones)
    if family == "ViT":
        return {"pixel_values": image}, (image.transpose(0, 2, 3, 1),)
    if family == "CLIP":
        nhwc = image.transpose(0, 2, 3, 1)
        return words | {"pixel_values": image}, (ids, nhwc, ones, positions)
    return words, (ids, ones, np.broadcast_to(positions, ids.shape))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_flax_model_filled_by_its_map_computes_what_pytorch_does(name, tmp_path, monkeypatch):
    monkeypatch.setattr(jnp, "clip", clip_as_before(jnp.clip))
    family, config, _, rules = FAMILIES[name]
    words, inputs = inputs_of(name)
    for key, value in words.items():
        np.save(tmp_path / f"{key}.npy", value)
    arguments = [name.split()[0], family, config, list(words), str(tmp_path)]
    run_with_torch(SAVE, json.dumps(arguments))
    expected = np.load(tmp_path / "outputs.npz")

    module = module_of(name)
    tree = li.lazy(module).init(jax.random.key(0), *inputs)
    tree, report = li.fill(tree, tmp_path, rules, on_missing="error")
    assert report.unexpected == ()
    outputs = module.apply(li.materialize(tree), *inputs)
    compared = 0
    for key, array in expected.items():
        if outputs.get(key) is not None and not isinstance(outputs[key], tuple):
            np.testing.assert_allclose(outputs[key], array, atol=1e-4, err_msg=key)
            compared += 1
    assert compared
    assert (
        config_of(name).model_type
        == json.loads((tmp_path / "config.json").read_text())["model_type"]
    )


ENCODE = """
import sys
import numpy as np, torch, transformers
kind, folder, here = sys.argv[1:]
config = transformers.BertConfig.from_pretrained(folder)
model = transformers.BertModel(config, add_pooling_layer=False).eval()
path = f"{folder}/{'model.safetensors' if kind == 'safetensors' else 'pytorch_model.bin'}"
if kind == "safetensors":
    from safetensors.torch import load_file
    state = load_file(path)
else:
    state = torch.load(path, map_location="cpu", weights_only=True)
state = {k.removeprefix("bert."): v for k, v in state.items()}
missing, _ = model.load_state_dict(state, strict=False)
assert not [k for k in missing if "position_ids" not in k], missing
ids = torch.from_numpy(np.load(f"{here}/ids.npy"))
with torch.no_grad():
    np.save(f"{here}/hidden.npy", model(ids, attention_mask=torch.ones_like(ids))[0])
"""


def hidden_of(folder, checkpoint, rules, ids):
    from transformers import BertConfig
    from transformers.models.bert.modeling_flax_bert import FlaxBertModule

    module = FlaxBertModule(BertConfig.from_pretrained(folder), add_pooling_layer=False)
    inputs = (ids, np.ones_like(ids), 0 * ids, np.arange(ids.shape[1])[None], None)
    tree = li.lazy(module).init(jax.random.key(0), *inputs)
    tree, report = li.fill(tree, checkpoint, rules, on_missing="error")
    return module.apply(li.materialize(tree), *inputs)[0], report


def test_minilm_computes_what_pytorch_computes(tmp_path):
    folder = minilm()
    ids = np.random.default_rng(0).integers(0, 30000, (2, 16))
    np.save(tmp_path / "ids.npy", ids)
    run_with_torch(ENCODE, "safetensors", str(folder), str(tmp_path))
    hidden, report = hidden_of(folder, folder, maps.BERT, ids)
    assert set(report.unexpected) <= {"pooler.dense.weight", "pooler.dense.bias"}
    np.testing.assert_allclose(hidden, np.load(tmp_path / "hidden.npy"), atol=1e-4)


def test_antiberty_computes_what_pytorch_computes(tmp_path):
    package = package_folder("antiberty")
    (weights,) = package.rglob("pytorch_model.bin")
    ids = np.random.default_rng(0).integers(0, 25, (2, 16))
    np.save(tmp_path / "ids.npy", ids)
    run_with_torch(ENCODE, "bin", str(weights.parent), str(tmp_path))
    rules = [li.strip_prefix("bert."), *maps.BERT]
    hidden, _ = hidden_of(weights.parent, weights, rules, ids)
    np.testing.assert_allclose(hidden, np.load(tmp_path / "hidden.npy"), atol=1e-4)
