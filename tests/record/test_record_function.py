"""Plain functions and NNX constructors; the oracle is the function itself, run eagerly."""

import dataclasses
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.lax import with_sharding_constraint as constraint
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from oracles import assert_same, kernel_sharding, large_arrays_since, live

import lazyinit as li
from lazyinit import paths

KEY = jax.random.key(0)


def mesh():
    return jax.make_mesh((2, 4), ("x", "y"))


def train_state(key, x, *, rate=1e-3):
    w, b = jax.random.split(key)
    params = {
        "w": jax.random.normal(w, (x.shape[-1], 8)) * 0.02,
        "b": jax.random.uniform(b, (8,)),
    }
    return {"params": params, "opt": optax.adam(rate).init(params), "step": 0, "name": "run"}


class Block(nnx.Module):
    def __init__(self, width, *, rngs):
        self.attention = nnx.MultiHeadAttention(2, width, decode=False, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.mlp = nnx.Linear(
            width, 4 * width, kernel_init=nnx.initializers.normal(0.02), rngs=rngs
        )


class Decoder(nnx.Module):
    def __init__(self, depth, width, *, rngs):
        self.embed = nnx.Embed(16, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, rngs=rngs) for _ in range(depth)])
        self.head = nnx.Linear(width, 16, rngs=rngs)
        self.tied = self.head.kernel


@nnx.vmap(in_axes=(None, 0), out_axes=0)
def stacked(width, rngs):
    return nnx.Linear(width, width, rngs=rngs)


@pytest.mark.parametrize("key", [jax.random.key(3), jax.random.PRNGKey(3)], ids=["typed", "raw"])
def test_a_train_state_builder_is_made_as_it_makes_itself(key):
    x = jnp.ones((2, 4))
    tree = li.lazy(train_state)(key, x, rate=1e-2)
    eager = train_state(key, x, rate=1e-2)
    assert_same(li.materialize(tree), eager)
    assert_same(li.materialize(tree, sharding=kernel_sharding(mesh())), eager)
    assert tree["step"] == 0
    assert tree["name"] == "run"


def test_an_input_may_be_a_shape():
    key = jax.random.key(0)
    tree = li.lazy(train_state)(key, jax.ShapeDtypeStruct((2, 4), "float32"))
    assert_same(li.materialize(tree), train_state(key, jnp.ones((2, 4))))


def test_a_leaf_that_needs_the_value_of_a_shape_says_which_argument():
    tree = li.lazy(lambda x: {"mean": x.mean(), "zeros": jnp.zeros_like(x)})(
        jax.ShapeDtypeStruct((4,), "float32")
    )
    assert_same(li.materialize(tree, "zeros")["zeros"], jnp.zeros(4))
    with pytest.raises(li.LazyinitError, match=r"^mean: its initial value depends on argument 0"):
        li.materialize(tree)


def test_an_optimizer_takes_lazy_parameters_as_arrays():
    model, key, x = nn.Dense(3), jax.random.key(0), jnp.ones((1, 4))
    lazy_params = li.lazy(model).init(key, x)
    tree = li.lazy(optax.adam(1e-3).init)(lazy_params)
    assert_same(li.materialize(tree), optax.adam(1e-3).init(model.init(key, x)))


def test_a_thunk_that_a_function_passes_on_stays_that_thunk():
    params = li.lazy(nn.Dense(3)).init(jax.random.key(0), jnp.ones((1, 4)))
    tree = li.lazy(lambda p: {"ema": p, "count": jnp.zeros((), "int32")})(params)
    assert tree["ema"]["params"]["kernel"] is params["params"]["kernel"]


def test_one_leaf_computed_from_another_shares_its_work():
    def tied(key):
        kernel = jax.random.normal(key, (8, 8)) * 0.5
        return {"kernel": kernel, "norm": jnp.linalg.norm(kernel, axis=0), "same": kernel}

    key = jax.random.key(1)
    tree = li.lazy(tied)(key)
    assert tree["kernel"] is tree["same"]
    made = li.materialize(tree)
    assert made["kernel"] is made["same"]
    assert_same(made, tied(key))
    assert_same(li.materialize(tree, "norm")["norm"], made["norm"])
    assert_same(li.materialize(tree, sharding=kernel_sharding(mesh())), tied(key))


