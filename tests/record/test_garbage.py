"""The collector is paused while much is made, and runs again afterwards."""

import gc

import jax
import models
import pytest

import lazyinit as li
from lazyinit.record.garbage import uncollected


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_left_as_it_was_found(enabled):
    try:
        (gc.enable if enabled else gc.disable)()
        with uncollected():
            assert not gc.isenabled()
        assert gc.isenabled() == enabled
        with pytest.raises(KeyError), uncollected():
            raise KeyError
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_nothing_is_collected_while_a_model_is_recorded():
    seen = []

    def body(self, x):
        seen.append(gc.isenabled())
        self.param("w", jax.nn.initializers.ones, (3,))

    tree = li.lazy(models.Wrap(body)).init(models.KEY, 0)
    assert seen == [False]
    assert gc.isenabled()
    li.materialize(tree)
    assert gc.isenabled()


def test_what_is_young_when_the_pause_begins_is_collected_first():
    freed = []
    cycle = Cycle(freed)
    del cycle
    with uncollected():
        assert freed == [True]


def test_what_is_made_meanwhile_is_old_afterwards_and_its_garbage_is_gone():
    freed = []
    with uncollected():
        stays, cycle = [], Cycle(freed)
        del cycle
        assert not freed
    assert any(x is stays for x in gc.get_objects(generation=2))
    assert freed == [True]


def test_nothing_is_frozen_meanwhile():
    before = gc.get_freeze_count()
    with uncollected():
        assert gc.get_freeze_count() == before
    assert gc.get_freeze_count() == before


def test_what_somebody_froze_stays_frozen():
    gc.freeze()  # For good: conftest.py has frozen what was imported, which should stay so.
    frozen = gc.get_freeze_count()
    with uncollected():
        pass
    assert gc.get_freeze_count() == frozen > 0


class Cycle:
    """Garbage that only the collector finds, and that tells when it does."""

    def __init__(self, freed):
        self.me, self.freed = self, freed

    def __del__(self):
        self.freed.append(True)
