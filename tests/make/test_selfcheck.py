"""The self-check: what it finds, what follows from it, and what is remembered."""

import json
import sys
import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from jax.nn import initializers
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from oracles import assert_same

import lazyinit as li
from lazyinit import sharding as shardings
from lazyinit.make import elementwise, environment, executable, proofs, selfcheck
from lazyinit.make.executable import Compiler
from lazyinit.make.proofs import Proofs

KEY = models.KEY


def plant(monkeypatch, wrong):
    """Makes a step of what is drawn give other bits: ``wrong`` maps a step and what it gives."""
    real = elementwise._run_step

    def done(step, args, *rest):
        return [x._replace(array=wrong(step, x.array)) for x in real(step, args, *rest)]

    monkeypatch.setattr(elementwise, "_run_step", done)


def one_more_ulp(name):
    def wrong(step, x):
        is_it = step.equation is not None and step.equation.primitive.name == name
        return jnp.nextafter(x, jnp.asarray(jnp.inf, x.dtype)) if is_it else x

    return wrong


def body(self, x):
    self.param("kernel", initializers.normal(0.02), (16, 128))
    self.param("scale", initializers.ones, (128,))
    self.param("uniform", initializers.uniform(0.1), (16, 128))


@pytest.mark.filterwarnings("ignore::lazyinit.errors.LazyinitWarning")
def test_a_planted_wrong_step_is_caught_and_nothing_is_made_by_it(
    monkeypatch, elsewhere, few_canaries
):
    plant(monkeypatch, one_more_ulp("erf_inv"))
    module = models.Wrap(body)
    assert_same(li.materialize(li.lazy(module).init(KEY, 0)), module.init(KEY, 0))
    found = selfcheck.proofs_on("cpu").of("wide")
    assert set(found.failed) == {"draw erf_inv float32", *found.failed}
    assert "draw erf_inv float32" not in found.passed
    assert "draw random_bits uint32" in found.passed  # Shown by simpler canaries.


@pytest.mark.parametrize("spec", [None, P("a")])
def test_a_planted_lost_barrier_is_caught(monkeypatch, elsewhere, spec):
    """As if XLA had dropped what keeps it from fusing: a product and a sum are rounded once."""
    names = ("uniform", "normal", "scaled and moved")
    few = [c for c in selfcheck.CANARIES if c.name in names and "float32" in c.dtypes]
    monkeypatch.setattr(selfcheck, "CANARIES", [replace(c, dtypes=("float32",)) for c in few])
    monkeypatch.setattr(jax.lax, "optimization_barrier", lambda x: x)
    monkeypatch.setattr(elementwise, "_fenced", lambda x, zero: x)

    def init(key):
        return jax.random.normal(key, (64, 128)) * 0.3 + 0.7

    sharding = spec and NamedSharding(jax.make_mesh((8,), ("a",)), spec)
    with pytest.warns(li.LazyinitWarning, match="scaled and moved|normal"):
        made = li.materialize(li.lazy(init)(KEY), sharding=sharding)
    assert_same(np.asarray(made), np.asarray(init(KEY)))


