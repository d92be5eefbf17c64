"""The pattern language: globs over paths, the patterns of rules, and what both engines did before."""

import fnmatch
import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

import lazyinit as li
from lazyinit import errors, paths
from lazyinit.match.places import places_of
from lazyinit.match.translate import _is_narrower as is_narrower
from lazyinit.match.unmatch import unmatch
from lazyinit.patterns import Captures, check_alike, escape, glob, pattern, slashed
from lazyinit.tensors.memory import HeldTensor


@pytest.mark.parametrize(
    ("pattern", "path", "selected"),
    [
        ("params/head/kernel", "params/head/kernel", True),
        ("params/head", "params/head/kernel", True),
        ("params", "params/head/kernel", True),
        ("params/hea", "params/head/kernel", False),
        ("params/head/kernel/more", "params/head/kernel", False),
        ("head", "params/head/kernel", False),
        ("head", "params/head", False),
        ("*", "params/head/kernel", True),
        ("*/kernel", "params/head/kernel", False),
        ("*/*/kernel", "params/head/kernel", True),
        ("params/*/kernel", "params/a/b/kernel", False),
        ("params/layers_*", "params/layers_10/attn/q", True),
        ("params/layers_*/attn/**", "params/layers_10/attn/q", True),
        ("params/layers_*", "params/layers", False),
        ("params/layers_?", "params/layers_1/q", True),
        ("params/layers_?", "params/layers_10/q", False),
        ("params/layers_?", "params/layers_/q", False),
        ("params/layers_[12]", "params/layers_1", True),
        ("params/layers_[12]", "params/layers_3", False),
        ("params/layers_[0-3]", "params/layers_2", True),
        ("params/layers_[0-3]", "params/layers_-", False),
        ("params/layers_[!0-3]", "params/layers_2", False),
        ("params/layers_[!0-3]", "params/layers_4", True),
        ("params/layers_[!0-3]", "params/layers_", False),
        ("a[!x]b", "a/b", False),
        ("a[^x]b", "axb", True),
        ("a[^x]b", "a^b", True),
        ("a[^x]b", "ayb", False),
        ("a[", "a[", True),
        ("a[]", "a[]", True),
        ("a]", "a]", True),
        ("**", "params/head/kernel", True),
        ("**", "x", True),
        ("**/kernel", "kernel", True),
        ("**/kernel", "params/head/kernel", True),
        ("**/kernel", "params/head/kernel_scale", False),
        ("**/kernel", "params/my_kernel", False),
        ("params/**/kernel", "params/kernel", True),
        ("params/**/kernel", "params/a/b/c/kernel", True),
        ("params/**/kernel", "params/kernel/value", True),
        ("params/**/b/**/q", "params/a/b/c/d/q", True),
        ("params/**/b/**/q", "params/a/c/d/q", False),
        ("params/**", "params", True),
        ("/params/head/", "params/head/kernel", True),
        ("a.c", "abc", False),
        ("a.c", "a.c", True),
        ("a+", "aa", False),
        ("(a)", "(a)", True),
        ("a\\d", "a1", False),
        ("a$", "a", False),
        ("a|b", "a", False),
        ("A", "a", False),
        ("a\nb", "a\nb", True),
        ("?", "\n", True),
        ("*", "a\nb", True),
        ("0/*", "0/1", True),
    ],
)
def test_a_glob_selects_by_keys(pattern, path, selected):
    assert glob(pattern).selects(path) is selected


keys = st.text(st.sampled_from("abk_.[]!-^$*?\\1"), min_size=1, max_size=4)
plain = st.text(st.sampled_from("ab1_."), min_size=1, max_size=3)


@given(st.lists(plain, min_size=1, max_size=4), st.integers(1, 4))
def test_every_path_is_selected_by_itself_and_by_each_tree_above_it(parts, n):
    path = "/".join(parts)
    assert glob(path).selects(path)
    assert glob("/".join(parts[:n])).selects(path)
    assert glob("**").selects(path)
    assert glob("**/" + parts[-1]).selects(path)
    assert glob("/".join("*" for _ in parts)).selects(path)
    assert not glob("/".join("*" for _ in parts) + "/*").selects(path)


@given(st.text(st.sampled_from("ab*?"), min_size=1, max_size=5), plain)
def test_within_one_key_a_glob_is_what_fnmatch_says(pattern, key):
    if "**" not in pattern:
        assert glob(pattern).selects(key) == fnmatch.fnmatchcase(key, pattern)


@given(st.sampled_from("ab1-]^"), st.sampled_from(["[ab]", "[!ab]", "[a-b]", "[!a-b]", "[b1]"]))
def test_a_class_is_what_fnmatch_says(key, pattern):
    assert glob(pattern).selects(key) == fnmatch.fnmatchcase(key, pattern)


