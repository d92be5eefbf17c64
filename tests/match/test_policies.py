"""A policy is a word, a callable, or either by path; what nobody spoke of is an error."""

import re

import jax
import numpy as np
import pytest

import lazyinit as li

zeros = jax.nn.initializers.zeros


def lazy(*shape):
    return li.LazyParam(shape, "float32", zeros)


def tree():
    return {
        "params": {
            "trunk": {"w": lazy(2)},
            "head": {"w": lazy(3), "b": lazy(4)},
            "odd": {"w": lazy(5)},
        }
    }


CHECKPOINT = {"params/trunk/w": np.ones(2, "float32"), "params/odd/w": np.ones(6, "float32")}
EXTRA = CHECKPOINT | {"opt.step": np.ones(1), "opt.mu.w": np.ones(1)}


def fill(**policies):
    return li.fill(tree(), EXTRA, **({"on_mismatch": "init", "on_missing": "init"} | policies))


def refused(*lines, **policies):
    with pytest.raises(li.errors.FillError) as caught:
        fill(**policies)
    found = str(caught.value).splitlines()
    assert len(found) == len(lines), found
    for line, start in zip(found, lines, strict=True):
        assert line.startswith(start), line


def test_a_mapping_decides_by_path_and_the_rest_is_an_error():
    _, report = fill(on_missing={"params/head/**": "init"})
    assert report.missing == ("params/head/b", "params/head/w")
    refused("params/head/b: the model wants float32[4]", on_missing={"params/head/w": "init"})


def test_the_first_glob_that_matches_decides():
    fill(on_missing={"params/head/b": "init", "**": "init"})
    refused("params/head/b: ", on_missing={"params/head/b": "error", "params/head/**": "init"})


def test_a_glob_of_everything_is_always_allowed_and_others_must_match():
    _, report = li.fill({"w": lazy(2)}, {"w": np.ones(2)}, on_missing={"**": "error"})
    assert report.loaded == ("w",)
    with pytest.raises(
        li.errors.PathError,
        match=re.escape("on_missing['params/haed']: params/haed: this pattern matches none"),
    ) as caught:
        fill(on_missing={"params/haed": "init"})
    assert "did you mean 'params/head'?" in str(caught.value)


def test_unexpected_tensors_go_by_their_names_with_dots_or_slashes():
    _, report = fill(on_unexpected={"opt.mu.*": "ignore", "opt/step": "report"})
    assert report.unexpected == ("opt.step",)
    refused("opt.mu.w: wanted a leaf for this tensor", on_unexpected={"opt.step": "ignore"})
    with pytest.raises(li.errors.PathError, match=r"did you mean 'opt\.step'"):
        fill(on_unexpected={"opt.stp": "ignore"})


def test_callables_are_told_of_each_case():
    seen = []

    def on_missing(path, leaf):
        seen.append((path, leaf.shape))
        return "init"

    def on_unexpected(name, source):
        seen.append((name, source.shape))
        return "ignore" if "mu" in name else "report"

    def on_mismatch(path, leaf, source):
        seen.append((path, leaf.shape, source.shape))
        return "init"

    _, report = fill(on_missing=on_missing, on_unexpected=on_unexpected, on_mismatch=on_mismatch)
    assert seen == [
        ("params/odd/w", (5,), (6,)),
        ("params/head/b", (4,)),
        ("params/head/w", (3,)),
        ("opt.step", (1,)),
        ("opt.mu.w", (1,)),
    ]
    assert report.unexpected == ("opt.step",)
    assert report.mismatched == ("params/odd/w",)


def test_a_callable_can_put_another_leaf_in_place():
    other = lazy(5)
    filled, report = fill(on_mismatch={"params/odd/**": lambda path, leaf, source: other})
    assert filled["params"]["odd"]["w"] is other
    assert report.adapted == ("params/odd/w",)
    assert "1 adapted" in report.summary()
    assert "adapted with float32[6]" in str(report)
    refused(
        "params/odd/w: wanted on_mismatch to return a leaf of float32[5], got one of float32[7].",
        on_mismatch=lambda path, leaf, source: lazy(7),
    )


