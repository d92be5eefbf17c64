"""Recording a Linen module, and the bits of what it makes, against eager ``module.init``."""

import gc
import threading

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from flax.errors import IncorrectPostInitOverrideError
from jax.sharding import PartitionSpec as P
from oracles import assert_same, kernel_sharding, large_arrays_since, live

import lazyinit as li

KEY = jax.random.key(7)
X = models.X


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def cases(fast, among):
    """Returns the names of cases, those that are not fast marked as slow."""
    return [n if n in fast else pytest.param(n, marks=pytest.mark.slow) for n in among]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_decoder_of_32_layers_has_eager_bits_in_all_291_leaves(dtype, mesh):
    module = models.Decoder(32, param_dtype=jnp.dtype(dtype))
    want = module.init(KEY, jnp.zeros((1, 4), int))
    tree = li.lazy(module).init(KEY, models.TOKENS)
    assert len(jax.tree.leaves(tree)) == 291
    assert_same(li.materialize(tree), want)
    made = li.materialize(tree, sharding=kernel_sharding(mesh))
    assert_same(made, want)
    kernel = made["params"]["layers_31"]["gate"]["kernel"]
    assert {s.data.shape for s in kernel.addressable_shards} == {(8, 8)}


# Arguments.


def test_shapes_stand_in_for_arrays():
    module = models.MLP()
    by_shape = li.lazy(module).init(KEY, jax.ShapeDtypeStruct(X.shape, X.dtype))
    assert_same(li.materialize(by_shape), module.init(KEY, X))


def test_shapes_and_arrays_mix_in_nested_arguments():
    class Module(nn.Module):
        @nn.compact
        def __call__(self, batch, *, extra):
            self.variable("state", "mean", lambda: extra["values"].mean(0) * 0.3 + 0.1)
            return nn.Dense(4)(batch["x"]) + nn.Dense(4)(extra["shape"])

    shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
    want = Module().init(KEY, {"x": X}, extra={"values": X, "shape": X})
    tree = li.lazy(Module()).init(KEY, {"x": shape}, extra={"values": X, "shape": shape})
    assert_same(li.materialize(tree), want)


def test_a_tree_of_thunks_is_an_argument_of_shapes():
    thunks = li.lazy(models.MLP()).init(KEY, X)

    class Meta(nn.Module):
        @nn.compact
        def __call__(self, variables):
            return nn.Dense(4)(variables["params"]["head"]["kernel"])

    tree = li.lazy(Meta()).init(KEY, thunks)
    assert tree["params"]["Dense_0"]["kernel"].shape == (8, 4)


def test_python_numbers_stay_python_numbers():
    class Module(nn.Module):
        @nn.compact
        def __call__(self, x, n, flag, name, nothing):
            assert isinstance(n, int)
            assert flag is True
            assert name == "name"
            assert nothing is None
            return [nn.Dense(4)(x) for _ in range(n)]

    tree = li.lazy(Module()).init(KEY, X, 3, True, "name", None)
    assert len(tree["params"]) == 3


def test_a_python_branch_on_the_value_of_an_argument_that_is_given_is_taken():
    class Module(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4 if np.asarray(x).sum() > 0 else 3)(x)

    assert_same(li.materialize(li.lazy(Module()).init(KEY, X)), Module().init(KEY, X))
    assert_same(li.materialize(li.lazy(Module()).init(KEY, -X)), Module().init(KEY, -X))


def test_a_module_with_fields_that_are_arrays_is_recorded():
    class Module(nn.Module):
        table: jax.Array

        @nn.compact
        def __call__(self, x):
            self.param("scaled", lambda key: self.table * 0.3 + 0.1)
            self.param("copy", lambda key: self.table)
            return x

    module = Module(X)
    assert_same(li.materialize(li.lazy(module).init(KEY, X)), module.init(KEY, X))


def test_a_frozen_dict_is_returned_where_flax_is_told_to():
    flax.config.update("flax_return_frozendict", True)
    try:
        want = models.MLP().init(KEY, X)
        tree = li.lazy(models.MLP()).init(KEY, X)
        assert isinstance(tree, flax.core.FrozenDict)
        assert_same(li.materialize(tree), want)
    finally:
        flax.config.update("flax_return_frozendict", False)


def test_the_rng_separator_that_flax_is_told_to_use_is_used():
    flax.config.update("flax_fix_rng_separator", True)
    try:
        want = models.MLP().init(KEY, X)
        tree = li.lazy(models.MLP()).init(KEY, X)
        assert_same(li.materialize(tree), want)
    finally:
        flax.config.update("flax_fix_rng_separator", False)


