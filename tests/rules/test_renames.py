import pickle
import re

import pytest

import lazyinit as li
from lazyinit import errors

LAYER = re.compile(r"^h\.(\d+)\.")
BACK = (re.compile(r"^layers\.(\d+)\."), r"h.\1.")


def test_a_regular_expression_renames_wherever_it_fits():
    rename = li.Rename(LAYER, r"layers.\1.")
    assert rename.name_for("h/12/fc/weight") == "layers/12/fc/weight"
    assert rename.name_for("x/h/12/fc") == ""
    assert li.Rename(re.compile("gamma$"), "weight").name_for("ln/gamma") == "ln/weight"


def test_a_regular_expression_is_undone_by_another():
    rename = li.Rename(LAYER, r"layers.\1.", back=BACK)
    assert rename.tensor_for("layers/12/fc") == "h/12/fc"
    assert rename.tensor_for("other") == ""
    assert li.Rename("a.**", "b.**").tensor_for("b/c") == "a/c"
    with pytest.raises(errors.FillError, match="wanted a rule that can be read backwards, got a r"):
        li.Rename(LAYER, r"layers.\1.").tensor_for("layers/12/fc")


def test_renames_are_values_that_print_themselves():
    rename = li.Rename(LAYER, r"layers.\1.", back=BACK)
    assert rename == pickle.loads(pickle.dumps(rename))
    assert eval(repr(rename), {"re": re, **vars(li)}) == rename
    assert hash(rename) == hash(eval(repr(rename), {"re": re, **vars(li)}))


def test_a_rename_with_numbers_of_its_own_is_refused():
    with pytest.raises(errors.FillError, match="wanted the same numbers in all patterns"):
        li.Rename("a.{n}", "b")


def test_ignored_tensors_are_not_unexpected_and_the_rule_is_never_unused():
    rules = [li.Ignore("**.position_ids"), li.Ignore("nothing")]
    tree = {"a": li.LazyParam((), "float32", lambda key: key)}
    tensors = {"a": 1.0, "x": {"position_ids": 1}, "b": 2.0}
    _, report = li.fill(tree, tensors, rules)
    assert report.unexpected == ("b",)
    assert report.unused_rules == ()
    assert eval(repr(rules[0]), vars(li)) == rules[0]


def test_an_ignored_tensor_still_makes_its_leaf():
    tree = {"a": li.LazyParam((), "float32", lambda key: key)}
    _, report = li.fill(tree, {"a": 1.0}, [li.Ignore("**")])
    assert report.loaded == ("a",)


def test_an_empty_pattern_is_refused():
    with pytest.raises(
        errors.FillError, match=r"Ignore: wanted a pattern such as '\*\*\.position_"
    ):
        li.Ignore("")
