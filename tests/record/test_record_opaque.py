"""Objects that JAX cannot look into: refused where they hold a traced value, else left alone."""

import collections
import dataclasses
import functools
import gc
import types

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from flax import nnx
from oracles import assert_same

import lazyinit as li
from lazyinit import compat, errors

KEY = models.KEY


class Box:
    """An object that JAX cannot look into."""

    def __init__(self, value):
        self.value = value

    def method(self):
        return self.value


class Slotted:
    __slots__ = ("__hidden", "__weakref__", "inner", "unset")

    def __init__(self, inner):
        self.inner = inner


class Inherits(Slotted):
    __slots__ = ()


class Hides(Slotted):
    __slots__ = ()

    def __init__(self, inner):
        self._Slotted__hidden = inner


class Computes(Box):
    """Would run code of its own if it were asked for more than what it holds."""

    def __getattr__(self, name):
        raise RuntimeError(name)

    @property
    def computed(self):
        raise RuntimeError


@flax.struct.dataclass
class Struct:
    weight: jax.Array
    note: object = flax.struct.field(pytree_node=False)


def closure(value):
    return lambda: value


def with_default(value):
    return lambda x=value: x


def with_keyword(value):
    return lambda *, x=value: x


def cyclic(value):
    box = Box({})
    box.value.update(self=box, array=value)
    return box


def objects(value):
    array = np.empty((1, 2), object)
    array[0, 1] = value
    return array


def nested(times):
    return lambda x: functools.reduce(lambda inner, _: Box(inner), range(times), x)


HOLD = {
    "attribute": (Box, r"\.value"),
    "containers": (lambda x: Box({"a": [x]}), r"\.value\['a'\]\[0\]"),
    "read-only mapping": (lambda x: types.MappingProxyType({"a": x}), r"\['a'\]"),
    "set": (lambda x: {Box(x)}, r"\[0\]\.value"),
    "deque": (lambda x: collections.deque([x]), r"\[0\]"),
    "slot": (Slotted, r"\.inner"),
    "inherited slot": (Inherits, r"\.inner"),
    "private slot": (Hides, r"\._Slotted__hidden"),
    "slot of attribute": (lambda x: Slotted(Box(x)), r"\.inner\.value"),
    "cycle": (cyclic, r"\.value\['array'\]"),
    "closure": (closure, r"\.value"),
    "default": (with_default, r"\.__defaults__\[0\]"),
    "keyword default": (with_keyword, r"\.__kwdefaults__\['x'\]"),
    "argument of partial": (lambda x: functools.partial(jnp.add, x), r"\.args\[0\]"),
    "keyword of partial": (lambda x: functools.partial(jnp.add, y=x), r"\.keywords\['y'\]"),
    "function of partial": (lambda x: functools.partial(closure(x)), r"\.func\.value"),
    "bound method": (lambda x: Box(x).method, r"\.__self__\.value"),
    "jit": (lambda x: jax.jit(closure(x)), r"\.__wrapped__\.value"),
    "array of objects": (objects, r"\[1\]"),
    "unbound module": (lambda x: nn.Dense(3, kernel_init=closure(x)), r"\.kernel_init\.value"),
    "four deep": (nested(4), r"\.value\.value\.value\.value"),
}


@pytest.mark.parametrize("name", HOLD)
def test_an_object_that_holds_an_array_out_of_sight_is_refused_with_its_path(name):
    wrap, where = HOLD[name]

    def make(key):
        return {"w": jax.random.normal(key, (3,)), "box": [wrap(jax.random.normal(key, (3,)))]}

    with pytest.raises(li.errors.RecordError, match=rf"^box/0: .* holds an array in {where}, "):
        li.lazy(make)(KEY)
    with pytest.raises(TypeError, match="is not a valid JAX type"):
        jax.eval_shape(make, KEY)


CANNOT_BE_CHANGED = {
    "deque", "default", "argument of partial", "array of objects", "read-only mapping",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(HOLD) - CANNOT_BE_CHANGED))
def test_an_array_that_depends_on_no_key_stands_in_an_object_as_in_eager_jax(name):
    wrap, _ = HOLD[name]
    held = []

    def make(key):
        held.append(wrap(jnp.arange(3.0) * 2))
        return {"w": jax.random.normal(key, (3,)), "box": held[-1]}

    tree = li.lazy(make)(KEY)
    assert tree["box"] is held[0]
    # A jitted function leads to arrays of JAX's own, too.
    arrays = [x for x in reachable(held[0]) if isinstance(x, jax.Array)]
    found = [x for x in arrays if x.shape == (3,) and x.dtype == np.float32]
    assert found
    for x in found:
        assert not compat.is_tracer(x)
        np.testing.assert_array_equal(x, np.arange(3.0) * 2)


