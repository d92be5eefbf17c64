import re

import pytest

from lazyinit import errors
from lazyinit.rules.patterns import Captures, check_alike, pattern


@pytest.mark.parametrize(
    ("text", "name", "texts", "numbers"),
    [
        ("**.layers.{n}.q*.weight", "model/layers/12/q_proj/weight", ("model/", "_proj"), ["12"]),
        ("{n}/**", "0", ("",), ["0"]),
        ("h{n}_{n}", "h3_3", (), ["3"]),
        ("{a}/{b}/{a}", "1/2/1", (), ["1", "2"]),
        ("a.b", "a/b", (), []),
        ("/a/*/", "a/b", ("b",), []),
        ("{}/{1}", "{}/{1}", (), []),
    ],
)
def test_a_pattern_captures_and_writes_again(text, name, texts, numbers):
    captures = pattern(text).match(name)
    assert captures.texts == texts
    assert [digits for _, digits in captures.numbers] == numbers
    assert pattern(text).write(captures) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("{n}", "01"),
        ("{n}", "x"),
        ("{n}", ""),
        ("{n}", "1" * 10),
        ("h{n}_{n}", "h1_2"),
        ("a", "ab"),
    ],
)
def test_what_does_not_fit_captures_nothing(text, name):
    assert pattern(text).match(name) is None


def test_a_number_that_is_not_captured_stays_as_it_is_written():
    captures = pattern("h.{n}.*").match("h/3/x")
    assert pattern("h.{n}.*").write(captures.without("n")) == "h/{n}/x"
    assert captures.without("n").having("n", "4") == Captures(("x",), (("n", "4"),))


def test_the_last_key_is_known_if_all_names_share_it():
    assert [pattern(p).last for p in ("**/kernel", "a.b", "**", "a/x*", "a/{n}")] == [
        "kernel",
        "b",
        "",
        "",
        "",
    ]


@pytest.mark.parametrize(
    ("some", "others"),
    [(("a/{n}",), ("b/{k}",)), (("a", "b/{n}"), ("c",)), (("a",), ("c.{n}", "d"))],
)
def test_numbers_that_differ_by_more_than_one_are_refused(some, others):
    message = "the rule: wanted the same numbers in all patterns, but for one that is stacked or"
    with pytest.raises(errors.FillError, match=re.escape(message)):
        check_alike("the rule", some, others)