def test_an_answer_that_is_no_word_is_an_error():
    refused(
        "params/odd/w: wanted on_mismatch to return one of 'error', 'init', or a leaf, got None.",
        "params/head/b: wanted on_missing to return one of 'warn', 'init', 'error', got 'report'.",
        "params/head/w: wanted on_missing",
        "opt.step: wanted on_unexpected to return one of 'report', 'ignore', 'error', got 'init'.",
        "opt.mu.w: wanted on_unexpected",
        on_missing=lambda path, leaf: "report",
        on_unexpected=lambda name, source: "init",
        on_mismatch=lambda path, leaf, source: None,
    )


def test_what_a_callable_raises_is_collected():
    def no(*case):
        raise li.errors.FillError(f"{case[0]}: no.")

    refused(
        "params/odd/w: no.",
        "params/head/b: no.",
        "params/head/w: no.",
        "opt.step: wanted a leaf",
        "opt.mu.w: wanted a leaf",
        on_missing=no,
        on_mismatch=no,
        on_unexpected="error",
    )


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (
            {"**": "x"},
            "on_missing['**']: wanted one of 'warn', 'init', 'error', a callable, or a mapping",
        ),
        ({1: "init"}, "on_missing: wanted a mapping from globs such as 'params/head/**', got one"),
        (
            None,
            "on_missing: wanted one of 'warn', 'init', 'error', a callable, or a mapping from globs",
        ),
    ],
)
def test_a_policy_that_is_none_is_refused(policy, message):
    with pytest.raises(li.errors.FillError, match=re.escape(message)):
        fill(on_missing=policy)


# Casts.


def cast_of(stored, wanted, **policies):
    leaf = li.LazyParam((2,), wanted, jax.nn.initializers.zeros)
    return li.fill({"w": leaf}, {"w": np.ones(2, stored)}, **policies)


BOTH_WAYS = [
    ("bfloat16", "float32", True),
    ("float16", "float32", True),
    ("float32", "bfloat16", False),
    ("float16", "bfloat16", False),
    ("bfloat16", "float16", False),
    ("float64", "float32", False),
    ("int8", "int32", True),
    ("int64", "int32", False),
    ("uint8", "int32", True),
]


@pytest.mark.parametrize(("stored", "wanted", "is_lossless"), BOTH_WAYS)
def test_a_cast_is_refused_where_it_loses_something(stored, wanted, is_lossless):
    stored = jax.numpy.dtype(stored)
    assert cast_of(stored, wanted)[1].loaded == ("w",)
    if is_lossless:
        assert cast_of(stored, wanted, on_cast="lossless")[1].loaded == ("w",)
    else:
        with pytest.raises(li.errors.FillError, match="it would lose precision or range"):
            cast_of(stored, wanted, on_cast="lossless")
    with pytest.raises(li.errors.FillError) as error:
        cast_of(stored, wanted, on_cast="error")
    assert str(error.value) == (
        f"w: the model wants {wanted}[2], tensor 'w' holds {stored}[2], and on_cast says that "
        'nothing is to be cast. Allow it with on_cast="report", or give the model that dtype.'
    )


def test_what_has_the_dtype_is_no_cast():
    assert cast_of("float32", "float32", on_cast="error")[1].loaded == ("w",)


def test_casts_are_decided_by_path_and_by_callables():
    policies = [{"w": "report"}, {"v*": "error", "**": "report"}, lambda *case: "report"]
    tree = {"w": li.LazyParam((2,), "float32", jax.nn.initializers.zeros)}
    for policy in policies[:1] + policies[2:]:
        assert li.fill(tree, {"w": np.ones(2, "float16")}, on_cast=policy)[1].loaded == ("w",)
    with pytest.raises(li.errors.PathError, match=r"^on_cast\['v\*'\]"):
        li.fill(tree, {"w": np.ones(2, "float16")}, on_cast=policies[1])
    with pytest.raises(li.errors.FillError, match="w: wanted on_cast to return one of 'report'"):
        li.fill(tree, {"w": np.ones(2, "float16")}, on_cast=lambda *case: "maybe")