def test_an_nnx_module_is_made_as_it_makes_itself():
    eager_rngs, rngs = nnx.Rngs(0, params=1, dropout=2), nnx.Rngs(0, params=1, dropout=2)
    eager = nnx.split(Decoder(2, 8, rngs=eager_rngs))
    graphdef, state = li.lazy(Decoder)(2, 8, rngs=rngs)
    assert graphdef == eager[0]
    assert_same(li.materialize(state), eager[1])
    assert_same(nnx.state(rngs), nnx.state(eager_rngs))


def test_a_made_state_merges_into_a_working_module():
    graphdef, state = li.lazy(Decoder)(1, 8, rngs=nnx.Rngs(0))
    module = nnx.merge(graphdef, li.materialize(state))
    eager = Decoder(1, 8, rngs=nnx.Rngs(0))
    x = jnp.ones((2, 8))
    assert_same(module.head(x), eager.head(x))
    assert module.tied is module.head.kernel


def test_part_of_an_nnx_module_is_made_alone():
    _, state = li.lazy(Decoder)(2, 8, rngs=nnx.Rngs(0))
    made = li.materialize(state, "head")
    arrays = [x for x in jax.tree.leaves(made) if isinstance(x, jax.Array)]
    assert sorted(x.shape for x in arrays) == [(8, 16), (16,)]


def test_a_function_that_makes_its_own_rngs_is_recorded():
    def build():
        return Decoder(1, 8, rngs=nnx.Rngs(7))

    graphdef, state = li.lazy(build)()
    assert_same(li.materialize(state), nnx.split(build())[1])
    assert graphdef == nnx.split(build())[0]


def test_a_vmapped_constructor_is_made_as_it_makes_itself():
    def build(rngs):
        return stacked(4, rngs.split(3))

    _, state = li.lazy(build)(nnx.Rngs(0))
    assert_same(li.materialize(state), nnx.split(build(nnx.Rngs(0)))[1])


def test_nothing_large_is_alive_while_a_constructor_is_recorded():
    before = live()
    held = li.lazy(Decoder)(2, 64, rngs=nnx.Rngs(0))
    assert large_arrays_since(before) == []
    del held


def test_equal_layers_of_nnx_share_programs():
    _, state = li.lazy(Decoder)(4, 8, rngs=nnx.Rngs(0))
    blocks = state["blocks"]
    kernels = [blocks[n]["mlp"]["kernel"].get_raw_value() for n in range(4)]
    from lazyinit.program.slices import gather

    assert len({gather([k.init_fn]).signature() for k in kernels}) == 1


def test_python_that_looks_at_a_value_that_is_not_known_is_told_so():
    def branches(key, x):
        return jnp.ones(2) if jax.random.uniform(key) > x else jnp.zeros(3)

    with pytest.raises(li.LazyinitError, match=r"^lazy\(branches\): .* wants the value") as error:
        li.lazy(branches)(jax.random.key(0), jax.ShapeDtypeStruct((), "float32"))
    assert "computed from argument 1" in str(error.value)


def test_arguments_with_values_may_be_looked_at():
    def build(key, scale, flags):
        if flags["wide"] and bool(flags["deep"]):
            return jax.random.normal(key, (int(scale), 4))
        return jnp.zeros(1)

    flags = {"wide": np.bool_(True), "deep": jnp.bool_(True)}
    key, arguments = jax.random.key(0), (jnp.float32(3.0), flags)
    assert_same(li.materialize(li.lazy(build)(key, *arguments)), build(key, *arguments))


def test_what_is_no_model_is_refused():
    with pytest.raises(
        li.LazyinitError, match=r"^lazy: wanted a Flax module or a function, got int"
    ):
        li.lazy(3)
    with pytest.raises(li.LazyinitError, match=r"got the class Dense\. Make an instance"):
        li.lazy(nn.Dense)
    with pytest.raises(li.LazyinitError, match=r"got a Linear that is made already\."):
        li.lazy(nnx.Linear(1, 1, rngs=nnx.Rngs(0)))