def test_one_warning_says_what_is_slower_and_why(monkeypatch, elsewhere, few_canaries):
    plant(monkeypatch, one_more_ulp("erf_inv"))
    tree = li.lazy(models.Wrap(body)).init(KEY, 0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            li.materialize(tree)
    (warning,) = caught
    text = str(warning.message)
    assert text.startswith("lazyinit on jax ")
    assert "'normal float32'" in text
    assert "draw erf_inv float32" in text
    assert "the same bits, more slowly" in text
    assert "`lazyinit check`" in text


def test_what_no_canary_covers_is_replayed_with_a_warning(elsewhere, few_canaries):
    def init(key):
        return jnp.sin(jax.random.uniform(key, (8, 128)))

    with pytest.warns(li.LazyinitWarning, match="does not cover draw sin float32"):
        assert_same(li.materialize(li.lazy(init)(KEY)), init(KEY))


def test_what_is_found_is_remembered(monkeypatch, elsewhere, few_canaries):
    tree = li.lazy(models.Wrap(body)).init(KEY, 0)
    li.materialize(tree)
    (file,) = elsewhere.iterdir()
    monkeypatch.setattr(selfcheck, "_known", {})  # As in another process.
    monkeypatch.setattr(selfcheck, "run", lambda *_: pytest.fail("checked again"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        li.materialize(tree)
    assert set(json.loads(file.read_text())) == {"where", "passed", "failed"}


def test_rubbish_in_the_cache_is_checked_anew(monkeypatch, elsewhere, few_canaries):
    found = selfcheck.proofs_on("cpu").of("wide")
    (file,) = elsewhere.iterdir()
    for rubbish in ("", "{}", '{"passed": 3}', "[1]", "\x00", '{"passed": [], '):
        file.write_text(rubbish)
        monkeypatch.setattr(selfcheck, "_known", {})
        assert selfcheck.proofs_on("cpu").of("wide") == found
        assert json.loads(file.read_text())["passed"] == sorted(found.passed)


def test_a_folder_that_cannot_be_written_is_checked_each_time(monkeypatch, elsewhere, few_canaries):
    elsewhere.write_text("a file, where a folder should be")
    assert selfcheck.proofs_on("cpu").of("wide").passed
    monkeypatch.setattr(selfcheck, "_known", {})
    assert selfcheck.proofs_on("cpu").of("wide").passed


def test_no_check_runs_where_the_suite_was_run(monkeypatch):
    monkeypatch.setattr(selfcheck, "_known", {})
    monkeypatch.setattr(selfcheck, "run", lambda *_: pytest.fail("checked"))
    here = selfcheck.environment("cpu")
    monkeypatch.setattr(environment, "TESTED_UNITS", frozenset([here.device]))
    monkeypatch.setattr(environment, "TESTED_JAX", (here.jax,))
    monkeypatch.setattr(environment, "_options", lambda: iter(()))
    assert selfcheck.proofs_on("cpu").allow(lambda: pytest.fail("asked"))


@pytest.mark.parametrize(
    ("name", "flags", "seen"),
    [
        ("XLA_FLAGS", "--xla_cpu_max_isa=AVX2 --xla_force_host_platform_device_count=4",
         "--xla_cpu_max_isa=AVX2"),
        ("XLA_FLAGS", "--xla_force_host_platform_device_count=8", ""),
    ],
)  # fmt: skip
def test_compiler_options_make_another_environment(monkeypatch, name, flags, seen):
    monkeypatch.setenv(name, flags)
    assert selfcheck.environment("cpu").options == seen


def test_a_setting_that_replaces_our_compiler_options_makes_another_environment():
    before = jax.config.jax_compiler_enable_remat_pass
    jax.config.update("jax_compiler_enable_remat_pass", False)
    try:
        assert not selfcheck.environment("cpu").is_tested
        assert "remat_pass" in str(selfcheck.environment("cpu"))
    finally:
        jax.config.update("jax_compiler_enable_remat_pass", before)


def test_the_check_is_not_disturbed_by_the_settings_of_the_caller(elsewhere, few_canaries):
    wanted = selfcheck.run("cpu", "wide")
    mesh = jax.make_mesh((8,), ("a",))
    with jax.set_mesh(mesh), jax.enable_x64(True), jax.default_matmul_precision("bfloat16"):
        assert selfcheck.run("cpu", "wide") == wanted


def test_check_prints_a_table(monkeypatch, few_canaries):
    found = li.check()
    assert found.where.startswith(f"jax {jax.__version__}, cpu")
    assert "erf_inv" in str(found)
    assert "draw erf_inv float32" in found.passed
    assert not found.failed


def test_check_true_compares_every_leaf_with_replay(monkeypatch):
    module = models.Wrap(body)
    tree = li.lazy(module).init(KEY, 0)
    mesh = jax.make_mesh((8,), ("a",))
    for sharding in (None, NamedSharding(mesh, P(None, "a"))):
        kernel = li.materialize(tree, "**/kernel", sharding, check=True)["params"]["kernel"]
        assert_same(np.asarray(kernel), np.asarray(module.init(KEY, 0)["params"]["kernel"]))
    monkeypatch.setattr(executable, "compiler", Compiler())
    plant(monkeypatch, one_more_ulp("erf_inv"))
    monkeypatch.setattr(
        sys.modules["lazyinit._materialize"], "proofs_on", lambda *_: proofs.TRUSTED
    )
    with pytest.raises(
        li.errors.BitsError, match=r"^params/kernel: wanted the bits of its replay, got \d+ of 2048"
    ):
        li.materialize(tree, check=True)


def test_check_true_of_a_leaf_without_a_value_is_the_usual_error():
    tree = li.lazy(models.Wrap(lambda self, x: self.param("w", lambda key: x * 2))).init(
        KEY, jax.ShapeDtypeStruct((3,), "float32")
    )
    with pytest.raises(li.errors.AbstractInputError, match=r"^params/w: "):
        li.materialize(tree, check=True)


@pytest.mark.filterwarnings("ignore::lazyinit.errors.LazyinitWarning")
@pytest.mark.slow
def test_on_other_devices_programs_of_their_own_are_checked(monkeypatch):
    """CPU devices pass for a GPU here: what XLA fuses on them decides what is compiled."""
    here = selfcheck.environment("cpu")
    monkeypatch.setattr(selfcheck, "environment", lambda _: here)
    real = jax.local_devices
    monkeypatch.setattr(jax, "local_devices", lambda *a, **k: real())
    monkeypatch.setattr(shardings, "platform_of", lambda _: "gpu")
    names = ("uniform", "comparisons", "normal", "truncated normal", "scaled and moved")
    few = [c for c in selfcheck.CANARIES if c.name in names and "float32" in c.dtypes]
    monkeypatch.setattr(selfcheck, "CANARIES", [replace(c, dtypes=("float32",)) for c in few])
    found = selfcheck.run("gpu", "wide")
    kinds = {*found.passed, *found.failed}
    assert {"compile erf_inv float32", "compile random_bits uint32"} <= kinds
    assert all(kind.startswith("compile") for kind in kinds)
    monkeypatch.setattr(
        sys.modules["lazyinit._materialize"],
        "proofs_on",
        lambda _: Proofs("here", of=lambda _: found),
    )

    def init(key):
        return jax.random.normal(key, (64, 128)) * 0.3 + 0.7

    cut = NamedSharding(jax.make_mesh((8,), ("a",)), P("a"))
    for sharding in (None, cut):
        made = li.materialize(li.lazy(init)(KEY), sharding=sharding)
        assert_same(np.asarray(made), np.asarray(init(KEY)))
