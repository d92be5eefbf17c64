"""A placement is no arithmetic: what is recorded under a mesh is made as what is recorded outside.

Eager Flax is the oracle, of the bits and of where each leaf goes.
"""

import contextlib
import functools
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import jax.scipy.sparse.linalg
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.nn import initializers
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from oracles import assert_same

import lazyinit as li
from lazyinit import errors, paths
from lazyinit.make.selfcheck import proofs_on
from lazyinit.make.ways import Drawn, Job, ways_of

KEY = jax.random.key(0)
TYPES = (AxisType.Auto, AxisType.Explicit)
SHAPES = [(8,), (4, 2), (2, 4), (1, 8), (3, 1)]


def mesh_of(axis_type, shape=(4, 2)):
    devices = jax.devices()[: int(np.prod(shape))]
    names = ("x", "y")[: len(shape)]
    return jax.make_mesh(shape, names, axis_types=(axis_type,) * len(shape), devices=devices)


def ways(tree):
    """Returns, by path, whether a leaf is drawn on the default device."""
    leaves = [(p, x) for p, x in paths.leaves_with_paths(tree) if isinstance(x, li.LazyParam)]
    ways = ways_of([Job(p, x, None, x.dtype) for p, x in leaves], proofs_on)
    return {job.path: isinstance(way, Drawn) for way in ways for job in way.jobs}


def assert_as_eager(made, want):
    """Compares bits and placements; names come from nnx and linen trees alike."""
    assert_same(made, want)
    pairs = zip(paths.leaves_with_paths(made), paths.leaves_with_paths(want), strict=True)
    for (path, a), (_, b) in pairs:
        assert getattr(a, "sharding", None) == getattr(b, "sharding", None), path


class Model(nnx.Module):
    """What NNX users write: names in metadata, in each way that Flax has for it."""

    def __init__(self, rngs, *, names=("x", "y")):
        wide = nnx.with_partitioning(initializers.lecun_normal(), (None, names[0]))
        self.partitioned = nnx.Linear(8, 128, kernel_init=wide, rngs=rngs)
        self.plain = nnx.Linear(8, 128, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.scalar = nnx.Param(jnp.array(3.0))
        key = rngs.params()
        self.orthogonal = nnx.Param(initializers.orthogonal()(key, (16, 16)), out_sharding=names)
        self.scaled = nnx.Param(jax.random.normal(key, (128, 64)) * 2, out_sharding=(names[0],))
        self.turned = nnx.Param(jax.random.normal(key, (64, 128)).T)
        self.jitted = nnx.Param(jax.jit(lambda k: jax.random.uniform(k, (64, 64)))(key))
        self.half = nnx.Param(jax.random.normal(key, (8, 64), jnp.bfloat16), out_sharding=(None,))

        @nnx.split_rngs(splits=4)
        @nnx.vmap(
            in_axes=(0,), out_axes=0, transform_metadata={nnx.PARTITION_NAME: names[1] and None}
        )
        def layer(rngs):
            return nnx.Linear(8, 128, kernel_init=wide, rngs=rngs)

        self.layers = layer(rngs)


@functools.cache
def eager_and_recorded(axis_type):
    """Returns the model's graph and state by Flax, and both recorded, within a mesh."""
    with jax.set_mesh(mesh_of(axis_type)):
        return nnx.split(Model(nnx.Rngs(0))), li.lazy(Model)(nnx.Rngs(0))


@pytest.mark.parametrize("axis_type", TYPES)
def test_an_nnx_model_recorded_within_a_mesh_is_that_of_eager_flax(axis_type):
    (eager, want), (graphdef, tree) = eager_and_recorded(axis_type)
    with jax.set_mesh(mesh_of(axis_type)):
        assert_as_eager(li.materialize(tree), want)
        assert graphdef == eager
    assert_as_eager(li.materialize(tree), want)  # Outside, too, it goes where it was to go.


@pytest.mark.parametrize("axis_type", TYPES)
def test_what_is_drawn_outside_of_a_mesh_is_drawn_within(axis_type):
    _, outside = li.lazy(Model)(nnx.Rngs(0), names=(None, None))
    with jax.set_mesh(mesh_of(axis_type)):
        _, within = li.lazy(Model)(nnx.Rngs(0))
        assert ways(within) == ways(outside)
    assert sum(ways(outside).values()) == 14


@pytest.mark.parametrize("axis_type", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_recording_is_made_on_any_other_mesh(axis_type, shape):
    (_, want), (_, tree) = eager_and_recorded(axis_type)
    other = mesh_of(AxisType.Auto, shape)
    for around in (contextlib.nullcontext(), jax.set_mesh(other)):
        with around:
            made = li.materialize(tree, sharding=NamedSharding(other, P()))
            assert_same(made, want)
            made = li.materialize(tree, sharding=li.shard_fsdp(other, "x"))
            assert_same(made, want)


@pytest.mark.parametrize("axis_type", TYPES)
def test_a_recording_within_a_mesh_can_be_pickled(axis_type):
    with jax.set_mesh(mesh_of(axis_type)):
        _, tree = li.lazy(Model)(nnx.Rngs(0))
        copy = pickle.loads(pickle.dumps(tree))
        assert jax.tree.leaves(copy) == jax.tree.leaves(tree)
        assert_as_eager(li.materialize(copy), li.materialize(tree))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        wide = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "x"))
        logical = nn.with_logical_partitioning(nn.initializers.he_uniform(), ("p", "q"))
        x = nn.Dense(128, kernel_init=wide)(x)
        x = nn.Dense(64, kernel_init=logical, bias_init=nn.initializers.normal(0.1))(x)
        return nn.BatchNorm(use_running_average=False)(x)


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        def body(layer, x, _):
            return layer(x), None

        scan = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        wide = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "x"))
        return scan(nn.Dense(8, kernel_init=wide, parent=None), x, None)[0]


