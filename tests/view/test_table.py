from hypothesis import given
from hypothesis import strategies as st

from lazyinit.view.table import Table, bar, fold, format_bytes


def labels(*paths, cell="float32[2]"):
    return [(row.label, row.count) for row in fold((path, cell) for path in paths)]


def test_numbered_layers_fold_into_one_row():
    assert labels(*(f"layer/{i}/kernel" for i in range(6))) == [("layer/{0..5}/kernel", 6)]
    assert labels(*(f"layers_{i}/kernel" for i in range(32))) == [("layers_{0..31}/kernel", 32)]
    assert labels("Dense_0", "Dense_1") == [("Dense_{0..1}", 2)]
    assert labels("encoder.layer.0.bias", "encoder.layer.1.bias") == [
        ("encoder.layer.{0..1}.bias", 2)
    ]


def test_gaps_are_shown():
    assert labels("l/0", "l/1", "l/2", "l/3", "l/7") == [("l/{0..3,7}", 5)]


def test_a_path_with_nothing_to_fold_with_stays_as_it_is():
    assert labels("a/0/b", "a/b", "", "007") == [("a/0/b", 1), ("a/b", 1), ("", 1), ("007", 1)]


def test_rows_whose_cells_differ_do_not_fold():
    rows = [("l/0", "float32[2]"), ("l/1", "float32[3]"), ("l/2", "float32[2]")]
    assert [(r.label, r.cells) for r in fold(rows)] == [
        ("l/{0,2}", ("float32[2]",)),
        ("l/1", ("float32[3]",)),
    ]


def test_numbers_inside_words_do_not_fold():
    assert len(labels("conv1/kernel", "conv2/kernel")) == 2
    assert len(labels("l/01", "l/1")) == 2


def test_a_number_too_long_to_count_stays_as_it_is():
    path = "l/" + "9" * 5000
    assert labels(path) == [(path, 1)]


def test_two_numbers_fold_only_where_every_combination_is_there():
    grid = [f"block_{i}/Dense_{j}" for i in range(3) for j in range(2)]
    assert labels(*grid) == [("block_{0..2}/Dense_{0..1}", 6)]
    assert labels(*grid[:-1]) == [("block_{0..2}/Dense_0", 3), ("block_{0..1}/Dense_1", 2)]


@given(st.sets(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4))))
def test_folding_keeps_every_row_exactly_once(rows):
    folded = fold((f"a/{i}/b_{j}/{k}", "") for i, j, k in rows)
    assert sum(row.count for row in folded) == len(rows)
    assert len({row.label for row in folded}) == len(folded)


def test_bytes_are_shown_in_powers_of_1024():
    assert [format_bytes(n) for n in (0, 1023, 1024, 1024**2 - 1, 1536 * 2**20, 2**60)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.0 MiB",
        "1.5 GiB",
        "1024.0 PiB",
    ]


def test_what_is_left_out_of_a_table_is_counted():
    table = Table("title", ["n"], [[str(n)] for n in range(1234)], notes=["a note"])
    short = table.first(4)
    assert (short.rows, short.notes) == (
        [["0"], ["1"], ["2"], ["3"]],
        ("... and 1,230 more rows; print() shows all", "a note"),
    )
    assert table.first(1234) == table


def test_a_bar_grows_with_the_part_by_eighths_of_a_column():
    assert [bar(part, 2) for part in (0, 1 / 16, 0.5, 1)] == ["", "▏", "█", "██"]
