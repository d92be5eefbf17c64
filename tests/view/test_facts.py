from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lazyinit as li
from lazyinit.view.facts import Facts, file_name, state

LAZY = li.LazyParam((4, 2), "float32", jax.nn.initializers.zeros)


def leaves():
    stored, _ = li.fill({"w": LAZY}, {"w": np.ones((4, 2), "float16")})
    overlap, _ = li.fill({"w": LAZY}, {"w": np.ones((3, 2), "f")}, on_mismatch=li.overlap)
    derived = li.lazy(lambda t: t["w"] * 2)(stored)
    return {
        "lazy": LAZY,
        "stored": stored["w"],
        "overlap": overlap["w"],
        "derived": derived,
        "array": jnp.ones((4, 2)),
    }


@pytest.mark.parametrize(
    ("word", "origin", "stored_nbytes"),
    [
        ("lazy", "zeros", 0),
        ("stored", "the mapping", 32),
        ("overlap", "the mapping over zeros", 24),
        ("derived", "multiply of w", 0),
        ("array", "", 0),
    ],
)
def test_the_facts_of_a_leaf_follow_from_what_it_is_read_from_and_what_initializes_it(
    word, origin, stored_nbytes
):
    leaf = leaves()[word]
    facts = Facts.of("a/w", leaf)
    want = Facts("a/w", word, (4, 2), np.dtype("float32"), origin, stored_nbytes)
    assert (facts, facts.nbytes, facts.array) == (want, 32, "float32[4,2]")
    assert state(leaf) == word
    halved = Facts.of("a/w", leaf, dtype=jnp.dtype("bfloat16"))
    assert (halved.nbytes, halved.stored_nbytes) == (16, stored_nbytes // 2)


def test_all_who_speak_of_a_leaf_agree():
    tree = {name: replace(LAZY) for name in "abc"} | {"d": np.ones(2, "f")}
    tensors = {"b": np.ones((4, 2), "f"), "c": np.ones((1, 2), "f"), "e": np.ones(3, "f")}
    filled, report = li.fill(tree, tensors, on_mismatch=li.overlap, on_missing="init")
    states = {"a": "lazy", "b": "stored", "c": "overlap", "d": "array"}
    assert {path: record.state for path, record in li.provenance(filled).items()} == states
    assert {leaf.path: leaf.state for leaf in li.plan(filled).leaves} == states
    assert {entry.path: entry.state for entry in report.entries} == states | {"e": "stored"}
    shown = [line.split()[2] for line in str(li.inspect(filled)).splitlines()[3:]]
    assert shown == list(states.values())


def test_a_file_goes_by_the_last_part_of_its_path():
    assert file_name("/data/bert/model.safetensors") == "model.safetensors"
    assert file_name("https://host/bert/") == "bert"
    assert file_name("the mapping") == "the mapping"