X = jnp.ones((1, 8))


@pytest.mark.parametrize("rules", [(), (("p", "x"), ("q", "y"))])
def test_a_linen_model_with_metadata_is_that_of_eager_flax(rules):
    with jax.set_mesh(mesh_of(AxisType.Auto)), nn.logical_axis_rules(rules):
        want = Linen().init(KEY, X)
        tree = li.lazy(Linen()).init(KEY, X)
        assert_as_eager(li.materialize(tree), want)
    assert all(ways(tree).values())


@pytest.mark.parametrize("axis_type", TYPES)
@pytest.mark.parametrize("model", [nn.Dense(128), nn.Conv(64, (3, 3)), nn.BatchNorm(True)])
def test_a_linen_model_without_metadata_is_that_of_eager_flax(axis_type, model):
    with jax.set_mesh(mesh_of(axis_type)):
        x = jnp.ones((1, 8, 8, 8))
        tree = li.lazy(model).init(KEY, x)
        assert_as_eager(li.materialize(tree), model.init(KEY, x))


# Random programs of placements.

PLACES = [
    P(),
    P("x"),
    P(None, "x"),
    P("x", "y"),
    P(("x", "y")),
    P(None, ("x", "y")),
    P("y", None),
]

STEPS = {
    "scale": lambda x: x * 0.3,
    "shift": lambda x: x + 1,
    "cast": lambda x: x.astype(jnp.bfloat16),
    "copy": jnp.copy,
    "negate": lambda x: -x,
    "flip": lambda x: x[::-1],
    "jit": jax.jit(lambda x: x * 2 - 1),
}


def constrained(x, spec, mesh, axis_type):
    there = NamedSharding(mesh, spec)
    if axis_type is AxisType.Explicit:
        return jax.sharding.reshard(x, there)
    return jax.lax.with_sharding_constraint(x, there)


@st.composite
def programs(draw):
    what = st.one_of(st.sampled_from(PLACES), st.sampled_from(sorted(STEPS)))
    return draw(st.sampled_from(["normal", "uniform", "zeros", "orthogonal"])), draw(
        st.lists(what, min_size=1, max_size=4)
    )


def run(program, key, mesh, axis_type, *, jitted):
    name, steps = program
    make = {"zeros": lambda key, shape: jnp.zeros(shape)}.get(name)
    make = make or {"orthogonal": initializers.orthogonal()}.get(name) or getattr(jax.random, name)

    def place(x, spec):
        return x if mesh is None else constrained(x, spec, mesh, axis_type)

    def body(key):
        x = make(key, (16, 64))
        for step in steps:
            x = STEPS[step](x) if isinstance(step, str) else place(x, step)
        return x

    return (jax.jit(body) if jitted else body)(key)


