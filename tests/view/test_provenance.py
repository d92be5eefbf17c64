"""Every leaf says where it came from, and the record outlives the tree."""

import json
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx
from models import MLP, Decoder, X
from safetensors import safe_open
from safetensors.numpy import save_file

import lazyinit as li

KEY = jax.random.key(9)


@pytest.fixture
def tree(tmp_path):
    tensors = {"head.weight": np.arange(20, dtype=np.float16).reshape(2, 10), "pad": np.ones(3)}
    save_file(tensors, tmp_path / "model.safetensors")
    lazy = li.lazy(nn.Dense(2)).init(KEY, jax.ShapeDtypeStruct((1, 10), "float32"))
    whole = {"params": {"head": lazy["params"], "other": np.ones(3, np.float32)}, "step": 3}
    filled, _ = li.fill(whole, tmp_path, li.TORCH, at="params", on_missing="init")
    return filled


def test_a_stored_leaf_says_file_tensors_bytes_and_layout(tree, tmp_path):
    record = li.provenance(tree)["params/head/kernel"]
    assert (record.kind, record.shape, record.dtype) == ("stored", (10, 2), "float32")
    (stored,) = record.stored
    path = str(tmp_path / "model.safetensors")
    assert (stored.file, stored.tensors, stored.dtype) == (path, ("head.weight",), "float16")
    assert stored.layout == "model.safetensors:head.weight.T"
    assert (stored.shapes, stored.shape) == (((2, 10),), (10, 2))
    (extent,) = stored.extents
    raw = Path(extent.file).read_bytes()[extent.start : extent.stop]
    with safe_open(path, "np") as official:
        assert raw == official.get_tensor("head.weight").tobytes()


def test_a_leaf_of_several_tensors_names_each():
    rules = [li.Rule("w", "layer.{n}.w", [li.Cast("float32"), li.Stack()])]
    lazy = {"w": li.LazyParam((2, 3), "float32", jax.numpy.zeros)}
    tensors = {f"layer.{n}.w": np.full(3, n, np.float16) for n in range(2)}
    filled, _ = li.fill(lazy, tensors, rules)
    (stored,) = li.provenance(filled)["w"].stored
    assert (stored.tensors, stored.shapes) == (("layer.0.w", "layer.1.w"), ((3,), (3,)))
    assert (stored.dtype, stored.shape, stored.file) == ("float16", (2, 3), "the mapping")
    again = li.Provenance.from_json(li.provenance(filled).to_json())
    assert again == li.provenance(filled)


def test_a_lazy_leaf_says_initializer_stream_and_key(tree):
    record = li.provenance(tree)["params/head/bias"]
    (lazy,) = record.lazy
    assert (record.kind, lazy.initializer, lazy.folded) == ("lazy", "zeros", (2,))
    (key,) = lazy.keys
    assert (key.stream, key.impl, key.typed) == ("params", "threefry2x32", True)
    assert list(key.words) == jax.random.key_data(KEY).tolist()
    rebuilt = jax.random.wrap_key_data(np.array(key.words, np.uint32), impl=key.impl)
    made = li.LazyParam((2,), "float32", nn.initializers.zeros)
    assert jax.random.fold_in(rebuilt, lazy.fold) == tree["params"]["head"]["bias"].rng_path.key()
    assert made.shape == record.shape


def test_an_array_is_an_array_and_what_is_none_has_no_record(tree):
    origins = li.provenance(tree)
    assert origins["params/other"].kind == "array"
    assert list(origins) == ["params/head/bias", "params/head/kernel", "params/other"]
    assert len(origins) == 3


def test_it_is_kept_when_the_leaves_are_made(tree):
    origins = li.provenance(tree)
    made = li.materialize(tree)
    assert {record.kind for record in li.provenance(made).values()} == {"array"}
    assert origins["params/head/kernel"].kind == "stored"


