"""Two checkpoints are compared tensor by tensor, and, if asked for, bit by bit."""

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given

import lazyinit as li
from lazyinit.tools.compare import compare
from lazyinit.tools.convert import convert


def opened(**tensors):
    return li.open_checkpoint(tensors)


def found(one, other, **options):
    differences = compare(one, other, **options).differences
    return [(d.name, d.kind, d.first, d.second, d.elements) for d in differences]


def apart(one, other):
    """Returns how many elements of two arrays differ, and the largest difference."""
    (difference,) = compare(opened(x=one), opened(x=other), values=True).differences
    return difference.elements, difference.largest


def test_names_shapes_and_dtypes_are_compared():
    one = opened(a=np.ones(3, "f"), b=np.ones(3, "f"), c=np.ones(3, "f"), d=np.ones(1, "f"))
    other = opened(a=np.zeros(3, "f"), b=np.ones(4, "f"), c=np.ones(3, "d"), e=np.ones(2, "f"))
    assert found(one, other) == [
        ("b", "shape", "float32[3]", "float32[4]", 0),
        ("c", "dtype", "float32[3]", "float64[3]", 0),
        ("d", "only in the first", "float32[1]", "", 0),
        ("e", "only in the second", "", "float32[2]", 0),
    ]
    assert compare(one, other).equal == 1


def test_values_are_compared_bit_by_bit():
    nan = np.array([np.nan, 0.0, 1.0], "f")
    assert found(opened(a=nan), opened(a=nan.copy()), values=True) == []
    assert found(opened(a=nan), opened(a=np.array([np.nan, -0.0, 2.0], "f")), values=True) == [
        ("a", "values", "float32[3]", "float32[3]", 2)
    ]


@pytest.mark.parametrize("piece", [8, 12, 1000])
def test_elements_are_counted_over_pieces(monkeypatch, tmp_path, piece):
    monkeypatch.setattr("lazyinit.tools.compare.PIECE", piece)
    array = np.arange(1000, dtype=np.float64).reshape(10, 100)
    other = array.copy()
    other[::3, ::7] += 1
    convert(opened(a=array), tmp_path / "x.npz")
    convert(opened(a=other), tmp_path / "x.msgpack")
    files = [li.open_checkpoint(tmp_path / f"x.{suffix}") for suffix in ("npz", "msgpack")]
    assert found(*files, values=True)[0][-1] == np.sum(array != other)
    assert found(files[0], opened(a=array), values=True) == []


def test_empty_and_scalar_tensors_are_compared():
    one = opened(a=np.zeros((0, 3)), b=np.float32(1), c=np.True_)
    assert found(one, opened(a=np.zeros((0, 3)), b=np.float32(2), c=np.True_), values=True) == [
        ("b", "values", "float32[]", "float32[]", 1)
    ]


def test_layers_fold_in_the_table():
    one = li.open_checkpoint({f"layer.{n}.w": np.ones(2) for n in range(9)})
    other = li.open_checkpoint({f"layer.{n}.w": np.ones(3) for n in range(9)})
    shown = str(compare(one, other))
    assert shown.splitlines()[0] == "9 tensors differ, 0 are equal"
    assert shown.splitlines()[-1].split() == [
        "layer.{0..8}.w", "9", "shape", "float64[2]", "float64[3]",
    ]  # fmt: skip
    assert str(compare(one, one)) == repr(compare(one, one)) == "9 tensors are equal"


@given(
    hnp.arrays(np.float32, (7, 5), elements=st.floats(width=32, allow_infinity=False)),
    hnp.arrays(np.float32, (7, 5), elements=st.floats(width=32, allow_infinity=False)),
    st.sampled_from([8, 24, 1000]),
)
def test_the_largest_difference_is_numpys(one, other, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lazyinit.tools.compare.PIECE", piece)
        found = compare(opened(x=one), opened(x=other), values=True).differences
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    wide = np.abs(one.astype(np.float64) - other.astype(np.float64))
    want = np.where(same, 0, wide).max()
    np.testing.assert_equal(found[0].largest if found else 0.0, want)


def test_tensors_of_two_dtypes_are_compared_as_numbers():
    one = np.array([1.0, 1 / 3, np.nan, 0.0], np.float32)
    assert compare(opened(x=one), opened(x=one.astype("f2"))).differences[0].elements == 0
    elements, largest = apart(one, one.astype(ml_dtypes.bfloat16))
    assert (elements, largest) == (1, abs(float(one[1]) - float(ml_dtypes.bfloat16(1 / 3))))
    assert apart(one, one.astype(np.float64)) == (0, 0.0)


@pytest.mark.parametrize(
    ("one", "other", "want"),
    [
        (np.array([2**62], np.int64), np.array([2**62 + 1], np.int64), (1, 1.0)),
        (np.array([2**64 - 1], np.uint64), np.array([0], np.uint64), (1, float(2**64))),
        (np.array([-1], np.int8), np.array([1], np.int8), (1, 2.0)),
        (np.array([True, False]), np.array([True, True]), (1, 1.0)),
        (np.array([3 + 4j]), np.array([0j]), (1, 5.0)),
        (np.array([np.inf]), np.array([1.0]), (1, np.inf)),
        (np.array([np.inf, 1.0]), np.array([np.inf, 2.0]), (1, 1.0)),
        (np.array([0.0]), np.array([-0.0]), (1, 0.0)),
        (np.array([np.nan, 5.0]), np.array([1.0, 9.0]), (2, np.nan)),
    ],
)
def test_the_largest_difference_of_numbers_of_each_kind(one, other, want):
    np.testing.assert_equal(apart(one, other), want)