def test_dataclasses_registered_as_pytrees_keep_their_type():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class State:
        w: jax.Array
        step: int

    key = jax.random.key(0)
    made = li.materialize(li.lazy(lambda k: State(jax.random.normal(k, (3,)), 0))(key))
    assert isinstance(made, State)
    np.testing.assert_array_equal(made.w, jax.random.normal(key, (3,)))


def test_the_rng_path_of_an_nnx_leaf_says_stream_and_count():
    _, state = li.lazy(Decoder)(2, 8, rngs=nnx.Rngs(0, params=3))
    kernels = [x for p, x in paths.leaves_with_paths(state) if "kernel" in p]
    shown = {str(x.rng_path) for x in kernels}
    assert len(shown) == len(kernels)
    assert all(s.startswith("params#") for s in shown)
    for leaf in kernels:
        key = jax.random.fold_in(jax.random.key(3), leaf.rng_path.fold)
        assert (
            jax.random.key_data(leaf.rng_path.key()).tolist() == jax.random.key_data(key).tolist()
        )
        assert_same(leaf.init_fn(leaf.rng_path.key()), li.materialize(leaf))


def test_streams_of_one_rngs_go_by_their_names_and_two_by_their_arguments():
    def make(a, b):
        return a.params.normal((2,)), b.params.normal((2,))

    one = li.lazy(lambda a: a.params.normal((2,)))(nnx.Rngs(params=0))
    assert set(one.rng_path.roots) == {"params"}
    two = li.lazy(make)(nnx.Rngs(params=0), nnx.Rngs(params=1))
    assert [set(x.rng_path.roots) for x in two] == [{"0/params"}, {"1/params"}]


def test_a_leaf_knows_its_path():
    tree = li.lazy(lambda key: {"a": [jax.random.normal(key), {"b": jax.random.normal(key, (2,))}]})
    leaves = paths.leaves_with_paths(tree(jax.random.key(0)))
    assert [leaf.path for _, leaf in leaves] == [path for path, _ in leaves] == ["a/0", "a/1/b"]
    _, state = li.lazy(Decoder)(2, 8, rngs=nnx.Rngs(0))
    assert all(leaf.path == path for path, leaf in paths.leaves_with_paths(state))


# Constructors of other libraries.


def test_a_flax_train_state_is_made_as_it_makes_itself():
    from flax.training.train_state import TrainState

    model, optimizer = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)]), optax.adamw(1e-3)

    def make(key, x):
        params = model.init(key, x)["params"]
        return TrainState.create(apply_fn=model.apply, params=params, tx=optimizer)

    key, x = jax.random.key(0), jnp.ones((1, 4))
    state, want = li.lazy(make)(key, jax.ShapeDtypeStruct(x.shape, x.dtype)), make(key, x)
    assert_same(li.materialize(state), want)
    half = li.materialize(state, "opt_state/**/mu")
    assert_same(half.opt_state[0].mu, want.opt_state[0].mu)
    assert all(isinstance(x, li.LazyParam) for x in jax.tree.leaves(half.params))


def test_haiku_is_recorded():
    import haiku as hk

    def forward(x):
        x = hk.nets.MLP([8, 8])(x)
        x = hk.BatchNorm(True, True, 0.9)(x, is_training=True)
        core = hk.LSTM(4)
        out, _ = hk.dynamic_unroll(core, x[:, None], core.initial_state(1))
        return hk.Linear(2)(out)

    init = hk.transform_with_state(forward).init
    key, x = jax.random.PRNGKey(0), jnp.ones((3, 4))
    assert_same(li.materialize(li.lazy(init)(key, x)), init(key, x))


def test_equinox_is_recorded_and_what_is_no_array_passes_through():
    import equinox as eqx

    class Net(eqx.Module):
        mlp: eqx.nn.MLP
        attention: eqx.nn.MultiheadAttention
        cell: eqx.nn.GRUCell
        activation: object
        scale: float

        def __init__(self, key):
            keys = jax.random.split(key, 3)
            self.mlp = eqx.nn.MLP(4, 2, 8, 2, key=keys[0])
            self.attention = eqx.nn.MultiheadAttention(2, 8, key=keys[1])
            self.cell = eqx.nn.GRUCell(4, 8, key=keys[2])
            self.activation = jax.nn.relu
            self.scale = 0.5

    key = jax.random.key(0)
    want, tree = Net(key), li.lazy(Net)(key)
    assert tree.activation is jax.nn.relu
    assert tree.scale == 0.5
    made = li.materialize(tree)
    assert jax.tree.structure(made) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(want), strict=True):
        assert_same(a, b) if isinstance(b, jax.Array) else None
    assert_same(made.mlp(jnp.ones(4)), want.mlp(jnp.ones(4)))


