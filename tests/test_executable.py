"""Compiled programs: one per signature, dtype and sharding, kept for the next call."""

import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from oracles import assert_same

import lazyinit as li
from lazyinit import executable
from lazyinit.executable import Argument, Compiler, computed_on, encode
from lazyinit.slices import SmallValues, gather

MESH = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
KEY = models.KEY


@pytest.fixture
def compiled(monkeypatch):
    """Counts compilations of a fresh compiler."""
    module = sys.modules["lazyinit.materialize"]  # The function of that name hides the module.
    fresh = Compiler()
    lowered = []
    real = executable._lower
    monkeypatch.setattr(module, "compiler", fresh)
    monkeypatch.setattr(executable, "_lower", lambda *a: lowered.append(a) or real(*a))
    return lowered


def test_a_deep_model_compiles_as_many_programs_as_a_shallow_one(compiled):
    li.materialize(li.lazy(models.Decoder(1)).init(KEY, models.TOKENS))
    shallow = len(compiled)
    assert shallow == 6
    deep = li.lazy(models.Decoder(5)).init(KEY, models.TOKENS)
    li.materialize(deep)
    assert len(compiled) == shallow
    li.materialize(deep, "params/layers_3")
    assert len(compiled) == shallow


def test_another_key_compiles_nothing(compiled):
    li.materialize(li.lazy(models.MLP()).init(KEY, models.X))
    before = len(compiled)
    li.materialize(li.lazy(models.MLP()).init(jax.random.key(99), models.X))
    assert len(compiled) == before


def test_another_dtype_or_sharding_compiles_another_program(compiled):
    tree = li.lazy(models.MLP()).init(KEY, models.X)
    for kwargs in ({}, {"dtype": "bfloat16"}, {"sharding": NamedSharding(MESH, P())},
                   {"sharding": NamedSharding(MESH, P("a"))}):  # fmt: skip
        before = len(compiled)
        for _ in range(2):
            li.materialize(tree, "**/layers_0/kernel", **kwargs)
        assert len(compiled) == before + 1, kwargs


def test_another_default_device_compiles_another_program(compiled):
    tree = li.lazy(models.MLP()).init(KEY, models.X)
    li.materialize(tree, "**/layers_0/kernel")
    with jax.default_device(jax.devices()[2]):
        made = li.materialize(tree, "**/layers_0/kernel")
    assert len(compiled) == 2
    assert made["params"]["layers_0"]["kernel"].devices() == {jax.devices()[2]}


def test_a_default_device_may_be_a_platform():
    tree = li.lazy(models.MLP()).init(KEY, models.X)
    with jax.default_device("cpu"):
        made = li.materialize(tree, "**/head/bias")
    assert made["params"]["head"]["bias"].devices() == {jax.devices()[0]}


def test_programs_not_used_for_long_are_dropped(monkeypatch):
    monkeypatch.setattr(executable, "_KEPT", 2)
    compiler = Compiler()
    with ThreadPoolExecutor(1) as pool:
        for n in range(1, 5):
            init = lambda key, n=n: jnp.ones(n)  # noqa: E731
            module = models.Wrap(lambda self, x, init=init: self.param("w", init))
            work = gather([li.lazy(module).init(KEY, 0)["params"]["w"].init_fn])
            arguments, parts = encode(work, {}, SmallValues(work.program, {}, {}))
            for _ in range(2):
                program = compiler.request(
                    pool, work, arguments, parts, (np.dtype("float32"),), (None,)
                )
            assert program.result()(parts)[0].shape == (n,)
    assert len(compiler._kept) == 2


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_are_handed_in_as_words(impl):
    key = jax.random.key(3, impl=impl)
    words = np.asarray(jax.random.key_data(key))
    assert_same(Argument("key", impl).decode(words), key)
    assert_same(Argument("folded", impl).decode(words, np.uint32(5)), jax.random.fold_in(key, 5))
    np.testing.assert_array_equal(Argument("key", impl, False).decode(words), words)
    assert Argument("plain").decode(3.0) == 3.0


def test_what_sums_is_computed_whole_and_cut_afterwards():
    def body(self, x):
        self.param("drawn", jax.random.normal, (8, 8))
        self.param("summed", lambda key: jax.random.normal(key, (8, 8)) @ jnp.ones((8, 8)))

    params = li.lazy(models.Wrap(body)).init(KEY, 0)["params"]
    cut = NamedSharding(MESH, P("a", "b"))
    assert computed_on(gather([params["drawn"].init_fn]), cut) == cut
    assert computed_on(gather([params["summed"].init_fn]), cut) == NamedSharding(MESH, P())
    assert computed_on(gather([params["summed"].init_fn]), None) is None


def test_each_device_draws_its_own_shard_alone():
    leaf = li.lazy(models.Wrap(lambda self, x: self.param("w", jax.random.normal, (64, 64)))).init(
        KEY, 0
    )
    work = gather([leaf["params"]["w"].init_fn])
    words = np.asarray(jax.random.key_data(KEY))
    lowered = executable._lower(
        work, (Argument("key", "threefry2x32"),), [(words,)], (np.dtype("float32"),),
        (NamedSharding(MESH, P("a", "b")),),
    )  # fmt: skip
    text = lowered.compile().as_text()
    assert "f32[32,16]" in text
    assert "64,64" not in text


def test_an_array_that_no_memory_holds_is_the_error_of_jax_each_time():
    huge = (1 << 24, 1 << 24)
    module = models.Wrap(lambda self, x: self.param("w", jax.random.normal, huge))
    tree = li.lazy(module).init(KEY, 0)
    for _ in range(2):
        with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED|memory"):
            li.materialize(tree)


def test_a_program_that_failed_to_compile_is_compiled_anew(monkeypatch):
    module = models.Wrap(lambda self, x: self.param("w", jax.nn.initializers.normal(0.123), (3, 7)))
    tree = li.lazy(module).init(KEY, 0)
    compile_once = jax.stages.Lowered.compile
    failures = iter([RuntimeError("out of luck")])

    def fails_first(self, *args):
        for failure in failures:
            raise failure
        return compile_once(self, *args)

    monkeypatch.setattr(jax.stages.Lowered, "compile", fails_first)
    with pytest.raises(RuntimeError, match="out of luck"):
        li.materialize(tree)
    assert_same(li.materialize(tree), module.init(KEY, 0))
