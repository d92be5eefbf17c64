import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyinit import errors
from lazyinit.maps import scanned, sized
from lazyinit.rules.layout import Transpose
from lazyinit.rules.renames import Rename, strip_prefix
from lazyinit.rules.rule import Rule, as_rules
from lazyinit.rules.torch import TORCH
from lazyinit.tensors.memory import HeldTensor


@pytest.mark.parametrize(
    ("leaf", "tensor", "path", "name"),
    [
        ("**/kernel", "**.weight", "a/b/kernel", "a/b/weight"),
        ("**/kernel", "**.weight", "kernel", "weight"),
        ("**/kernel", "**.weight", "a/kernel/b", ""),
        ("**/kernel", "**.weight", "a/mykernel", ""),
        ("head/kernel", "cls.weight", "head/kernel", "cls/weight"),
        ("layers_*/**", "h.*.**", "layers_12/attn/kernel", "h/12/attn/kernel"),
        ("layers_*/**", "h.*.**", "layers_1/2/kernel", "h/1/2/kernel"),
        ("*/x_*", "x*.*", "a/x_b", "xa/b"),
        ("**", "model.**", "a/b", "model/a/b"),
        ("**/a/**", "**.b.**", "a", "b"),
        ("a+(b", "c", "a+(b", "c"),
    ],
)
def test_a_rule_names_the_tensor_of_a_leaf(leaf, tensor, path, name):
    assert Rule(leaf, tensor).tensor_for(path) == name


KEYS = st.text("abc_0", min_size=1, max_size=3)


@given(st.lists(KEYS, min_size=1, max_size=4).map("/".join))
def test_a_rule_reads_the_same_backwards(path):
    rule = Rule("**/*", "x.**.y*.z")
    tensor = rule.tensor_for(path)
    assert Rule(rule.tensor, rule.leaf).tensor_for(tensor) == path


@pytest.mark.parametrize("patterns", [("**", "a"), ("*/**", "**/*"), ("", "a"), ("a", "")])
def test_patterns_with_other_wildcards_are_refused(patterns):
    message = "wanted two patterns with the same wildcards in the same order, got"
    for kind in (Rule, Rename):
        with pytest.raises(errors.FillError, match=message):
            kind(*patterns)


def test_a_prefix_is_stripped_from_the_names_that_have_it():
    for prefix in ("model.", "model", "model/"):
        assert strip_prefix(prefix).name_for("model/a/b") == "a/b"
    assert strip_prefix("model.").name_for("modeling/a") == ""
    assert strip_prefix("a.b.").name_for("a/b/c") == "c"


@pytest.mark.parametrize("prefix", ["", "."])
def test_an_empty_prefix_is_refused(prefix):
    with pytest.raises(errors.FillError, match="strip_prefix: wanted leading keys"):
        strip_prefix(prefix)


def test_rules_are_values_that_print_themselves():
    rule = Rule("**/kernel", "**.weight", Transpose("o i -> i o"))
    assert rule == pickle.loads(pickle.dumps(rule))
    assert len({*TORCH, *TORCH}) == len(TORCH)
    assert repr(rule) == "Rule('**/kernel', '**.weight', Transpose('o i -> i o'))"
    assert repr(Rule("a", "b", optional=True)) == "Rule('a', 'b', optional=True)"
    assert repr(Rename("a.**", "**")) == "Rename('a.**', '**')"
    assert [eval(repr(each)) for each in TORCH] == list(TORCH)


@pytest.mark.parametrize("rules", [[1], ["**"], [TORCH], Rule("a", "b"), 3, "ab"])
def test_what_is_no_sequence_of_rules_is_refused(rules):
    with pytest.raises(errors.FillError, match=r"rules\[0\]: wanted a sequence of Rule or Rename"):
        as_rules(rules)


def test_rules_may_come_from_any_iterable_and_none_are_none():
    assert as_rules(None) == as_rules([]) == ()
    assert as_rules(iter(TORCH)) == as_rules(list(TORCH)) == TORCH


@pytest.mark.parametrize("make", [lambda rules: scanned(rules, "h.{n}", "h"), sized])
def test_maps_made_of_maps_take_the_same_rules_as_all_others(make):
    assert make(None) == ()
    assert make(iter(TORCH)) == make(TORCH)
    with pytest.raises(errors.FillError, match=r"rules\[0\]: wanted a sequence of Rule or Rename"):
        make(["**"])


@pytest.mark.parametrize(
    ("leaf", "names"),
    [
        ("a/kernel", ["a/weight", "a/kernel"]),
        ("a/scale", ["a/weight", "a/gamma", "a/scale"]),
        ("a/embedding", ["a/weight", "a/embedding"]),
        ("a/bias", ["a/bias", "a/beta", "a/bias"]),
        ("a/mean", ["a/running_mean", "a/mean"]),
        ("a/var", ["a/running_var", "a/var"]),
        ("a/cls_token", ["a/cls_token"]),
    ],
)
def test_torch_names_what_a_leaf_may_be_made_from(leaf, names):
    assert [name for rule in TORCH if (name := rule.tensor_for(leaf))] == names


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [((5, 4), (4, 5)), ((5, 4, 3), (3, 4, 5)), ((5, 4, 2, 3), (2, 3, 4, 5)), ((5,), (5,))],
)
def test_torch_weights_become_kernels_with_output_last(stored, wanted):
    (rule,) = (rule for rule in TORCH if rule.leaf == "**/kernel")
    assert rule.layout(HeldTensor("w", np.ones(stored))).shape == wanted
