"""Regular expressions read as patterns: Python's ``re`` says what becomes of each name."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipelines import refused

from lazyinit.patterns import pattern, slashed
from lazyinit.rules.regexes import read_regex

WORDS = st.text("abq_", min_size=1, max_size=3)
# A piece of an expression, one of what replaces it, and texts that fit it.
PIECES = st.one_of(
    WORDS.map(lambda word: (word, word, [word])),
    st.just((r"([0-9]+)", "#", ["0", "7", "12"])),
    st.just((r"(\d+)", "#", ["3"])),
    st.just((r"(?P<name>a|b_|q)", "#", ["a", "b_", "q"])),
    st.just((r"(up|down)_proj", "#_proj", ["up_proj", "down_proj"])),
    st.just((r"([^.]+)", "#", ["a", "b_q"])),
    st.just((r"(?:x|y)", "z", ["x", "y"])),
    st.just((r"(_w)?v", "v#", ["v", "_wv"])),
)


@st.composite
def expressions(draw):
    pieces = draw(st.lists(PIECES, min_size=1, max_size=4))
    begin, prefixes = draw(st.sampled_from([("", [""]), (r"(?:model\.)?", ["", "model."])]))
    regex, template, names, group = begin, [], prefixes, 0
    for at, (piece, written, texts) in enumerate(pieces):
        regex += (r"\." if regex != begin else "") + piece.replace("?P<name>", f"?P<name{at}>")
        group += "#" in written
        template.append(written.replace("#", rf"\g<{group}>" if len(names) % 2 else rf"\{group}"))
        names = [f"{n}.{t}" if n not in prefixes else n + t for n in names[:4] for t in texts]
    return f"^{regex}$", ".".join(template), names


@given(
    expressions(),
    st.lists(WORDS | st.sampled_from(["0", "01", "7"]), min_size=1, max_size=4).map(".".join),
)
def test_the_first_pair_that_fits_a_name_writes_what_re_writes(case, other):
    regex, template, names = case
    pairs = [(pattern(name), pattern(key)) for name, key in read_regex(regex, template)]
    for name in [*names, other]:
        found = [key.write(c) for fits, key in pairs if (c := fits.match(slashed(name)))]
        expected = re.sub(regex, template, name) if re.fullmatch(regex, name) else None
        if re.search(r"\b0\d", name):  # A number of a rule has no zero before it.
            continue
        assert found[:1] == ([slashed(expected)] if expected is not None else [])


@pytest.mark.parametrize(
    ("regex", "template", "pairs"),
    [
        (r"a.b\.c", "d.e", [("a.b.c", "d.e")]),
        (r"(a(b|c))\.x", r"\1.\2", [("ab.x", "ab.b"), ("ac.x", "ac.c")]),
        (r"a\.(.*)\.w", r"b.\1.k", [("a.**.w", "b.**.k")]),
        (r"a\..*", "", [("a.**", "")]),
        (r"(\d+)\.([0-9]+)", r"\2.\1", [("{n}.{n2}", "{n2}.{n}")]),
        (r"(?:a\.(\d+)|b\.(\d+))\.w", r"\1\2", [("a.{n}.w", "{n}"), ("b.{n}.w", "{n}")]),
        (r"\Aa\-b\Z", r"a\.b", [("a-b", "a.b")]),
    ],
)
def test_an_expression_becomes_a_pair_of_patterns_for_each_choice(regex, template, pairs):
    assert read_regex(regex, template) == pairs


@pytest.mark.parametrize(
    ("regex", "message"),
    [
        ("a[bc]d", "wanted plain text, a number, a group or an alternative, got '[bc]d'"),
        ("ab{2}", "wanted plain text, a number, a group or an alternative, got 'b{2}'"),
        ("ab+", "wanted plain text, a number, a group or an alternative, got 'b+'"),
        ("(?=a)b", "wanted plain text, a number, a group or an alternative, got '?=a)b'"),
        ("*a", "wanted plain text, a number, a group or an alternative, got '*a'"),
        ("(a", "wanted a closing parenthesis at its end"),
        ("a)b", "wanted an opening parenthesis before it, got ')b'"),
        (r"a.*\.b", "wanted '.*' to stand for whole keys, got 'a**.b'"),
        ("(a|b|c|d)" * 5, "wanted at most 256 ways to fit"),
    ],
)
def test_what_no_pattern_says_is_refused(regex, message):
    with refused(message):
        read_regex(regex, "x")


def test_a_group_that_there_is_not_is_refused():
    with refused(r"'x.\\2' names group 2, which the expression lacks"):
        read_regex("(a)", r"x.\2")


@pytest.mark.parametrize("name", ["w*", "w{n}", "[a]?", "a\\b", "x*[y]{0}"])
def test_what_means_something_in_patterns_is_plain_where_the_expression_says_so(name):
    regex = re.escape(name)
    ((tensor, _),) = read_regex(regex, r"m." + name.replace("\\", r"\\"))
    assert pattern(tensor).match(slashed(name)) is not None
    assert pattern(tensor).match("w12") is None
