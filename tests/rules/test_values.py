"""Scale and ResizeGrid: numpy, PyTorch and JAX say what becomes of the values."""

import itertools

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from pipelines import count, everything, indices, refused, written

import lazyinit as li
from lazyinit.maps.parts import rule
from lazyinit.tensors.memory import HeldTensor

METHODS = ("torch bicubic", "torch bilinear", "jax cubic", "jax linear")
SIZES = st.tuples(st.integers(1, 6), st.integers(1, 6))


def random(*shape, dtype="float32"):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def read(source, index=None):
    return source.read(everything(source.shape) if index is None else index)


# Scale.


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", ml_dtypes.bfloat16])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (li.Scale(by=0.3), lambda x: x * x.dtype.type(np.float32(0.3))),
        (li.Scale(plus=1), lambda x: x + x.dtype.type(1)),
        (li.Scale(by=2, plus=-1), lambda x: x * x.dtype.type(2) - x.dtype.type(1)),
        (li.Scale(axis=-1, power=-0.5), lambda x: x * x.dtype.type(np.float32(6**-0.5))),
        (
            li.Scale(axis=0, dtype="bfloat16"),
            lambda x: x * x.dtype.type(ml_dtypes.bfloat16(5**0.5)),
        ),
    ],
)
def test_values_are_scaled_in_float32_and_come_back_up_to_a_rounding(change, said, dtype):
    x = random(5, 6, dtype=dtype)
    source = change.changed(HeldTensor("x", x), x.shape)
    wide = x.astype(np.result_type(np.dtype(dtype), np.float32) if dtype != "float64" else dtype)
    expected = said(wide)
    assert source.dtype == wide.dtype
    np.testing.assert_array_equal(read(source), expected)
    back = change.restored(HeldTensor("y", expected))
    np.testing.assert_allclose(read(back), wide, rtol=1e-6, atol=1e-6)
    part = (slice(1, 3), slice(2, 6))
    np.testing.assert_array_equal(read(source, part), expected[part])


def test_a_leaf_of_a_narrow_dtype_is_rounded_once_and_saved_in_its_own():
    x = random(4, dtype=ml_dtypes.bfloat16)
    rules = [li.Rule("a", "x", li.Scale(plus=1))]
    leaf = li.LazyParam((4,), np.dtype(ml_dtypes.bfloat16), jax.nn.initializers.zeros)
    tree, _ = li.fill({"a": leaf}, {"x": x}, rules)
    made = np.asarray(li.materialize(tree)["a"])
    np.testing.assert_array_equal(made, (x.astype("float32") + 1).astype(ml_dtypes.bfloat16))
    source = li.Scale(plus=1).restored(HeldTensor("a", made))
    assert source.dtype == made.dtype


def test_nothing_changes_where_the_factor_is_1_and_the_shift_is_0():
    x = np.array([-0.0, np.nan, np.inf, 3], "float32")
    made = read(li.Scale(axis=0, power=0).changed(HeldTensor("x", x), x.shape))
    np.testing.assert_array_equal(made.view("uint32"), x.view("uint32"))


def test_it_reads_no_more_than_is_asked_for_and_stacks_layer_by_layer():
    rules = [rule("l/q", "h.{n}.q", li.Transpose("o i -> i o"), li.Scale(axis=-1), li.Stack(1))]
    tensors = {f"h.{n}.q": random(4, 3) + n for n in range(2)}
    leaf = li.LazyParam((3, 2, 4), np.dtype("float32"), jax.nn.initializers.zeros)
    tree, _ = li.fill({"l": {"q": leaf}}, tensors, rules)
    mesh = jax.make_mesh((2,), ("x",))
    sharding = NamedSharding(mesh, PartitionSpec(None, None, "x"))
    made = li.materialize(tree, sharding=sharding)["l"]["q"]
    np.testing.assert_array_equal(made, np.stack([x.T * 2 for x in tensors.values()], 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": 0}, "Scale(by=0): wanted finite numbers, and for by= one other than 0."),
        ({"plus": np.inf}, "Scale(plus=inf): wanted finite numbers, and for by= one other than 0."),
        ({"dtype": "int8"}, "wanted a dtype of floats, such as 'bfloat16'."),
        ({"dtype": "other"}, "wanted a dtype of floats, such as 'bfloat16'."),
    ],
)
def test_a_scale_that_cannot_be_is_refused(options, message):
    with refused(message):
        li.Scale(**options)


def test_what_cannot_be_scaled_is_refused():
    with refused("Scale(plus=1): wanted a tensor of floats, got int32[2] in"):
        li.Scale(plus=1).changed(HeldTensor("x", np.ones(2, "int32")), (2,))
    with refused("wanted a factor that float16 can hold, got one that becomes inf in it. Pass"):
        li.Scale(by=1e9, dtype="float16").changed(HeldTensor("x", random(2)), (2,))
    with refused("Scale(axis=3, power=0.5): wanted an axis of the leaf or tensor, which has 1 in"):
        li.Scale(axis=3).changed(HeldTensor("x", random(2)), (2,))


@pytest.mark.parametrize(
    "change",
    [
        li.Scale(by=0.5, plus=1, axis=2, power=-0.5, dtype="bfloat16"),
        li.ResizeGrid(axis=1, first=1, grid=(2, 3), to=(4, 5), method="jax cubic"),
        li.ResizeGrid(axis=0),
    ],
)
def test_a_change_prints_as_it_is_written(change):
    assert eval(repr(change), {"Scale": li.Scale, "ResizeGrid": li.ResizeGrid}) == change


# ResizeGrid.