def through_a_reference(key):
    ref = jax.new_ref(jax.random.normal(key, (4, 3)))
    ref[0, :] = ref[0, :] * 3 + 1
    return ref[...]


def test_what_is_read_from_a_mutable_array_says_what_to_do():
    def make(key):
        return {"plain": jnp.ones(3), "read": through_a_reference(key)}

    with pytest.raises(li.errors.RecordError, match=r"^read: .* from a mutable array .*\.at\["):
        li.lazy(make)(jax.random.key(0))
    within = jax.jit(through_a_reference)
    assert_same(li.materialize(li.lazy(within)(jax.random.key(0))), within(jax.random.key(0)))


EXPLICIT = {
    "normal": lambda key: jax.random.normal(key, (8, 128), out_sharding=P("x", "y")),
    "uniform": lambda key: jax.random.uniform(key, (8, 128), out_sharding=P("x")) * 0.3 + 0.7,
    "initializer": lambda key: jax.nn.initializers.lecun_normal()(
        key, (8, 128), jnp.float32, P("x", "y")
    ),
    "orthogonal": lambda key: jax.sharding.reshard(
        jax.nn.initializers.orthogonal()(key, (8, 16)), P("x")
    ),
    "computed": lambda key: (
        jax.random.normal(key, (8, 128), out_sharding=P("x", "y")) + jnp.arange(128.0)
    ),
}


@pytest.mark.parametrize("name", EXPLICIT)
def test_an_array_with_an_explicit_sharding_has_the_bits_and_the_place_of_eager_jax(name):
    make = EXPLICIT[name]
    with jax.set_mesh(mesh()):  # Explicit by default, at both ends.
        want = make(KEY)
        made = li.materialize(li.lazy(make)(KEY))
    assert want.sharding.mesh.axis_types == (jax.sharding.AxisType.Explicit,) * 2
    assert made.sharding == want.sharding
    assert_same(made, want)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_sum_over_a_mesh_warns_and_has_the_bits_of_one_device(axis_type):
    def make(key, place=lambda x: x):
        return place(jax.random.normal(key, (8, 128)) * 0.3).sum(0) * 0.1

    axes = jax.make_mesh((8,), ("x",), axis_types=(axis_type,))
    there = NamedSharding(axes, P("x"))
    place = jax.sharding.reshard if axis_type is AxisType.Explicit else constraint
    with jax.set_mesh(axes):
        with pytest.warns(li.errors.LazyinitWarning, match="sum of an array that is cut"):
            thunk = li.lazy(lambda key: make(key, lambda x: place(x, there)))(KEY)
        made = li.materialize(thunk)
    assert_same(made, make(KEY))


def test_nothing_leaks_from_a_recording_within_jit():
    def make(key):
        return jax.random.normal(key, (3, 70)) * 0.5

    with jax.checking_leaks():
        made = jax.jit(lambda key: li.materialize(li.lazy(make)(key)))(KEY)
        assert jax.jit(lambda: li.lazy(make)(KEY).size)() == 210
    assert made.shape == (3, 70)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "philox4x32"])
def test_a_typed_key_that_a_function_closes_over_is_a_constant(impl):
    held = jax.random.key(3, impl=impl)

    def make(key):
        return jax.random.normal(held, (3, 70)), jax.random.normal(key, (3,)), held

    want, tree = make(KEY), li.lazy(make)(KEY)
    assert_same(li.materialize(tree), want)
    assert_same(li.materialize(pickle.loads(pickle.dumps(tree))), want)
    other = jax.random.key(9)
    assert_same(li.materialize(li.reseed(tree, {"0": other})), make(other))
