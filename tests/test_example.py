"""The BERT of the example computes what that of transformers computes, in PyTorch."""

import dataclasses
import json

import numpy as np
import pytest
import real_weights
from flax import nnx
from minilm import Classifier, Config, Encoder, mean_of_tokens
from with_torch import run_with_torch

import lazyinit as li

TINY = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 16,
}
IDS = np.random.default_rng(0).integers(0, 50, (2, 9))
MASK = (np.arange(9) < [[9], [5]]).astype(np.int32)  # The second sentence is shorter.

PYTORCH = """
import json, sys, numpy as np, torch
from transformers import BertConfig, BertModel
folder, out, config = sys.argv[1:]
torch.manual_seed(0)
if config:
    model = BertModel(BertConfig(**json.loads(config)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
model = BertModel.from_pretrained(folder).float().eval()
given = np.load(out + "/in.npz")
with torch.no_grad():
    ids, mask = (torch.from_numpy(given[name]) for name in ("ids", "mask"))
    hidden = model(ids, attention_mask=mask).last_hidden_state.numpy()
np.save(out + "/hidden.npy", hidden)
"""


def hidden_of_pytorch(folder, out, ids, mask, config=""):
    np.savez(out / "in.npz", ids=ids, mask=mask)
    run_with_torch(PYTORCH, folder, out, config)
    return np.load(out / "hidden.npy")


def encoder(folder):
    graphdef, tree = li.lazy(Encoder)(Config.read(folder), rngs=nnx.Rngs(0))
    tree, _ = li.fill(tree, folder, li.maps.BERT_NNX, on_missing="error", on_unexpected="error")
    return nnx.merge(graphdef, li.materialize(tree))


def test_the_encoder_computes_what_pytorchs_does(tmp_path):
    want = hidden_of_pytorch(tmp_path, tmp_path, IDS, MASK, json.dumps(TINY))
    got = np.asarray(encoder(tmp_path)(IDS, MASK))
    # Float32 in another order of sums; the values are of size 1. What is padded does not count.
    np.testing.assert_allclose(got * MASK[..., None], want * MASK[..., None], atol=2e-5)


def test_the_mean_is_over_tokens_alone_and_has_length_one():
    hidden = np.random.default_rng(1).standard_normal((2, 9, 4), np.float32)
    got = np.asarray(mean_of_tokens(hidden, MASK))
    for row, (vectors, count) in enumerate(zip(hidden, (9, 5), strict=True)):
        mean = vectors[:count].mean(0)
        np.testing.assert_allclose(got[row], mean / np.linalg.norm(mean), rtol=1e-5)


def test_the_classifier_gives_one_number_for_each_label():
    sizes = {**TINY, "type_vocab_size": 2, "layer_norm_eps": 1e-12}
    assert {field.name for field in dataclasses.fields(Config)} == set(sizes)
    model = Classifier(Config(**sizes), 3, nnx.Rngs(0))
    assert model(IDS, MASK).shape == (2, 3)


@pytest.mark.slow
def test_minilm_gives_the_vectors_of_pytorchs(tmp_path):
    folder = real_weights.minilm()
    want = mean_of_tokens(hidden_of_pytorch(folder, tmp_path, IDS + 2000, MASK), MASK)
    got = mean_of_tokens(encoder(folder)(IDS + 2000, MASK), MASK)
    np.testing.assert_allclose(got, want, atol=1e-5)
