"""An initialization traced once, its slices, and how many programs they make."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from flax import nnx
from oracles import assert_same, large_arrays_since, live

import lazyinit as li
from lazyinit.keys import Key
from lazyinit.program import equations
from lazyinit.program.slices import Slice, gather, is_order_free
from lazyinit.program.small_values import SmallValues
from lazyinit.program.tracing import trace

KEY = models.KEY
ROOTS = {"params": Key.of(KEY)}


def slices(module, *args):
    tree = li.lazy(module).init(KEY, *(args or (models.X,)))
    return [x.init_fn for x in jax.tree.leaves(tree) if isinstance(x, li.LazyParam)]


def signatures(module, *args):
    return {gather([s]).signature() for s in slices(module, *args)}


def sliced(init):
    """Returns the slice of the one parameter that a function of a key makes."""
    traced, (result,) = trace(lambda keys, _: [init(keys["params"])], ROOTS)
    return Slice(traced, result.value)


def primitives(work):
    def names(jaxpr):
        for equation in jaxpr.eqns:
            yield equation.primitive.name
            for body in jax.extend.core.jaxprs_in_params(equation.params):
                yield from names(getattr(body, "jaxpr", body))

    for equation in work.equations:
        yield equation.origin.primitive.name
        for body in jax.extend.core.jaxprs_in_params(equation.origin.params):
            yield from names(getattr(body, "jaxpr", body))


# How many programs.


def test_a_deep_decoder_has_the_signatures_of_a_shallow_one():
    shallow = signatures(models.Decoder(1), models.TOKENS)
    deep = signatures(models.Decoder(6), models.TOKENS)
    assert len(jax.tree.leaves(li.lazy(models.Decoder(6)).init(KEY, models.TOKENS))) == 9 * 6 + 3
    assert deep == shallow
    assert len(deep) == 6  # embedding, scale, q/k/v/o, gate/up, down, head


def test_other_keys_and_other_names_share_a_signature():
    one = signatures(models.MLP())
    tree = li.lazy(models.MLP()).init(jax.random.key(99), models.X)
    assert {gather([x.init_fn]).signature() for x in jax.tree.leaves(tree)} == one


def test_fresh_closures_share_a_signature():
    def module(scale):
        def body(self, x):
            for n in range(4):
                self.param(f"w{n}", models.normal(scale), (8, 8))

        return models.Wrap(body)

    assert len(signatures(module(0.02))) == 1
    assert signatures(module(0.02)) == signatures(module(0.02))


def test_other_constants_in_a_nested_jit_have_other_signatures():
    def module(scale):
        init = jax.jit(lambda key: jax.jit(lambda k: jax.random.normal(k, (8,)) * scale)(key))
        return models.Wrap(lambda self, x: self.param("w", init))

    assert signatures(module(0.02)) == signatures(module(0.02))
    assert not signatures(module(0.02)) & signatures(module(0.03))


@pytest.mark.parametrize(
    "other",
    [
        lambda self, x: self.param("w", nn.initializers.normal(0.5), (8, 4)),
        lambda self, x: self.param("w", nn.initializers.normal(0.5), (4, 8), jnp.bfloat16),
        lambda self, x: self.param("w", nn.initializers.uniform(0.5), (4, 8)),
    ],
)
def test_another_shape_dtype_or_initializer_has_another_signature(other):
    def body(self, x):
        self.param("w", nn.initializers.normal(0.5), (4, 8))

    assert not signatures(models.Wrap(body)) & signatures(models.Wrap(other))


def test_settings_of_the_recording_are_part_of_the_signature():
    plain = signatures(models.Decoder(1), models.TOKENS)
    with jax.enable_x64(True):
        assert not plain & signatures(models.Decoder(1), models.TOKENS)
    with jax.threefry_partitionable(not jax.config.jax_threefry_partitionable):
        other = signatures(models.Decoder(1), models.TOKENS)
    assert not plain & other


def test_raw_keys_and_other_implementations_share_no_program_with_threefry():
    def bits(key):
        tree = li.lazy(models.Wrap(lambda self, x: self.param("w", jax.random.normal, (8,)))).init(
            key, models.X
        )
        return gather([jax.tree.leaves(tree)[0].init_fn]).signature()

    assert bits(jax.random.key(0)) != bits(jax.random.key(0, impl="rbg"))


# What a slice holds.


def test_recording_keeps_no_forward_pass():
    found = [
        name for s in slices(models.Decoder(2), models.TOKENS) for name in primitives(gather([s]))
    ]
    assert "dot_general" not in found
    assert "exp" not in found
    programs = {id(s.program): s.program for s in slices(models.Decoder(2), models.TOKENS)}
    kept = {e.origin.primitive.name for p in programs.values() for e in p.producers.values()}
    assert "dot_general" not in kept


def test_a_scan_output_of_keys_alone_does_not_hold_the_forward_pass():
    module = models.Scanned()
    found = [name for s in slices(module) for name in primitives(gather([s], drawn=True))]
    assert "scan" in found
    assert not {"dot_general", "tanh", "rsqrt"} & set(found)


def test_a_scan_output_of_the_carry_holds_what_it_depends_on():
    tree = li.lazy(models.Scanned(data=True)).init(KEY, models.X)
    flat = {leaf.path: leaf.init_fn for leaf in jax.tree.leaves(tree)}
    carried = next(s for path, s in flat.items() if path.endswith("carried"))
    assert "dot_general" in set(primitives(gather([carried])))
    kernel = next(s for path, s in flat.items() if path.endswith("kernel"))
    assert "dot_general" not in set(primitives(gather([kernel], drawn=True)))


def test_an_equation_that_two_leaves_need_is_gathered_once():
    module = models.Wrap(
        lambda self, x: [
            first := self.param("first", jax.random.normal, (8, 8)),
            self.param("second", lambda key: first @ first),
            self.param("third", lambda key: first @ first.T),
        ]
    )
    _, second, third = slices(module)
    alone = [len(gather([s]).equations) for s in (second, third)]
    both = gather([second, third])
    assert len(both.equations) < sum(alone)
    assert len({e.index for e in both.equations}) == len(both.equations)
    assert both.outputs == (second.output, third.output)


def test_keys_and_scalars_are_handed_in():
    work = gather([sliced(lambda key: jax.random.normal(jax.random.split(key)[0], (8, 8)) * 0.5)])
    assert {work.program.avals[v].shape for v in work.inputs} == {()}
    assert not {"random_split", "slice", "random_fold_in"} & {
        e.origin.primitive.name for e in work.equations
    }


def test_a_scalar_that_is_computed_from_data_is_not_handed_in():
    made = sliced(lambda key: jnp.ones((3,)) * jax.random.normal(key, (100,)).sum())
    assert "reduce_sum" in set(primitives(gather([made])))


def test_a_program_tells_keys_data_and_small_values_apart():
    table = np.arange(8.0, dtype=np.float32)

    def init(keys, inputs):
        key = jax.random.fold_in(keys["params"], 3)
        drawn = jax.random.normal(key, (8,))
        return [key, drawn, drawn + table, drawn + inputs[0], jnp.float32(2) * 3, table * 1]

    x = jax.ShapeDtypeStruct((8,), "float32")
    traced, results = trace(init, ROOTS, [("x", x)])
    key, drawn, of_table, of_input, scalar, data = (r.value for r in results)
    assert [traced.is_small(v) for v in (key, drawn, of_table, scalar)] == [
        True,
        False,
        False,
        True,
    ]
    assert [traced.on_keys_alone(v, drawn=False) for v in (key, drawn, of_table, of_input)] == [
        True,
        True,
        False,
        False,
    ]
    assert [traced.streams_of(v) for v in (key, of_input, data)] == [{"params"}, {"params"}, set()]
    assert traced.made_from(drawn, key)
    assert traced.made_from(of_table, key)
    assert not traced.made_from(of_input, key)
    assert traced.depends(drawn, key)
    assert not traced.depends(data, key)
    assert list(traced.abstract.values()) == ["x"]


def test_the_keys_of_many_layers_are_found_in_linear_time(monkeypatch):
    real, walked = equations.walk_back, []

    def counted(*args):
        for value in real(*args):
            walked.append(value)
            yield value

    monkeypatch.setattr(equations, "walk_back", counted)

    for roots in (lambda _: nnx.Rngs(0), nnx.Rngs, lambda key: nnx.Rngs(0, params=key).fork()):
        counts = []
        for layers in (20, 40):

            def model(key, layers=layers, roots=roots):
                rngs = roots(key)
                return nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(layers)])

            walked.clear()
            li.lazy(model)(KEY)
            counts.append(len(walked))
        assert 40 <= counts[1] <= 2.1 * counts[0]


def test_a_long_chain_of_equations_is_no_recursion():
    def init(key):
        x = jax.random.normal(key, (4,))
        for _ in range(3000):
            x = x + 1.0
        return x

    made = sliced(init)
    assert len(gather([made]).equations) > 3000
    assert made.program.streams_of(made.output) == {"params"}


@pytest.mark.parametrize(
    ("init", "free"),
    [
        (lambda key: jax.random.normal(key, (8, 8)), True),
        (lambda key: jax.random.truncated_normal(key, -2, 2, (8, 8)), True),
        (lambda key: jax.random.normal(key, (8, 8)).sum(0), False),
        (lambda key: jnp.cumsum(jax.random.normal(key, (8, 8)), 0), False),
        (lambda key: nn.initializers.orthogonal()(key, (8, 8)), False),
        (
            lambda key: jax.jit(lambda k: jax.random.normal(k, (8, 8)) @ jnp.ones((8, 8)))(key),
            False,
        ),
        (lambda key: jnp.sort(jax.random.normal(key, (8,))), False),
    ],
)
def test_sums_and_products_are_no_work_to_cut_up(init, free):
    assert is_order_free(gather([sliced(init)])) is free


# Small values.


def test_small_values_are_computed_once_for_equal_computations():
    traced, results = trace(
        lambda keys, _: [jnp.sqrt(jnp.float32(0.25)) * jax.random.normal(keys["params"], (4,))
                         for _ in range(3)],
        ROOTS,
    )  # fmt: skip
    works = [gather([Slice(traced, r.value)]) for r in results]
    small = SmallValues(traced, {"params": KEY}, {})
    arrays = [[small[v] for v in work.inputs] for work in works]
    assert all(a is b for a, b in zip(arrays[0], arrays[2], strict=True))


def test_small_values_start_from_what_is_given():
    def init(keys, _):
        key = jax.random.fold_in(keys["params"], 1)
        return [key, jax.random.split(key)[1]]

    traced, results = trace(init, ROOTS)
    key, last = (r.value for r in results)
    other = jax.random.key(5)
    assert_same(SmallValues(traced, {"params": KEY}, {})[last],
                jax.random.split(jax.random.fold_in(KEY, 1))[1])  # fmt: skip
    assert_same(
        SmallValues(traced, {"params": KEY}, {key: other})[last], jax.random.split(other)[1]
    )


def test_tracing_allocates_nothing():
    before = live()
    trace(lambda keys, _: [jax.random.normal(keys["params"], (4096, 4096))], ROOTS)
    assert not large_arrays_since(before)


def test_a_work_runs_eagerly_and_under_jit_alike():
    made = sliced(lambda key: jax.random.normal(key, (8, 8)) * 3.0 + 0.1)
    work = gather([made])
    small = SmallValues(made.program, {"params": KEY}, {})
    inputs = [small[v] for v in work.inputs]
    want = jax.random.normal(KEY, (8, 8)) * 3.0 + 0.1
    assert_same(work.run(inputs, barrier=False)[0], want)
    assert_same(made(KEY), want)
    assert_same(made({"params": KEY}), want)