def test_raw_keys_under_another_default_implementation():
    with jax.default_prng_impl("rbg"):
        key = jax.random.PRNGKey(3)
        want = models.MLP().init(key, X)
        tree = li.lazy(models.MLP()).init(key, X)
    assert tree["params"]["head"]["kernel"].rng_path.roots["params"].impl == "rbg"
    assert_same(li.materialize(tree), want)


def test_the_default_stream_makes_parameters():
    class Module(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dropout(0.5, deterministic=False)(nn.Dense(4)(x))

    for rngs in ({"default": KEY}, {"dropout": KEY, "params": jax.random.key(1)}, KEY):
        try:
            want = Module().init(rngs, X)
        except flax.errors.InvalidRngError:
            with pytest.raises(flax.errors.InvalidRngError):
                li.lazy(Module()).init(rngs, X)
            continue
        assert_same(li.materialize(li.lazy(Module()).init(rngs, X)), want)


# Structure of what is recorded.


def test_the_paths_are_those_that_jax_prints():
    tree = li.lazy(models.MLP()).init(KEY, X)
    want = [
        jax.tree_util.keystr(p, simple=True, separator="/")
        for p, _ in jax.tree_util.tree_leaves_with_path(models.MLP().init(KEY, X))
    ]
    assert [leaf.path for leaf in jax.tree.leaves(tree)] == want


def test_a_tied_parameter_is_one_thunk_and_one_array():
    class Tied(nn.Module):
        @nn.compact
        def __call__(self, x):
            kernel = self.param("kernel", nn.initializers.normal(), (8, 8))
            self.put_variable("params", "tied", kernel)
            self.param("again", lambda key: kernel)
            return x

    tree = li.lazy(Tied()).init(KEY, X)["params"]
    assert tree["tied"] is tree["kernel"]
    assert tree["again"] is tree["kernel"]
    made = li.materialize(tree)
    assert made["tied"] is made["kernel"]
    assert made["again"] is made["kernel"]
    assert_same(made, Tied().init(KEY, X)["params"])


def test_direct_parameters_say_where_their_key_comes_from():
    tree = li.lazy(models.MLP()).init(KEY, X)
    leaf = tree["params"]["layers_1"]["kernel"]
    assert leaf.rng_path.folded == ("layers_1", 1)
    assert str(leaf.rng_path) == "params/layers_1#1"
    bias = tree["params"]["layers_1"]["bias"]
    assert bias.rng_path.folded == ("layers_1", 2)


def test_init_fn_of_another_key_is_the_leaf_of_that_key():
    tree = li.lazy(models.MLP()).init(KEY, X)
    leaf = tree["params"]["head"]["kernel"]
    other = jax.random.key(11)
    want = nn.initializers.lecun_normal()(other, leaf.shape)
    assert_same(leaf.init_fn(other), want)


def test_a_slice_is_a_function_of_several_root_keys():
    module, rngs, args, kwargs = models.CASES["several streams"]
    tree = li.lazy(module).init(rngs, *args, **kwargs)
    leaf = tree["params"]["d"]
    assert set(leaf.rng_path.roots) == {"params", "s"}
    assert_same(leaf.init_fn(leaf.rng_path.key()), module.init(rngs, *args)["params"]["d"])


def test_a_leaf_that_needs_no_key_has_no_roots():
    tree = li.lazy(models.Wrap(lambda self, x: nn.BatchNorm(False)(x))).init(KEY, X)
    mean = tree["batch_stats"]["BatchNorm_0"]["mean"]
    assert dict(mean.rng_path.roots) == {}
    assert_same(mean.init_fn(mean.rng_path.key()), jnp.zeros(8) + 0.0 * 0)


def test_boxes_hold_thunks():
    class Module(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_partitioning(nn.initializers.normal(), ("a", "b"))
            return nn.Dense(4, kernel_init=init)(x)

    tree = li.lazy(Module()).init(KEY, X)
    box = tree["params"]["Dense_0"]["kernel"]
    assert isinstance(box, nn.Partitioned)
    assert isinstance(box.value, li.LazyParam)
    assert box.value.path == "params/Dense_0/kernel/value"
    assert nn.get_partition_spec(tree)["params"]["Dense_0"]["kernel"] == P("a", "b")


# Isolation.


def test_the_module_and_its_arguments_are_left_as_they_were():
    module = models.Setup()
    rngs = {"params": KEY, "dropout": jax.random.key(1)}
    batch = {"z": X, "a": [X]}
    li.lazy(models.Wrap(lambda self, b: nn.Dense(4)(b["z"]))).init(rngs, batch)
    assert list(rngs) == ["params", "dropout"]
    assert list(batch) == ["z", "a"]
    assert batch["z"] is X
    li.lazy(module).init(KEY, X)
    assert module.scope is None
    assert_same(module.init(KEY, X), models.Setup().init(KEY, X))


def test_two_threads_that_record_do_not_see_each_other():
    together = threading.Barrier(2)

    class Waiting(nn.Module):
        tag: str

        @nn.compact
        def __call__(self, x):
            def init(key, shape):
                together.wait(timeout=30)  # Both are in the middle of their traces here.
                return jax.random.normal(key, shape)

            self.param(f"{self.tag}_first", init, (8, 8))
            x = nn.Dense(8, name=f"{self.tag}_dense")(x)
            self.param(f"{self.tag}_last", init, (8, 8))
            return x

    made = {}

    def work(tag, seed):
        tree = li.lazy(Waiting(tag)).init(jax.random.key(seed), X)
        made[tag] = tree

    threads = [
        threading.Thread(target=work, args=("a", 1)),
        threading.Thread(target=work, args=("b", 2)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together.reset()
    for tag, seed in (("a", 1), ("b", 2)):
        assert all(name.startswith(tag) for name in made[tag]["params"])
        normal = made[tag]["params"][f"{tag}_first"]
        root = jax.random.key(seed)
        assert (
            normal.rng_path.roots["params"].data == np.asarray(jax.random.key_data(root)).tobytes()
        )
        assert_same(
            li.materialize(made[tag]["params"][f"{tag}_first"]),
            jax.random.normal(normal.rng_path.key(), (8, 8)),
        )


def test_nothing_is_patched_for_good():
    scope = flax.core.Scope
    param, push = scope.param, scope.push
    li.lazy(models.MLP()).init(KEY, X)
    assert (scope.param, scope.push) == (param, push)
    assert type(models.MLP().bind(models.MLP().init(KEY, X)).scope) is scope


@pytest.mark.parametrize("name", ["setup", "scan with remat", "jit method called twice", "cond",
                                  "parameter with make_rng inside", "map_variables init"])  # fmt: skip
def test_no_tracer_leaks(name):
    module, rngs, args, kwargs = models.CASES[name]
    with jax.checking_leaks():
        tree = li.lazy(module).init(rngs, *args, **kwargs)
        li.materialize(tree)


def test_no_tracer_leaks_from_an_error():
    class Module(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(8)(x)
            return nn.Dense(4 if x.sum() > 0 else 3)(x)

    with jax.checking_leaks():
        with pytest.raises(li.errors.RecordError):
            li.lazy(Module()).init(KEY, jax.ShapeDtypeStruct(X.shape, X.dtype))
        gc.collect()
        li.lazy(models.MLP()).init(KEY, X)


@pytest.mark.parametrize(
    "name", cases({"scan axis 0"}, ["setup", "scan axis 0", "attention decode cache"])
)
def test_rank_promotion_may_be_an_error(name):
    module, rngs, args, kwargs = models.CASES[name]
    with jax.numpy_rank_promotion("raise"):
        try:
            want = module.init(rngs, *args, **kwargs)
        except ValueError as error:
            with pytest.raises(ValueError, match="jax_numpy_rank_promotion") as found:
                li.lazy(module).init(rngs, *args, **kwargs)
            assert str(found.value) == str(error)
            return
        assert_same(li.materialize(li.lazy(module).init(rngs, *args, **kwargs)), want)


def test_rank_promotion_that_raises_does_not_break_the_engine():
    module = models.Wrap(lambda self, x: self.param("w", nn.initializers.lecun_normal(), (8, 8)))
    with jax.numpy_rank_promotion("raise"):
        want = module.init(KEY, X)
        assert_same(li.materialize(li.lazy(module).init(KEY, X)), want)


@pytest.mark.parametrize(
    "name", cases({"several raw streams"}, ["Embed", "scan broadcast", "several raw streams"])
)
@pytest.mark.parametrize("partitionable", [True, False])
def test_threefry_of_the_recording_holds(name, partitionable, mesh):
    module, rngs, args, kwargs = models.CASES[name]
    with jax.threefry_partitionable(partitionable):
        want = module.init(rngs, *args, **kwargs)
        tree = li.lazy(module).init(rngs, *args, **kwargs)
    with jax.threefry_partitionable(not partitionable):
        assert_same(li.materialize(tree), want)
        assert_same(li.materialize(tree, sharding=kernel_sharding(mesh)), want)
        leaf = jax.tree.leaves(tree)[-1]
        assert_same(leaf.init_fn(leaf.rng_path.key()), jax.tree.leaves(want)[-1])


@pytest.mark.parametrize("x64", [True, False])
@pytest.mark.parametrize(
    "name",
    cases(
        {"scan broadcast", "PReLU"},
        ["PReLU", "scan broadcast", "BatchNorm", "several streams", "Embed"],
    ),
)
def test_the_64_bit_types_of_the_recording_hold(name, x64):
    module, rngs, args, kwargs = models.CASES[name]
    with jax.enable_x64(x64):
        want = module.init(rngs, *args, **kwargs)
        tree = li.lazy(module).init(rngs, *args, **kwargs)
    with jax.enable_x64(not x64):
        made = li.materialize(tree)
    assert_same(made, want)


def test_float64_parameters_are_made_after_the_flag_is_off_again():
    def body(self, x):
        self.param("w", nn.initializers.normal(), (8, 8), jnp.float64)
        self.variable("v", "i", lambda: jnp.arange(3, dtype=jnp.int64) * 2**40)

    module = models.Wrap(body)
    with jax.enable_x64(True):
        want = module.init(KEY, X)
        tree = li.lazy(module).init(KEY, X)
    leaf = tree["params"]["w"]
    assert leaf.dtype == np.float64
    assert_same(li.materialize(tree), want)
    assert_same(leaf.init_fn(leaf.rng_path.key()), want["params"]["w"])


def test_matmul_precision_and_numpy_promotion_of_the_recording_hold():
    def body(self, x):
        self.param("w", lambda key: jax.random.normal(key, (8, 8)) @ jnp.ones((8, 8)))

    module = models.Wrap(body)
    with jax.default_matmul_precision("bfloat16"):
        want = module.init(KEY, X)
        tree = li.lazy(module).init(KEY, X)
    assert_same(li.materialize(tree), want)


def test_strict_dtype_promotion():
    with jax.numpy_dtype_promotion("strict"):
        want = models.MLP().init(KEY, X)
        assert_same(li.materialize(li.lazy(models.MLP()).init(KEY, X)), want)


def test_an_initializer_with_state_is_run_as_often_as_by_eager_init():
    def module():
        made = []

        def init(key, shape):
            made.append(shape)
            return jax.random.normal(key, shape) * len(made)

        def body(self, x):
            for name in "abc":
                self.param(name, init, (8, 8))

        return models.Wrap(body)

    want = module().init(KEY, X)
    assert_same(li.materialize(li.lazy(module()).init(KEY, X)), want)


def test_an_initializer_that_asks_for_more_keys_keeps_its_own():
    def body(self, x):
        def init_with_a_key_aside(key, shape):
            self.make_rng("params")
            return nn.initializers.normal()(key, shape)

        def init_with_a_parameter_aside(key, shape):
            self.param("inner", nn.initializers.normal(), shape)
            return nn.initializers.normal()(key, shape)

        self.param("a", init_with_a_key_aside, (8, 128))
        self.param("b", init_with_a_parameter_aside, (8, 128))
        self.param("c", nn.initializers.normal(), (8, 128))

    module = models.Wrap(body)
    want = module.init(KEY, X)
    tree = li.lazy(module).init(KEY, X)
    assert_same(li.materialize(tree), want)
    folded = {name: leaf.rng_path.folded for name, leaf in tree["params"].items()}
    assert folded == {"inner": (4,), "a": (1,), "b": (3,), "c": (5,)}


def test_recording_and_holding_a_tree_keeps_nothing_large_alive():
    gc.collect()
    before = live()
    tree = li.lazy(models.Decoder(2, width=64, hidden=128)).init(KEY, models.TOKENS)
    gc.collect()
    assert not large_arrays_since(before)
    made = li.materialize(tree, "params/norm")
    del made
    gc.collect()
    assert not large_arrays_since(before)


def test_a_model_too_large_for_any_machine_is_recorded_at_once():
    module = nn.Sequential([nn.Dense(1 << 22) for _ in range(3)])
    tree = li.lazy(module).init(KEY, jax.ShapeDtypeStruct((1, 1 << 22), "float32"))
    assert sum(x.nbytes for x in jax.tree.leaves(tree)) > 200e12


def test_recording_within_a_trace_with_a_key_of_its_own_is_not_disturbed():
    want = models.MLP().init(KEY, X)
    held = []

    def outer(y):
        held.append(li.lazy(models.MLP()).init(KEY, X))
        return y

    jax.jit(outer)(1.0)
    assert_same(li.materialize(held[0]), want)


# Names and errors as ``module.init`` has them.


def same_error(call, eager):
    """Asserts that both raise the same type with the same message; returns it."""
    with pytest.raises(Exception) as wanted:
        eager()
    with pytest.raises(Exception) as got:
        call()
    assert type(got.value) is type(wanted.value)
    assert str(got.value) == str(wanted.value)


class Broken(nn.Module):
    how: str

    @nn.compact
    def __call__(self, x):
        match self.how:
            case "shapes":
                return nn.Dense(4)(x) + jnp.ones((4, 3))
            case "names":
                return nn.Dense(4, name="a")(nn.Dense(4, name="a")(x))
            case "raises":
                raise KeyError("the module's own error")
            case "stream":
                return x + jax.random.normal(self.make_rng("missing"), x.shape)
            case "type":
                return x + "text"

    def other(self, x):
        return self.how


@pytest.mark.parametrize("how", ["shapes", "names", "raises", "type"])
def test_errors_of_the_module_come_through_unchanged(how):
    same_error(lambda: li.lazy(Broken(how)).init(KEY, X), lambda: Broken(how).init(KEY, X))


def test_a_missing_stream_is_the_error_of_flax():
    rngs = {"params": KEY}

    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x):
            return self.make_rng("noise")

    rngs = {"dropout": KEY}
    same_error(lambda: li.lazy(Noisy()).init(rngs, X), lambda: Noisy().init(rngs, X))


def test_a_missing_params_stream_is_the_error_of_flax():
    rngs = {"dropout": KEY}
    same_error(lambda: li.lazy(models.MLP()).init(rngs, X), lambda: models.MLP().init(rngs, X))


def test_an_unknown_method_is_the_error_of_flax():
    same_error(
        lambda: li.lazy(Broken("")).init(KEY, X, method="no_such"),
        lambda: Broken("").init(KEY, X, method="no_such"),
    )


def test_a_method_name_that_names_a_field_is_a_type_error():
    with pytest.raises(TypeError, match="must be a callable"):
        Broken("").init(KEY, X, method="how")
    with pytest.raises(TypeError, match=r"Broken\.how: wanted a method, got str\."):
        li.lazy(Broken("")).init(KEY, X, method="how")


def test_missing_and_surplus_arguments_are_type_errors():
    module = models.MLP()
    for args in ((), (X, X)):
        with pytest.raises(TypeError):
            module.init(KEY, *args)
        with pytest.raises(TypeError, match="__call__"):
            li.lazy(module).init(KEY, *args)


@pytest.mark.parametrize(
    ("rngs", "got"),
    [
        (3, r"rngs: wanted a key such as jax\.random\.key\(0\), or a dict .*, got int 3"),
        ([1, 2], r"rngs: wanted .*, got list \[1, 2\]"),
        (jnp.zeros(2), r"rngs: wanted .*, got ArrayImpl float32\[2\]"),
        (np.zeros(2), r"rngs: wanted .*, got ndarray float64\[2\]"),
        (jnp.zeros(3, jnp.uint32), r"rngs: wanted .*, got ArrayImpl uint32\[3\]"),
        (jax.random.split(KEY), r"rngs: wanted .*, got PRNGKeyArray key<fry>\[2\]"),
        (
            jax.ShapeDtypeStruct((2,), "uint32"),
            r"rngs: wanted .*, got ShapeDtypeStruct uint32\[2\]",
        ),
        ("key", r"rngs: wanted .*, got str 'key'"),
        (None, r"rngs: wanted .*, got NoneType None"),
        ({"params": KEY, "dropout": 5}, r"rngs\['dropout'\]: wanted .*, got int 5"),
        ({"params": None}, r"rngs\['params'\]: wanted .*, got NoneType None"),
        ({0: KEY}, r"rngs\[0\]: wanted .*"),
    ],
)
def test_a_key_of_the_wrong_kind_is_named(rngs, got):
    with pytest.raises(li.errors.RngsError, match=r"lazy\(MLP\)\.init: " + got) as lazy_error:
        li.lazy(models.MLP()).init(rngs, X)
    with pytest.raises(Exception) as eager_error:
        models.MLP().init(rngs, X)
    if isinstance(eager_error.value, flax.errors.InvalidRngError | ValueError | TypeError):
        assert isinstance(lazy_error.value, type(eager_error.value))


class Sized(nn.Module):
    """Has an ``init`` of its own, which makes another module of itself, and the input."""

    width: int = 1

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.width)(x)

    def init(self, rngs, width=2, *, size=3, **kwargs):
        return nn.Module.init(self.clone(width=width), rngs, jnp.ones((1, size)), **kwargs)


class SizedOutput(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x)

    def init_with_output(self, rngs, *args, **kwargs):
        output, variables = super().init_with_output(rngs, jnp.ones((2, 3)), **kwargs)
        return output, variables | {"more": jnp.ones(3)}


def test_an_init_of_the_modules_own_is_what_is_recorded():
    streams = {"params": KEY, "other": jax.random.key(1)}
    for rngs in (KEY, streams):
        for args, kwargs in (((), {}), ((64,), {"size": 5}), ((64,), {"mutable": ["params"]})):
            tree = li.lazy(Sized()).init(rngs, *args, **kwargs)
            assert_same(li.materialize(tree), Sized().init(rngs, *args, **kwargs))
            assert {type(leaf) for leaf in jax.tree.leaves(tree)} == {li.LazyParam}
        assert_same(li.materialize(li.lazy(SizedOutput()).init(rngs)), SizedOutput().init(rngs))


def test_init_with_output_is_not_offered():
    with pytest.raises(
        li.errors.RecordError, match=r"lazy\(MLP\)\.init_with_output: .*module\.apply"
    ):
        li.lazy(models.MLP()).init_with_output(KEY, X)


class OfInput(nn.Module):
    @nn.compact
    def __call__(self, x, y):
        self.param("x_mean", lambda key: x.mean(0))
        self.param("y_mean", lambda key: y["deep"].mean(0) + jax.random.normal(key, (8,)))
        return nn.Dense(4)(x)


def test_a_value_that_depends_on_a_shape_alone_is_an_error_only_if_it_is_selected():
    shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
    tree = li.lazy(OfInput()).init(KEY, shape, {"deep": shape})
    want = OfInput().init(KEY, X, {"deep": X})
    gc.collect()
    before = live()
    with pytest.raises(li.errors.AbstractInputError) as error:
        li.materialize(tree)
    assert not large_arrays_since(before, 0), "allocated before the error"
    lines = str(error.value).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(
        "params/x_mean: its initial value depends on argument 0, which was given as a shape alone."
    )
    assert lines[1].startswith("params/y_mean: its initial value depends on argument 1/deep,")
    made = li.materialize(tree, "params/Dense_0")
    assert_same(made["params"]["Dense_0"], want["params"]["Dense_0"])
    assert made["params"]["x_mean"] is tree["params"]["x_mean"]


def test_what_depends_on_a_shape_by_its_shape_alone_can_be_made():
    def body(self, x):
        self.variable("v", "zeros", lambda: jnp.zeros_like(x))
        self.variable("v", "size", lambda: jnp.float32(x.size))
        self.sow("losses", "out", x)

    module = models.Wrap(body)
    want = module.init(KEY, X)
    tree = li.lazy(module).init(KEY, jax.ShapeDtypeStruct(X.shape, X.dtype))
    made = li.materialize(tree, "v")
    assert_same(made["v"], want["v"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_initializer_that_jax_cannot_run_is_the_error_of_jax(dtype):
    init = nn.initializers.orthogonal()
    module = models.Wrap(lambda self, x: self.param("w", init, (8, 8), jnp.dtype(dtype)))
    with pytest.raises((NotImplementedError, TypeError), match="dtype") as eager:
        module.init(KEY, X)
    with pytest.raises(eager.type, match="dtype"):
        li.materialize(li.lazy(module).init(KEY, X))


def test_a_post_init_without_super_is_the_error_of_flax():
    class Module(nn.Module):
        features: int = 2

        def __post_init__(self):
            pass

        @nn.compact
        def __call__(self, x):
            return nn.Dense(self.features)(x)

    with pytest.raises(IncorrectPostInitOverrideError):
        Module().init(KEY, X)
    with pytest.raises(IncorrectPostInitOverrideError):
        li.lazy(Module()).init(KEY, X)
