"""The contract of ``docs/bits.md`` over every case: eager ``init`` decides, bit by bit."""

import pickle
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from oracles import assert_same, kernel_sharding, large_arrays_since, live

import lazyinit as li
from lazyinit import paths

KEY = models.KEY


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


@dataclass(frozen=True)
class Case:
    """What eager init makes, the lazy tree, the keys of both, and both with other keys."""

    want: object
    tree: object
    rngs: object
    init: object
    lazy_init: object


@pytest.fixture(scope="module")  # Run once for all tests of a case, which pytest runs in a row.
def case(request):
    module, rngs, args, kwargs = models.CASES[request.param]

    def init(rngs=rngs):
        return module.init(rngs, *args, **kwargs)

    def lazy_init(rngs=rngs):
        return li.lazy(module).init(rngs, *args, **kwargs)

    want = init()
    before = live()
    tree = lazy_init()
    assert not large_arrays_since(before), "recording allocated"
    return Case(want, tree, rngs, init, lazy_init)


def cases(fast, among=tuple(models.CASES)):
    """Parametrizes a test by cases, those that are not fast marked as slow."""
    names = [n if n in fast else pytest.param(n, marks=pytest.mark.slow) for n in among]
    return pytest.mark.parametrize("case", names, indirect=True, scope="module")


def one_by_one(tree):
    """Materializes every leaf by a call of its own, the last one first."""
    for path, _ in reversed(paths.leaves_with_paths(tree)):
        tree = li.materialize(tree, lambda p, _, path=path: p == path)
    return tree


def without_numpy(tree):
    """Makes arrays of NumPy's: a sharding asks for that too."""
    return paths.replace_leaves(
        tree, [jnp.asarray(x) if isinstance(x, np.ndarray) else x for x in jax.tree.leaves(tree)]
    )


def test_every_initializer_of_jax_is_in_a_case():
    public = {n for n in dir(jax.nn.initializers) if not n.startswith("_")} - {"Initializer"}
    assert public <= set(models.INITIALIZERS)


# One of each way to start from a key.
STARTS = {"setup", "scan axis 0", "vmap split", "BatchNorm", "parameter with make_rng inside"}


@cases(set(models.CASES) - models.SLOW)
def test_the_tree_has_the_facts_of_eager_init(case):
    assert jax.tree.structure(case.tree) == jax.tree.structure(case.want)
    for (path, thunk), value in zip(
        paths.leaves_with_paths(case.tree), jax.tree.leaves(case.want), strict=True
    ):
        if isinstance(thunk, li.LazyParam):
            weak_type = getattr(value, "weak_type", False)
            facts = thunk.shape, thunk.dtype, thunk.weak_type
            assert facts == (value.shape, value.dtype, weak_type), path


@cases(set(models.CASES) - models.SLOW)
def test_bits_of_eager_init(case):
    assert_same(li.materialize(case.tree), case.want)


@cases(set(models.CASES) - models.SLOW)
def test_bits_of_eager_init_one_leaf_at_a_time(case):
    assert_same(one_by_one(case.tree), case.want)


@cases(models.ON_A_MESH)
def test_bits_of_eager_init_on_a_mesh(case, mesh):
    made = li.materialize(case.tree, sharding=kernel_sharding(mesh))
    assert_same(without_numpy(made), without_numpy(case.want))


@cases(STARTS | {"jit method called twice"})
def test_bits_of_eager_init_once_pickled(case):
    again = pickle.loads(pickle.dumps(case.tree))
    assert jax.tree.structure(again) == jax.tree.structure(case.tree)
    assert_same(li.materialize(again), case.want)


@cases(
    STARTS,
    [n for n, (_, rngs, _, _) in models.CASES.items() if isinstance(rngs, jax.Array | dict)],
)
def test_bits_of_eager_init_with_another_key(case):
    other = jax.tree.map(lambda k: jax.random.fold_in(k, 5), case.rngs)
    assert_same(li.materialize(li.reseed(case.tree, other)), case.init(other))


@cases({"setup", "scan axis 0"}, ["setup", "scan axis 0", "BatchNorm", "several streams"])
def test_recording_twice_gives_equal_things(case):
    again = case.lazy_init()
    assert jax.tree.structure(case.tree) == jax.tree.structure(again)
    assert jax.tree.all(jax.tree.map(same_thunk, case.tree, again))
    assert_same(li.materialize(again), case.want)


def same_thunk(a, b):
    return (
        (a.shape, a.dtype, a.weak_type, a.rng_path, a.path, repr(a))
        == (b.shape, b.dtype, b.weak_type, b.rng_path, b.path, repr(b))
    )  # fmt: skip


@cases({"raw key", "parameter of the input"},
       ["raw key", "rbg", "setup", "parameter of the input",
        "init_fn of pytrees, numpy and numbers"])  # fmt: skip
def test_init_fn_of_the_key_of_the_rng_path_is_the_leaf(case):
    for leaf, value in zip(jax.tree.leaves(case.tree), jax.tree.leaves(case.want), strict=True):
        if isinstance(leaf, li.LazyParam):
            assert_same(leaf.init_fn(leaf.rng_path.key()), value, leaf.path)
