"""The self-check of what is computed by parts: by itself, once somebody computes by parts."""

import sys
import warnings
from collections import OrderedDict
from dataclasses import replace

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from oracles import assert_same

import lazyinit as li
from lazyinit.compat import on_parts
from lazyinit.make import by_parts, proofs, selfcheck
from lazyinit.make.canaries import Canary
from lazyinit.make.proofs import Found
from lazyinit.program import partwise


@pytest.fixture
def root():
    """A leaf that is the root of another, a sharding by rows, and what its values have to be."""
    values = np.random.default_rng(0).random((8, 128), "float32")
    tree, _ = li.fill({"w": jax.ShapeDtypeStruct(values.shape, values.dtype)}, {"w": values})
    lazy = li.lazy(lambda tree: {"root": jnp.sqrt(tree["w"])})(tree)
    return lazy, NamedSharding(jax.make_mesh((8,), ("a",)), P("a")), {"root": np.sqrt(values)}


@pytest.fixture
def wrong_on_parts(monkeypatch):
    """Makes a root one unit in the last place larger where it is computed by parts."""
    real = on_parts._by_element

    def run(equation, *rest):
        made = real(equation, *rest)
        if equation.primitive.name != "sqrt":
            return made
        return [replace(x, array=jnp.nextafter(x.array, jnp.float32(jnp.inf))) for x in made]

    monkeypatch.setattr(on_parts, "_by_element", run)
    monkeypatch.setattr(partwise, "_known", OrderedDict())


@pytest.fixture
def only_roots(monkeypatch):
    root = Canary("a root", lambda x: jnp.sqrt(jnp.abs(x)), ("float32",), ((4, 134),))
    monkeypatch.setattr(selfcheck, "CANARIES_BY_PARTS", [root])


def computed_by_parts(monkeypatch):
    done = []
    real = by_parts.ByParts.compute
    monkeypatch.setattr(
        by_parts.ByParts, "compute", lambda *args: done.append(real(*args)) or done[-1]
    )
    return done


def test_leaves_are_computed_by_parts_where_the_check_has_proven_it(
    monkeypatch, elsewhere, only_roots, root
):
    lazy, sharding, want = root
    done = computed_by_parts(monkeypatch)
    assert_same(jax.tree.map(np.asarray, li.materialize(lazy, sharding=sharding)), want)
    assert done
    assert selfcheck.proofs_on("cpu").of("by parts").passed == {
        "part sqrt float32",
        "part abs float32",
    }


def test_a_planted_wrong_part_is_caught_and_the_leaf_is_computed_whole(
    monkeypatch, elsewhere, only_roots, root, wrong_on_parts
):
    lazy, sharding, want = root
    done = computed_by_parts(monkeypatch)
    with pytest.warns(li.LazyinitWarning, match=r"part sqrt float32 \(shown by 'a root float32'\)"):
        made = li.materialize(lazy, sharding=sharding)
    assert_same(jax.tree.map(np.asarray, made), want)
    assert not done


def test_parts_that_no_canary_covers_are_computed_whole(monkeypatch, elsewhere, few_canaries, root):
    lazy, sharding, want = root
    done = computed_by_parts(monkeypatch)
    with pytest.warns(li.LazyinitWarning, match="does not cover part sqrt float32"):
        made = li.materialize(lazy, sharding=sharding)
    assert_same(jax.tree.map(np.asarray, made), want)
    assert not done


def test_check_true_compares_what_is_computed_by_parts(monkeypatch, root, wrong_on_parts):
    lazy, sharding, want = root
    monkeypatch.setattr(
        sys.modules["lazyinit._materialize"], "proofs_on", lambda *_: proofs.TRUSTED
    )
    with pytest.raises(li.errors.BitsError, match=r"^root: wanted the bits of its replay, got \d+"):
        li.materialize(lazy, sharding=sharding, check=True)
    monkeypatch.undo()
    made = li.materialize(lazy, sharding=sharding, check=True)
    assert_same(jax.tree.map(np.asarray, made), want)


