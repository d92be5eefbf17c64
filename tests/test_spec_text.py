"""Rules of placements as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from lazyinit import spec_text
from lazyinit.errors import ShardingError

AXIS = st.text(min_size=1, max_size=5)
AXES = st.none() | AXIS | st.lists(AXIS, min_size=2, max_size=3, unique=True).map(tuple)
RULES = st.lists(st.tuples(st.text(), st.lists(AXES, max_size=3).map(lambda axes: P(*axes))))


@given(RULES)
def test_what_is_written_is_read(tmp_path_factory, rules):
    path = tmp_path_factory.mktemp("rules") / "rules.json"
    path.write_text(spec_text.written(rules))
    assert spec_text.read(path) == tuple(rules)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "wanted a file with rules as JSON, got an error: Expecting"),
        ("[1]", "wanted a JSON object from patterns to specs, such as {"),
        ("3", "wanted a JSON object from patterns to specs, such as {"),
        ('{"w": "model"}', "w: wanted a list with an axis, a list of axes or null for each dim"),
        ('{"w": [3]}', "w: wanted a list with an axis, a list of axes or null for each dimension"),
        ('{"w": [["a", null]]}', "w: wanted a list with an axis, a list of axes or null for each"),
        ('{"w": {"a": 1}}', "w: wanted a list with an axis, a list of axes or null for each dim"),
    ],
)
def test_what_are_no_rules_is_refused(tmp_path, text, message):
    path = tmp_path / "rules.json"
    path.write_text(text)
    with pytest.raises(ShardingError) as caught:
        spec_text.read(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ShardingError, match="nowhere.json: wanted a file .*No such file"):
        spec_text.read(tmp_path / "nowhere.json")
