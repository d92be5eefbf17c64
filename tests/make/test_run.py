"""The order of work: what is in flight at a time is bounded, in leaves and in bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import assert_same

import lazyinit as li
from lazyinit.make import limits, makers, run

KEY = jax.random.key(0)
SHAPES = [(4, 70), (70, 2), (90, 90), (3, 3), (80, 80), (70, 70), (2, 2), (60, 65)]


def each(init):
    return lambda key: [init(jax.random.fold_in(key, n), shape) for n, shape in enumerate(SHAPES)]


orthogonal = each(jax.nn.initializers.orthogonal())
summed = each(lambda key, shape: jnp.cumsum(jax.random.normal(key, shape), 0))


def watched(monkeypatch):
    """Returns a list to which each start and each wait of a leaf is added."""
    told = []
    prepare = makers.Makers.prepare

    def prepare_watched(self, way):
        start = prepare(self, way)
        (job,) = way.jobs

        def start_watched():
            told.append(("start", job.leaf.nbytes))
            finish = start()

            def finish_watched():
                made = finish()
                told.append(("done", job.leaf.nbytes))
                return made

            return finish_watched

        return start_watched

    monkeypatch.setattr(makers.Makers, "prepare", prepare_watched)
    return told


@pytest.mark.parametrize("at_most", [1, 10**4, 5 * 10**4, 2**28])
def test_what_is_in_flight_is_bounded_in_leaves_and_in_bytes(at_most, monkeypatch):
    monkeypatch.setattr(run, "BYTES_IN_FLIGHT", at_most)
    told = watched(monkeypatch)
    assert_same(li.materialize(li.lazy(summed)(KEY)), summed(KEY))
    in_flight, most = [], 0
    for event, nbytes in told:
        in_flight.append(nbytes) if event == "start" else in_flight.remove(nbytes)
        assert len(in_flight) <= limits.IN_FLIGHT
        assert len(in_flight) == 1 or sum(in_flight) <= at_most or event == "done"
        most = max(most, len(in_flight))
    assert not in_flight
    assert most == {1: 1, 2**28: limits.IN_FLIGHT}.get(at_most, most)


def test_leaves_that_lapack_makes_are_made_one_at_a_time(monkeypatch):
    told = watched(monkeypatch)

    def both(key):
        return [*orthogonal(key)[:3], *summed(key)[:3], *orthogonal(key)[3:5]]

    assert_same(li.materialize(li.lazy(both)(KEY)), both(KEY))
    kinds = [event for event, _ in told]
    assert kinds == [*["start", "done"] * 3, *["start"] * 3, *["done"] * 3, *["start", "done"] * 2]


def test_a_plan_knows_that_large_leaves_are_made_one_by_one():
    shapes = [(2**13, 2**13)] * 3
    tree = li.lazy(lambda key: [jnp.cumsum(jax.random.normal(key, s)) for s in shapes])(KEY)
    (peak,) = li.plan(tree).peak_bytes_per_device.values()
    each = 4 * np.prod(shapes[0])
    assert each == limits.BYTES_IN_FLIGHT
    assert peak <= 3 * each + (limits.TEMPORARIES + 1) * each
