import itertools
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from reading import everything
from safetensors.numpy import save_file

from lazyinit.checkpoint import open_checkpoint
from lazyinit.tensors.as_dtype import AsDtype
from lazyinit.tensors.joined import Joined
from lazyinit.tensors.memory import HeldTensor
from lazyinit.tensors.regions import is_read_anywhere, joined_parts, order_of
from lazyinit.tensors.views import cut, reshaped, selected, transposed


def tensor(shape, start=0, dtype=np.int32):
    values = np.arange(start, start + math.prod(shape), dtype=dtype).reshape(shape)
    return HeldTensor("w", values)


def put_together(source):
    made = np.full(source.shape, -1, source.dtype)
    count = 0
    for begins, part in joined_parts(source):
        ends = (begin + n for begin, n in zip(begins, part.shape, strict=True))
        made[tuple(map(slice, begins, ends))] = everything(part)
        count += math.prod(part.shape)
    assert count == made.size, "no element is in two parts"
    return made


@st.composite
def sources(draw):
    """Draws views of joined sources, and joined ones of views."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    source = tensor(shape)
    for _ in range(draw(st.integers(0, 4))):
        ndim = len(source.shape)
        axis = draw(st.integers(0, ndim - 1))
        match draw(st.sampled_from(["stack", "concat", "transpose", "cut"])):
            case "stack" if ndim < 5:
                others = (tensor(source.shape, 1000 * n) for n in range(draw(st.integers(0, 2))))
                source = Joined((source, *others), axis, is_stacked=True)
            case "concat":
                other = (*source.shape[:axis], draw(st.integers(1, 4)), *source.shape[axis + 1 :])
                source = Joined((tensor(other, 5000), source), axis)
            case "transpose":
                source = transposed(source, tuple(draw(st.permutations(range(ndim)))))
            case _:
                size = source.shape[axis]
                start = draw(st.integers(0, size - 1))
                source = cut(source, {axis: (start, draw(st.integers(start + 1, size)))})
    return source


@hypothesis.given(sources())
def test_the_parts_of_a_source_put_together_are_the_source(source):
    np.testing.assert_array_equal(put_together(source), everything(source))


def test_a_stack_of_transposed_tensors_is_read_tensor_by_tensor():
    layers = [transposed(tensor((3, 4), 100 * n), (1, 0)) for n in range(5)]
    parts = list(joined_parts(Joined(tuple(layers), 1, is_stacked=True)))
    assert [begins for begins, _ in parts] == [(0, n, 0) for n in range(5)]
    for _, part in parts:
        assert everything(part).base is not None, "a view of the tensor"


def test_parts_of_other_dtypes_are_cast_to_the_one_of_all_before_they_are_taken():
    source = Joined((tensor((2, 2)), tensor((2, 2), dtype=np.float32)), 0)
    assert list(joined_parts(source)) == [((0, 0), source)]


@pytest.mark.parametrize("shape", [(2, 3), (4, 3, 2), (2, 3, 4, 5)])
def test_the_order_of_axes_is_that_of_strides(shape):
    for axes in itertools.permutations(range(len(shape))):
        for source in (
            transposed(tensor(shape), axes),
            HeldTensor("w", everything(tensor(shape)).transpose(axes)),
            AsDtype(transposed(tensor(shape), axes), np.dtype("float32")),
            reshaped(transposed(tensor(shape), axes), (1, *(shape[a] for a in axes), 1)),
        ):
            steps = everything(source).strides
            inner = [axis for axis in order_of(source) if source.shape[axis] > 1]
            assert inner == sorted(inner, key=lambda axis: -steps[axis])
            assert sorted(order_of(source)) == list(range(len(source.shape)))


def test_heads_that_are_split_off_keep_the_order_of_the_file():
    source = reshaped(transposed(tensor((12, 5)), (1, 0)), (5, 3, 4))  # d h k of a tensor (h k) d.
    assert order_of(source) == (1, 2, 0)
    assert order_of(selected(source, 0, 2)) == (0, 1)


def test_what_is_mapped_or_in_memory_is_read_anywhere(tmp_path):
    save_file({"w": np.zeros((2, 3), np.float32)}, tmp_path / "w.safetensors")
    np.savez_compressed(tmp_path / "w.npz", w=np.zeros((2, 3), np.float32))
    mapped, packed = (open_checkpoint(tmp_path / f"w.{end}")["w"] for end in ("safetensors", "npz"))
    both = Joined((mapped, packed), 0)
    assert [is_read_anywhere(s) for s in (mapped, tensor((2,)), transposed(mapped, (1, 0)))] == [
        True
    ] * 3
    assert not any(map(is_read_anywhere, (packed, both, transposed(packed, (1, 0)))))
