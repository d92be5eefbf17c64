import re

import pytest

from lazyinit import errors
from lazyinit.tensors import headers
from lazyinit.tensors.headers import named_leaves


def test_leaves_go_by_the_keys_above_them():
    tree = {"a": {"b": 1, 3: 2}, "c": [3, (4, None)], "d": {}}
    assert dict(named_leaves("f", tree)) == {
        "a/b": 1,
        "a/3": 2,
        "c/0": 3,
        "c/1/0": 4,
        "c/1/1": None,
    }
    assert dict(named_leaves("f", 5)) == {"": 5}


def test_two_leaves_of_one_name_are_refused():
    with pytest.raises(errors.CheckpointError, match=r"^f: two tensors are called 'a/b'"):
        list(named_leaves("f", {"a": {"b": 1}, "a/b": 2}))


@pytest.mark.parametrize("key", [b"x", (1, 2), None, 1.5, "\ud800"])
def test_a_key_that_is_no_name_is_refused(key):
    message = (
        f"^f: wanted keys that are text or whole numbers, got {re.escape(repr(key))} below 'a'"
    )
    with pytest.raises(errors.CheckpointError, match=message):
        list(named_leaves("f", {"a": {key: 1}}))


def test_containers_without_end_are_refused():
    endless = []
    endless.append(endless)
    with pytest.raises(errors.CheckpointError, match=r"^f: wanted containers at most 100 deep"):
        list(named_leaves("f", endless))


def test_containers_that_hold_one_another_twice_over_are_refused(monkeypatch):
    monkeypatch.setattr(headers, "NODE_LIMIT", 10_000)
    doubled = [1]
    for _ in range(60):
        doubled = [doubled, doubled]
    with pytest.raises(errors.CheckpointError, match=r"^f: wanted at most 10000 tensors and"):
        list(named_leaves("f", doubled))
