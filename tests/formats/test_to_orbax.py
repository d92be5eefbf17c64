"""What Orbax writes for us, Orbax restores: into the same tree, sharded, and as others ask for it."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from models import MLP, X
from oracles import assert_same, kernel_sharding

import lazyinit as li
from lazyinit.tools.cli import main
from lazyinit.tools.convert import convert

KEY = jax.random.key(2)


def restored(folder, like):
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder, like)


def assert_leaves_same(got, want):
    """Compares trees but for the order of keys, which Orbax sorts, and for NumPy and JAX."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert_same(jnp.asarray(one), jnp.asarray(other))


@pytest.mark.parametrize("sharded", [False, True])
def test_orbax_restores_what_is_saved_where_it_is_asked_to(tmp_path, sharded):
    eager = MLP().init(KEY, X)
    shard = kernel_sharding(jax.make_mesh((2, 4), ("x", "y"))) if sharded else None
    placed = li.materialize(eager, sharding=shard)
    li.save(placed, tmp_path / "x", format="orbax")
    abstract = li.abstract(li.lazy(MLP()).init(KEY, X), shard)
    got = restored(tmp_path / "x", abstract)
    assert_leaves_same(got, eager)
    for one, want in zip(jax.tree.leaves(got), jax.tree.leaves(abstract), strict=True):
        assert want.sharding is None or one.sharding == want.sharding


def test_the_tree_handler_of_maxtext_and_tunix_restores_an_nnx_state(tmp_path):
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    li.save(state, tmp_path / "x", format="orbax")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        where = ocp.checkpoint_utils.construct_restore_args(state)
        arguments = ocp.args.PyTreeRestore(item=state, restore_args=where)
        got = checkpointer.restore(tmp_path / "x", args=arguments)
    assert_leaves_same(got, state)


def test_a_filled_tree_is_read_and_saved_in_one_call(tmp_path):
    values = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
    tree = {"w": li.LazyParam((2, 3), "bfloat16", jnp.zeros), "b": li.LazyParam((3,), "f4", ones)}
    tree, _ = li.fill(tree, values, on_missing="init")
    message = "b: wanted an array or a leaf from a checkpoint"
    with pytest.raises(li.errors.NotMaterializedError, match=message):
        li.save(tree, tmp_path / "x", format="orbax")
    li.save(tree, tmp_path / "x", format="orbax", lazy="make")
    got = restored(tmp_path / "x", li.abstract(tree))
    assert_leaves_same(got, {"w": values["w"].astype(jnp.bfloat16), "b": np.ones(3, "f4")})


def ones(key):
    return jnp.ones(3)


def test_what_is_saved_is_read_back_by_fill(tmp_path):
    tree = {"a": [np.ones((2, 3), jnp.bfloat16), np.float32(2)], "key": jax.random.key(3)}
    li.save(tree, tmp_path / "x", format="orbax")
    lazy = {
        "a": [li.LazyParam((2, 3), "bfloat16", ones), li.LazyParam((), "f4", ones)],
        "key": jax.ShapeDtypeStruct((), tree["key"].dtype),
    }
    filled, report = li.fill(lazy, tmp_path / "x", on_unexpected="error")
    assert not report.missing
    got = li.materialize(filled)
    assert_leaves_same(got["a"], [np.asarray(x) for x in tree["a"]])
    assert (jax.random.key_data(got["key"]) == jax.random.key_data(tree["key"])).all()


def test_converting_writes_a_tree_of_the_names(tmp_path, capsys):
    tensors = {"layers/0/w": np.ones((2, 3), "f4"), "step": np.array(7, np.int32)}
    convert(li.open_checkpoint(tensors), tmp_path / "x.npz")
    arguments = ["convert", str(tmp_path / "x.npz"), str(tmp_path / "o"), "--orbax"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'o'}: 2 tensors, 28 B\n"
    tree = {"layers": {"0": {"w": tensors["layers/0/w"]}}, "step": tensors["step"]}
    assert_leaves_same(restored(tmp_path / "o", tree), tree)
    assert main(["diff", "--values", str(tmp_path / "o"), str(tmp_path / "x.npz")]) == 0
    assert main(arguments) == 2
    assert "wanted a path where nothing is, got one that exists" in capsys.readouterr().err
    clashing = li.open_checkpoint({"a": np.ones(2), "a/b": np.ones(2)})
    with pytest.raises(li.errors.SaveError, match="a/b: wanted a place of its own"):
        convert(clashing, tmp_path / "p", format="orbax")
    assert not (tmp_path / "p").exists()


def test_what_orbax_cannot_take_is_refused_before_it_is_asked(tmp_path):
    tree = {"w": np.ones(2)}
    (tmp_path / "there").mkdir()
    cases = [
        ((tree, "there"), {}, "there: wanted a path where nothing is, got one that exists"),
        (({"w": np.ones((0, 2))}, "x"), {}, "w: wanted an array with elements, as Orbax holds no"),
        (({"w": "text"}, "x"), {}, "w: wanted an array, got str. Leave it out of the tree."),
        ((tree, "x"), {"at": "w"}, "at: wanted no such argument with format='orbax', which"),
        (
            (tree, "x"),
            {"rules": li.TORCH, "like": tmp_path},
            "rules, like: wanted no such argument",
        ),
    ]
    for (leaves, name), options, message in cases:
        with pytest.raises(li.errors.SaveError, match=re.escape(message)):
            li.save(leaves, tmp_path / name, format="orbax", **options)
    with pytest.raises(li.errors.WordError, match="format: wanted one of 'safetensors', 'orbax'"):
        li.save(tree, tmp_path / "x", format="orbaks")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_an_error_of_orbax_names_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(li.errors.WriteError, match=r"file/x: Orbax could not write it: .* Nothing"):
        li.save({"w": np.ones(2)}, tmp_path / "file" / "x", format="orbax")


def test_without_orbax_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(li.errors.SaveError, match="Run pip install orbax-checkpoint"):
        li.save({"w": np.ones(2)}, tmp_path / "x", format="orbax")
