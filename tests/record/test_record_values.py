"""Models whose Python code looks at values: they are computed on demand while recording."""

import gc

import flax.linen as nn
import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from flax import nnx
from oracles import assert_same, large_arrays_since, live

import lazyinit as li

KEY = jax.random.key(7)
X = models.X


class Branching(nn.Module):
    """Branches on what it computes from its input and from its parameters."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x)
        x = nn.Dense(8, name="positive" if x.sum() > 0 else "negative")(x)
        for _ in range(1 + int(jnp.argmax(x[0]))):
            x = nn.Dense(8)(x)
        if np.asarray(x).std() > 1e9:
            x = nn.Dense(4)(x)
        return x


@pytest.mark.parametrize("seed", range(4))
def test_a_branch_on_a_computed_value_goes_as_in_eager_init(seed):
    key = jax.random.key(seed)
    want = Branching().init(key, X)
    tree = li.lazy(Branching()).init(key, X)
    assert all(isinstance(x, li.LazyParam) for x in jax.tree.leaves(tree))
    assert_same(li.materialize(tree), want)


def test_what_is_computed_on_demand_is_let_go():
    before = live()
    tree = li.lazy(Branching()).init(KEY, X)
    gc.collect()
    assert not large_arrays_since(before)
    del tree


def test_a_branch_on_what_has_no_value_says_what_it_depends_on_and_where():
    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Branching(name="inner")(x)

    with pytest.raises(li.errors.RecordError) as error:
        li.lazy(Outer()).init(KEY, jax.ShapeDtypeStruct(X.shape, X.dtype))
    message = str(error.value)
    assert message.startswith("lazy(Outer).init: ")
    assert "computed from argument 0, in Outer/inner" in message
    assert "Pass an array in place of a shape" in message
    assert isinstance(error.value.__cause__, jax.errors.TracerBoolConversionError)


def test_a_branch_inside_of_a_scan_says_what_to_do():
    class Module(nn.Module):
        @nn.compact
        def __call__(self, x):
            def step(carry, y):
                return (carry if y.sum() > 0 else carry + 1), y

            return jax.lax.scan(step, 0.0, x)

    with pytest.raises(li.errors.RecordError, match=r"lazy\(Module\)\.init: .* do not branch on"):
        li.lazy(Module()).init(KEY, X)


@pytest.mark.parametrize(
    "init",
    [
        lambda key: np.asarray(jax.random.normal(key, (8,))),
        lambda key: jnp.ones(int(jax.random.randint(key, (), 1, 5))),
        lambda key: float(jax.random.normal(key, ())),
        lambda key: np.random.default_rng(np.asarray(jax.random.key_data(key))).normal(size=8),
        lambda key: jax.random.normal(key, (8,)).tolist(),
        lambda key: list(range(8))[jax.random.randint(key, (), 0, 8)],
        lambda key: jnp.ones(8)[jax.random.normal(key, (8,)) > 0],
        lambda key: jnp.repeat(jnp.arange(3.0), jax.random.randint(key, (3,), 1, 4)),
        lambda key: jax.random.normal(key, (3,)) * jax.random.normal(key, ()).item(),
    ],
    ids=[
        "asarray",
        "int",
        "float",
        "numpy rng",
        "tolist",
        "index",
        "boolean mask",
        "repeat",
        "item",
    ],
)
def test_an_initializer_may_take_its_key_to_the_host(init):
    module = models.Wrap(lambda self, x: self.param("w", init))
    want = module.init(KEY, X)
    assert_same(li.materialize(li.lazy(module).init(KEY, X)), want)


def test_a_constructor_of_nnx_may_look_at_values():
    class Net(nnx.Module):
        def __init__(self, rngs):
            width = int(jax.random.randint(rngs.params(), (), 3, 9))
            self.linear = nnx.Linear(4, width, rngs=rngs)

    want = nnx.state(Net(nnx.Rngs(5)))
    _, state = li.lazy(Net)(nnx.Rngs(5))
    assert_same(nnx.to_pure_dict(li.materialize(state)), nnx.to_pure_dict(want))


def test_a_function_may_look_at_values():
    def make(key, n):
        w = jax.random.normal(key, (4, 4))
        return {"w": w / max(float(jnp.abs(w).max()), 1.0), "n": n}

    assert_same(li.materialize(li.lazy(make)(KEY, 3)), make(KEY, 3))
