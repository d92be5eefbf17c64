"""Equinox's files with a tree: Equinox writes them, and what it reads back is what is read."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import everything, refused

import lazyinit as li
from lazyinit import errors
from lazyinit.checkpoint import open_checkpoint


class Model(eqx.Module):
    mlp: eqx.nn.MLP
    scale: jax.Array
    step: int
    rate: float
    name: str = "model"


def make(key):
    half = jnp.arange(3, dtype=jnp.bfloat16)
    return Model(eqx.nn.MLP(2, 3, 16, 2, key=key), half, 7, 0.5)


@pytest.fixture
def path(tmp_path):
    eqx.tree_serialise_leaves(tmp_path / "m.eqx", make(jax.random.key(3)))
    return tmp_path / "m.eqx"


def test_a_lazy_model_is_filled_with_what_equinox_reads_and_spread_over_eight_devices(path):
    want = eqx.tree_deserialise_leaves(path, make(jax.random.key(4)))
    tree = li.lazy(make)(jax.random.key(5))
    filled, report = li.fill(tree, open_checkpoint(path, like=tree), on_unexpected="error")
    assert "mlp/layers/0/weight" in report.loaded
    mesh = jax.make_mesh((8,), ("x",))

    def placed(place, leaf):
        is_cut = leaf.shape[:1] == (16,)
        return jax.NamedSharding(mesh, jax.P("x") if is_cut else jax.P())

    made = li.materialize(filled, sharding=placed)
    for got, one in zip(jax.tree.leaves(made), jax.tree.leaves(want), strict=True):
        if eqx.is_array_like(one):
            assert np.asarray(got).tobytes() == np.asarray(one, np.asarray(got).dtype).tobytes()
    assert made.scale.dtype == jnp.bfloat16


@pytest.mark.parametrize("kind", ["arrays", "shapes", "thunks"])
def test_any_tree_of_the_same_leaves_names_them(path, kind):
    like = {
        "arrays": lambda: make(jax.random.key(0)),
        "shapes": lambda: eqx.filter_eval_shape(make, jax.random.key(0)),
        "thunks": lambda: li.lazy(make)(jax.random.key(0)),
    }[kind]()
    opened = open_checkpoint(path, like=like)
    want = make(jax.random.key(3))
    assert everything(opened["step"]) == 7
    assert everything(opened["rate"]) == 0.5
    weight = opened["mlp/layers/1/weight"]
    np.testing.assert_array_equal(everything(weight), want.mlp.layers[1].weight)
    assert not everything(weight).flags.owndata
    assert weight.names == ("mlp/layers/1/weight",)
    assert everything(opened["scale"]).dtype == jnp.bfloat16


def test_without_a_tree_the_way_out_is_said(path):
    refused(
        path, r"wanted one array, got \d+ bytes after it. If Equinox .* open_checkpoint\(path, li"
    )


def test_a_tree_of_another_shape_or_number_of_leaves_is_refused(path):
    like = make(jax.random.key(0))
    other = eqx.tree_at(lambda m: m.scale, like, jnp.ones(4))
    refused(
        path, r"scale: wanted an array of shape \[4\], got bfloat16\[3\]. Pass the tree", like=other
    )
    count = len(jax.tree.leaves(eqx.filter(like, eqx.is_array_like)))
    refused(path, f"wanted {count + 1} arrays, as like= has, got {count}. Pass", like=(like, 1.0))
    less = {"w": like.mlp.layers[0].weight}
    refused(path, r"wanted 1 arrays, as like= has, got 1, and \d+ bytes more. Pass the", like=less)


def test_a_file_that_is_cut_short_is_refused(path):
    path.write_bytes(path.read_bytes()[:-1])
    refused(
        path, "tensor 'rate': wanted 8 bytes of values for float64", like=make(jax.random.key(0))
    )


@pytest.mark.parametrize("given", ["npz", "mapping", "missing"])
def test_a_tree_is_for_files_of_equinox(tmp_path, given):
    np.savez(tmp_path / "a.npz", w=np.ones(2))
    if given == "missing":
        refused(
            tmp_path / "no", "the checkpoint cannot be read: No such file", like={"w": np.ones(2)}
        )
        return
    checkpoint = tmp_path / "a.npz" if given == "npz" else {"w": np.ones(2)}
    start = re.escape(str(checkpoint)) if given == "npz" else "checkpoint"
    with pytest.raises(
        errors.CheckpointError, match=f"^{start}: like= wants a file of Equinox on th"
    ):
        open_checkpoint(checkpoint, like={"w": np.ones(2)})


@settings(max_examples=100)
@given(st.data())
def test_a_broken_file_opens_or_is_refused_and_nothing_else(tmp_path_factory, data):
    like = {"a": np.arange(6.0).reshape(2, 3), "b": np.int32(3), "c": jnp.ones(4, jnp.bfloat16)}
    path = tmp_path_factory.mktemp("broken") / "m.eqx"
    eqx.tree_serialise_leaves(path, like)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.sampled_from([0, 1, 0x20, 0x7F, 0x80, 0xFF]))
    path.write_bytes(content[: data.draw(st.sampled_from([None, -1, len(content) // 2]))])
    try:
        for source in open_checkpoint(path, like=like).values():
            assert everything(source).shape == source.shape
    except errors.CheckpointError as error:
        assert str(error).startswith(str(path))
