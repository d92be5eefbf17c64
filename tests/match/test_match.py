"""What the error says when no tensor matches; which tensor matches is told in test_fill."""

import re

import jax
import numpy as np
import pytest

from lazyinit import errors
from lazyinit._fill import fill
from lazyinit.params import LazyParam
from lazyinit.rules.rule import Rule
from lazyinit.rules.torch import TORCH


def lazy(*shape):
    return LazyParam(shape, "float32", jax.nn.initializers.zeros)


def ones(*shape):
    return np.ones(shape, "float32")


def refused(message):
    return pytest.raises(errors.FillError, match=re.escape(message))


PAIR = {"params": {"a": {"b": lazy(2), "c": lazy(2)}}}
TREE = {
    "params": {
        "bert": {
            "fc": {"kernel": lazy(4, 3), "bias": lazy(3)},
            "embed": {"embedding": lazy(9, 3)},
            "bn": {"scale": lazy(3), "bias": lazy(3)},
        }
    },
    "batch_stats": {"bert": {"bn": {"mean": lazy(3), "var": lazy(3)}}},
}
TENSORS = {
    "fc.weight": ones(3, 4),
    "fc.bias": ones(3),
    "embed.weight": ones(9, 3),
    "bn.weight": ones(3),
    "bn.bias": ones(3),
    "bn.running_mean": ones(3),
    "bn.running_var": ones(3),
    "bn.num_batches_tracked": ones(),
}


@pytest.mark.parametrize(
    ("rename", "arguments", "advice"),
    [
        ("{}", {}, 'at="params/bert", rules=lazyinit.TORCH would match 7.'),
        ("{}", {"rules": TORCH}, 'at="params/bert", rules=lazyinit.TORCH would match 7.'),
        ("bert.{}", {}, "rules=lazyinit.TORCH would match 7."),
        (
            "module.{}",
            {"rules": TORCH},
            'at="params/bert", rules=[lazyinit.strip_prefix("module."), *lazyinit.TORCH] '
            "would match 7.",
        ),
        (
            "model.deep.bert.{}",
            {},
            'rules=[lazyinit.strip_prefix("model.deep."), *lazyinit.TORCH] would match 7.',
        ),
    ],
)
def test_if_nothing_matches_the_error_says_what_would(rename, arguments, advice):
    tensors = {rename.format(name): tensor for name, tensor in TENSORS.items()}
    with pytest.raises(errors.FillError) as caught:
        fill(TREE, tensors, **arguments)
    assert str(caught.value) == (
        f"the mapping: none of its 8 tensors matches any of the tree's 7 leaves. {advice}"
    )


def test_if_nothing_matches_plain_names_are_advised_before_rules():
    with refused('leaves. at="params/a" would match 2.'):
        fill(PAIR, {"b": ones(2), "c": ones(2)})
    with refused('leaves. rules=[lazyinit.strip_prefix("x.")] would match 2.'):
        fill(PAIR, {"x.params.a.b": ones(2), "x.params.a.c": ones(2)})


def test_if_nothing_matches_the_given_rules_are_tried_elsewhere_too():
    with refused('leaves. at="params/a", rules=rules would match 2.'):
        fill(PAIR, {"x_b": ones(2), "x_c": ones(2)}, [Rule("*", "x_*")])


def test_if_nothing_could_match_the_error_shows_both_sides():
    with refused("The tree has leaves such as 'a', the checkpoint has tensors such as 'x.y'."):
        fill({"a": lazy(2)}, {"x.y": ones(2)})


def test_advice_that_would_give_two_tensors_one_name_is_not_given():
    with refused("Say in rules which tensor makes which leaf"):
        fill({"p": {"b": lazy(2)}}, {"x.b": ones(2), "x.c": ones(2), "c": ones(2)})
    with refused("Say in rules which tensor makes which leaf"):
        fill({"p": {"b": lazy(2)}}, {"x*.b": ones(2)})
