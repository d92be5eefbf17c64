"""Rules proposed for scrambled names: the true map is the oracle, and what is doubtful is said."""

import ast
import os

os.environ.setdefault("USE_TORCH", "0")  # transformers would import it if it is there.

import re

import numpy as np
import pytest
from families import FAMILIES, params_of
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import assert_not_quadratic
from pipelines import count, nested, values, written, zeros
from random_models import models
from tunix_trees import leaves_of, tensors_of

import lazyinit as li
from lazyinit.match.places import places
from lazyinit.patterns import pattern

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


def fitting(patterns, paths):
    """Returns the paths that any of the patterns fits, with or without the first collection."""
    names = {path: (path, path.removeprefix("params/")) for path in paths}
    every = [pattern(text) for text in patterns]
    return {path for path in paths if any(p.match(name) for p in every for name in names[path])}


def left_open(suggestion, paths):
    rules = [rule for some in suggestion.open for rule in some]
    return fitting([leaf for rule in rules for leaf in rule.leaves], paths)


def noted(suggestion, paths):
    """Returns the paths that some note is about."""
    said = [note.partition(" from ")[0] for note in suggestion.notes]
    leaves = [ast.literal_eval(text) if text[0] == "(" else (text,) for text in said]
    return fitting([leaf for some in leaves for leaf in some], paths)


@pytest.mark.parametrize("name", NAMES)
def test_of_names_that_say_nothing_all_is_right_or_listed(name):
    params, rules = params_of(name), FAMILIES[name][3]
    tensors = scrambled(values(written(params, rules)), nonsense())
    suggestion = li.suggest_rules(
        lazy({f"params/{path}": x for path, x in params.items()}), tensors
    )
    right, wrong = applied(params, tensors, suggestion)
    assert wrong == set()
    still_open = left_open(suggestion, [f"params/{path}" for path in params])
    assert right | set(suggestion.ambiguous) | still_open == {f"params/{path}" for path in params}
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
    if not suggestion.rules:
        return suggestion, {}
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
        + "".join(
            f"# encoder/layer/{{n}}/attention/{name}/kernel from encoder/layer/{{n}}/attention/{name}"
            "/weight: shapes leave its layout open; transposed, as "
            "encoder/layer/{n}/intermediate/dense/kernel is.\n"
            for name in ("output/dense", "self/key", "self/query", "self/value")
        )
        + "# pooler/dense/kernel from pooler/dense/weight: shapes leave its layout open; transposed, "
        "as encoder/layer/{n}/intermediate/dense/kernel is.\n"
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
        "up/kernel from x.up.w: shapes leave its layout open; transposed, as PyTorch stores weights."
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


def judged(model):
    """Returns a suggestion for a model, the leaves that it makes rightly, and those it does not."""
    suggestion, made = suggested(model.leaves, model.tensors)
    right = {path for path, x in made.items() if np.array_equal(x, model.leaves[path])}
    return suggestion, right, {*made} - right


@settings(max_examples=20, deadline=None)
@given(models())
def test_where_tensors_of_a_kind_lie_in_the_same_way_nothing_is_wrong(model):
    suggestion, right, wrong = judged(model)
    assert wrong <= conventional(suggestion, wrong)
    said = left_open(suggestion, model.leaves) | {*suggestion.ambiguous}
    assert right | wrong | said | {*suggestion.unmatched_leaves} == {*model.leaves}
    assert not (right | wrong) & {*suggestion.unmatched_leaves}


def conventional(suggestion, paths):
    """Returns the paths of which a note says that PyTorch's convention decides, and nothing else."""
    notes = [note for note in suggestion.notes if "as PyTorch stores weights" in note]
    return fitting([note.partition(" from ")[0] for note in notes if note[0] != "("], paths)


@settings(max_examples=20, deadline=None)
@given(models(turned=st.booleans()))
def test_even_where_each_tensor_lies_in_a_way_of_its_own_what_is_wrong_is_marked(model):
    suggestion, _, wrong = judged(model)
    assert wrong <= noted(suggestion, model.leaves)


def test_square_kernels_lie_as_their_siblings_do():
    for turned in (True, False):
        leaves = {
            "layers/0/attn/q_proj/w": count(6, 2, 3),
            "layers/0/attn/o_proj/w": count(2, 3, 6),
        }
        leaves |= {"layers/0/mlp/up/kernel": count(6, 4)}
        matrices = {
            "h.0.attn.q_proj.weight": leaves["layers/0/attn/q_proj/w"].reshape(6, 6),
            "h.0.attn.o_proj.weight": leaves["layers/0/attn/o_proj/w"].reshape(6, 6),
            "h.0.mlp.up.weight": leaves["layers/0/mlp/up/kernel"],
        }
        suggestion, made = suggested(
            leaves, {name: x.T if turned else x for name, x in matrices.items()}
        )
        assert {*made} == {*leaves}
        for path, x in leaves.items():
            np.testing.assert_array_equal(made[path], x)
        assert (
            "layers/0/attn/q_proj/w from h.0.attn.q_proj.weight: shapes leave its layout open; "
            f"{'transposed' if turned else 'as stored'}, as layers/{{n}}/mlp/up/kernel is."
        ) in suggestion.notes


def test_what_nothing_decides_is_open_and_not_applied():
    suggestion, made = suggested({"proj": count(3, 3)}, {"visual_proj": count(3, 3)})
    assert made == {}
    assert suggestion.rules == suggestion.unmatched_leaves == suggestion.unmatched_tensors == ()
    assert suggestion.open == (
        (
            li.Rule("proj", "visual_proj", [li.Transpose("o i -> i o")]),
            li.Rule("proj", "visual_proj"),
        ),
    )
    assert str(suggestion).splitlines()[-1] == (
        "# open: Rule('proj', 'visual_proj', [Transpose('o i -> i o')]) or "
        "Rule('proj', 'visual_proj')?"
    )


