"""The order of work: what is in flight at a time is bounded, in leaves and in bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import assert_same

import lazyinit as li
from lazyinit.make import in_flight as bounds
from lazyinit.make import limits, makers

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
    monkeypatch.setattr(bounds, "BYTES_IN_FLIGHT", at_most)
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


def beside(leaves, sharding=None):
    """Returns the most bytes beside the arrays on any device, as a plan has them."""
    planned = li.plan(li.lazy(leaves)(KEY), sharding)
    kept = planned.bytes_per_device
    return max(planned.peak_bytes_per_device[device] - kept[device] for device in kept)


def test_a_plan_counts_leaves_that_lapack_makes_one_at_a_time():
    largest = 4 * 90 * 90
    others = 4 * (90 * 90 + 80 * 80 + 70 * 70 + 60 * 65)
    assert beside(orthogonal) == limits.TEMPORARIES * largest
    assert beside(summed) == limits.TEMPORARIES * others
    both = beside(lambda key: [*orthogonal(key), *summed(key)])
    assert both == limits.TEMPORARIES * others


def test_a_plan_counts_results_of_one_decomposition_together():
    def results(key):
        x = jax.random.normal(key, (80, 80))
        return [*jnp.linalg.qr(x), jnp.linalg.qr(x.T)[0]]

    def as_one(key):
        return jnp.stack(results(key))

    assert beside(results) == beside(as_one) == 3 * limits.TEMPORARIES * 4 * 80 * 80


def test_a_plan_counts_what_is_made_whole_and_cut_on_the_first_device():
    mesh = jax.make_mesh((2,), ("x",))

    def leaves(key):
        init = jax.nn.initializers.orthogonal()
        return [init(jax.random.fold_in(key, n), (64, 64)) for n in range(3)]

    assert beside(leaves, li.shard_fsdp(mesh, "x", min_size=1)) == (
        (limits.TEMPORARIES + 1) * 4 * 64 * 64
    )
