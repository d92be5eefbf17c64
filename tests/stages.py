"""A model of two stages, each for half of the devices: none is in both."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import lazyinit as li


def model(key):
    def stage(key):
        keys = jax.random.split(key, 3)
        return {
            "kernel": jax.random.normal(keys[0], (64, 128)),
            "everywhere": jnp.tanh(jax.random.normal(keys[1], (16, 64))),
            "bias": jnp.ones(16),
            "turn": jnp.linalg.qr(jax.random.normal(keys[2], (16, 16)))[0],
        }

    first, second = jax.random.split(key)
    return {"first": stage(first), "second": stage(second)}


def lazy():
    return li.lazy(model)(jax.random.key(0))


def placed(devices):
    half = len(devices) // 2
    meshes = {
        "first": Mesh(np.array(devices[:half]), ("x",)),
        "second": Mesh(np.array(devices[half:]), ("x",)),
    }

    def place(path, leaf):
        stage, _, name = path.partition("/")
        return NamedSharding(meshes[stage], P("x") if name == "kernel" else P())

    return place


def everywhere(devices):
    return NamedSharding(Mesh(np.array(devices), ("x",)), P())