def test_torch_is_not_taken_for_a_checkpoint_that_does_not_lie_as_pytorchs_do():
    leaves = {f"{name}/bias": count(4) for name in ("a", "b", "c")}
    leaves |= {"a/kernel": count(4, 4), "b/kernel": count(4, 4), "c/kernel": count(4, 5)}
    tensors = {path.replace("/", ".").replace("kernel", "weight"): x for path, x in leaves.items()}
    suggestion, made = suggested(leaves, tensors)
    for path, x in leaves.items():
        np.testing.assert_array_equal(made[path], x)
    assert "TORCH" not in str(suggestion)


def test_a_square_leaf_that_goes_by_its_tensors_name_is_noted():
    leaves = {
        "a.weight": count(4, 4),
        "a.bias": count(4),
        "b.bias": count(5),
        "b.weight": count(4, 5),
    }
    tensors = {name: x.T for name, x in leaves.items()}
    suggestion = li.suggest_rules(lazy(leaves), tensors)
    assert (
        "a/weight from a/weight: taken as stored, as the names are equal, but shapes leave its "
        "layout open; transposed, as b/weight is."
    ) in suggestion.notes


def test_a_head_without_a_tensor_is_tied_to_the_embedding():
    embedding = count(5, 3)
    leaves = {"embed/embedding": embedding, "lm_head/kernel": embedding.T}
    suggestion, made = suggested(leaves, {"wte.weight": embedding})
    np.testing.assert_array_equal(made["lm_head/kernel"], embedding.T)
    assert str(suggestion).splitlines()[2] == (
        "    Rule('lm_head/kernel', 'wte.weight', Transpose('o i -> i o'), tied=True),"
    )
    assert "lm_head/kernel from wte.weight: tied, as there is no tensor for it." in suggestion.notes
    square = {"embed/embedding": count(3, 3), "lm_head/w": count(3, 3).T}
    suggestion, made = suggested(square, {"wte.weight": count(3, 3)})
    assert [len(rules) for rules in suggestion.open] == [2]
    assert "lm_head/w" not in made


def test_keys_and_values_are_stacked_for_the_leaf_that_says_so():
    k, v = count(6, 5), count(6, 5) + 50
    leaf = np.stack([x.reshape(3, 2, 5).transpose(0, 2, 1) for x in (k, v)])
    tensors = {"h.0.attn.k_proj.weight": k, "h.0.attn.v_proj.weight": v}
    suggestion, made = suggested({"h/0/attn/kv_einsum/w": leaf}, tensors)
    np.testing.assert_array_equal(made["h/0/attn/kv_einsum/w"], leaf)
    assert "fused in this order, which shapes do not tell" in suggestion.notes[0]


@pytest.mark.parametrize("layers", [1, 3])
def test_experts_are_stacked_and_not_layers_though_there_are_as_many(layers):
    each = {(n, m): count(4, 2) + 10 * n + 100 * m for n in range(layers) for m in range(3)}
    tensors = {f"model.layers.{n}.mlp.experts.{m}.up.weight": x for (n, m), x in each.items()}
    leaves = {
        f"layers/{n}/mlp/up": np.stack([each[n, m].T for m in range(3)]) for n in range(layers)
    }
    _, made = suggested(leaves, tensors)
    assert {*made} == {*leaves}
    for path, x in leaves.items():
        np.testing.assert_array_equal(made[path], x)


def test_norms_before_and_after_an_mlp_are_told_from_those_of_attention():
    norms = {
        "input_layernorm": "pre_attention_norm",
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "pre_ffw_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    }
    tensors = {f"layers.0.{name}.weight": count(3) + 10 * n for n, name in enumerate(norms)}
    leaves = {
        f"layers/0/{mine}/scale": tensors[f"layers.0.{theirs}.weight"]
        for theirs, mine in sorted(norms.items())
    }
    _, made = suggested(leaves, tensors)
    assert {*made} == {*leaves}
    for path, x in leaves.items():
        np.testing.assert_array_equal(made[path], x)


def test_a_transposed_convolution_is_open():
    suggestion, made = suggested({"up/kernel": count(2, 2, 3, 4)}, {"up.weight": count(3, 4, 2, 2)})
    assert made == {}
    assert "Flax flips its kernel unless transpose_kernel=True" in suggestion.notes[0]
    assert len(suggestion.open) == 1


def test_a_tensor_of_another_layer_is_noted():
    leaves = {"layers/0/up/kernel": count(2, 3), "layers/1/up/kernel": count(4, 5)}
    tensors = {"h.1.up.weight": count(2, 3), "h.0.up.weight": count(4, 5)}
    suggestion, _ = suggested(leaves, tensors)
    for n in range(2):
        assert (
            f"layers/{n}/up/kernel from h.{1 - n}.up.weight: their numbers differ."
            in suggestion.notes
        )


@pytest.mark.parametrize(
    ("name", "ready"),
    [("llama", "LLAMA_TUNIX"), ("qwen3_moe", "QWEN3_TUNIX"), ("gemma2", "GEMMA2_TUNIX")],
)
def test_a_tree_of_tunix_goes_by_its_map_if_all_of_it_is_there(name, ready):
    tensors = tensors_of(name)
    flat = leaves_of(name, tensors)
    suggestion, made = suggested(flat, tensors)
    assert f"*maps.{ready}" in str(suggestion)
    assert all(np.array_equal(x, flat[path]) for path, x in made.items())
    assert f"*maps.{ready}" not in str(suggested(flat | {"more": count(3)}, tensors)[0])
