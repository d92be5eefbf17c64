"""A tensor that was written once is found under each of its names again."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import lazyinit as li


@pytest.mark.parametrize("size", ["5GB", 100])
def test_tied_leaves_are_written_once_and_both_are_filled(tmp_path, size):
    shared = jnp.arange(16.0).reshape(4, 4)
    tree = {"embed": shared, "head": shared, "other": jnp.ones((4, 4))}
    li.save(tree, tmp_path, max_shard_size=size)
    opened = li.open_checkpoint(tmp_path)
    assert list(opened) == ["embed", "other", "head"]
    assert opened["head"] == opened["embed"]
    lazy = {name: li.LazyParam((4, 4), "float32", jnp.zeros) for name in tree}
    filled, report = li.fill(lazy, tmp_path, on_missing="error")
    np.testing.assert_array_equal(li.materialize(filled)["head"], shared)
    assert not report.unexpected
    stored = sum(source.extents[0].stop - source.extents[0].start for source in {*opened.values()})
    assert stored == 2 * 64


def test_a_filled_tree_keeps_its_ties_when_it_is_saved(tmp_path):
    shared = np.ones(3, np.float32)
    li.save({"a": shared, "b": shared}, tmp_path / "one")
    lazy = {name: li.LazyParam((3,), "float32", jnp.zeros) for name in "ab"}
    filled, _ = li.fill(lazy, tmp_path / "one")
    li.save(filled, tmp_path / "two")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("one", "two")]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    "note", ["", "[", "3", '["a"]', '{"b": "nowhere"}', '{"a": "a"}', '{"b": 3}', '{"b": ["a"]}']
)
def test_a_note_that_says_nothing_of_use_is_passed_over(tmp_path, note):
    save_file({"a": np.ones(3)}, tmp_path / "x.safetensors", {"lazyinit.tied": note})
    assert list(li.open_checkpoint(tmp_path / "x.safetensors")) == ["a"]
    index = {"metadata": {"lazyinit.tied": note}, "weight_map": {"a": "x.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert list(li.open_checkpoint(tmp_path)) == ["a"]