@given(keys, keys)
def test_no_pattern_is_an_error_by_itself(pattern, key):
    glob(pattern).selects(key)


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
    message = "the rule: wanted the same numbers in all patterns, except for one that is stacked or"
    with pytest.raises(errors.FillError, match=re.escape(message)):
        check_alike("the rule", some, others)


@pytest.mark.parametrize("text", ["[b-a]", "params/w[!9-0]/**"])
def test_a_range_that_ends_before_it_begins_is_refused(text):
    message = rf"^{re.escape(text)}: wanted a glob, got one with .* read: bad character range"
    with pytest.raises(errors.PathError, match=message):
        glob(text)


NAMES = st.lists(st.text("ab1.", max_size=3), min_size=1, max_size=4).map("/".join)
KEYS_OF_GLOBS = (
    st.sampled_from(["**", "*", "?", "a*", "[ab]", "[!a]b", "[a-b1]", "a**b", "["]) | plain
)
KEYS_OF_RULES = st.sampled_from(["**", "*", "a*", "*b", "{n}", "a{n}", "{m}", "{}", "?", "[a]"])


def expected_of_glob(text):
    """Returns a regular expression, written key by key, that a path and a ``/`` begins with."""
    written = {"*": "[^/]*", "?": "[^/]"}

    def of_key(key):
        if key == "**":
            return "([^/]*/)*"
        pieces = re.split(r"(\[[^\]]+\]|[*?])", key)
        return (
            "".join(
                re.escape(piece) if n % 2 == 0 else written.get(piece) or piece.replace("[!", "[^/")
                for n, piece in enumerate(pieces)
            )
            + "/"
        )

    return "".join(map(of_key, text.strip("/").split("/")))


def expected_of_rule(text):
    """Returns a regular expression, written key by key, that a name and a ``/`` is."""
    seen = set()

    def of_piece(piece):
        if piece == "*":
            return "([^/]*)"
        if not re.fullmatch(r"\{[a-z]\}", piece):
            return re.escape(piece)
        if piece in seen:
            return f"(?P={piece[1]})"
        seen.add(piece)
        return f"(?P<{piece[1]}>0|[1-9][0-9]{{0,8}})"

    def of_key(key):
        if key == "**":
            return "((?:[^/]*/)*)"
        return "".join(map(of_piece, re.split(r"(\*|\{[a-z]\})", key))) + "/"

    return "".join(map(of_key, text.replace(".", "/").strip("/").split("/")))


@settings(max_examples=200)
@given(st.lists(KEYS_OF_GLOBS, min_size=1, max_size=4), st.sampled_from(["", "/"]), NAMES)
def test_any_glob_selects_what_its_keys_say_one_by_one(keys, end, path):
    text = end + "/".join(keys) + end
    wanted = re.match(expected_of_glob(text), path + "/") is not None
    assert glob(text).selects(path) is wanted


@settings(max_examples=200)
@given(st.lists(KEYS_OF_RULES | plain, min_size=1, max_size=4), st.sampled_from("./"), NAMES)
def test_any_pattern_fits_what_its_keys_say_one_by_one(keys, join, name):
    text = join.join(keys)
    wanted = re.fullmatch(expected_of_rule(text), name + "/")
    found = pattern(text).match(name)
    assert (found is None) is (wanted is None)
    if wanted is not None and found is not None:
        assert dict(found.numbers) == wanted.groupdict()
        named = set(wanted.re.groupindex.values())
        assert found.texts == tuple(
            captured for n, captured in enumerate(wanted.groups(), 1) if n not in named
        )
        assert pattern(text).write(found) == name


def test_a_pattern_with_stars_within_a_key_captures_and_writes_each_of_them():
    assert pattern("a**b").wildcards == ("*", "*")
    assert pattern("x.*_*").write(pattern("a**b").match("a12b")) == "x/12_"
    assert pattern("x.*.*").write(pattern("a**b").match("a12b")) == "x/12/"  # An empty key.


# Names with anything in them, and the pattern that ``escape`` writes for each.

HOSTILE = st.text(st.sampled_from("ab1.//**?[]{}n\\!-"), min_size=1, max_size=6)


def apart(names):
    """Returns those names of which none is another, or below another, with '.' for '/'."""
    kept = []
    for name in names:
        one = slashed(name) + "/"
        if not any(
            one.startswith(k) or k.startswith(one) for k in (slashed(k) + "/" for k in kept)
        ):
            kept.append(name)
    return kept


def zeros(names):
    return {name: jax.ShapeDtypeStruct((2,), "float32") for name in names}


def ones(names):
    return {name: np.ones(2, "float32") for name in names}


