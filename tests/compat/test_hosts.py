"""The store that processes share; ``tests/agree`` has it between real processes."""

import jax
from jax._src import distributed
from processes import in_processes

from lazyinit import compat

ALONE = """
from lazyinit import compat
store = compat.store()
store.put("a/b/1", b"one")
store.put("a/b/1", b"two")
store.put("a/bc", b"elsewhere")
found = {name: value.decode() for name, value in store.below("a/b").items()}
store.wait_for("a/b/1", 5)
store.wait_for("a/b/2", 0.01)
store.forget("a/b/1")
say([found, list(store.below("a/b")), list(store.below("nowhere"))])
"""


def test_values_are_put_found_and_forgotten():
    assert in_processes(1, ALONE, devices=1) == [[{"1": "two"}, [], []]]


def test_there_is_no_store_without_a_client_nor_with_one_of_another_kind(monkeypatch):
    assert not jax.distributed.is_initialized()
    assert compat.store() is None
    monkeypatch.setattr(distributed.global_state, "client", object())
    assert compat.store() is None
    monkeypatch.setattr(distributed, "global_state", object())
    assert compat.store() is None
