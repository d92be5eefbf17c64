"""Initializers of JAX that are traced once, and what they did done again."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import models
import pytest
from oracles import assert_same

import lazyinit as li
from lazyinit import compat

KEY = models.KEY


@pytest.fixture
def sampled(monkeypatch):
    """Counts how often the normal initializer of JAX draws numbers."""
    calls = []
    from jax._src.nn import initializers

    # Since jax 0.11 it has a function of its own for it.
    place, name = (initializers, "_scaled_normal")
    if not hasattr(place, name):
        place, name = initializers.random, "normal"
    real = getattr(place, name)
    monkeypatch.setattr(place, name, lambda *a, **k: calls.append(a) or real(*a, **k))
    return calls


def wrap(*inits, shape=(4, 3)):
    def body(self, x):
        for n, init in enumerate(inits):
            self.param(f"w{n}", init, shape)

    return models.Wrap(body)


def test_equal_initializers_of_jax_are_called_once(sampled):
    normal = nn.initializers.normal
    module = wrap(normal(0.02), normal(0.02), normal(0.02))
    tree = li.lazy(module).init(KEY, 0)
    assert len(sampled) == 1
    assert_same(li.materialize(tree), module.init(KEY, 0))


def test_each_leaf_is_a_leaf_of_its_own():
    module = wrap(nn.initializers.zeros, nn.initializers.zeros, nn.initializers.ones)
    made = li.materialize(li.lazy(module).init(KEY, 0))["params"]
    assert made["w0"] is not made["w1"]
    scalars = wrap(nn.initializers.zeros, nn.initializers.zeros, shape=())
    made = li.materialize(li.lazy(scalars).init(KEY, 0))
    assert_same(made, scalars.init(KEY, 0))
    assert made["params"]["w0"] is not made["params"]["w1"]


def test_another_scale_shape_dtype_or_setting_is_another_call(sampled):
    normal = nn.initializers.normal

    def body(self, x):
        self.param("a", normal(0.02), (3,))
        self.param("b", normal(0.03), (3,))
        self.param("c", normal(0.02), (4,))
        self.param("d", normal(0.02), (3,), "bfloat16")
        self.param("e", normal(1), (3,))
        self.param("f", normal(1.0), (3,))
        with jax.threefry_partitionable(False):
            self.param("g", normal(0.02), (3,))

    module = models.Wrap(body)
    tree = li.lazy(module).init(KEY, 0)
    assert len(sampled) == 7
    assert_same(li.materialize(tree), module.init(KEY, 0))


# Some of these are equal in Python, and yet make other leaves: a scale of -0.0 turns all signs.
NUMBERS = (0.0, -0.0, 0, False, 1, 1.0, True, float("nan"), -float("nan"))
INITIALIZERS = {
    "normal": nn.initializers.normal,
    "uniform": nn.initializers.uniform,
    "truncated_normal": lambda x: nn.initializers.truncated_normal(0.1, lower=-2.0, upper=x),
    "constant": nn.initializers.constant,
    "constant, complex": lambda x: nn.initializers.constant(x * (1 + 1j), "complex64"),
}


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("name", sorted(INITIALIZERS))
def test_numbers_that_are_equal_in_python_make_leaves_of_their_own(name, order):
    module = wrap(*map(INITIALIZERS[name], NUMBERS[::order]))
    assert_same(li.materialize(li.lazy(module).init(KEY, 0)), module.init(KEY, 0))


def test_what_others_wrote_is_called_each_time():
    counts = iter(range(9))

    def counting(key, shape):
        return jnp.full(shape, next(counts))

    made = li.materialize(li.lazy(wrap(counting, counting)).init(KEY, 0))["params"]
    assert (made["w0"][0, 0], made["w1"][0, 0]) == (0, 1)


def test_an_initializer_that_closes_over_an_array_is_called_each_time(sampled):
    scale = jnp.arange(3.0)
    module = wrap(nn.initializers.normal(scale), nn.initializers.normal(scale))
    assert_same(li.materialize(li.lazy(module).init(KEY, 0)), module.init(KEY, 0))
    tree = li.lazy(module).init(KEY, 0)
    assert_same(li.materialize(tree), module.init(KEY, 0))


@pytest.mark.parametrize(
    "name", ["orthogonal", "delta_orthogonal", "lecun_normal", "he_uniform", "xavier_normal"]
)
def test_any_initializer_of_jax_keeps_its_bits(name):
    init = getattr(nn.initializers, name)
    shape = (3, 4, 4) if name == "delta_orthogonal" else (4, 4)
    module = wrap(init(), init(), init(), shape=shape)
    assert_same(li.materialize(li.lazy(module).init(KEY, 0)), module.init(KEY, 0))


def test_outside_of_a_recording_it_is_a_plain_call():
    init = nn.initializers.normal(0.02)
    assert_same(compat.call(init, KEY, (3,)), init(KEY, (3,)))


def test_a_key_is_counted_and_folded_as_flax_does():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.param("a", nn.initializers.normal(), (3,))
            y = jax.random.normal(self.make_rng("noise"), (3,))
            z = jax.random.normal(self.make_rng("params"), (3,))
            return self.param("b", lambda key: jax.random.normal(key, (3,)) + y + z)

    for keys in ({"params": KEY, "noise": jax.random.key(8)},
                 {"params": jax.random.PRNGKey(3), "noise": jax.random.PRNGKey(4)},
                 {"params": KEY}):  # fmt: skip
        assert_same(li.materialize(li.lazy(Two()).init(keys, 0)), Two().init(keys, 0))
