"""Flax NNX constructors; the oracle is the constructor itself, run eagerly."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import nnx_models
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P
from oracles import assert_same, kernel_sharding, large_arrays_since, live

import lazyinit as li
from lazyinit import compat, paths
from lazyinit.make.executable import compiler


@functools.cache
def mesh():
    return jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


@pytest.fixture(scope="module")  # Run once for all tests of a case, which pytest runs in a row.
def case(request):
    """Returns what the constructor of a case makes, and its lazy graph definition and state."""
    build = nnx_models.CASES[request.param]
    eager, lazily = nnx_models.rngs(), nnx_models.rngs()
    want = nnx.split(build(eager))
    before = live()
    graphdef, state = li.lazy(build)(lazily)
    assert not large_arrays_since(before), "recording allocated"
    return want, (graphdef, state), (nnx.state(eager), nnx.state(lazily))


def cases(fast):
    """Parametrizes a test by cases, those that are not fast marked as slow."""
    names = [n if n in fast else pytest.param(n, marks=pytest.mark.slow) for n in nnx_models.CASES]
    return pytest.mark.parametrize("case", names, indirect=True, scope="module")


@cases(set(nnx_models.CASES) - nnx_models.SLOW)
def test_the_bits_and_the_graph_of_the_constructor(case):
    want, (graphdef, state), (eager_rngs, lazy_rngs) = case
    assert graphdef == want[0]
    assert_same(lazy_rngs, eager_rngs)
    assert_same(li.materialize(state), want[1])


@cases({"shared variables", "several streams", "vmap"})
def test_the_bits_one_leaf_at_a_time(case):
    want, (_, state), _ = case
    for path, _ in reversed(paths.leaves_with_paths(state)):
        state = li.materialize(state, lambda p, _, path=path: p == path)
    assert_same(state, want[1])


@cases({"Linear", "several streams", "shared variables", "vmap", "scan", "decoder"})
def test_the_bits_on_a_mesh(case):
    want, (_, state), _ = case
    assert_same(li.materialize(state, sharding=kernel_sharding(mesh())), want[1])


MODELS = {
    "decoder": lambda module: module(jnp.arange(6).reshape(1, 6)),
    "ViT": lambda module: module(jnp.ones((2, 8, 8, 3))),
    "LSTM classifier": lambda module: module(jnp.arange(6).reshape(1, 6)),
    "run while it is built": lambda module: module(jnp.ones((2, 8))),
}


@pytest.mark.parametrize(
    "name",
    [n if n not in nnx_models.SLOW else pytest.param(n, marks=pytest.mark.slow) for n in MODELS],
)
def test_what_is_merged_runs_as_what_was_constructed(name):
    graphdef, state = li.lazy(nnx_models.CASES[name])(nnx_models.rngs())
    module = nnx.merge(graphdef, li.materialize(state))
    eager = nnx_models.CASES[name](nnx_models.rngs())
    for _ in range(2):  # The streams of its dropout go on.
        assert_same(MODELS[name](module), MODELS[name](eager))


def test_a_module_is_updated_with_what_was_made():
    build = nnx_models.CASES["decoder"]
    module = nnx.eval_shape(lambda: build(nnx_models.rngs()))
    _, state = li.lazy(build)(nnx_models.rngs())
    nnx.update(module, li.materialize(state))
    assert_same(nnx.state(module), nnx.state(build(nnx_models.rngs())))


def test_a_filtered_state_is_made_alone():
    build = nnx_models.CASES["ViT"]
    graphdef, state = li.lazy(build)(nnx_models.rngs())
    params, rest = nnx.split_state(state, nnx.Param, ...)
    made = li.materialize(params)
    want, want_rest = nnx.state(build(nnx_models.rngs()), nnx.Param, ...)
    assert_same(made, want)
    assert_same(nnx.state(nnx.merge(graphdef, made, li.materialize(rest)), nnx.Param), want)
    assert_same(li.materialize(rest), want_rest)


def test_sharding_names_place_the_leaves():
    _, state = li.lazy(nnx_models.Partitioned)(nnx_models.rngs())
    made = li.materialize(state, sharding=li.shard_by_metadata(mesh(), {"in": "a", "out": "b"}))
    assert made["linear"]["kernel"].get_raw_value().sharding.spec == P("a", "b")
    assert made["own"].get_raw_value().sharding.spec[0] == "a"
    assert made["own"].get_metadata()["note"] == "kept"


def test_a_constructor_within_a_mesh_is_recorded_with_its_sharding_names():
    class Net(nnx.Module):
        def __init__(self, rngs):
            init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("a", "b"))
            self.linear = nnx.Linear(4, 8, kernel_init=init, rngs=rngs)

    with jax.set_mesh(mesh()):
        want = nnx.state(Net(nnx.Rngs(0)))
        _, state = li.lazy(Net)(nnx.Rngs(0))
        made = li.materialize(state, sharding=li.shard_by_metadata(mesh()))
    kernel = want["linear"]["kernel"].get_raw_value()
    assert made["linear"]["kernel"].get_raw_value().sharding == kernel.sharding
    assert_same(made, want)
    assert_same(li.materialize(state), want)


def test_a_deep_decoder_has_few_programs():
    before = set(compiler._kept)
    _, state = li.lazy(lambda r: nnx_models.Decoder(16, 24, rngs=r))(nnx_models.rngs())
    made = li.materialize(state)
    assert len(jax.tree.leaves(made)) == 146
    assert len(set(compiler._kept) - before) <= 8


def test_a_deep_model_counts_its_keys_on_the_host(monkeypatch):
    """JAX runs as many equations while six layers are recorded as while two are."""
    run, real = [], compat.bind
    monkeypatch.setattr(compat, "bind", lambda *a: run.append(a) or real(*a))
    counts = []
    for layers in (2, 6):
        rngs = nnx_models.rngs()
        _, state = li.lazy(lambda r, n=layers: nnx_models.Decoder(n, rngs=r))(rngs)
        counts.append(len(run))
        run.clear()
        eager = nnx_models.rngs()
        want = nnx.state(nnx_models.Decoder(layers, rngs=eager))
        assert_same(nnx.state(rngs), nnx.state(eager))
    assert counts[0] == counts[1]
    assert_same(li.materialize(state), want)


def test_modules_in_a_pytree_are_made_as_they_are():
    def build(rngs):
        return {"a": nnx.Linear(2, 3, rngs=rngs), "b": [nnx.Linear(3, 2, rngs=rngs)], "n": 3}

    want = build(nnx_models.rngs())
    made = li.materialize(li.lazy(build)(nnx_models.rngs()))
    assert made["n"] == 3
    assert_same(nnx.state(made["b"][0]), nnx.state(want["b"][0]))
    x = jnp.ones((1, 2))
    assert_same(made["b"][0](made["a"](x)), want["b"][0](want["a"](x)))


def test_an_nnx_module_inside_of_linen_is_recorded():
    module = nnx.bridge.ToLinen(nnx_models.Streams, skip_rng=False)

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nnx.bridge.to_linen(nnx.Linear, 4, 8, name="inner")(nn.Dense(4)(x))

    x = jnp.ones((1, 4))
    want = Outer().init(jax.random.key(0), x)
    assert_same(li.materialize(li.lazy(Outer()).init(jax.random.key(0), x)), want)
    assert module is not None


def test_a_mutable_variable_says_what_to_do():
    with (
        nnx.var_defaults(hijax=True),
        pytest.raises(li.errors.RecordError, match=r"^(bias|lazy\(Linear\)): .*hijax=False"),
    ):
        li.lazy(nnx.Linear)(2, 3, rngs=nnx.Rngs(0))


class Plain(nnx.Module):
    """Holds arrays that are in no variable."""

    def __init__(self, rngs):
        self.noise = rngs.params.normal((4,))
        self.count = jnp.array(1)
        self.parts = nnx.List([jnp.zeros(2), nnx.Param(rngs.params.normal((2,)))])
        self.name = "static"


def test_arrays_outside_of_variables_are_leaves():
    graphdef, state = li.lazy(Plain)(nnx.Rngs(0))
    want_graphdef, want = nnx.split(Plain(nnx.Rngs(0)))
    assert graphdef == want_graphdef
    assert_same(li.materialize(state), want)
    assert_same(nnx.merge(graphdef, li.materialize(state)).noise, Plain(nnx.Rngs(0)).noise)


def test_streams_that_are_split_already_make_stacked_leaves():
    @nnx.vmap
    def stacked(rngs):
        return nnx.Linear(3, 4, rngs=rngs)

    def rngs():
        return nnx.Rngs(0).split(5)

    want = nnx.state(stacked(rngs()))
    _, state = li.lazy(stacked)(rngs())
    assert_same(li.materialize(state), want)
    assert want["kernel"].shape == (5, 3, 4)


def test_a_reference_to_an_array_says_what_to_do():
    def make(key):
        return {"in": {"place": jax.new_ref(jax.random.normal(key, (2,)))}}

    with pytest.raises(li.errors.RecordError, match=r"^in/place: .* a mutable one \(a jax\.Ref\)"):
        li.lazy(make)(jax.random.key(0))


ADAM = optax.adamw(1e-3)


def model_and_optimizer(rngs):
    model = nnx.Linear(4, 8, rngs=rngs)
    return model, nnx.Optimizer(model, ADAM, wrt=nnx.Param)


SEVERAL = {
    "a tuple": model_and_optimizer,
    "a dict": lambda rngs: dict(
        zip(("model", "optimizer"), model_and_optimizer(rngs), strict=True)
    ),
    "a list in a tuple": lambda rngs: (
        [nnx.Linear(2, 3, rngs=rngs)] * 2,
        nnx.Dropout(0.5, rngs=rngs),
    ),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_several_modules_are_split_as_one(name):
    want = SEVERAL[name](nnx.Rngs(0))
    graphdef, state = li.lazy(SEVERAL[name])(nnx.Rngs(0))
    eager_graphdef, eager_state = nnx.split(want)
    assert graphdef == eager_graphdef
    made = li.materialize(state)
    assert_same(made, eager_state)
    merged = nnx.merge(graphdef, made)
    assert jax.tree.structure(merged) == jax.tree.structure(want)
    assert type(merged) is type(want)


class Scaled(nnx.Module):
    """Has an initializer that leads to the module of the method that made it."""

    def __init__(self, rngs, *, init=None):
        self.kernel_init = init or nnx.initializers.normal()
        self.kernel = nnx.Param(self.kernel_init(rngs.params(), (4, 64)))


class Attention(nnx.Module):
    def __init__(self, rngs, *, is_bound=False):
        self.init = nnx.initializers.normal()
        self.key = Scaled(rngs)
        self.query = Scaled(rngs, init=self.divided if is_bound else self.closing_over())
        self.noise = nnx.data(rngs.params.normal((3,)))

    def closing_over(self):
        scale = jnp.sqrt(64.0)
        return lambda *args: self.init(*args) / scale

    def divided(self, *args):
        return self.init(*args) / 8


def stacked(rngs):
    """Stacks two layers in a scan; their graph definition is that of a layer that is dropped."""
    graphdef, count = nnx.split(rngs.split(2))
    first = Attention(nnx.merge(graphdef, jax.tree.map(lambda x: x[0], count)))

    def step(_, count):
        return None, nnx.state(Attention(nnx.merge(graphdef, count)))

    return nnx.merge(nnx.graphdef(first), jax.lax.scan(step, None, count)[1])


MODULES_BEHIND = {
    "a closure": Attention,
    "a method": functools.partial(Attention, is_bound=True),
    "a module that is dropped": stacked,
}


@pytest.mark.parametrize("name", MODULES_BEHIND)
def test_an_initializer_may_lead_to_a_module_which_then_holds_thunks(name):
    make = MODULES_BEHIND[name]
    graphdef, state = li.lazy(make)(nnx.Rngs(0))
    want = make(nnx.Rngs(0))
    assert_same(li.materialize(state), nnx.state(want))
    model = nnx.merge(graphdef, li.materialize(state))
    init = model.query.kernel_init
    key = jax.random.key(1)
    assert_same(init(key, (2, 64)), want.query.kernel_init(key, (2, 64)))
    behind = init.__self__ if name == "a method" else dict(closed_over(init))["self"]
    assert isinstance(behind, Attention)
    assert {type(x) for x in jax.tree.leaves(nnx.state(behind))} == {li.LazyParam}
    if name != "a module that is dropped":
        assert nnx.state(behind) == state
    with pytest.raises(li.errors.NotMaterializedError, match=r"query/kernel: wanted an array"):
        jnp.sin(behind.query.kernel[...])


def closed_over(function):
    return zip(
        function.__code__.co_freevars, (c.cell_contents for c in function.__closure__), strict=True
    )


def test_an_array_beside_a_module_in_an_initializer_is_refused_all_the_same():
    class Noisy(nnx.Module):
        def __init__(self, rngs):
            self.init, noise = nnx.initializers.normal(), rngs.params.normal((64,))
            self.inner = Scaled(rngs, init=lambda *args: self.init(*args) + noise)

    class Around(nnx.Module):
        def __init__(self, rngs):
            noisy = Noisy(rngs)
            self.make = lambda: noisy

    for make, path in ((Noisy, "inner/kernel_init"), (Around, "kernel_init")):
        message = rf"^{path}: .* holds an array in \.noise, "
        with pytest.raises(li.errors.RecordError, match=message):
            li.lazy(make)(nnx.Rngs(0))
