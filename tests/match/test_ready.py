"""A ready map is taken where nothing else can be meant; what is left in doubt is said."""

import functools
import json
import os

os.environ.setdefault("USE_TORCH", "0")  # transformers would import it if it is there.

import deepseek_trees
import maxtext_trees
import numpy as np
import pipelines
import pytest
import quantized_folders
from families import FAMILIES, params_of
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutants import mutate
from pipelines import nested, refused, values
from safetensors.numpy import save_file
from tunix_trees import TREES, D, Tree, V, leaves_of, tensors_of

import lazyinit as li
from lazyinit import errors
from lazyinit.maps.ready_maps import READY, ReadyMap
from lazyinit.match.as_numbers import as_numbers
from lazyinit.match.places import places
from lazyinit.match.ready import find_map, with_config
from lazyinit.tensors.memory import open_tree

MAPS = {
    "llama": ("llama", "LLAMA_TUNIX"),
    "llama tied": ("mistral", "LLAMA_TUNIX"),
    "qwen2": ("qwen2", "QWEN2_TUNIX"),
    "qwen3": ("qwen3", "QWEN3_TUNIX"),
    "qwen3_moe": ("qwen3_moe", "QWEN3_TUNIX"),
    "gemma": ("gemma", "GEMMA_TUNIX"),
    "gemma2": ("gemma2", "GEMMA2_TUNIX"),
    "gemma2 fused": ("gemma2", "GEMMA2_TUNIX"),
    "gemma3_text": ("gemma3_text", "GEMMA3_TUNIX"),
}


