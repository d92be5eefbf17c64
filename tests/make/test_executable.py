"""Compiled programs: one per signature, dtype and sharding, kept for the next call."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import flax.linen as nn
import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from oracles import assert_same

import lazyinit as li
from lazyinit import sharding as shardings
from lazyinit.make import executable
from lazyinit.make.executable import Argument, Compiler, encode
from lazyinit.make.proofs import TRUSTED
from lazyinit.program.slices import gather
from lazyinit.program.small_values import SmallValues

MESH = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
KEY = models.KEY


@pytest.fixture
def compiled(monkeypatch):
    """Counts compilations of a fresh compiler."""
    lowered = []
    monkeypatch.setattr(executable, "compiler", Compiler())
    for name in ("_lower", "_lower_sheet"):
        real = getattr(executable, name)
        count = lambda *a, real=real: lowered.append(a) or real(*a)  # noqa: E731
        monkeypatch.setattr(executable, name, count)
    return lowered


def test_a_deep_model_compiles_as_many_programs_as_a_shallow_one(compiled):
    li.materialize(li.lazy(models.Decoder(1)).init(KEY, models.TOKENS))
    shallow = len(compiled)
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


SHARDINGS = [None, NamedSharding(MESH, P()), NamedSharding(MESH, P("a"))]


def test_another_shape_or_sharding_compiles_nothing_where_an_element_follows_from_its_index(
    compiled,
):
    def body(self, x):
        for shape in ((8, 64), (4, 2, 66), (72,)):
            self.param(f"w{shape[0]}", lambda key, shape=shape: jax.random.normal(key, shape) * 2)

    tree = li.lazy(models.Wrap(body)).init(KEY, 0)
    for sharding in SHARDINGS:
        li.materialize(tree, sharding=sharding)
    assert len(compiled) == 1
    li.materialize(tree, dtype="bfloat16")
    assert len(compiled) == 2


def test_one_value_throughout_compiles_nothing(compiled):
    def body(self, x):
        self.param("zeros", nn.initializers.zeros, (8, 4))
        self.param("sevens", nn.initializers.constant(7.5), (8,), "bfloat16")

    module = models.Wrap(body)
    assert_same(li.materialize(li.lazy(module).init(KEY, 0)), module.init(KEY, 0))
    assert not compiled


@pytest.fixture
def on_accelerators(monkeypatch):
    """Lets CPU devices pass for ones of a kind on which each signature is compiled."""
    monkeypatch.setattr(shardings, "platform_of", lambda _: "gpu")
    monkeypatch.setattr(sys.modules["lazyinit._materialize"], "proofs_on", lambda *_: TRUSTED)


def test_another_dtype_or_sharding_compiles_another_program(compiled, on_accelerators):
    module = models.Wrap(lambda self, x: self.param("w", nn.initializers.normal(0.02), (8, 4)))
    tree = li.lazy(module).init(KEY, 0)
    for kwargs in ({"dtype": "bfloat16"}, *({"sharding": s} for s in SHARDINGS)):
        before = len(compiled)
        for _ in range(2):
            li.materialize(tree, **kwargs)
        assert len(compiled) == before + 1, kwargs


def test_another_default_device_compiles_another_program(compiled, on_accelerators):
    module = models.Wrap(lambda self, x: self.param("w", nn.initializers.normal(0.02), (8, 4)))
    tree = li.lazy(module).init(KEY, 0)
    li.materialize(tree)
    with jax.default_device(jax.devices()[2]):
        made = li.materialize(tree)
    assert len(compiled) == 2
    assert made["params"]["w"].devices() == {jax.devices()[2]}


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
    huge = (1 << 24, 1 << 14)
    module = models.Wrap(lambda self, x: self.param("w", lambda key: jnp.ones(huge).cumsum(0)))
    tree = li.lazy(module).init(KEY, 0)
    for _ in range(2):
        with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED|memory"):
            li.materialize(tree)


def test_a_program_that_failed_to_compile_is_compiled_anew(monkeypatch):
    # Steps that the self-check proves, as no other test takes them: its program is not there yet.
    def init(key):
        return jnp.sign(jnp.floor(jnp.sqrt(jax.random.uniform(key, (3, 77)) + 1)) - 1.25)

    module = models.Wrap(lambda self, x: self.param("w", init))
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


def test_what_was_being_compiled_when_another_leaf_failed_can_be_made_later():
    # More programs than threads that compile, but on a large machine.
    sizes = range(9, 11 + min(14, os.cpu_count() or 1))

    def body(self, x):
        for n in sizes:
            self.param(f"w{n}", nn.initializers.orthogonal(1.5), (n, n))
        self.param("huge", nn.initializers.ones, (1 << 24, 1 << 24))

    module = models.Wrap(body)
    tree = li.lazy(module).init(KEY, 0)
    with pytest.raises(MemoryError, match=r"^params/huge: "):
        li.materialize(tree)
    made = li.materialize(tree, "params/w*")["params"]
    for n in sizes:
        assert made[f"w{n}"].shape == (n, n)
