from hypothesis import given
from hypothesis import strategies as st

from lazyinit.view.nested import Branch, nest


def labels(branch: Branch):
    return [(row.label, len(row.members)) for row in branch.rows]


def leaves(branch: Branch, path=()):
    """Yields the keys and the number of each leaf of a branch."""
    if branch.leaf >= 0:
        yield path, branch.leaf
    for row in branch.rows:
        for key, member in zip(row.keys, row.members, strict=True):
            yield from leaves(member, (*path, key))


def test_layers_that_differ_in_their_numbers_alone_are_one_row():
    paths = [(f"layers_{n}", name) for n in (0, 10, 2, 1) for name in ("k", "q")]
    assert labels(nest(paths, ["f32"] * 8)) == [("layers_{0..2,10}", 4)]
    assert labels(nest([("layers", str(n)) for n in range(3)], ["f32"] * 3).rows[0].members[0]) == [
        ("{0..2}", 3)
    ]


def test_a_layer_that_differs_stands_alone():
    paths = [(f"layers_{n}", "k") for n in range(4)]
    assert labels(nest(paths, ["a", "b", "a", "a"])) == [("layers_{0,2..3}", 3), ("layers_1", 1)]
    assert labels(nest([*paths, ("layers_4", "q")], ["a"] * 5)) == [
        ("layers_{0..3}", 4),
        ("layers_4", 1),
    ]


def test_numbers_inside_words_are_names():
    assert labels(nest([("conv1",), ("conv2",), ("l_01",), ("l_1",)], ["a"] * 4)) == [
        ("conv1", 1),
        ("conv2", 1),
        ("l_01", 1),
        ("l_1", 1),
    ]


def test_a_leaf_may_lie_above_another():
    root = nest([("a",), ("a", "b")], ["x", "x"])
    assert dict(leaves(root)) == {("a",): 0, ("a", "b"): 1}
    assert dict(leaves(nest([()], ["x"]))) == {(): 0}


def test_what_lies_deeper_than_anybody_looks_is_one_key():
    ((path, number),) = leaves(nest([["k"] * 5000], ["x"]))
    assert number == 0
    assert "/".join(path) == "/".join(["k"] * 5000)
    assert len(path) < 60


keys = st.sampled_from(["a", "b", "l_0", "l_1", "l_2", "0", "1", "x1"])


@given(st.sets(st.lists(keys, min_size=1, max_size=4).map(tuple)), st.data())
def test_every_leaf_is_in_the_tree_once_and_rows_are_alike(paths, data):
    paths = sorted(paths)
    kinds = data.draw(st.lists(st.sampled_from("pq"), min_size=len(paths), max_size=len(paths)))
    root = nest(paths, kinds)
    assert dict(leaves(root)) == {path: number for number, path in enumerate(paths)}

    def told(branch):
        return [(path, kinds[number]) for path, number in leaves(branch)]

    stack = [root]
    while stack:
        for row in stack.pop().rows:
            assert all(told(member) == told(row.members[0]) for member in row.members)
            stack += row.members