def reachable(x):
    """Yields what the garbage collector knows that an object holds, nine deep."""
    level, seen = [x], set()
    for _ in range(9):
        level = [y for z in level for y in gc.get_referents(z) if id(y) not in seen]
        level = [y for y in level if not isinstance(y, types.ModuleType | type)]
        seen.update(map(id, level))
        yield from level


@pytest.mark.parametrize("name", sorted(CANNOT_BE_CHANGED))
def test_what_cannot_be_changed_is_refused_whatever_its_array_depends_on(name):
    wrap, where = HOLD[name]
    with pytest.raises(errors.RecordError, match=rf"^box: .* holds an array in {where}, "):
        li.lazy(lambda key: {"w": key, "box": wrap(jnp.arange(3.0))})(KEY)


def test_an_initializer_that_closes_over_a_constant_makes_parameters_again_later():
    class Scaled(nnx.Module):
        def __init__(self, rngs):
            scale = jnp.linspace(0.5, 1.5, 64)
            self.kernel_init = lambda key, shape: jax.random.normal(key, shape) * scale
            self.kernel = nnx.Param(self.kernel_init(rngs.params(), (4, 64)))

    graphdef, state = li.lazy(Scaled)(nnx.Rngs(0))
    model = nnx.merge(graphdef, li.materialize(state))
    want = Scaled(nnx.Rngs(0))
    assert_same(nnx.state(model), nnx.state(want))
    assert_same(model.kernel_init(KEY, (2, 64)), want.kernel_init(KEY, (2, 64)))


def test_an_initializer_that_closes_over_what_depends_on_a_key_or_a_shape_is_refused():
    class Scaled(nnx.Module):
        def __init__(self, rngs, x):
            self.kernel_init = lambda key, shape: jax.random.normal(key, shape) * x

    for x in (jax.ShapeDtypeStruct((64,), "float32"), jax.random.key(1)):
        with pytest.raises(errors.RecordError, match=r"^kernel_init: .* holds an array in \.x, "):
            li.lazy(Scaled)(nnx.Rngs(0), x)


def test_looking_into_an_object_runs_no_code_of_its_own():
    with pytest.raises(li.errors.RecordError, match=r"^0: .* holds an array in \.value, "):
        li.lazy(lambda key: [Computes(jax.random.normal(key))])(KEY)


def test_an_object_that_is_all_that_is_returned_is_refused_too():
    with pytest.raises(li.errors.RecordError, match=r"^what is returned: wanted .* got a Box that"):
        li.lazy(lambda key: Box(jax.random.normal(key)))(KEY)


def test_a_variable_of_linen_that_holds_an_array_out_of_sight_is_refused():
    def body(self, x):
        self.param("w", nn.initializers.normal(), (3,))
        self.variable("cache", "box", lambda: Box(jax.random.normal(self.make_rng("params"))))

    with pytest.raises(li.errors.RecordError, match=r"^cache/box: wanted .* got a Box that holds"):
        li.lazy(models.Wrap(body)).init(KEY, models.X)


class WithBox(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 3, rngs=rngs)
        self.box = Box(jax.random.normal(rngs.params()))


class Around(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(2, 3, rngs=rngs), WithBox(rngs)])


def among_others(rngs):
    return {"m": WithBox(rngs)}


@pytest.mark.parametrize(
    ("module", "path"),
    [(WithBox, "box"), (Around, "layers/1/box"), (among_others, "m/box")],
)
def test_an_attribute_of_an_nnx_module_that_holds_an_array_out_of_sight_is_refused(module, path):
    message = rf"^{path}: .*a Box that holds an array in \.value"
    with pytest.raises(li.errors.RecordError, match=message):
        li.lazy(module)(nnx.Rngs(0))


def noted(rngs):
    return nnx.split(nnx.Dict(p=nnx.Param(jnp.ones(3), note=drawn(rngs))))[1]


def drawn(rngs):
    return jax.random.normal(rngs.params(), (3,))


