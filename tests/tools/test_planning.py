"""What is planned, and on how small a mesh: against a search of all meshes."""

import itertools
import sys

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from oracles import assert_same
from safetensors.numpy import save_file

import lazyinit as li
from lazyinit.abstract_meshes import mesh_of
from lazyinit.errors import CheckpointError, PlanError, ShardingError
from lazyinit.tools.planning import optimizer_of, smallest_mesh, tree_of

FACTORIES = """
import flax.linen as nn, jax, jax.numpy as jnp, optax
from flax import nnx
import lazyinit as li

class Model(nnx.Module):
    def __init__(self, width=64, *, rngs):
        self.linear = nnx.Linear(width, 128, rngs=rngs)

class Small(nnx.Module):
    def __init__(self):
        self.linear = nnx.Linear(8, 16, rngs=nnx.Rngs(0))

def of_nnx():
    return Model(rngs=nnx.Rngs(0))

def of_linen():
    return nn.Dense(128).init(jax.random.key(0), jnp.zeros((1, 64)))

def of_shapes():
    return jax.eval_shape(of_linen)

class Held:
    @staticmethod
    def make(width=64):
        return {"w": jnp.zeros((width, 2))}

def module():
    return nn.Dense(128)

def needs(width, *, key):
    return jnp.zeros(width)

def fails():
    raise ValueError("no such width.")

def lazily():
    return li.lazy(nn.Dense(128)).init(jax.random.key(0), jnp.zeros((1, 64)))

NUMBER = 3
TX = optax.chain(optax.clip(1.0), optax.adam(1e-3))
"""


@pytest.fixture(autouse=True)
def factories(tmp_path, monkeypatch):
    (tmp_path / "its_factories.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("its_factories", None)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("of_nnx", {"linear/bias": (128,), "linear/kernel": (64, 128)}),
        ("Small", {"linear/bias": (16,), "linear/kernel": (8, 16)}),
        ("of_linen", {"params/bias": (128,), "params/kernel": (64, 128)}),
        ("of_shapes", {"params/bias": (128,), "params/kernel": (64, 128)}),
        ("Held.make", {"w": (64, 2)}),
    ],
)
def test_a_factory_is_recorded(name, shapes):
    planned = li.plan(tree_of(f"its_factories:{name}"), "a=8")
    assert {leaf.path: leaf.shape for leaf in planned.leaves} == shapes


def test_a_checkpoint_is_planned_by_itself(tmp_path):
    tensors = {"a.weight": jax.numpy.ones((8, 4)), "b": jax.numpy.ones(3)}
    save_file({name: jax.device_get(x) for name, x in tensors.items()}, tmp_path / "x.safetensors")
    planned = li.plan(tree_of(str(tmp_path / "x.safetensors")))
    assert [(leaf.path, leaf.action) for leaf in planned.leaves] == [
        ("a.weight", "load"),
        ("b", "load"),
    ]
    with pytest.raises(CheckpointError, match="^nowhere: there is no such file or folder"):
        tree_of("nowhere")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "wanted package.module:NAME: module 'its_factories' has no attribute 'none'."),
        ("NUMBER", "wanted a function without arguments, got int."),
        ("needs", "wanted a function without arguments, got one that needs width, key. Write one"),
        ("Model", "wanted a function without arguments, got one that needs rngs. Write one"),
        ("module", "wanted a factory that makes an NNX module, or returns arrays, got one that r"),
        ("fails", "it failed while it was recorded: no such width. It should make the model as"),
    ],
)
def test_what_is_no_factory_is_refused(name, message):
    with pytest.raises(PlanError) as caught:
        tree_of(f"its_factories:{name}")
    assert str(caught.value).startswith(f"its_factories:{name}: {message}")


def test_a_factory_may_return_what_it_has_recorded_itself():
    leaf = tree_of("its_factories:lazily")["params"]["kernel"]
    want = nn.Dense(128).init(jax.random.key(0), np.zeros((1, 64)))["params"]["kernel"]
    assert_same(li.materialize(leaf), want)


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(PlanError, match=r"^not_there\.at_all:f: wanted package.module:NAME: No m"):
        tree_of("not_there.at_all:f")


def test_optimizers_are_named():
    params = {"w": jax.ShapeDtypeStruct((8,), "float32")}
    for name, wanted in (("adamw", optax.adamw(1e-3)), ("its_factories:TX", optax.adam(1e-3))):
        made = jax.eval_shape(optimizer_of(name).init, params)
        wanted = jax.eval_shape(wanted.init, params)
        sizes = [sum(x.size for x in jax.tree.leaves(state)) for state in (made, wanted)]
        assert sizes[0] == sizes[1]
    with pytest.raises(PlanError, match=r"^--optimizer adamm: .*did you mean 'adam"):
        optimizer_of("adamm")
    with pytest.raises(PlanError, match=r"^--optimizer multi_transform: wanted an optimizer tha"):
        optimizer_of("multi_transform")


ZEROS = jax.nn.initializers.zeros
TREE = {
    "w": li.LazyParam((96, 64), "float32", ZEROS),
    "v": li.LazyParam((64, 8), "float32", ZEROS),
}


@pytest.mark.parametrize("memory", [100_000, 40_000, 20_000, 10_000, 4_000, 1_500])
@pytest.mark.parametrize("start", ["a=1,b=1", "a=1,b=2"])
def test_no_mesh_of_fewer_devices_fits(memory, start):
    def price(mesh):
        planned = li.plan(TREE, li.shard_by_rules(mesh, {"w": P("a", "b"), "v": P("b", "a")}))
        # Steady bytes alone: how leaves are made is another matter.
        return li.Plan(planned.leaves, planned.bytes_per_device, planned.bytes_per_device)

    sizes = [2**n for n in range(8)]
    fitting = []
    for a, b in itertools.product(sizes, sizes):
        if b < mesh_of(start).shape["b"] or 8 % a or 96 % a or 64 % b:
            continue
        if price(mesh_of(f"a={a},b={b}")).fits(memory):
            fitting.append((a * b, -a))
    found = smallest_mesh(mesh_of(start), price, memory)
    if not fitting:
        assert found is None
        return
    mesh, planned = found
    assert planned.fits(memory)
    assert (mesh.size, -mesh.shape["a"]) == min(fitting)


def test_what_does_not_go_on_the_first_mesh_is_said():
    with pytest.raises(ShardingError, match="no axis 'c'"):
        smallest_mesh(mesh_of("a=1"), lambda mesh: li.plan(TREE, li.shard_fsdp(mesh, "c")), 1)


@pytest.mark.parametrize(("start", "most"), [("a=1", 2), ("a=1,b=1", 5), ("a=1,b=2", 3)])
@pytest.mark.parametrize("specs", [{}, {"w": P("a"), "v": P("b")}])
def test_what_no_larger_mesh_makes_smaller_is_given_up_soon(start, most, specs):
    # "u" alone is too large; no rule cuts it.
    tree = {**TREE, "u": li.LazyParam((3, 1000), "float32", ZEROS)}
    axes = mesh_of(start).axis_names
    rules = {name: P(*(a for a in spec if a in axes)) for name, spec in specs.items()}
    tried = []

    def price(mesh):
        tried.append(mesh.size)
        return li.plan(tree, li.shard_by_rules(mesh, rules))

    assert smallest_mesh(mesh_of(start), price, 11_000) is None
    assert len(tried) <= most + 1
