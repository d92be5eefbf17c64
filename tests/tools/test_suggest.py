"""Rules proposed for scrambled names: the true map is the oracle, and what is doubtful is said."""

import os

os.environ.setdefault("USE_TORCH", "0")  # transformers would import it if it is there.

import re

import numpy as np
import pytest
from families import FAMILIES, params_of
from oracles import assert_not_quadratic
from pipelines import count, nested, values, written, zeros

import lazyinit as li
from lazyinit.match.places import places

pytestmark = pytest.mark.filterwarnings("ignore")  # Theirs, about the end of Flax models.


ONE_OF_EACH = {"BertModel", "GPT2LMHeadModel", "LlamaForCausalLM", "ViTModel", "CLIPModel"} | {
    "T5ForConditionalGeneration"
}
NAMES = [
    pytest.param(name, marks=[] if name in ONE_OF_EACH else pytest.mark.slow) for name in FAMILIES
]


def lazy(flat):
    return nested({path: li.LazyParam(x.shape, x.dtype, zeros) for path, x in flat.items()})


def scrambled(tensors, rename):
    """Returns tensors with each word of their names replaced, the same word in the same way."""
    return {re.sub(r"[A-Za-z]+[0-9]*", lambda f: rename(f[0]), n): x for n, x in tensors.items()}


def nonsense():
    known = {}
    return lambda word: known.setdefault(word, f"z{len(known)}")


ABBREVIATED = {
    "encoder": "enc",
    "decoder": "dec",
    "layer": "blocks",
    "layers": "blocks",
    "h": "blocks",
    "attention": "attn",
    "LayerNorm": "ln",
    "embeddings": "emb",
    "intermediate": "up",
    "dense": "fc",
    "weight": "w",
    "transformer": "net",
    "bert": "net",
    "vit": "net",
    "model": "net",
}


def applied(params, tensors, suggestion):
    """Returns the paths that fill makes as the true map does, and those that it makes otherwise."""
    tree = lazy({f"params/{path}": x for path, x in params.items()})
    if not suggestion.rules:
        return set(), set()
    tree, _ = li.fill(tree, tensors, suggestion.rules, at=suggestion.at)
    made = {p.path: leaf.source for p, leaf in places(tree) if isinstance(leaf, li.StoredParam)}
    right = {
        path
        for path, x in values(made).items()
        if np.array_equal(x, params[path.removeprefix("params/")])
    }
    return right, set(made) - right


@pytest.mark.parametrize("name", NAMES)
def test_of_names_that_say_nothing_all_is_right_or_listed(name):
    params, rules = params_of(name), FAMILIES[name][3]
    tensors = scrambled(values(written(params, rules)), nonsense())
    suggestion = li.suggest_rules(
        lazy({f"params/{path}": x for path, x in params.items()}), tensors
    )
    right, wrong = applied(params, tensors, suggestion)
    assert wrong == set()
    assert right | set(suggestion.ambiguous) == {f"params/{path}" for path in params}
    for path, candidates in suggestion.ambiguous.items():
        x = params[path.removeprefix("params/")]
        assert any(
            np.array_equal(np.sort(tensors[c].ravel()), np.sort(x.ravel())) for c in candidates
        ), path


def test_of_a_bert_whose_names_say_nothing_only_queries_keys_and_values_are_doubtful():
    params = params_of("BertModel")
    tensors = scrambled(values(written(params, li.maps.BERT)), nonsense())
    suggestion = li.suggest_rules(
        lazy({f"params/{path}": x for path, x in params.items()}), tensors
    )
    modules = {path.rpartition("/")[0].rpartition("/")[2] for path in suggestion.ambiguous}
    assert modules == {"query", "key", "value"}
    assert "Rule('encoder/layer/{n}/output/dense/kernel', 'z" in str(suggestion)


@pytest.mark.parametrize("name", NAMES)
def test_of_names_that_are_abbreviated_all_is_found(name):
    params, rules = params_of(name), FAMILIES[name][3]
    tensors = values(written(params, rules))
    tensors = scrambled(tensors, lambda word: ABBREVIATED.get(word, word))
    suggestion = li.suggest_rules(
        lazy({f"params/{path}": x for path, x in params.items()}), tensors
    )
    right, wrong = applied(params, tensors, suggestion)
    assert wrong == set()
    assert right == {f"params/{path}" for path in params}, str(suggestion)


