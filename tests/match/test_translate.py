"""Rules read forwards without a tree."""

import numpy as np
from pipelines import assert_equal, count, refused, values

import lazyinit as li
from lazyinit.match.translate import translate
from lazyinit.rules.rule import as_rules
from lazyinit.tensors.memory import open_tree


def translated(tensors, rules):
    return values(translate(open_tree(tensors), rules=as_rules(rules)))


def test_without_any_rule_names_stay_as_they_are():
    tensors = {"a.b": count(2), "c/d": count(3)}
    assert_equal(translated(tensors, ()), tensors)
    assert list(translated(tensors, [li.Ignore("a.*")])) == ["c/d"]
    assert list(translated({"m.a.b": count(2)}, [li.strip_prefix("m")])) == ["a.b"]
    assert list(translated({"m/a/b": count(2)}, [li.strip_prefix("m")])) == ["a/b"]


def test_tensors_become_leaves_by_the_narrowest_rule():
    tensors = {
        "h.0.fc.weight": count(2, 3),
        "h.0.norm.weight": count(2),
        "h.0.fc.bias": count(2),
        "h.0.mask": count(2),
    }
    rules = [
        li.Rule("**/kernel", "**.weight", li.Transpose("o i -> i o")),
        li.Rule("**/norm/scale", "**.norm.weight"),
        li.Rule("**/bias", "**.bias"),
        li.Ignore("**.mask"),
    ]
    leaves = translated(tensors, rules)
    assert list(leaves) == ["h/0/fc/kernel", "h/0/norm/scale", "h/0/fc/bias"]
    np.testing.assert_array_equal(leaves["h/0/fc/kernel"], tensors["h.0.fc.weight"].T)


def test_tensors_that_two_rules_fit_are_refused():
    with refused("fc.weight: wanted one rule to say what becomes of this tensor, got Rule('**/k"):
        translated({"fc.weight": count(2, 3)}, li.TORCH)
    with refused("x.y: wanted one rule to say what becomes of this tensor, got none. Write a rule"):
        translated({"x.y": count(2, 3)}, [li.Rule("a", "b")])


def test_a_tensor_that_is_missing_beside_others_is_named():
    rules = [li.Rule("layers/q/kernel", "model.layers.{n}.q.weight", [li.Stack(axis=0)])]
    with refused("model.layers.0.q.weight: Rule(") as caught:
        translated({f"model.layers.{n}.q.weight": count(2, 2) for n in (0, 1, 3)}, rules)
    assert "wants 'model.layers.2.q.weight' beside it" in str(caught.value)


def test_a_size_that_no_leaf_tells_must_be_said():
    change = "(h k) i -> i h k"
    with refused("q: Rule('q', 'q', Rearrange('(h k) i -> i h k')): Rearrange('(h k) i -> i h k')"):
        translated({"q": count(6, 2)}, [li.Rule("q", "q", li.Rearrange(change))])
    leaves = translated({"q": count(6, 2)}, [li.Rule("q", "q", li.Rearrange(change, h=2))])
    np.testing.assert_array_equal(leaves["q"], count(6, 2).T.reshape(2, 2, 3))


def test_two_tensors_cannot_make_one_leaf():
    rules = [li.Rule("**/scale", "**.weight"), li.Rule("**/scale", "**.gamma")]
    with refused("n.gamma: wanted a leaf of its own for this tensor, but the rules make 'n/scale'"):
        translated({"n.weight": count(2), "n.gamma": count(2)}, rules)


def test_tied_leaves_are_not_made_without_a_tree():
    rules = [
        li.Rule("embed/embedding", "wte.weight"),
        li.Rule("head/kernel", "wte.weight", li.Transpose("v d -> d v"), tied=True),
    ]
    assert list(translated({"wte.weight": count(5, 2)}, rules)) == ["embed/embedding"]
