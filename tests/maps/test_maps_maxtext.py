"""Maps for MaxText's decoders, scanned and not: numpy says what becomes of the tensors."""

import deepseek_trees as deepseek
import gpt_oss_trees as gpt_oss
import numpy as np
import pytest
from maxtext_trees import CASES, config_of, leaves_of
from pipelines import assert_equal, count, filled, nested, refused, values, written
from tunix_trees import LAYERS, D, E, V, tensors_of

import lazyinit as li
from lazyinit import maps
from lazyinit.match.places import places
from lazyinit.match.ready import find_map
from lazyinit.tensors.memory import open_tree


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_map_for_maxtext_agrees_with_numpy_both_ways(name, scanned):
    kind, layers = CASES[name]
    tensors = tensors_of(kind, layers)
    flat = leaves_of(name.split(",")[0], tensors, scanned=scanned, layers=layers)
    config, options = config_of(name, layers), {"interleaved": name == "llama 3.1"}
    rules = maps.maxtext(config, scanned_layers=scanned, **options)
    leaves, report = filled(flat, tensors, rules)
    assert_equal(dict(sorted(leaves.items())), flat)
    assert report.unexpected == report.missing == ()
    back = values(written(flat, rules))
    assert {*back} == {*tensors}
    for tensor, x in tensors.items():
        np.testing.assert_allclose(back[tensor], x, rtol=1e-6, atol=3e-7)


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_without_rules_the_map_for_maxtext_is_found_or_the_doubt_is_said(name, scanned):
    kind, layers = CASES[name]
    tensors = tensors_of(kind, layers)
    flat = leaves_of(name.split(",")[0], tensors, scanned=scanned, layers=layers)
    wanted = [place for place, _ in places(nested(flat))]
    config, options = config_of(name, layers), "" if scanned else ", scanned_layers=False"

    def found():
        return find_map(wanted, open_tree(tensors), config)

    if name.startswith("llama"):  # No tree tells whether rotary pairs lie side by side.
        with refused(
            f"but lazyinit.maps.maxtext(config{options}) and lazyinit.maps.maxtext(config"
        ):
            found()
    elif not scanned and name.startswith("qwen"):
        assert found().name == "QWEN_MAXTEXT"
    elif name.endswith("no step"):  # Then there is nothing to scan: all layers are the rest.
        assert found().name == f"maxtext(config{options})"
    else:
        assert found().name == f"maxtext(config{options})"
        made = filled(flat, tensors, found().rules)[0]
        assert_equal(dict(sorted(made.items())), flat)


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize(("layers", "dense"), [(5, 2), (2, 1), (2, 0), (2, 2)])
@pytest.mark.parametrize("family", deepseek.FAMILIES)
def test_the_map_for_deepseek_is_found_and_agrees_with_numpy_both_ways(
    family, layers, dense, scanned
):
    tensors = deepseek.tensors_of(family, layers, dense)
    flat = deepseek.leaves_of(tensors, scanned=scanned, layers=layers, dense=dense)
    config = deepseek.config_of(family, layers, dense, num_nextn_predict_layers=1)
    # A layer that predicts the token after the next, which MaxText's tree has not.
    further = {f"model.layers.{layers}.{n}.weight": np.ones(3) for n in ("eh_proj", "mlp.gate")}
    wanted = [place for place, _ in places(nested(flat))]
    found = find_map(wanted, open_tree(tensors | further), config)
    assert found.name == f"maxtext(config{'' if scanned else ', scanned_layers=False'})"
    leaves, report = filled(flat, tensors | further, found.rules)
    assert_equal(dict(sorted(leaves.items())), flat)
    assert report.unexpected == report.missing == ()
    back = values(written(flat, found.rules))
    assert_equal(dict(sorted(back.items())), dict(sorted(tensors.items())))


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("layers", [2, 4])
def test_the_map_for_gpt_oss_is_found_and_agrees_with_numpy_both_ways(layers, scanned):
    tensors = gpt_oss.tensors_of(layers)
    flat = gpt_oss.leaves_of(tensors, layers, scanned=scanned)
    wanted = [place for place, _ in places(nested(flat))]
    found = find_map(wanted, open_tree(tensors), gpt_oss.config_of(layers))
    assert found.name == f"maxtext(config{'' if scanned else ', scanned_layers=False'})"
    leaves, report = filled(flat, tensors, found.rules)
    assert_equal(dict(sorted(leaves.items())), flat)
    assert report.unexpected == report.missing == ()
    back = values(written(flat, found.rules))
    assert_equal(dict(sorted(back.items())), dict(sorted(tensors.items())))


