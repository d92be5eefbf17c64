"""The collector is paused while much is made, and runs again afterwards."""

import gc

import jax
import models
import pytest

import lazyinit as li
from lazyinit.garbage import uncollected


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