@settings(max_examples=12)
@given(programs(), st.sampled_from(TYPES), st.booleans())
def test_placements_at_random_change_no_bit_and_are_kept(program, axis_type, is_set):
    mesh = mesh_of(axis_type)
    is_set = is_set or axis_type is AxisType.Explicit

    def make(key):
        return run(program, key, mesh, axis_type, jitted=False)

    with jax.set_mesh(mesh) if is_set else contextlib.nullcontext():
        want = make(KEY)
        thunk = li.lazy(make)(KEY)
        made = li.materialize(thunk)
    assert_same(made, want)
    assert made.sharding == want.sharding or made.sharding.is_equivalent_to(want.sharding, 2)
    plain = li.lazy(lambda key: run(program, key, None, None, jitted=False))(KEY)
    assert thunk.init_fn.program.avals[thunk.init_fn.output].shape == plain.shape
    assert ways(thunk) == ways(plain)


@pytest.mark.filterwarnings("ignore:lazyinit. gather of an array that is cut")
def test_what_xla_makes_whole_of_a_cut_array_is_whole():
    def make(key):
        cut = jax.lax.with_sharding_constraint(jax.random.normal(key, (8, 72)), P("x"))
        return {"cut": cut, "taken": cut[jnp.arange(8)[::-1]]}

    with jax.set_mesh(mesh_of(AxisType.Auto)):
        want, made = make(KEY), li.materialize(li.lazy(make)(KEY))
    assert want["taken"].sharding.is_fully_replicated
    assert_as_eager(made, want)


@pytest.mark.parametrize("spec", PLACES[1:], ids=str)
def test_what_xla_leaves_cut_stays_cut_and_warns_of_nothing(spec):
    mesh = mesh_of(AxisType.Auto)

    def make(key):
        x = constrained(jax.random.normal(key, (16, 64)), spec, mesh, AxisType.Auto)
        made = {"turned": x.T, "sorted": jnp.sort(x, 0), "flipped": x[:, ::-1]}
        return {**made, "places": jnp.argsort(x, 1), "turned back": x.T.T * 2}

    with jax.set_mesh(mesh):
        want, made = make(KEY), li.materialize(li.lazy(make)(KEY))
    assert_same(made, want)
    for name, array in want.items():
        assert made[name].sharding.is_equivalent_to(array.sharding, 2), name


@pytest.mark.filterwarnings("error")
def test_what_computes_no_float_of_a_cut_array_warns_of_nothing():
    def make(key):
        x = jax.lax.with_sharding_constraint(jax.random.normal(key, (8, 72)), P("x"))
        best, places = jax.lax.top_k(x.T, 3)
        return best, places, jnp.argmax(x, 0), (x > 0).sum(0), x.at[3].set(0)

    with jax.set_mesh(mesh_of(AxisType.Auto)):
        made, want = li.materialize(li.lazy(make)(KEY)), make(KEY)
    assert_same(made, want)


def test_a_gather_of_a_cut_array_warns_since_eager_jax_drops_signs_of_zeros():
    def make(key, place=lambda x: x):
        x = place(jnp.where(jax.random.normal(key, (8, 72)) > 0, 1, jnp.float32(-0.0)))
        return x[jnp.arange(8)[::-1]]

    with jax.set_mesh(mesh_of(AxisType.Auto)):
        cut = functools.partial(make, place=lambda x: jax.lax.with_sharding_constraint(x, P("x")))
        assert np.signbit(make(KEY)).any()
        assert not np.signbit(cut(KEY)).any()
        with pytest.warns(
            errors.LazyinitWarning, match="gather of an array that is cut over a mesh"
        ):
            tree = li.lazy(cut)(KEY)
        assert_same(li.materialize(tree), make(KEY))


@settings(max_examples=12)
@given(programs(), st.sampled_from(TYPES))
def test_within_a_jit_of_the_model_placements_change_no_bit(program, axis_type):
    mesh = mesh_of(axis_type)
    want = run(program, KEY, None, None, jitted=True)
    with jax.set_mesh(mesh):
        thunk = li.lazy(lambda key: run(program, key, mesh, axis_type, jitted=True))(KEY)
        made = li.materialize(thunk)
    assert_same(made, want)
    last = next((s for s in reversed(program[1]) if not isinstance(s, str)), P())
    assert made.sharding.is_equivalent_to(NamedSharding(mesh, last), 2)


def test_what_needs_its_mesh_runs_on_it():
    mesh = Mesh(np.array(jax.devices()), ("x",))

    def make(key):
        def shard(key):
            return jax.random.normal(jax.random.fold_in(key, jax.lax.axis_index("x")), (1, 64))

        sharded = jax.shard_map(shard, mesh=mesh, in_specs=P(), out_specs=P("x"))
        return jax.jit(sharded)(key) * 2

    for around in (contextlib.nullcontext(), jax.set_mesh(mesh)):
        with around:
            assert_same(li.materialize(li.lazy(make)(KEY)), make(KEY))


