from hypothesis import given
from hypothesis import strategies as st

from lazyinit.view.outline import Part, outline


def test_subtrees_have_sums_and_alike_ones_share_a_line():
    parts = [
        Part(("params", f"layers_{n}", name), "float32[2]", 8) for n in range(3) for name in "kq"
    ]
    parts.append(Part(("params", "head", "kernel"), "float32[4]", 16))
    assert outline(parts) == [
        ("└─ params", "7", "", "64 B", "█" * 10),
        ("   ├─ layers_{0..2}", "6", "", "48 B", "███████▌"),
        ("   │  ├─ k", "3", "float32[2]", "24 B", "███▊"),
        ("   │  └─ q", "3", "float32[2]", "24 B", "███▊"),
        ("   └─ head/kernel", "1", "float32[4]", "16 B", "██▌"),
    ]


def test_nothing_has_no_rows_and_empty_leaves_no_bars():
    assert outline([]) == []
    assert outline([Part(("a",), "float32[0]", 0)]) == [("└─ a", "1", "float32[0]", "0 B", "")]


keys = st.sampled_from(["a", "b_0", "b_1", "0", "1"])


@given(st.sets(st.lists(keys, min_size=1, max_size=4).map(tuple)))
def test_the_first_lines_together_have_every_leaf(paths):
    rows = outline([Part(path, "x", 4) for path in sorted(paths)])
    assert sum(int(row[1]) for row in rows if row[0][0] in "├└") == len(paths)
