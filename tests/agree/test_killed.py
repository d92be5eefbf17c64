"""A process that is killed: the others end, and what was on the disk stays whole."""

import signal

import numpy as np
import pytest
from processes import started
from safetensors.numpy import save_file

import lazyinit as li

SHAPE = (16, 256)
NAMES = [f"w{n}" for n in range(8)]

# A process kills itself in the place that `args` names, once the others are at work.
PROGRAM = """
import os, signal, threading, time
import jax.numpy as jnp
import lazyinit as li
from jax.sharding import NamedSharding, PartitionSpec as P
from lazyinit.checkpoint import together
from lazyinit.make import read, spread

when, victim, folder = args
mesh = jax.make_mesh((jax.device_count(),), ("x",))

def here(place, real=lambda *args, **kwargs: None):
    def done(*args, **kwargs):
        if place == when:
            time.sleep(1)
            if rank == int(victim):
                os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return done

def model(key):
    here("recording")()
    keys = jax.random.split(key, 8)
    drawn = {f"w{n}": jax.random.normal(k, (16, 256)) for n, k in enumerate(keys)}
    return drawn | {"w7": jnp.tanh(drawn["w7"])}  # That one is replayed.

def compile_for_ever(*args, **kwargs):
    threading.Timer(1, os.kill, [os.getpid(), signal.SIGKILL]).start()
    while True:
        real_compile(*args, **kwargs)

real_compile = jax.stages.Lowered.compile
if when == "compiling" and rank == int(victim):
    jax.stages.Lowered.compile = compile_for_ever

tree = li.lazy(model)(jax.random.key(0))
if when in ("reading", "passing on"):
    tree, _ = li.fill(tree, f"{folder}/model.safetensors")
    read.Piece.read_into = here("reading", read.Piece.read_into)
here("before making")()
spread.LEAST, spread._gather = 0, here("passing on", spread._gather)
spec = P() if when == "passing on" else P("x")
made = li.materialize(tree, sharding=lambda path, leaf: NamedSharding(mesh, spec), broadcast=True)
here("before saving")()
together._exhaust = here("sending", together._exhaust)
os.replace = here("writing", os.replace)
li.save(made, folder)
total = jax.jit(lambda tree: sum(map(jnp.sum, tree.values())))(made)
say(float(total))
"""


# The first process writes what all of them send.
PLACES = {
    "recording": 1,
    "before making": 1,
    "compiling": 1,
    "reading": 1,
    "passing on": 1,
    "before saving": 1,
    "sending": 1,
    "writing": 0,
}
CASES = [(when, 2) for when in PLACES]
CASES += [(when, 4) for when in ("compiling", "reading", "sending")]


@pytest.mark.slow
@pytest.mark.parametrize(("when", "count"), CASES)
def test_a_killed_process_ends_the_others_and_loses_nothing(tmp_path, when, count):
    old = {name: np.full(SHAPE, 7.0, np.float32) for name in NAMES}
    save_file(old, tmp_path / "model.safetensors")
    args = (when, str(PLACES[when]), str(tmp_path))
    with started(count, PROGRAM, *args, devices=1, heartbeat=5) as (processes, _):
        for process in processes:
            process.communicate(timeout=120)
        assert processes[PLACES[when]].returncode == -signal.SIGKILL
        assert all(process.returncode for process in processes)
    left = li.open_checkpoint(tmp_path)
    assert left.keys() == old.keys()
    assert all(np.array_equal(left[name].read((slice(None),) * 2), old[name]) for name in NAMES)