def test_a_model_with_names_in_its_metadata_needs_no_mesh_to_be_recorded():
    with pytest.raises(ValueError, match="An auto mesh context or metadata is required"):
        Model(nnx.Rngs(0))
    rngs = nnx.Rngs(0)
    graphdef, tree = li.lazy(Model)(rngs)
    for axis_type in TYPES:
        mesh = mesh_of(axis_type)
        with jax.set_mesh(mesh):
            want = Model(nnx.Rngs(0))
        made = li.materialize(tree, sharding=li.shard_by_metadata(mesh))
        assert_same(made, nnx.state(want))
        for (path, a), (_, b) in zip(
            paths.leaves_with_paths(made), paths.leaves_with_paths(nnx.state(want)), strict=True
        ):
            assert a.sharding.is_equivalent_to(b.sharding, b.ndim), path
        assert graphdef == nnx.graphdef(want)
    with jax.set_mesh(mesh_of(AxisType.Auto)):
        same = nnx.Rngs(0)
        Model(same)
        assert rngs.default.count.get_value() == same.default.count.get_value()


def test_an_error_of_the_model_without_a_mesh_is_its_own():
    class Broken(nnx.Module):
        def __init__(self, rngs):
            raise ValueError("my own")

    with pytest.raises(ValueError, match="^my own"):
        li.lazy(Broken)(nnx.Rngs(0))


def test_two_recordings_of_one_model_are_equal():
    _, first = li.lazy(Model)(nnx.Rngs(0))
    _, second = li.lazy(Model)(nnx.Rngs(0))
    _, other = li.lazy(Model)(nnx.Rngs(1))
    assert jax.tree.leaves(first) == jax.tree.leaves(second)
    assert set(jax.tree.leaves(first)) == set(jax.tree.leaves(second))
    assert jax.tree.leaves(first) != jax.tree.leaves(other)
    assert jax.tree.leaves(pickle.loads(pickle.dumps(first))) == jax.tree.leaves(second)
    assert first.dropout.rngs.count.get_value() != first.dropout.rngs.key.get_value()


@pytest.mark.parametrize("axis_type", TYPES)
def test_each_leaf_is_compared_with_its_replay_within_a_mesh_too(axis_type):
    with jax.set_mesh(mesh_of(axis_type)):
        _, tree = li.lazy(Model)(nnx.Rngs(0))
        assert_as_eager(li.materialize(tree, check=True), nnx.state(Model(nnx.Rngs(0))))


@pytest.mark.parametrize("axis_type", TYPES)
def test_a_number_that_all_devices_have_is_computed_with_on_one(axis_type):
    with jax.set_mesh(mesh_of(axis_type)):
        count = jnp.uint32(3) + jnp.uint32(4)
        assert len(count.sharding.device_set) == 8
        leaf = li.lazy(lambda n: n * n)(count)
        made = leaf.init_fn(leaf.rng_path.key())
    assert len(made.sharding.device_set) == 1
    assert (made.dtype, int(made)) == (np.uint32, 49)


BODIES = {
    "solve": lambda x: jnp.linalg.solve(x + 8 * jnp.eye(8), x),
    "iterative solve": lambda x: jax.scipy.sparse.linalg.cg(lambda y: 3 * y, x[0])[0],
    "while": lambda x: jax.lax.while_loop(lambda y: y.sum() < 50, lambda y: y + 1, x),
    "cond": lambda x: jax.lax.cond(x[0, 0] > 0, lambda y: y, lambda y: y * 2, x),
    "scan": lambda x: jax.lax.scan(lambda c, y: (c + 1, y * c), 0.0, x)[1],
    "checkpoint": lambda x: jax.checkpoint(jnp.sin)(x),
    "derivative": lambda x: jax.grad(lambda y: (jax.nn.relu(y) ** 2).sum())(x),
}


@pytest.mark.parametrize("axis_type", TYPES)
@pytest.mark.parametrize("name", BODIES)
def test_equations_with_bodies_of_any_kind_are_recorded_under_a_mesh(name, axis_type):
    def init(key):
        return BODIES[name](jax.random.normal(key, (8, 8)))

    with jax.set_mesh(mesh_of(axis_type)):
        tree = li.lazy(init)(KEY)
        assert_as_eager(li.materialize(tree), init(KEY))
    on_one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    assert_same(li.materialize(tree, sharding=on_one), init(KEY))
    assert_same(li.materialize(pickle.loads(pickle.dumps(tree))), init(KEY))


