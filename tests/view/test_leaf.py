"""A leaf as the last value of a cell, and in trees of treescope."""

import re
from html import unescape

import jax
import numpy as np
import pytest
import treescope
from flax import nnx
from test_facts import leaves

import lazyinit as li
from lazyinit.params import leaf_as_html, leaf_in_treescope

WORDS = ["lazy", "stored", "overlap", "derived"]


@pytest.mark.parametrize("word", WORDS)
def test_a_leaf_shows_its_state_and_what_makes_it(word):
    texts = {unescape(text) for text in re.findall(r">([^<]*?) ?<", leaves()[word]._repr_html_())}
    told = {
        "lazy": {"LazyParam, float32[4,2]", "initializer", "zeros"},
        "stored": {"StoredParam, float32[4,2]", "tensor", "w", "read as", "float16[4,2]"},
        "overlap": {"OverlapParam, float32[4,2]", "tensor", "w", "zeros", "float32[3,2]"},
        "derived": {"DerivedParam, float32[4,2]", "computed by", "multiply of w"},
    }[word]
    assert told | {word, "bytes", "32 B"} <= texts


@pytest.mark.parametrize("word", WORDS)
def test_treescope_shows_a_leaf_in_one_line_with_its_state(word):
    leaf = leaves()[word]
    assert f"'a': {leaf!r}  # {word}, 32 B" in treescope.render_to_text({"a": leaf})


def test_a_lazy_state_of_nnx_shows_its_leaves():
    _, state = li.lazy(nnx.Linear)(2, 3, rngs=nnx.Rngs(0))
    _, kernel = jax.tree.leaves(state)
    assert f"{kernel!r}  # lazy, 24 B" in treescope.render_to_text(state)


def test_what_is_no_thunk_is_left_to_others():
    assert leaf_in_treescope(np.ones(2), None, None) is NotImplemented
    assert leaf_as_html("<b>") == "<code>&#x27;&lt;b&gt;&#x27;</code>"