def suggested(flat, tensors, *rules, **kwargs):
    """Returns a suggestion for leaves and tensors, and what fill makes with it, by path."""
    tensors = {name: np.asarray(x) for name, x in tensors.items()}
    suggestion = li.suggest_rules(lazy(flat), tensors, *rules, **kwargs)
    tree, _ = li.fill(lazy(flat), tensors, suggestion.rules, at=suggestion.at)
    made = {p.path: leaf.source for p, leaf in places(tree) if isinstance(leaf, li.StoredParam)}
    return suggestion, values(made)


def test_numbered_tensors_are_stacked_for_a_scanned_leaf():
    tensors = {f"model.layers.{n}.mlp.up.weight": count(5, 3) + n for n in range(4)}
    tensors |= {f"model.layers.{n}.norm.weight": count(3) + n for n in range(4)}
    flat = {
        "layers/mlp/up/kernel": np.stack(
            [tensors[f"model.layers.{n}.mlp.up.weight"].T for n in range(4)]
        ),
        "layers/norm/scale": np.stack(
            [tensors[f"model.layers.{n}.norm.weight"] for n in range(4)], 1
        ),
    }
    suggestion, made = suggested(flat, tensors)
    for path, x in flat.items():
        np.testing.assert_array_equal(made[path], x)
    assert str(suggestion) == (
        "rules = [\n"
        "    Rule('layers/mlp/up/kernel', 'model.layers.{n}.mlp.up.weight', "
        "[Transpose('o i -> i o'), Stack(axis=0)]),\n"
        "    Rule('layers/norm/scale', 'model.layers.{n}.norm.weight', [Stack(axis=1)]),\n"
        "]"
    )
    assert suggestion.unmatched_leaves == suggestion.unmatched_tensors == ()


def test_kernels_with_heads_are_split_into_them():
    q, out, bias = count(6, 5), count(5, 6), count(6)
    flat = {
        "attention/query/kernel": q.T.reshape(5, 2, 3),
        "attention/query/bias": bias.reshape(2, 3),
        "attention/out/kernel": out.T.reshape(2, 3, 5),
    }
    tensors = {"attn.q.weight": q, "attn.q.bias": bias, "attn.o.weight": out}
    _, made = suggested(flat, tensors)
    for path, x in flat.items():
        np.testing.assert_array_equal(made[path], x)


def test_a_fused_kernel_is_split_and_three_are_fused_in_an_order_that_is_doubtful():
    q, k, v = count(4, 3), count(4, 3) + 20, count(4, 3) + 40
    fused = np.concatenate([q, k, v])
    apart = {
        f"h/{n}/attn/{name}/kernel": x.T
        for n in range(2)
        for name, x in zip(("q", "k", "v"), (q, k, v), strict=True)
    }
    suggestion, made = suggested(apart, {f"h.{n}.attn.qkv.weight": fused for n in range(2)})
    for path, x in apart.items():
        np.testing.assert_array_equal(made[path], x)
    assert "fused in this order, which shapes do not tell." in str(suggestion)
    assert "Split(axis=1)" in str(suggestion)
    tensors = {
        f"h.{n}.attn.{name}.weight": x
        for n in range(2)
        for name, x in zip(("q", "k", "v"), (q, k, v), strict=True)
    }
    suggestion, made = suggested({f"h/{n}/attn/qkv/kernel": fused.T for n in range(2)}, tensors)
    np.testing.assert_array_equal(made["h/1/attn/qkv/kernel"], fused.T)
    assert "Concat(axis=1)" in str(suggestion)