LONG = P("x", None, "y")  # For a kernel of two dimensions.


class TooLong(nn.Module):
    how: str

    @nn.compact
    def __call__(self, x):
        if self.how == "metadata":
            init = nn.with_partitioning(initializers.normal(), tuple(LONG))
        else:
            init = lambda *a: jax.lax.with_sharding_constraint(initializers.normal()(*a), LONG)  # noqa: E731
        return nn.Dense(16, kernel_init=init, name="head")(x)


@pytest.mark.parametrize("axis_type", TYPES)
@pytest.mark.parametrize("how", ["metadata", "constraint"])
def test_a_spec_that_does_not_fit_is_refused_while_it_is_recorded_with_the_path(how, axis_type):
    class Outer(nnx.Module):
        def __init__(self, rngs):
            init = nnx.with_partitioning(initializers.normal(), tuple(LONG))
            self.head = nnx.Linear(8, 16, kernel_init=init, rngs=rngs)

    with jax.set_mesh(mesh_of(axis_type)):
        with pytest.raises(
            errors.ShardingError,
            match=r"^params/head/kernel: wanted a sharding that fits.*sharding",
        ) as caught:
            li.lazy(TooLong(how)).init(KEY, jnp.zeros((1, 8)))
        assert isinstance(caught.value.__cause__, ValueError | AssertionError)
        with pytest.raises(
            errors.ShardingError, match=r"^head/kernel: .* names 3 dimensions, the leaf has 2"
        ) as caught:
            li.lazy(Outer)(nnx.Rngs(0))
        assert isinstance(caught.value.__cause__, ValueError | AssertionError)


class Constrained(nnx.Module):
    """Its initializers say where each leaf goes, in the way that the type of the mesh has for it."""

    def __init__(self, rngs, spec=("x",)):
        types = jax.sharding.get_abstract_mesh().axis_types
        place = jax.lax.with_sharding_constraint
        if AxisType.Explicit in types:
            place = jax.sharding.reshard

        def init(*args):
            return place(initializers.normal()(*args), P(*spec))

        self.layers = nnx.List([nnx.Linear(n, 16, kernel_init=init, rngs=rngs) for n in (8, 6, 5)])


@pytest.mark.parametrize("axis_type", TYPES)
def test_a_constraint_in_an_nnx_initializer_that_does_not_fit_is_refused_with_the_path(axis_type):
    with jax.set_mesh(mesh_of(axis_type)):
        rngs = nnx.Rngs(0)
        with pytest.raises(
            errors.ShardingError,
            match=r"^layers/1/kernel: dimension 0 of shape \(6, 16\) is 6, which mesh axis 'x' of "
            r"size 4 does not divide\.(.|\n)*layers/2/kernel: dimension 0",
        ) as caught:
            li.materialize(li.lazy(Constrained)(rngs)[1])  # With Auto axes, JAX refuses it here.
        if axis_type is AxisType.Explicit:
            assert type(caught.value.__cause__) is ValueError
            assert int(rngs.default.count[...]) == 0
    with jax.set_mesh(mesh_of(axis_type, (1, 8))):
        li.materialize(li.lazy(Constrained)(nnx.Rngs(0))[1])


def test_a_constraint_in_an_nnx_initializer_that_fits_no_mesh_is_refused_with_the_function():
    # It cannot be recorded on another mesh, to find its path.
    message = r"^lazy\(Constrained\): wanted shardings that fit, got one"
    with (
        jax.set_mesh(mesh_of(AxisType.Auto)),
        pytest.raises(errors.ShardingError, match=message) as caught,
    ):
        li.lazy(Constrained)(nnx.Rngs(0), tuple(LONG))
    assert type(caught.value.__cause__) is ValueError


def test_other_errors_of_an_initializer_under_a_mesh_stay_as_they_are():
    def refuses(*_):
        raise ValueError("no such fan")

    class Outer(nnx.Module):
        def __init__(self, rngs):
            self.head = nnx.Linear(8, 16, kernel_init=refuses, rngs=rngs)

    with jax.set_mesh(mesh_of(AxisType.Auto)):
        for record in (
            lambda: li.lazy(Outer)(nnx.Rngs(0)),
            lambda: li.lazy(nn.Dense(16, kernel_init=refuses)).init(KEY, jnp.zeros((1, 8))),
        ):
            with pytest.raises(ValueError, match="^no such fan"):
                record()