def test_a_vocabulary_that_maxtext_pads_is_filled_with_zeros_and_cut_again():
    tensors = tensors_of("gemma2")
    flat = leaves_of("gemma2", tensors, scanned=False)
    rules = maps.maxtext(config_of("gemma2", 2), scanned_layers=False, vocab_size=V + 8)
    path = "params/token_embedder/embedding"
    flat[path] = np.concatenate([flat[path], np.zeros((8, D), "float32")])
    made, _ = filled(flat, tensors, rules)
    assert_equal(dict(sorted(made.items())), flat)
    back = values(written(flat, rules))["model.embed_tokens.weight"]
    np.testing.assert_allclose(back, tensors["model.embed_tokens.weight"], rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "lama"}, "in the configuration, got 'lama'; did you mean 'llama'?"),
        ({}, "maxtext: wanted a model_type among llama, mistral, mixtral"),
        ({"model_type": ["llama"]}, "in the configuration, got ['llama']"),
        ({"model_type": "gemma2"}, "wanted num_hidden_layers from 1 to 1000 in the configuration"),
        ({"model_type": "gemma3", "text_config": {"num_hidden_layers": 10**9}}, "got 1000000000."),
        ({"model_type": "gemma2", "num_hidden_layers": True}, "got True."),
        ({"model_type": "qwen3_moe"}, "maxtext: wanted num_experts from 1 to 10000 in the"),
        ({"model_type": "mixtral", "num_local_experts": "8"}, "got '8'."),
        (deepseek.config_of("deepseek_v3", 3, 4), "first_k_dense_replace from 0 to 3 in the"),
        (deepseek.config_of("deepseek_v3", num_nextn_predict_layers=-1), "from 0 to 1000 in the"),
    ],
)
def test_a_configuration_that_does_not_say_enough_is_refused(config, message):
    with refused(message):
        maps.maxtext(config)


def test_a_configuration_that_cannot_be_used_is_said_and_no_map_is_taken():
    tensors = tensors_of("gemma2")
    flat = leaves_of("gemma2", tensors, scanned=True)
    wanted = [place for place, _ in places(nested(flat))]
    made = find_map(wanted, open_tree(tensors), {"model_type": "gemma2", "num_hidden_layers": -1})
    assert made.rules == ()
    assert (
        "lazyinit.maps.maxtext(config) cannot be made: maxtext: wanted num_hidden_layers from 1 to "
        "1000 in the configuration, got -1;"
    ) in made.why


def test_experts_of_scanned_layers_lie_before_the_layers():
    tensors = tensors_of("qwen3_moe")
    path = "params/decoder/layers/moe_block/wo"
    leaf = leaves_of("qwen3_moe", tensors, scanned=True)[path]
    assert leaf.shape[:2] == (E, LAYERS)
    tensor = tensors["model.layers.1.mlp.experts.2.down_proj.weight"]
    np.testing.assert_array_equal(leaf[2, 1], tensor.T)


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
@pytest.mark.parametrize("stacked", [0, 1, 2])
def test_layers_lie_along_their_axis_beside_tensors_that_are_stacked(axis, stacked):
    rules = [li.Rule("layers/{n}/kv", ("h.{n}.k", "h.{n}.v"), [li.Stack(stacked)])]
    tensors = {f"h.{n}.{name}": count(3, 4) + 9 * n for n in range(2) for name in "kv"}
    tensors |= {name: -x for name, x in tensors.items() if name.endswith("v")}
    layers = [np.stack([tensors[f"h.{n}.{name}"] for name in "kv"], stacked) for n in range(2)]
    flat = {"layers/kv": np.stack(layers, axis)}
    moved = maps.scanned(rules, "h.{n}", "layers", axis=axis)
    assert_equal(filled(flat, tensors, moved)[0], flat)
    assert_equal(dict(sorted(values(written(flat, moved)).items())), dict(sorted(tensors.items())))


@pytest.mark.parametrize(("axis", "stacked"), [(-1, 0), (0, -1)])
def test_axes_from_the_end_are_not_put_in_order(axis, stacked):
    rules = [li.Rule("layers/{n}/kv", ("h.{n}.k", "h.{n}.v"), [li.Stack(stacked)])]
    message = f"scanned: wanted axes from 0 on for layers beside Stack(axis={stacked}), got {axis}."
    with refused(message):
        maps.scanned(rules, "h.{n}", "layers", axis=axis)


def test_one_expert_is_no_stack():
    with refused("counted: wanted e=2 or more tensors, got 1."):
        maps.counted(maps.QWEN_MAXTEXT, e=1)


def test_a_number_that_no_rule_stacks_by_is_refused():
    with refused("counted: wanted numbers that rules stack by (e), got x."):
        maps.counted(maps.QWEN_MAXTEXT, x=2)
    with refused("counted: wanted numbers that rules stack by (none), got e."):
        maps.counted(li.TORCH, e=2)


def test_a_rule_of_several_patterns_is_refused_and_not_left_as_it_is():
    rule = li.Rule("moe", ("{e}.up", "{e}.gate"), [li.Stack(0), li.Concat(axis=1)])
    with refused("counted: wanted one pattern of tensors, got 2. Write the tensors"):
        maps.counted([rule], e=2)
    plain = li.Rule("w", "w.weight")
    assert maps.counted([plain, li.Rule("m", "{e}.m", [li.Stack(0)])], e=2)[0] is plain
