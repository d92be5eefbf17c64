"""Suggestions for models whose true rules are known: each leaf is made rightly, or something is said.

Ready maps are left out, so that names, shapes, siblings and conventions decide alone.
"""

import os

os.environ.setdefault("USE_TORCH", "0")  # transformers would import it if it is there.

import deepseek_trees as deepseek
import maxtext_trees as maxtext
import numpy as np
import pytest
import tunix_trees
from families import FAMILIES, params_of
from list_trees import LISTS
from pipelines import values, written
from test_suggest import left_open, noted, suggested

from lazyinit.rules.torch import TORCH
from lazyinit.tools import starts

pytestmark = pytest.mark.filterwarnings("ignore")  # Theirs, about the end of Flax models.

SIZES = {  # Kernels that are square, or have as many heads as columns, leave layouts open.
    "as it is": {},
    "square": {"D": 64},
    "all alike": {"D": 64, "F": 64, "V": 64, "X": 64, "G": 4},
    "as many heads as columns": {"D": 16, "H": 4, "G": 4, "K": 4, "F": 16, "X": 16, "V": 16},
}


def of_tunix(name):
    tensors = tunix_trees.tensors_of(name)
    return tunix_trees.leaves_of(name, tensors), tensors


def of_maxtext(name, *, scanned):
    kind, layers = maxtext.CASES[name]
    tensors = tunix_trees.tensors_of(kind, layers)
    return maxtext.leaves_of(name.split(",")[0], tensors, scanned=scanned, layers=layers), tensors


def of_transformers(name):
    params = params_of(name)
    return {f"params/{p}": x for p, x in params.items()}, values(written(params, FAMILIES[name][3]))


def of_lists(name):
    return LISTS[name][1](params_of(name)), values(written(params_of(name), FAMILIES[name][3]))


def unmarked(leaves, tensors):
    """Returns the leaves that a suggestion makes wrongly and says nothing of, and those it makes rightly."""
    suggestion, made = suggested(leaves, tensors)
    right = {path for path, x in made.items() if np.array_equal(x, leaves[path])}
    said = left_open(suggestion, leaves) | noted(suggestion, leaves) | {*suggestion.ambiguous}
    return {*made} - right - said, right


def some(names, fast):
    """Returns names as parameters; the suite runs the fast ones, ``-m slow`` the others."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(autouse=True)
def no_ready_maps(monkeypatch):
    monkeypatch.setattr(starts, "READY", {"TORCH": TORCH})


def sized(monkeypatch, sizes):
    for name, size in SIZES[sizes].items():
        monkeypatch.setattr(tunix_trees, name, size)
        if hasattr(maxtext, name):
            monkeypatch.setattr(maxtext, name, size)


@pytest.mark.parametrize("sizes", some(SIZES, ["square"]))
@pytest.mark.parametrize("name", tunix_trees.TREES)
def test_of_a_model_of_tunix_nothing_is_wrong_and_unmarked(name, sizes, monkeypatch):
    sized(monkeypatch, sizes)
    assert unmarked(*of_tunix(name))[0] == set()


@pytest.mark.parametrize("sizes", some(SIZES, ["square"]))
@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize(
    "name", some([n for n in maxtext.CASES if "," not in n], ["llama", "gemma", "qwen3_moe"])
)
def test_of_a_model_of_maxtext_nothing_is_wrong_and_unmarked(name, scanned, sizes, monkeypatch):
    sized(monkeypatch, sizes)
    assert unmarked(*of_maxtext(name, scanned=scanned))[0] == set()


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("family", deepseek.FAMILIES)
def test_of_deepseek_for_maxtext_nothing_is_wrong_and_unmarked(family, scanned):
    tensors = deepseek.tensors_of(family)
    assert unmarked(deepseek.leaves_of(tensors, scanned=scanned), tensors)[0] == set()


@pytest.mark.parametrize("name", some(FAMILIES, ["GPT2LMHeadModel", "ViTModel"]))
def test_of_a_model_of_transformers_all_is_right(name):
    leaves, tensors = of_transformers(name)
    wrong, right = unmarked(leaves, tensors)
    assert (wrong, right) == (set(), {*leaves})


@pytest.mark.parametrize("name", some(LISTS, ["ViTModel"]))
def test_of_a_model_with_layers_in_lists_nothing_is_wrong_and_unmarked(name):
    assert unmarked(*of_lists(name))[0] == set()


def test_the_numbers_that_maxtext_keeps_otherwise_are_said():
    suggestion, _ = suggested(*of_maxtext("llama", scanned=False))
    (note,) = [note for note in suggestion.notes if "maxtext(config)" in note]
    assert "'params/decoder/layers_{n}/self_attention/query/kernel'" in note or (
        "'decoder/layers_{n}/self_attention/query/kernel'" in note
    )
    suggestion, _ = suggested(*of_maxtext("qwen3", scanned=False))
    assert "maxtext(config)" not in str(suggestion)
