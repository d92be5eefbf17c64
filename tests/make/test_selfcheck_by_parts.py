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
from lazyinit.make.proofs import Proofs
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
    assert selfcheck.proofs_on("cpu", "by parts").passed == {
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


def drawn():
    return li.lazy(lambda key: jax.random.uniform(key, (8, 128)))(models.KEY)


def test_each_sort_of_leaves_is_checked_once_it_is_needed(monkeypatch, elsewhere, root):
    checked = []

    def run(platform, sort):
        checked.append(sort)
        return Proofs("here", is_tested=True)

    monkeypatch.setattr(selfcheck, "run", run)
    lazy, sharding, want = root
    li.materialize(drawn())
    assert checked == ["from keys"]
    assert_same(jax.tree.map(np.asarray, li.materialize(lazy, sharding=sharding)), want)
    assert checked == ["from keys", "by parts"]
    assert len(list(elsewhere.iterdir())) == 2
    monkeypatch.setattr(selfcheck, "_known", {})  # As in another process.
    with pytest.warns(li.LazyinitWarning):  # What is remembered has no kinds.
        li.materialize(lazy, sharding=sharding)
    assert len(checked) == 2


def test_a_failure_of_each_sort_has_one_warning_of_its_own(monkeypatch, elsewhere, root):
    def run(platform, sort):
        kind = "draw add float32" if sort == "from keys" else "part sqrt float32"
        return Proofs("here", False, frozenset(), {kind: "a canary"})

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