def test_it_can_be_written_and_read_back_equal(tree, tmp_path):
    origins = li.provenance(tree)
    origins.save(tmp_path / "origins.json")
    again = li.Provenance.load(tmp_path / "origins.json")
    assert again == origins
    assert dict(again) == dict(origins)
    assert json.loads(origins.to_json())["leaves"]["params/head/bias"]["kind"] == "lazy"
    overlapped, _ = li.fill(
        li.lazy(MLP()).init(KEY, X),
        {"params/head/bias": np.ones(1, "f")},
        on_mismatch=li.overlap,
        on_missing="init",
    )
    assert li.Provenance.from_json(li.provenance(overlapped).to_json()) == li.provenance(overlapped)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"lazyinit_provenance": 2, "leaves": {}}', "1"])
def test_json_of_something_else_is_refused(text):
    with pytest.raises(li.errors.CheckpointError, match="wanted JSON that Provenance.to_json"):
        li.Provenance.from_json(text)


def test_it_prints_as_a_table_that_folds_layers():
    tree = {f"layer_{n}": {"w": li.LazyParam((2,), "float32", jax.numpy.zeros)} for n in range(4)}
    assert str(li.provenance(tree)).splitlines()[-1].split() == [
        "layer_{0..3}/w", "4", "float32[2]", "lazy", "zeros",
    ]  # fmt: skip


def test_layers_fold_though_each_comes_from_tensors_of_its_own():
    tree = {f"layer_{n}": {"w": li.LazyParam((2,), "float32", jax.numpy.zeros)} for n in range(12)}
    tree["layer_x"] = {"w": li.LazyParam((2,), "float32", jax.numpy.zeros)}
    tensors = {f"h.{n}.w": np.ones(2, np.float32) for n in range(12)} | {"h.x.w": np.ones(2, "f")}
    filled, _ = li.fill(tree, tensors, [li.Rule("layer_{n}/w", "h.{n}.w"), li.Rule("layer_x/w", "h.x.w")])  # fmt: skip
    lines = [line.split() for line in str(li.provenance(filled)).splitlines()[3:]]
    assert [(line[0], line[1], line[-1]) for line in lines] == [
        ("layer_{0..11}/w", "12", "mapping:h.{n}.w"),
        ("layer_x/w", "1", "mapping:h.x.w"),
    ]
    decoder = li.lazy(Decoder(layers=4)).init(KEY, jax.ShapeDtypeStruct((1, 4), "int32"))
    lines = [line.split() for line in str(li.provenance(decoder)).splitlines()]
    kernel = next(line for line in lines if line[0] == "params/layers_{0..3}/q/kernel")
    assert kernel[1:] == ["4", "float32[16,16]", "lazy", "normal(0.02),", "params/layers_{n}/q#1"]


def test_a_cast_and_an_overlap_are_told(tree):
    shown = str(li.provenance(tree))
    assert "model.safetensors:head.weight.T, cast from float16" in shown


def test_an_nnx_stream_and_its_count_are_told():
    _, state = li.lazy(nnx.Linear)(2, 3, rngs=nnx.Rngs(params=1))
    (lazy,) = li.provenance(state)["kernel"].lazy
    assert (lazy.keys[0].stream, lazy.folded, lazy.fold) == ("params", (0,), 0)


def test_a_traced_key_has_no_words():
    def record(key):
        (leaf, *_) = li.provenance(li.lazy(MLP()).init(key, X)).values()
        assert leaf.lazy[0].keys[0].impl == "traced"
        return key

    jax.jit(record)(KEY)


def test_a_derived_leaf_has_first_what_computes_it_then_what_makes_that():
    w = li.lazy(lambda key: jax.random.normal(key, (3,)))(jax.random.key(5))
    record = li.provenance({"half": li.lazy(lambda w: w * 0.5)(w)})["half"]
    _, made = record.lazy
    assert (record.state, record.stored) == ("derived", ())
    assert made == li.provenance({"w": w})["w"].lazy[0]