@given(st.lists(HOSTILE, min_size=1, max_size=6).map(apart), st.data())
@settings(max_examples=40, deadline=None)
def test_an_escaped_name_is_that_name_and_no_other_in_every_pattern(names, data):
    name = data.draw(st.sampled_from(names))
    text = escape(name)
    alone = [each == name for each in names]
    ordered = sorted(names)  # As JAX orders a dict.
    # In paths and in the rules of shardings.
    assert paths.select(text, ones(names)) == [each == name for each in ordered]
    specs = li.shard_by_rules("x=2", [(text, P("x")), ("**", P())])
    assert [specs(each, np.ones(2)).spec == P("x") for each in names] == alone
    # In policies, over paths and over names of tensors.
    tree = zeros([*names, "leaf"])
    _, report = li.fill(tree, ones(["leaf"]), on_missing={text: "init", "**": "init"})
    assert set(report.missing) == set(names)
    if len(names) > 1:
        with pytest.raises(errors.FillError) as error:
            li.fill(tree, ones(["leaf"]), on_missing={text: "init", "**": "error"})
        lines = str(error.value).splitlines()
        assert sorted(line.split(": the model")[0] for line in lines) == sorted({*names} - {name})
    policy = {text: "ignore", "**": "report"}
    _, report = li.fill(zeros(["leaf"]), ones([*names, "leaf"]), on_unexpected=policy)
    assert set(report.unexpected) == {*names} - {name}
    # In rules, in both directions.
    for rules in ([li.Rule("leaf", text)], [li.Rename(text, "leaf")]):
        _, report = li.fill(zeros(["leaf"]), ones(names), rules)
        assert report.loaded == ("leaf",)
        assert set(report.unexpected) == {*names} - {name}
        made = unmatch(places_of(held(["leaf"])), rules=rules)
        assert [slashed(each) for each in made] == [slashed(name)]
    rule = [li.Rule(text, "tensor")]
    _, report = li.fill(zeros(names), ones(["tensor"]), rule, on_missing="init")
    assert report.loaded == (name,)
    made = unmatch(places_of(held(names)), rules=rule)
    assert [*made] == ["tensor" if each == name else each for each in names]
    _, report = li.fill(zeros(["leaf"]), ones([*names, "leaf"]), [li.Ignore(text)])
    assert set(report.unexpected) == {*names} - {name}


def held(names):
    return {name: HeldTensor(name, np.ones(2, "float32")) for name in names}


@given(HOSTILE.map(lambda prefix: prefix.strip("./") or "a"), HOSTILE)
def test_a_prefix_is_no_pattern(prefix, rest):
    rule = li.strip_prefix(prefix + ".")
    assert rule.name_for(slashed(f"{prefix}.{rest}")) == slashed(rest)
    assert rule.name_for("q/" + slashed(rest)) == ""


@given(HOSTILE, st.sampled_from(["**", "*"]))
def test_a_wildcard_takes_any_name_of_its_keys_and_writes_it_again(name, wild):
    name = slashed(name)
    text = wild if wild == "**" else "/".join("*" for _ in name.split("/"))
    captures = pattern(text).match(name)
    assert captures is not None
    assert pattern(text).write(captures) == name


@pytest.mark.parametrize("name", ["a[0]", "params/w*", "/x", "x/", "q?"])
def test_a_path_that_is_no_pattern_of_itself_is_said_with_its_pattern(name):
    tree = {name: np.ones(2), "other": np.ones(2)}
    chosen = paths.select(escape(name), tree)
    assert sum(chosen) == 1
    if not glob(name).selects(name):
        message = f"; the path {name!r} is written {escape(name)!r}"
        with pytest.raises(errors.PathError, match=re.escape(message)):
            paths.select(name, tree)


def test_patterns_that_are_not_alike_say_how_to_write_a_star_of_a_name():
    with pytest.raises(errors.FillError, match=r"If a '\*' or '\{' belongs to a name, write a"):
        li.Rule("w", "w*")
    assert li.Rule("w", li.escape("w*")).tensor_for("w") == "w*"


@pytest.mark.parametrize("text", ["a\\", "a\\d", "\\", "a\\\\", "[\\]"])
def test_a_backslash_before_any_other_character_is_one(text):
    name = {"a\\\\": "a\\", "[\\]": "\\"}.get(text, text)
    assert glob(text).selects(name)
    assert glob(text).selects(name + "/b")
    if text != "[\\]":
        assert pattern(text).match(name) is not None


@pytest.mark.parametrize(
    ("one", "other"), [("*", "**"), ("a.*", "**"), (r"a\*", "a*"), ("{n}", "*"), ("a.b", "a.*")]
)
def test_the_narrower_of_two_patterns_is_known(one, other):
    assert is_narrower(one, other)
    assert not is_narrower(other, one)
