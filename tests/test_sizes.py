"""Sizes as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lazyinit as li
from lazyinit.errors import PlanError
from lazyinit.sizes import bytes_of
from lazyinit.view.table import format_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("5GB", 5 * 10**9),
        ("5gib", 5 * 2**30),
        ("1.5 KB", 1500),
        (12, 12),
        ("7", 7),
        ("1TiB", 2**40),
    ],
)
def test_sizes_are_numbers_or_text(text, count):
    assert bytes_of(text, "hbm", PlanError) == count


@pytest.mark.parametrize("size", ["", "GB", "-1GB", "5XB", 0, "0", True, 1.5j])
def test_what_is_no_size_is_refused(size, tmp_path):
    with pytest.raises(PlanError, match="^hbm: wanted a number of bytes, or text such as '5GB'"):
        bytes_of(size, "hbm", PlanError)
    with pytest.raises(li.errors.SaveError, match="max_shard_size: wanted a number of bytes, or"):
        li.save({"w": [1.0]}, tmp_path / "x", max_shard_size=size)


@given(st.integers(1, 1023), st.integers(1, 5))
def test_what_tables_print_is_read_back(count, power):
    assert bytes_of(format_bytes(count * 1024**power), "hbm", PlanError) == count * 1024**power