def test_a_ready_map_a_place_and_a_prefix_are_found_before_rules_are_made_up():
    params = params_of("BertModel")
    tensors = {f"module.{name}": x for name, x in values(written(params, li.maps.BERT)).items()}
    flat = {f"params/bert/{path}": x for path, x in params.items()}
    flat["params/classifier/kernel"] = count(32, 3)
    suggestion, made = suggested(flat, tensors)
    assert len(made) == len(params)
    assert str(suggestion) == (
        "at = 'params/bert'\n"
        "rules = [\n"
        "    Rename('module.**', '**'),\n"
        "    *TORCH,\n"
        "]\n"
        "# unmatched leaf: params/classifier/kernel"
    )


def test_rules_that_are_known_are_kept_and_added_to():
    flat = {"a/kernel": count(2, 3), "b/x": count(7)}
    known = li.Rule("a/kernel", "first", li.Transpose("o i -> i o"))
    suggestion, made = suggested(flat, {"first": count(3, 2), "second": count(7)}, [known])
    assert suggestion.rules == (li.Rule("b/x", "second"), known)
    assert "b/x from second: the shapes alone say so, not the names." in suggestion.notes
    np.testing.assert_array_equal(made["b/x"], count(7))


def test_a_square_kernel_that_no_other_tells_about_is_noted():
    suggestion, _ = suggested({"up/kernel": count(3, 3)}, {"x.up.w": count(3, 3)})
    assert suggestion.rules == (li.Rule("up/kernel", "x.up.w", [li.Transpose("o i -> i o")]),)
    assert suggestion.notes[0] == (
        "up/kernel from x.up.w: square, and transposed though no other kernel tells."
    )


THEIRS = {  # How a Llama may be written in Flax, by somebody who read the paper.
    "model/layers/": "decoder/layers_",
    "self_attn": "attention",
    "q_proj": "wq",
    "k_proj": "wk",
    "v_proj": "wv",
    "o_proj": "wo",
    "input_layernorm/weight": "attention_norm/scale",
    "post_attention_layernorm/weight": "ffn_norm/scale",
    "mlp/gate_proj": "feed_forward/w1",
    "mlp/down_proj": "feed_forward/w2",
    "mlp/up_proj": "feed_forward/w3",
    "model/norm/weight": "decoder/norm/scale",
    "model/embed_tokens": "tok_embeddings",
    "lm_head": "output",
}


def test_of_a_llama_of_other_names_all_is_found_but_which_of_two_is_the_gate():
    params = params_of("LlamaForCausalLM")
    tensors = values(written(params, li.maps.LLAMA))
    flat = {}
    for path, x in params.items():
        for mine, theirs in THEIRS.items():
            path = path.replace(mine, theirs)
        flat[path] = x
    suggestion, made = suggested(flat, tensors)
    assert {path.rpartition("feed_forward/")[2] for path in suggestion.ambiguous} == {
        "w1/kernel",
        "w3/kernel",
    }
    assert len(made) == len(flat) - 4
    for path, x in made.items():
        np.testing.assert_array_equal(x, flat[path])
    assert (
        "decoder/layers_{n}/ffn_norm/scale from model.layers.{n}.post_attention_layernorm.weight: "
        "the names say so, the shapes leave others."
    ) in suggestion.notes


def test_what_is_left_on_both_sides_is_listed():
    flat = {f"x{n}": count(3, 4) for n in range(12)}
    suggestion = li.suggest_rules(lazy(flat), {f"y{n}": count(5) for n in range(12)})
    assert suggestion.rules == ()
    assert len(suggestion.unmatched_leaves) == len(suggestion.unmatched_tensors) == 12
    assert str(suggestion).startswith("rules = [\n]\n# unmatched leaf: x0\n")
    assert "# unmatched leaf: ... and 2 more" in str(suggestion)


def test_suggesting_costs_in_proportion_to_the_layers():
    def suggesting(layers):
        each = [(n, k) for n in range(layers) for k in range(5)]
        tree = lazy({f"layers/{n}/mlp/m{k}/kernel": count(2, 3) for n, k in each})
        tensors = {f"h.{n}.f.m{k}.w": count(3, 2) for n, k in each}
        return lambda: li.suggest_rules(tree, tensors)

    assert len(suggesting(8)().rules) == 5
    assert_not_quadratic(suggesting, size=8)