STATICS = {
    "static field": (lambda rngs: {"s": Struct(jnp.ones(3), Box(drawn(rngs)))}, "s", "Struct"),
    "function of Partial": (
        lambda rngs: [0, jax.tree_util.Partial(closure(drawn(rngs)))],
        "1",
        "Partial",
    ),
    "metadata of a variable": (noted, "p", "Param"),
    "graph definition": (lambda rngs: nnx.split(Around(rngs)), "0", "GraphDef"),
    "whole": (lambda rngs: Struct(jnp.ones(3), drawn(rngs)), "what is returned", "Struct"),
}


@pytest.mark.parametrize("name", STATICS)
def test_a_pytree_that_holds_an_array_beside_its_leaves_is_refused_with_its_path(name):
    make, path, kind = STATICS[name]
    message = rf"^{path}: wanted arrays as leaves, got a {kind} that holds one in what JAX takes"
    with pytest.raises(li.errors.RecordError, match=message):
        li.lazy(make)(nnx.Rngs(0))


def test_objects_without_a_traced_value_pass_as_they_are():
    class Meta:
        held = jnp.ones(2)

    kept = {
        "box": Box(np.ones(3)), "text": "x", "bytes": b"x", "number": 3, "float": 0.5, "flag": True,
        "dtype": jnp.dtype("bfloat16"), "scalar type": jnp.float32, "numpy": np.float32(3),
        "function": closure(jnp.ones(2)), "slots": Slotted(3), "class": Meta, "object": Meta(),
        "module": jnp, "initializer": nn.initializers.normal(), "linen": nn.Dense(3),
        "jit": jax.jit(jnp.sin), "mesh": jax.make_mesh((1,), ("a",)),
        "own getattr": Computes(1), "shape": jax.ShapeDtypeStruct((2,), "float32"),
        "sharding": jax.sharding.SingleDeviceSharding(jax.devices()[0]), "slice": slice(1, 2),
    }  # fmt: skip
    strings = np.array(["a", "b"], object)
    made = li.lazy(
        lambda key: {**kept, "none": None, "strings": strings, "w": jax.random.normal(key, (3,))}
    )(KEY)
    assert {name: made[name] for name in kept} == kept
    assert made["none"] is None
    assert made["strings"] is strings
    assert isinstance(made["w"], li.LazyParam)


def test_an_nnx_module_keeps_what_is_no_array():
    class Module(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(2, 3, rngs=rngs)
            self.act, self.init = nnx.relu, nnx.initializers.normal(0.1)
            self.box, self.dtype, self.none = Box(np.ones(2)), jnp.bfloat16, None
            self.host, self.text = np.arange(3), "x"

    graphdef, state = li.lazy(Module)(nnx.Rngs(0))
    made = nnx.merge(graphdef, li.materialize(state))
    assert (made.act, made.dtype, made.none, made.text) == (nnx.relu, jnp.bfloat16, None, "x")
    np.testing.assert_array_equal(made.box.value, np.ones(2))
    np.testing.assert_array_equal(made.host, np.arange(3))


def test_the_search_ends_four_deep():
    make = lambda key: {"box": nested(5)(jax.random.normal(key))}  # noqa: E731
    assert isinstance(li.lazy(make)(KEY)["box"], Box)


def test_an_object_that_holds_a_value_of_a_trace_around_passes_as_in_that_trace():
    @jax.jit
    def double(x):
        tree = li.lazy(lambda key: {"box": Box(x), "w": jax.random.normal(key, (3,))})(KEY)
        assert tree["box"].value is x
        return tree["box"].value * 2

    assert double(3.0) == 6.0


def test_an_object_of_a_recording_within_one_is_refused_by_the_outer_one():
    def make(key):
        inner = li.lazy(lambda k: {"box": Box(key), "w": jax.random.normal(k)})(KEY)
        assert inner["box"].value is key
        return inner

    with pytest.raises(li.errors.RecordError, match=r"^box: .* holds an array in \.value"):
        li.lazy(make)(KEY)


def test_a_registered_class_is_recorded():
    @functools.partial(jax.tree_util.register_dataclass, data_fields=["value"], meta_fields=["n"])
    @dataclasses.dataclass
    class Registered:
        value: jax.Array
        n: int

    made = li.lazy(lambda key: Registered(jax.random.normal(key, (3,)), 2))(KEY)
    assert isinstance(made.value, li.LazyParam)
    assert made.n == 2