def written(folder, tensors, **config):
    save_file(
        {name: np.ascontiguousarray(x) for name, x in tensors.items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def loaded(name, folder, **options):
    return li.from_pretrained(Tree, folder, nnx.Rngs(0), TREES[name], **options)


def found(flat, tensors, config, **options):
    leaves = [place for place, _ in places(nested(flat))]
    return find_map(leaves, open_tree(tensors), config, **options)


@pytest.mark.parametrize("name", MAPS)
def test_a_model_of_tunix_is_loaded_without_rules_and_the_report_says_by_which(name, tmp_path):
    family, ready = MAPS[name]
    tensors = tensors_of(name)
    model, report = loaded(name, written(tmp_path, tensors, model_type=family), on_missing="error")
    assert report.ready_map == ready
    assert (
        f"leaves from model.safetensors ({report.nbytes / 1024:.1f} KiB) by lazyinit.maps.{ready}"
        in (report.summary())
    )
    assert report.unexpected == ()
    for path, leaf in leaves_of(name, tensors).items():
        made = nnx.state(model)
        for key in path.split("/"):
            made = made[int(key) if key.isdigit() else key]
        np.testing.assert_array_equal(made.get_value(), leaf)


@pytest.mark.filterwarnings("ignore")  # Of transformers, about the end of Flax models.
@pytest.mark.parametrize("name", ["BertForPreTraining", "GPT2LMHeadModel", "CLIPModel"])
def test_a_model_of_transformers_goes_by_the_map_of_its_family(name):
    tensors = values(pipelines.written(params_of(name), FAMILIES[name][3]))
    flat = {f"params/{path}": x for path, x in params_of(name).items()}
    family = FAMILIES[name][0]
    assert found(flat, tensors, {"model_type": family.lower()}).name == family.upper()


@pytest.mark.parametrize("each", READY, ids=lambda each: each.name)
def test_every_ready_map_is_what_its_name_says_in_maps(each):
    for family in each.model_types:
        counts = {"num_hidden_layers": 8, "num_experts": 4, "num_local_experts": 4}
        config = {"model_type": family, "first_k_dense_replace": 1, **counts}
        assert eval(each.name, vars(li.maps) | {"config": config}) == each.rules_for(config)


def test_no_ready_map_is_left_out():
    names = {each.name for each in READY if not each.name.startswith("maxtext(")}
    assert names == {name for name in li.maps.__all__ if name.isupper()}


def test_leaves_that_go_by_the_names_of_tensors_need_no_map(tmp_path):
    flat = leaves_of("llama", tensors_of("llama"))
    _, report = loaded("llama", written(tmp_path, flat, model_type="llama"))
    assert report.ready_map == ""
    assert len(report.loaded) == len(flat)


@pytest.mark.parametrize("config", [{"model_type": "other"}, {"model_type": ["llama"]}, {}])
def test_without_a_family_that_is_known_all_is_as_without_rules(config, tmp_path):
    folder = written(tmp_path, tensors_of("llama"), **config)
    with refused("none of its 21 tensors matches any of the tree's 21 leaves.") as caught:
        loaded("llama", folder)
    with pytest.raises(li.errors.FillError) as other:
        loaded("llama", folder, rules=())
    assert str(caught.value) == str(other.value)


def test_the_names_of_one_leaf_more_are_no_guess(tmp_path):
    folder = written(tmp_path, tensors_of("llama tied"), model_type="llama")
    wanted = {**TREES["llama tied"], "value_head": {"w": (D, 1)}}
    message = (
        "No ready map for model_type 'llama' explains all of it: lazyinit.maps.LLAMA has no tensor "
        "for embedder/input_embedding; lazyinit.maps.LLAMA_NNX has no tensor for "
        "embedder/input_embedding; lazyinit.maps.LLAMA_TUNIX has no tensor for value_head/w; "
    )
    with refused(message):
        li.from_pretrained(Tree, folder, nnx.Rngs(0), wanted)


def test_a_family_whose_biases_the_model_lacks_is_in_doubt():
    flat = leaves_of("llama", tensors_of("llama"))
    made = found(flat, tensors_of("qwen2"), {"model_type": "qwen2"})
    assert made.rules == ()
    assert made.why == (
        "No ready map for model_type 'qwen2' explains all of it: lazyinit.maps.QWEN2_TUNIX has no "
        "leaf for tensor 'model.layers.0.self_attn.q_proj.bias'; lazyinit.maps.QWEN_MAXTEXT has no "
        "tensor for embedder/input_embedding; lazyinit.maps.maxtext(config) has no tensor for "
        "embedder/input_embedding."
    )


@pytest.mark.parametrize(("tied", "name"), [(True, "QWEN3_TUNIX"), (False, ""), (None, "")])
def test_a_head_without_a_leaf_is_a_copy_only_if_the_configuration_says_so(tied, name):
    tensors = tensors_of("qwen3")
    flat = leaves_of("qwen3", tensors)
    tensors["lm_head.weight"] = np.zeros((V, D), "float32")
    config = {"model_type": "qwen3", "tie_word_embeddings": tied}
    assert found(flat, tensors, config).name == name


def test_a_text_model_takes_the_text_of_a_checkpoint_with_vision():
    tensors = {f"language_model.{n}": x for n, x in tensors_of("gemma3_text").items()}
    tensors |= {"vision_tower.vision_model.post_layernorm.weight": np.zeros(3, "float32")}
    flat = leaves_of("gemma3_text", tensors_of("gemma3_text"))
    assert found(flat, tensors, {"model_type": "gemma3"}).name == "GEMMA3_VISION_TUNIX"
    tensors |= {"adapter.weight": np.zeros(3, "float32")}
    assert found(flat, tensors, {"model_type": "gemma3"}).name == ""


def test_a_checkpoint_below_a_subtree_is_found_there():
    flat = {f"base/{p}": x for p, x in leaves_of("llama", tensors_of("llama")).items()}
    made = found(flat, tensors_of("llama"), {"model_type": "llama"}, at="base")
    assert made.name == "LLAMA_TUNIX"


def test_two_maps_that_explain_all_of_it_are_an_error_that_names_both():
    rules = (li.Rule("a", "x"),)
    ready = [ReadyMap("ONE", rules, ("f",)), ReadyMap("OTHER", rules, ("f", "g"))]
    flat, tensors = {"a": np.ones(2)}, {"x": np.ones(2)}
    message = (
        "wanted one ready map for model_type 'f' that explains all of it, but lazyinit.maps.ONE "
        "and lazyinit.maps.OTHER all do. Pass the right one as rules=..."
    )
    with refused(message):
        found(flat, tensors, {"model_type": "f"}, ready=ready)
    assert found(flat, tensors, {"model_type": "g"}, ready=ready).name == "OTHER"


def test_rules_that_are_given_are_taken(tmp_path):
    folder = written(tmp_path, tensors_of("llama"), model_type="llama")
    with refused("none of its 21 tensors matches any of the tree's 21 leaves."):
        loaded("llama", folder, rules=())
    assert loaded("llama", folder, rules=li.maps.LLAMA_TUNIX)[1].ready_map == ""


def test_a_configuration_that_lies_about_shapes_is_the_usual_error(tmp_path):
    config = {"model_type": "llama", "hidden_size": 2 * D}
    folder = written(tmp_path, tensors_of("llama"), **config)
    other = {**TREES["llama"], "final_norm": {"w": (2 * D,)}}
    with refused("final_norm/w: the model wants float32[64], tensor 'model.norm.weight' holds"):
        li.from_pretrained(Tree, folder, nnx.Rngs(0), other)


@pytest.mark.parametrize("text", ["", "[]", "{", "3", '"llama"', "\udcff", "[" * 100_000])
def test_a_configuration_that_cannot_be_read_says_nothing(text, tmp_path):
    (tmp_path / "config.json").write_text(text, errors="surrogateescape")
    save_file({"a": np.ones(2)}, tmp_path / "model.safetensors")
    for checkpoint in (tmp_path, tmp_path / "model.safetensors", {"a": np.ones(2)}):
        opened, config = with_config(checkpoint)
        assert (list(opened), config) == (["a"], {})


@functools.cache
def folder_of(base, name):
    """Writes a folder whose configuration has numbers in it; returns it, and the leaves."""
    if name in quantized_folders.CASES:
        flat = dict([quantized_folders.numbers_of(name)])
        folder = quantized_folders.written(base / name, name)
    elif name in deepseek_trees.FAMILIES:
        tensors = deepseek_trees.tensors_of(name)
        flat = deepseek_trees.leaves_of(tensors, scanned=True)
        config = deepseek_trees.config_of(name, num_nextn_predict_layers=1)
        folder = quantized_folders.write(base / name, tensors, config)
    else:
        kind, layers = maxtext_trees.CASES[name]
        tensors, config = tensors_of(kind, layers), maxtext_trees.config_of(name, layers)
        flat = maxtext_trees.leaves_of(kind, tensors, scanned=True, layers=layers)
        folder = quantized_folders.write(base / name, tensors, config)
    return (
        folder,
        [place for place, _ in places(nested(flat))],
        (folder / "config.json").read_text(),
    )


NUMBERED = ("mixtral", "gemma3_text", "deepseek_v3", "fp8", "ct_int4_group", "gptq_int4")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(random=st.randoms(use_true_random=True))
def test_a_configuration_that_is_broken_leads_to_a_map_or_an_error_of_ours(
    random, tmp_path_factory
):
    folder, leaves, text = folder_of(tmp_path_factory.getbasetemp(), random.choice(NUMBERED))
    (folder / "config.json").write_text(text)
    mutate(random, folder / "config.json")
    try:
        opened, config = with_config(folder)
        find_map(leaves, as_numbers(leaves, opened, config), config)
    except errors.LazyinitError as error:
        assert str(error).startswith(str(folder))
