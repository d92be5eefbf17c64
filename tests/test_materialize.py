"""Materializing: its laws, what it takes, and what it leaves alone."""

import dataclasses
import gc
import threading

import flax.linen as nn
import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from oracles import assert_same, assert_same_array, kernel_sharding, large_arrays_since, live

import lazyinit as li
from lazyinit import paths
from lazyinit.errors import LazyinitError, PathError, RecordError, ShardingError
from lazyinit.keys import Key

MESH = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
KEY = models.KEY


class Model(nn.Module):
    """Direct leaves, leaves of a scan, leaves that share equations, a box, a count."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8, name="dense")(x)
        x = models.Scanned((("variable_axes", {"params": 0}),))(x)[0]
        first = self.param("first", nn.initializers.normal(1.0), (8, 8))
        self.param("second", lambda key: first * 0.3 + 0.1)
        box = nn.with_partitioning(nn.initializers.normal(), ("a", "b"))
        self.param("boxed", box, (8, 8))
        self.variable("state", "mean", lambda: x.mean(0) * 0.3 + 0.1)
        self.variable("state", "count", lambda: jnp.zeros((), jnp.int32))
        return x


WANT = Model().init(KEY, models.X)
TREE = li.lazy(Model()).init(KEY, models.X)
PATHS = [path for path, _ in paths.leaves_with_paths(TREE)]


def is_thunk(x):
    return isinstance(x, li.LazyParam)


def pick(tree, chosen):
    """Returns the chosen leaves of a tree by path."""
    return {p: x for p, x in paths.leaves_with_paths(tree) if p in chosen}


SHARDINGS = {
    "none": None,
    "whole": NamedSharding(MESH, P()),
    "cut": kernel_sharding(MESH),
    "one device": SingleDeviceSharding(jax.devices()[3]),
    "reversed": kernel_sharding(Mesh(np.array(jax.devices())[::-1].reshape(4, 2), ("a", "b"))),
}
subsets = st.sets(st.sampled_from(PATHS), min_size=1)


# Laws.


@settings(max_examples=5)  # Each may compile several programs.
@given(subsets, st.sampled_from(list(SHARDINGS)))
def test_selecting_and_materializing_commute(chosen, sharding):
    alone = li.materialize(pick(TREE, chosen), sharding=SHARDINGS[sharding])
    for path, array in alone.items():
        assert_same_array(array, pick(WANT, {path})[path], path)


@settings(max_examples=10)
@given(subsets, st.sampled_from(list(SHARDINGS)))
def test_leaves_that_are_not_selected_are_the_same_objects(chosen, sharding):
    made = li.materialize(TREE, sorted(chosen), SHARDINGS[sharding])
    assert_same(pick(made, chosen), pick(WANT, chosen))
    rest = set(PATHS) - chosen
    before, after = pick(TREE, rest), pick(made, rest)
    assert all(before[path] is after[path] for path in rest)


@settings(max_examples=10)
@given(st.permutations(PATHS), st.lists(st.sampled_from(list(SHARDINGS)), min_size=3, max_size=3))
def test_any_order_in_any_parts_gives_the_same_bits(order, shardings):
    tree = TREE
    parts = [order[:3], order[3:4], order[4:]]
    for part, sharding in zip(parts, shardings, strict=True):
        tree = li.materialize(tree, part, SHARDINGS[sharding])
    assert_same(tree, WANT)


@settings(max_examples=10)
@given(subsets)
def test_materializing_twice_changes_nothing(chosen):
    once = li.materialize(TREE, sorted(chosen))
    twice = li.materialize(once, sorted(chosen))
    assert all(a is b for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(twice), strict=True))


DISTRIBUTIONS = {
    "normal": jax.random.normal,
    "truncated_normal": lambda k, s: jax.random.truncated_normal(k, -2.0, 2.0, s),
    "laplace": jax.random.laplace,
    "cauchy": jax.random.cauchy,
    "exponential": jax.random.exponential,
    "gumbel": jax.random.gumbel,
    "gamma": lambda k, s: jax.random.gamma(k, 2.0, s),
    "uniform": jax.random.uniform,
    "bfloat16": lambda k, s: jax.random.normal(k, s, jnp.bfloat16),
    "sum": lambda k, s: jax.random.normal(k, s) - jax.random.normal(k, s).sum(),
    "tanh": lambda k, s: (
        jnp.tanh(jax.random.normal(k, s)) * 0.3 + jnp.exp(jax.random.uniform(k, s))
    ),
    "cumsum": lambda k, s: jnp.cumsum(jax.random.normal(k, s), 0),
}


FAST = ("normal", "sum")


@pytest.mark.parametrize(
    "name",
    [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in DISTRIBUTIONS],
)
def test_odd_shards_have_the_bits_of_the_whole(name):
    init = DISTRIBUTIONS[name]
    for shape, specs in {
        (6, 20): (P("a", "b"), P("a")),
        (2, 4 * 37): (P(None, "b"), P("a", "b")),
    }.items():
        leaf = li.LazyParam(shape, "bfloat16" if name == "bfloat16" else "float32",
                            lambda key, shape=shape: init(key, shape), li.RngPath({"p": Key.of(KEY)}))  # fmt: skip
        want = init(KEY, shape)
        assert_same(li.materialize(leaf), want)
        for spec in specs:
            assert_same(li.materialize(leaf, sharding=NamedSharding(MESH, spec)), want)


@pytest.mark.parametrize(
    "init",
    [
        lambda key: jnp.stack(
            [jax.random.normal(k, (6, 20)).mean() for k in jax.random.split(key, 4)]
        ),
        lambda key: jax.random.lognormal(key, 0.7, (6, 20)),
        lambda key: jax.random.triangular(key, -1.0, 0.0, 1.0, (6, 20)),
        pytest.param(
            lambda key: jax.random.binomial(key, 10, 0.3, (6, 20)), marks=pytest.mark.slow
        ),
        lambda key: jnp.average(jax.random.normal(key, (6, 20)), 0),
        lambda key: jax.nn.softplus(jax.random.normal(key, (6, 20)) * 3.0),
        lambda key: jax.nn.silu(jax.random.normal(key, (6, 20)).std(0)),
        lambda key: jax.nn.gelu(jax.random.normal(key, (6, 20))),
        lambda key: jax.nn.softmax(jax.random.normal(key, (6, 20))),
        lambda key: jax.grad(lambda x: jax.nn.logsumexp(jnp.tanh(x)))(
            jax.random.normal(key, (20,))
        ),
        lambda key: jax.vmap(jax.random.lognormal)(jax.random.split(key, 20)),
    ],
    ids=[
        "mean",
        "lognormal",
        "triangular",
        "binomial",
        "average",
        "softplus",
        "silu",
        "gelu",
        "softmax",
        "gradient",
        "vmap",
    ],
)
def test_functions_of_jax_that_are_one_step_in_eager_mode_stay_one(init):
    module = models.Wrap(lambda self, x: self.param("w", init))
    want = module.init(KEY, models.X)
    tree = li.lazy(module).init(KEY, models.X)
    leaf = tree["params"]["w"]
    assert_same(li.materialize(tree), want)
    assert_same(leaf.init_fn(leaf.rng_path.key()), want["params"]["w"])


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_several_results_of_one_step_are_all_kept(wrap):
    # With one barrier over a whole top_k, XLA's CPU compiler aborts the process.
    def make(key):
        return wrap(lambda x: jax.lax.top_k(x, 3))(jax.random.normal(key, (8, 8)))

    assert_same(li.materialize(li.lazy(make)(KEY)), make(KEY))


# Selection.


def test_patterns_predicates_and_none_select():
    made = li.materialize(TREE, ["params/dense", "state/c*"])
    assert {p for p, x in paths.leaves_with_paths(made) if not is_thunk(x)} == {
        "params/dense/kernel",
        "params/dense/bias",
        "state/count",
    }
    made = li.materialize(TREE, lambda path, leaf: leaf.ndim == 0)
    assert [p for p, x in paths.leaves_with_paths(made) if not is_thunk(x)] == ["state/count"]
    assert not any(map(is_thunk, jax.tree.leaves(li.materialize(TREE))))


def test_no_paths_make_nothing():
    made = li.materialize(TREE, [])
    assert all(a is b for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(TREE), strict=True))


def test_a_bare_leaf_is_a_tree():
    leaf = TREE["params"]["dense"]["kernel"]
    assert_same(li.materialize(leaf), WANT["params"]["dense"]["kernel"])


def test_containers_of_any_kind_are_kept():
    import collections

    leaf = TREE["params"]["first"]
    tree = collections.OrderedDict(z=[leaf, None], a=(leaf, 3, "text", np.ones(2)))
    made = li.materialize(tree)
    want = WANT["params"]["first"]
    assert_same(made, collections.OrderedDict(z=[want, None], a=(want, 3, "text", np.ones(2))))
    assert made["a"][3] is tree["a"][3]


def test_the_tree_that_is_given_is_left_as_it_was():
    before = jax.tree.leaves(TREE)
    li.materialize(TREE, "params/dense")
    assert all(a is b for a, b in zip(before, jax.tree.leaves(TREE), strict=True))
    assert all(map(is_thunk, before))


# Shardings.


def test_each_device_holds_its_own_shard():
    sharding = NamedSharding(MESH, P("a", "b"))
    made = li.materialize(TREE, "params/first", sharding)["params"]["first"]
    assert made.sharding == sharding
    assert {s.data.shape for s in made.addressable_shards} == {(4, 2)}
    for shard in made.addressable_shards:
        np.testing.assert_array_equal(shard.data, WANT["params"]["first"][shard.index])


def test_without_a_sharding_leaves_are_on_the_default_device():
    made = li.materialize(TREE, "params/dense/kernel")["params"]["dense"]["kernel"]
    assert made.devices() == {jax.devices()[0]}
    assert not made.committed
    with jax.default_device(jax.devices()[3]):
        made = li.materialize(TREE, ["params/dense/kernel", "state/mean"])
    assert made["params"]["dense"]["kernel"].devices() == {jax.devices()[3]}
    assert made["state"]["mean"].devices() == {jax.devices()[3]}
    assert_same(made["state"]["mean"], WANT["state"]["mean"])


def test_a_prefix_tree_may_leave_parts_on_the_default_device():
    cut = NamedSharding(MESH, P(None, "b"))
    tree = TREE["params"]["dense"]
    made = li.materialize(tree, sharding={"kernel": cut, "bias": None})
    assert made["kernel"].sharding == cut
    assert made["bias"].devices() == {jax.devices()[0]}


def test_builders_are_shardings():
    shard = li.shard_by_rules(MESH, [("**/kernel", P("a", "b")), ("**", P())])
    made = li.materialize(TREE["params"]["dense"], sharding=shard)
    assert made["kernel"].sharding.spec == P("a", "b")
    assert made["bias"].sharding.is_fully_replicated
    made = li.materialize(TREE["params"]["dense"], sharding=li.shard_fsdp(MESH, "b", 8))
    assert made["kernel"].sharding.spec == P("b")
    made = li.materialize(TREE["params"], "boxed", li.shard_by_metadata(MESH))
    assert made["boxed"].value.sharding.spec == P("a", "b")
    assert_same(made["boxed"], WANT["params"]["boxed"])


def test_leaves_that_share_equations_may_have_other_shardings():
    by_path = {
        "params/first": NamedSharding(MESH, P("a", "b")),
        "params/second": NamedSharding(MESH, P("b")),
    }
    made = li.materialize(TREE, list(by_path), lambda path, _: by_path[path])
    for name in ("first", "second"):
        assert made["params"][name].sharding == by_path[f"params/{name}"]
        assert_same(made["params"][name], WANT["params"][name])


@pytest.mark.parametrize(
    "others",
    [
        SingleDeviceSharding(jax.devices()[3]),
        None,
        NamedSharding(Mesh(np.array(jax.devices())[::-1].reshape(4, 2), ("a", "b")), P(None, "a")),
        NamedSharding(Mesh(np.array(jax.devices())[:4].reshape(4), ("a",)), P(None, "a")),
    ],
    ids=["one device", "none", "reversed", "half"],
)
def test_leaves_that_share_equations_may_be_on_other_devices(others):
    module, rngs, args, _ = models.CASES["scan with state"]
    want = module.init(rngs, *args)
    tree = li.lazy(module).init(rngs, *args)
    here = NamedSharding(MESH, P())
    both = {"params": None, "history": here, "batch_stats": others}
    made = li.materialize(tree, ["history", "batch_stats"], both)
    assert_same(made["history"], want["history"])
    assert_same(made["batch_stats"], want["batch_stats"])


def test_one_thunk_at_two_places_has_the_dtype_of_each():
    thunk = li.lazy(lambda key: jax.random.normal(key, (4, 72)))(KEY)
    made = li.materialize({"a": thunk, "b": thunk}, dtype={"a": "bfloat16", "b": "float16"})
    eager = jax.random.normal(KEY, (4, 72))
    assert_same(made, {"a": eager.astype("bfloat16"), "b": eager.astype("float16")})


def test_one_thunk_at_two_places_is_one_array_for_each_sharding():
    leaf = TREE["params"]["first"]
    tree = {"a": leaf, "b": leaf, "c": leaf, "d": leaf}
    cut = NamedSharding(MESH, P("a"))
    made = li.materialize(tree, ["a", "b", "c"], lambda path, _: cut if path == "c" else None)
    assert made["a"] is made["b"]
    assert made["c"] is not made["a"]
    assert made["c"].sharding == cut
    assert made["d"] is leaf


# Arrays that are there already.


def test_arrays_that_are_there_already_stay():
    array, host = jnp.ones((8, 8)), np.ones((8, 8))
    tree = {"a": array, "b": host, "c": TREE["params"]["first"], "n": 3}
    made = li.materialize(tree)
    assert made["a"] is array
    assert made["b"] is host


def test_arrays_that_are_there_already_move_only_where_selected():
    array, host = jnp.ones((8, 8)), np.ones((8, 8))
    cut = NamedSharding(MESH, P("a", "b"))
    made = li.materialize({"a": array, "b": host, "c": array}, ["a", "b"], cut)
    assert made["a"].sharding == cut
    assert made["b"].sharding == cut
    assert made["c"] is array


def test_a_key_that_is_there_already_stays():
    key = jax.random.key(1)
    assert li.materialize({"key": key}, dtype="bfloat16")["key"] is key


# dtype.


@pytest.mark.parametrize(("dtype", "sharding"), [("bfloat16", "cut"), (jnp.float32, "none")])
def test_a_dtype_casts_floating_leaves_alone(dtype, sharding):
    made = li.materialize(TREE, dtype=dtype, sharding=SHARDINGS[sharding])
    floats = lambda x: jnp.issubdtype(x.dtype, jnp.floating)  # noqa: E731
    want = jax.tree.map(lambda x: x.astype(dtype) if floats(x) else x, WANT)
    assert_same(jax.tree.leaves(made), jax.tree.leaves(want))
    assert made["state"]["count"].dtype == jnp.int32


def test_a_dtype_casts_arrays_that_are_there_already():
    made = li.materialize({"a": jnp.ones(3), "b": np.ones(3), "c": jnp.arange(3)}, dtype="bfloat16")
    assert [x.dtype for x in jax.tree.leaves(made)] == [jnp.bfloat16, jnp.bfloat16, jnp.int32]


def test_a_dtype_casts_what_is_selected_alone():
    made = li.materialize(TREE, "params/dense/bias", dtype="bfloat16")
    assert made["params"]["dense"]["bias"].dtype == jnp.bfloat16
    assert made["params"]["first"].dtype == jnp.float32


# Thunks made by hand.


def by_hand(init_fn, shape=(3, 4), dtype="float32", fold=5, roots=None):
    roots = {"params": Key.of(KEY)} if roots is None else roots
    return li.LazyParam(
        shape, dtype, init_fn, li.RngPath(roots, ("x",), fold), path="recorded/path"
    )


@pytest.mark.parametrize("key", [jax.random.key(3), jax.random.PRNGKey(3), jax.random.key(3, impl="rbg")],
                         ids=["typed", "raw", "rbg"])  # fmt: skip
def test_a_thunk_made_by_hand_is_its_init_fn_of_its_key(key):
    init = lambda key: nn.initializers.normal(0.02)(key, (8, 4)) * 3.0 + 0.1  # noqa: E731
    leaf = by_hand(init, (8, 4), roots={"params": Key.of(key)})
    want = init(jax.random.fold_in(key, 5))
    assert_same(li.materialize({"x": leaf}), {"x": want})
    assert_same(li.materialize(leaf, sharding=NamedSharding(MESH, P("a", "b"))), want)


@pytest.mark.parametrize("key", [jax.random.key(3), jax.random.PRNGKey(3)], ids=["typed", "raw"])
@pytest.mark.parametrize(
    "init",
    [
        lambda key: jax.random.normal(jax.random.split(key)[1], (3, 4)),
        lambda key: jnp.ones((3, 4)) * jax.random.uniform(key),
        lambda key: jax.random.bits(key, (3, 4)).astype(jnp.float32),
        lambda key: jax.random.normal(jax.random.fold_in(key, 3), (3, 4)) + jax.random.normal(key, (3, 4)),
    ],
    ids=["split", "scalar", "bits", "folded"],
)  # fmt: skip
def test_a_thunk_made_by_hand_may_use_its_key_in_any_way(key, init):
    leaf = by_hand(init, roots={"params": Key.of(key)})
    again = dataclasses.replace(leaf, rng_path=li.RngPath(leaf.rng_path.roots, ("x",), 6))
    made = li.materialize({"a": leaf, "b": again})
    assert_same(
        made, {"a": init(jax.random.fold_in(key, 5)), "b": init(jax.random.fold_in(key, 6))}
    )


@pytest.mark.parametrize("name", ["raw key", "several streams", "jit around an initializer"])
def test_recorded_thunks_with_other_rng_paths_have_their_keys(name):
    module, rngs, args, _ = models.CASES[name]
    for leaf in jax.tree.leaves(li.lazy(module).init(rngs, *args)):
        if leaf.rng_path.fold < 0 or leaf.dtype != jnp.float32:
            continue
        other = dataclasses.replace(leaf, rng_path=li.RngPath(leaf.rng_path.roots, ("x",), 123))
        made = li.materialize({"a": leaf, "b": other})
        assert_same(made["a"], leaf.init_fn(leaf.rng_path.key()), leaf.path)
        assert_same(made["b"], other.init_fn(other.rng_path.key()), leaf.path)


def test_a_thunk_made_by_hand_may_ignore_its_key_or_have_none():
    ones = lambda key: jnp.ones((3, 4))  # noqa: E731
    assert_same(li.materialize(by_hand(ones)), jnp.ones((3, 4)))
    assert_same(li.materialize(li.LazyParam((3, 4), "float32", ones)), jnp.ones((3, 4)))


def test_a_thunk_made_by_hand_may_have_several_roots():
    roots = {"a": Key.of(KEY), "b": Key.of(jax.random.key(1))}
    init = lambda keys: jax.random.normal(keys["a"], (3,)) + jax.random.uniform(keys["b"], (3,))  # noqa: E731
    leaf = li.LazyParam((3,), "float32", init, li.RngPath(roots))
    assert_same(li.materialize(leaf), init(leaf.rng_path.key()))


def test_a_thunk_made_by_hand_may_close_over_an_array():
    table = jnp.arange(12.0).reshape(3, 4)
    leaf = by_hand(lambda key: table * 0.3 + jax.random.normal(key, (3, 4)))
    assert_same(li.materialize(leaf), table * 0.3 + jax.random.normal(leaf.rng_path.key(), (3, 4)))


def test_a_recorded_thunk_with_another_rng_path_has_that_key():
    leaf = TREE["params"]["first"]
    roots = dict(leaf.rng_path.roots)
    others = {
        "same": leaf,
        "fold": dataclasses.replace(leaf, rng_path=li.RngPath(roots, ("x", 1), 123)),
        "again": dataclasses.replace(leaf, rng_path=li.RngPath(roots, ("x", 2), 124)),
        "root": dataclasses.replace(
            leaf, rng_path=li.RngPath({"params": Key.of(jax.random.key(9))})
        ),
    }
    made = li.materialize(others)
    for name, other in others.items():
        assert_same(made[name], nn.initializers.normal(1.0)(other.rng_path.key(), (8, 8)), name)


@pytest.mark.parametrize(
    ("init_fn", "got"),
    [
        (lambda key: jnp.ones((4, 3)), "float32[4,3]"),
        (lambda key: jnp.ones((3, 4), jnp.bfloat16), "bfloat16[3,4]"),
        (lambda key: (jnp.ones((3, 4)), jnp.ones(2)), "float32[3,4], float32[2]"),
        (lambda key: None, "nothing"),
    ],
)
def test_a_thunk_made_by_hand_that_returns_something_else_is_an_error(init_fn, got):
    with pytest.raises(RecordError) as error:
        li.materialize({"x": by_hand(init_fn)})
    assert str(error.value) == (
        f"x: wanted float32[3,4] from its init_fn, got {got}. "
        "Give the LazyParam the shape and dtype that its init_fn returns."
    )


def test_a_thunk_made_by_hand_whose_initializer_is_not_bound_says_so():
    with pytest.raises(RecordError, match=r"^x: wanted an init_fn that maps a key to an array"):
        li.materialize({"x": by_hand(nn.initializers.normal(0.02))})


def test_a_thunk_of_numpy_values_is_made():
    leaf = by_hand(lambda key: np.ones((3, 4), np.float32))
    assert_same(li.materialize(leaf), jnp.ones((3, 4)))


# What goes wrong leaves nothing behind.


def test_a_wrong_argument_allocates_nothing():
    wrong = [
        ({"paths": ["params/dense", "params/denes"]}, PathError),
        ({"sharding": NamedSharding(MESH, P(None, None, "a"))}, ShardingError),
        ({"sharding": P("a")}, ShardingError),
        ({"sharding": {"params": None}}, ShardingError),
        ({"sharding": lambda path, leaf: NamedSharding(MESH, P("a")) if leaf.ndim == 0 else None},
         ShardingError),
        ({"sharding": lambda path, leaf: "b"}, ShardingError),
    ]  # fmt: skip
    gc.collect()
    before = live()
    for kwargs, error in wrong:
        with pytest.raises(error):
            li.materialize(TREE, **kwargs)
    gc.collect()
    assert not large_arrays_since(before, 0)


def test_a_broken_thunk_among_good_ones_allocates_nothing():
    gc.collect()
    before = live()
    tree = {"a": TREE["params"]["dense"], "x": by_hand(lambda key: jnp.ones(2))}
    with pytest.raises(LazyinitError):
        li.materialize(tree)
    gc.collect()
    assert not large_arrays_since(before, 0)


def test_an_error_does_not_spoil_the_next_call():
    with pytest.raises(ShardingError):
        li.materialize(TREE, sharding=P("a"))
    assert_same(li.materialize(TREE, "params"), {**TREE, "params": WANT["params"]})


# Beside others.


def test_several_threads_materialize_at_once():
    made = [None] * 4

    def work(n):
        made[n] = li.materialize(TREE, sharding=SHARDINGS["cut" if n % 2 else "none"])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for tree in made:
        assert_same(tree, WANT)


def test_a_tree_recorded_by_another_thread_is_made_here():
    made = []
    with jax.threefry_partitionable(False):
        want = models.MLP().init(KEY, models.X)
        thread = threading.Thread(
            target=lambda: made.append(li.lazy(models.MLP()).init(KEY, models.X))
        )
    with jax.threefry_partitionable(True):
        thread.start()
        thread.join()
    # A context manager is a thread's own: the other thread had the default.
    want = models.MLP().init(KEY, models.X)
    assert_same(li.materialize(made[0]), want)


def test_a_progress_bar_changes_nothing(capsys):
    made = li.materialize(TREE, "params/dense", progress=True)
    assert_same(made["params"]["dense"], WANT["params"]["dense"])
    capsys.readouterr()
    li.materialize(TREE, "params/dense")
    assert capsys.readouterr() == ("", "")


def test_disabled_jit_changes_no_bits():
    with jax.disable_jit():
        made = li.materialize(TREE, "params")
    assert_same(made["params"], WANT["params"])


def test_materializing_within_a_trace_gives_constants():
    def fn(x):
        return li.materialize(TREE, "params/first")["params"]["first"] + x

    assert_same(jax.jit(fn)(1.0), jax.jit(lambda x: WANT["params"]["first"] + x)(1.0))


def test_empty_leaves_are_made():
    leaf = by_hand(lambda key: jax.random.normal(key, (0, 4)), (0, 4))
    assert_same(li.materialize(leaf), jnp.zeros((0, 4)))
    assert_same(li.materialize(leaf, sharding=NamedSharding(MESH, P())), jnp.zeros((0, 4)))


def test_empty_leaves_are_cut():
    leaf = by_hand(lambda key: jax.random.normal(key, (0, 4)), (0, 4))
    made = li.materialize(leaf, sharding=NamedSharding(MESH, P(None, "b")))
    assert {s.data.shape for s in made.addressable_shards} == {(0, 1)}


def test_an_empty_tree_stays_empty():
    assert li.materialize({}) == {}
    assert li.materialize([]) == []
    assert li.materialize(None) is None