def drawn(dtype="float32"):
    return li.lazy(lambda key: jax.random.uniform(key, (8, 128), dtype))(models.KEY)


@pytest.mark.filterwarnings("ignore::lazyinit.errors.LazyinitWarning")  # None is proven from keys.
def test_each_sort_of_kinds_is_checked_once_it_is_needed(monkeypatch, elsewhere, root):
    checked = []

    def run(platform, sort):
        checked.append(sort)
        by_parts = {"part sqrt float32", "part abs float32"}
        return Found(frozenset(by_parts if sort == "by parts" else ["draw barrier"]))

    monkeypatch.setattr(selfcheck, "run", run)
    lazy, sharding, want = root
    done = computed_by_parts(monkeypatch)
    for _ in range(2):
        li.materialize(drawn("bfloat16"))
        assert checked[:1] == ["narrow"]
        li.materialize(drawn())
        assert checked[:2] == ["narrow", "wide"]
        assert_same(jax.tree.map(np.asarray, li.materialize(lazy, sharding=sharding)), want)
        assert checked == ["narrow", "wide", "by parts"]
        assert len(list(elsewhere.iterdir())) == 3
        monkeypatch.setattr(selfcheck, "_known", {})  # As in another process.
    assert len(done) == 2


@pytest.mark.filterwarnings("ignore::lazyinit.errors.LazyinitWarning")
def test_kinds_without_a_dtype_are_looked_for_where_they_are_shown(monkeypatch, elsewhere):
    """Rows of a scan have canaries of 16 bits, rows of a vmap have not."""
    asked = []

    def run(platform, sort):
        asked.append(sort)
        return Found(frozenset({"draw barrier", "draw rows_of_scan"}))

    monkeypatch.setattr(selfcheck, "run", run)

    def row(key):
        return jax.random.uniform(key, (8, 128), "bfloat16")

    keys = jax.random.split(models.KEY, 3)
    li.materialize(li.lazy(lambda k: jax.lax.scan(lambda _, k: (None, row(k)), None, k)[1])(keys))
    assert asked == ["narrow"]
    li.materialize(li.lazy(jax.vmap(row))(keys))
    assert asked == ["narrow", "wide"]


def test_a_canary_that_shows_a_fault_of_another_sort_counts(monkeypatch, elsewhere):
    """Rows of 16 bits may be wrong where those of 32 are right."""
    rows, real = "draw rows_of_scan", selfcheck.run

    def run(platform, sort):
        found = real(platform, sort)
        if sort == "wide":
            return found
        return Found(found.passed - {rows}, {rows: "a canary"})

    monkeypatch.setattr(selfcheck, "run", run)

    def scanned(dtype):
        def step(_, key):
            return None, jax.random.uniform(key, (8, 128), dtype)

        keys = jax.random.split(models.KEY, 3)
        return li.lazy(lambda keys: jax.lax.scan(step, None, keys)[1])(keys)

    few = [c for c in selfcheck.CANARIES if c.name in ("uniform", "rows of a scan")]
    monkeypatch.setattr(selfcheck, "CANARIES", few)
    li.materialize(scanned("float32"))
    with pytest.warns(li.LazyinitWarning, match=r"draw rows_of_scan \(shown by 'a canary'\)"):
        li.materialize(scanned("bfloat16"))


def test_a_failure_of_each_sort_has_one_warning_of_its_own(monkeypatch, elsewhere, root):
    def run(platform, sort):
        kind = "part sqrt float32" if sort == "by parts" else "draw add float32"
        return Found(frozenset(), {kind: "a canary"})

    monkeypatch.setattr(selfcheck, "run", run)
    lazy, sharding, _ = root
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            li.materialize(drawn())
            li.materialize(lazy, sharding=sharding)
    first, second = (str(warning.message) for warning in caught)
    assert "draw add float32" in first
    assert "part sqrt float32" in second
