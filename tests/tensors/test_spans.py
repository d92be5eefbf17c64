import itertools
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyinit.tensors.spans import put, sizes, spans


@st.composite
def slices(draw):
    shape = tuple(draw(st.lists(st.integers(0, 6), max_size=4)))
    index = tuple(slice(*sorted(draw(st.tuples(*[st.integers(0, n)] * 2)))) for n in shape)
    return shape, index


@settings(max_examples=300)
@given(
    slices(),
    st.sampled_from(["int8", "int16", "float64"]),
    st.integers(0, 60),
    st.integers(1, 80),
)
def test_the_spans_of_a_slice_hold_its_values_and_little_else(slice_, dtype, gap, limit):
    shape, index = slice_
    whole = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    data, itemsize = whole.tobytes(), whole.itemsize
    found = list(spans(shape, itemsize, index, gap=gap, limit=limit))
    values = np.full(sizes(shape, index), -1, dtype)
    for span in found:
        put(values, shape, span, data[span.start : span.stop])
    np.testing.assert_array_equal(values, whole[(*index, ...)])
    ends = [(span.start, span.stop) for span in found]
    assert ends == sorted(ends)
    assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(ends))
    assert all(stop - start <= max(limit, itemsize) for start, stop in ends)
    read = sum(stop - start for start, stop in ends)
    runs = sum(1 for _ in spans(shape, itemsize, index, gap=0, limit=2**60))
    assert read <= values.nbytes + gap * max(0, runs - 1)
    if gap == 0:
        assert read == values.nbytes


def test_rows_that_follow_one_another_are_one_span():
    whole = slice(None)
    (span,) = spans((4, 3, 5), 2, (slice(1, 3), whole, whole), gap=0, limit=2**20)
    assert (span.start, span.stop) == (30, 90)


def test_a_gap_is_read_along_up_to_its_limit_and_no_further():
    index = (slice(0, 3), slice(0, 10))
    assert len(list(spans((3, 20), 1, index, gap=10, limit=99))) == 1
    assert len(list(spans((3, 20), 1, index, gap=9, limit=99))) == 3


def test_a_long_span_is_cut_at_rows():
    ends = [
        (span.start, span.stop)
        for span in spans((10, 8), 1, (slice(0, 10), slice(0, 8)), gap=0, limit=30)
    ]
    assert ends == [(0, 24), (24, 48), (48, 72), (72, 80)]
