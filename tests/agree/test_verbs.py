"""Which processes take part, and what is not compared."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lazyinit import agree, compat
from lazyinit.agree import calls
from lazyinit.agree import verbs as module
from lazyinit.errors import LazyinitWarning

LEAVES = [("w", np.ones(3))]


@pytest.fixture
def asked(monkeypatch):
    """The groups in which something was compared."""
    groups = []
    monkeypatch.setattr(module, "agree", lambda call, about, entries, group: groups.append(group))
    monkeypatch.setattr(compat, "store", object)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    return groups


def _make(sharding):
    agree.before_making(LEAVES, [True], [sharding], [LEAVES[0][1].dtype])


def test_what_stays_in_this_process_is_not_compared(asked):
    mesh = Mesh(np.array(jax.devices()), ("x",))
    _make(None)
    _make(NamedSharding(mesh, PartitionSpec("x")))
    assert not asked


def test_those_compare_whose_devices_the_arrays_go_to(asked, monkeypatch):
    monkeypatch.setattr(module, "processes_of", lambda shardings: (0, 2))
    _make(None)
    assert asked == [(0, 2)]
    monkeypatch.setattr(module, "processes_of", lambda shardings: (1, 2))
    _make(None)
    assert asked == [(0, 2)]


def test_all_processes_compare_what_they_save(asked):
    agree.before_saving(LEAVES, [])
    assert asked == [(0, 1, 2)]


def test_nothing_is_compared_where_the_setting_says_so(asked, monkeypatch):
    monkeypatch.setenv(calls.SETTING, "off")
    agree.before_saving(LEAVES, [])
    assert not asked


def test_nothing_is_compared_within_a_trace(asked, monkeypatch):
    monkeypatch.setattr(module, "processes_of", lambda shardings: (0, 1))
    jax.jit(lambda: _make(None))()
    assert not asked


def test_processes_without_a_store_are_warned(asked, monkeypatch):
    monkeypatch.setattr(compat, "store", lambda: None)
    with pytest.warns(LazyinitWarning, match="no key-value store .* 3 processes"):
        agree.before_saving(LEAVES, [])
    assert not asked