def resized(grid, to, method):
    """Returns what PyTorch or JAX make of ``[1, rows, columns, width]``."""
    library, kind = method.split()
    if library == "jax":
        return np.asarray(jax.image.resize(grid, (1, *to, grid.shape[-1]), kind))
    there = torch.from_numpy(grid).permute(0, 3, 1, 2)
    made = torch.nn.functional.interpolate(there, size=to, mode=kind, align_corners=False)
    return made.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("grid", "to"),
    [((14, 14), (16, 16)), ((14, 14), (7, 7)), ((9, 4), (5, 11)), ((1, 1), (3, 2))],
)
def test_a_grid_is_resized_as_the_library_does(method, grid, to):
    x = random(1, 1 + grid[0] * grid[1], 3)
    change = li.ResizeGrid(axis=1, first=1, grid=grid, to=to, method=method)
    made = read(change.changed(HeldTensor("x", x), (1, 1 + to[0] * to[1], 3)))
    expected = resized(x[:, 1:].reshape(1, *grid, 3), to, method).reshape(1, -1, 3)
    np.testing.assert_allclose(made[:, 1:], expected, atol=5e-6)
    np.testing.assert_array_equal(made[:, 0], x[:, 0])


def test_the_positions_of_a_model_for_images_of_another_size_are_loaded_onto_shards():
    x = random(1, 1 + 4 * 4, 8)
    rules = [li.Rule("embeddings/position", "pos", li.ResizeGrid(axis=1, first=1))]
    leaf = li.LazyParam((1, 1 + 6 * 6, 8), np.dtype("float32"), jax.nn.initializers.zeros)
    tree, _ = li.fill({"embeddings": {"position": leaf}}, {"pos": x}, rules)
    mesh = jax.make_mesh((4,), ("x",))
    sharding = NamedSharding(mesh, PartitionSpec(None, None, "x"))
    made = np.asarray(li.materialize(tree, sharding=sharding)["embeddings"]["position"])
    expected = resized(x[:, 1:].reshape(1, 4, 4, 8), (6, 6), "torch bicubic").reshape(1, 36, 8)
    np.testing.assert_allclose(made[:, 1:], expected, atol=5e-6)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_part_of_a_resized_grid_has_the_bits_of_the_whole(data):
    grid, to, kept = data.draw(SIZES), data.draw(SIZES), data.draw(st.integers(0, 2))
    method = data.draw(st.sampled_from(METHODS))
    x = random(kept + grid[0] * grid[1], data.draw(st.integers(1, 5)))
    change = li.ResizeGrid(axis=0, first=kept, grid=grid, to=to, method=method)
    source = change.changed(HeldTensor("x", x), (kept + to[0] * to[1], x.shape[1]))
    index = data.draw(indices(source.shape))
    np.testing.assert_array_equal(read(source, index), read(source)[index])


def test_equal_grids_stay_as_they_are():
    source = HeldTensor("x", np.ones((17, 2), "int32"))
    assert li.ResizeGrid(axis=0, first=1).changed(source, (17, 2)) is source


def test_a_grid_in_a_narrow_dtype_is_computed_in_a_wide_one():
    x = random(9, 2, dtype=ml_dtypes.bfloat16)
    made = li.ResizeGrid(axis=0).changed(HeldTensor("x", x), (25, 2))
    wide = li.ResizeGrid(axis=0).changed(HeldTensor("x", x.astype("float32")), (25, 2))
    np.testing.assert_array_equal(read(made), read(wide).astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "torch bicubi"}, "got 'torch bicubi'; did you mean 'torch bicubic'?"),
        ({"grid": (3,)}, "ResizeGrid: wanted rows and columns for grid, as in grid=(14, 14), got"),
        ({"to": (0, 2)}, "ResizeGrid: wanted rows and columns for to, as in to=(14, 14), got"),
        ({"first": -1}, "ResizeGrid: wanted first=0 or more, got -1."),
    ],
)
def test_a_resize_that_cannot_be_is_refused(options, message):
    with refused(message):
        li.ResizeGrid(axis=0, **options)


def test_sizes_that_are_no_grid_are_refused():
    source = HeldTensor("x", count(10, 2))
    with refused("wanted 0 places and a square along axis 0 of the tensor, got 10 places. Pass f"):
        li.ResizeGrid(axis=0).changed(source, (16, 2))
    with refused("wanted 1 places and a 4 x 4 grid along axis 0 of the leaf, got 9 places. Pass"):
        li.ResizeGrid(axis=0, first=1, to=(4, 4)).changed(source, (9, 2))
    with refused("ResizeGrid(axis=0, first=1): wanted the size of the leaf, which nothing tells"):
        li.ResizeGrid(axis=0, first=1).changed(source, None)
    with refused("wanted a tensor of floats, got int32[4,1]"):
        li.ResizeGrid(axis=0).changed(HeldTensor("x", np.ones((4, 1), "int32")), (9, 1))


def test_a_resized_grid_cannot_be_saved_as_it_was():
    tree = {"p": np.ones((1, 9, 2), "float32")}
    message = (
        "p: Rule('p', 'x', ResizeGrid(axis=1)): wanted a layout that can be read backwards, got "
        "ResizeGrid(axis=1), which is lossy. Save with rules that do not have it: the file then"
    )
    with refused(message):
        written(tree, [li.Rule("p", "x", li.ResizeGrid(axis=1))])


def test_every_pair_of_methods_differs():
    x, made = random(16, 1), []
    for method in METHODS:
        change = li.ResizeGrid(axis=0, method=method)
        made.append(read(change.changed(HeldTensor("x", x), (4, 1))))
    for one, other in itertools.combinations(made, 2):
        assert np.abs(one - other).max() > 1e-3
