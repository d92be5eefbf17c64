"""Digests of programs are the same for two recordings, here and in another process."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import Decoder

import lazyinit as li
from lazyinit.program import stable

KEY = jax.random.key(0)
TOLD = """
import jax, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_stable
print(*test_stable.told())
"""


def slice_of(init, key=KEY):
    return li.lazy(lambda key: {"w": init(key)})(key)["w"].init_fn


def told():
    """Returns the digest of a program with jits, scans, constants and functions, and of its leaves."""
    ids = jax.ShapeDtypeStruct((1, 4), "int32")
    tree = li.lazy(Decoder(layers=2)).init(KEY, ids)
    own = slice_of(scanned)
    leaves = [x.init_fn for x in jax.tree.leaves(tree)]
    whole = [stable.digest(made.program).hex() for made in (leaves[0], own)]
    return whole + [stable.steps_of(made) for made in (*leaves, own)]


@jax.custom_jvp
def doubled(x):
    return x * 2.0


doubled.defjvp(lambda x, t: (doubled(*x), t[0]))


def scanned(key):
    offsets = np.arange(200, dtype=np.float32)

    def step(carry, key):
        return carry + doubled(jax.random.normal(key)), carry + offsets[3]

    return jax.lax.scan(step, 0.0, jax.random.split(key, 4))[1] + offsets[:4]


def test_two_recordings_have_the_same_digests():
    assert told() == told()


@pytest.mark.slow
def test_another_process_has_the_same_digests():
    tests = str(Path(__file__).parent)
    run = [sys.executable, "-c", TOLD.format(tests=tests)]
    environment = {"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "7", "JAX_PLATFORMS": "cpu"}
    said = subprocess.run(run, capture_output=True, text=True, env=environment, check=True)
    assert said.stdout.split() == told()


@pytest.mark.parametrize(
    "other",
    [
        lambda key: jax.random.normal(key, (3,)) * 2.5,
        lambda key: jax.random.normal(key, (3,)) + 2.0,
        lambda key: jax.random.uniform(key, (3,)) * 2.0,
        lambda key: jax.random.normal(key, (3,), jnp.bfloat16) * 2.0,
        lambda key: jax.random.normal(key, (3,)) * jnp.array([2.0, 2.0, 3.0]),
        lambda key: jax.random.normal(jax.random.fold_in(key, 1), (3,)) * 2.0,
        lambda key: jax.jit(lambda k: jax.random.normal(k, (3,)) * 2.0)(key),
        lambda key: jax.jit(lambda k: jax.random.normal(k, (3,)) * 3.0)(key),
    ],
)
def test_other_steps_have_another_digest(other):
    first, second = slice_of(lambda key: jax.random.normal(key, (3,)) * 2.0), slice_of(other)
    assert stable.digest(first.program) != stable.digest(second.program)
    assert stable.steps_of(first) != stable.steps_of(second)


def test_a_body_that_differs_in_a_constant_has_another_digest():
    def init_with(offsets):
        return lambda key: jax.jit(lambda k: jax.random.normal(k, (4,)) + offsets)(key)

    first, second = (slice_of(init_with(np.arange(4.0, dtype="f4") + n)) for n in (0, 1))
    assert stable.digest(first.program) != stable.digest(second.program)
    assert stable.steps_of(first) != stable.steps_of(second)


def test_constants_of_the_same_bytes_are_told_apart_by_shape_and_dtype():
    ones = np.ones(6, np.float32)

    def largest(x):  # Of equations that do not name the shape and dtype of what they take.
        return jax.lax.reduce_max(jax.lax.convert_element_type(x, jnp.int8), range(x.ndim))

    def init_with(*constants):
        return lambda key: jax.random.normal(key, ()) + sum(map(largest, constants))

    whole = ones.view(np.int32)
    held = [(ones.reshape(2, 3),), (ones.reshape(3, 2),), (ones, whole, ones), (ones, whole, whole)]
    assert len({stable.digest(slice_of(init_with(*each)).program) for each in held}) == 4


def test_steps_are_the_same_wherever_in_a_program_they_are():
    def alone(key):
        return {"w": jax.random.normal(key, (3,))}

    def beside(key):
        other = jax.random.uniform(jax.random.fold_in(key, 1), (2,))
        return {"other": other, "w": jax.random.normal(key, (3,))}

    first, second = (li.lazy(init)(KEY)["w"].init_fn for init in (alone, beside))
    assert stable.digest(first.program) != stable.digest(second.program)
    assert stable.steps_of(first) == stable.steps_of(second)
