"""A process that is slow: the others wait for it, or say which one it was that did not come."""

import jax
import numpy as np
import pytest
from processes import in_processes

import lazyinit as li

# Each process in turn is late to a verb, by more than it takes to look for notes of failures.
PROGRAM = """
import os, time
import disagreements
import lazyinit as li
from jax.sharding import NamedSharding, PartitionSpec as P

(folder,) = args
mesh = jax.make_mesh((jax.device_count(),), ("x",))
turn = -1

def shard(path, leaf):
    return NamedSharding(mesh, P("x"))

def late(verb, *args, **kwargs):
    global turn
    turn += 1
    if rank == turn % jax.process_count():
        time.sleep(6.3)
    return verb(*args, **kwargs)

def model(key):
    return {f"w{n}": jax.random.normal(jax.random.fold_in(key, n), (8, 64)) for n in range(4)}

lazy = li.lazy(model)(jax.random.key(0))
made = late(li.materialize, lazy, sharding=shard)
late(li.save, made, folder)
filled, _ = li.fill(lazy, folder)
read = late(li.materialize, filled, sharding=shard)
zeros = jax.tree.map(lambda array: 0 * array, made)
updated, _ = late(li.update, zeros, folder)
digests = [str(li.digest(read)), str(late(li.digest, updated))]

def error_of(verb, *args, **kwargs):
    try:
        verb(*args, **kwargs)
    except li.errors.HostAbsentError as error:
        return str(error)

errors = {}
for name, verb, what in (
    ("materialize", li.materialize, {"tree": lazy, "sharding": shard}),
    ("save", li.save, {"tree": made, "folder": folder}),
):
    turn, os.environ["LAZYINIT_HOSTS"] = 0, "3"
    errors[name] = error_of(late, verb, **what)
    os.environ["LAZYINIT_HOSTS"] = "60"
    disagreements.together(name)
    digests.append(str(li.digest(made)))  # They go on together after all.
say({"digests": digests, "errors": errors})
"""

SAVES = """
import time
import lazyinit as li
from jax.sharding import NamedSharding, PartitionSpec as P

slept = []

def tell(step):
    if not slept:
        slept.append(time.sleep(31))

mesh = jax.make_mesh((jax.device_count(),), ("x",))
spread = jax.jit(lambda: 1.0 * np.arange(64), out_shardings=NamedSharding(mesh, P("x")))()
# The first process alone writes `a`, and meanwhile the others are ready for `b`.
li.save({"a": np.ones(8, "float32"), "b": spread}, args[0], progress=tell)
say(len(slept))
"""


def model(key):
    return {f"w{n}": jax.random.normal(jax.random.fold_in(key, n), (8, 64)) for n in range(4)}


@pytest.mark.slow
def test_a_late_process_is_waited_for_and_one_that_is_too_late_is_named(tmp_path):
    reports = in_processes(4, PROGRAM, str(tmp_path), devices=1)
    wanted = str(li.digest(model(jax.random.key(0))))
    for report in reports:
        assert report["digests"] == [wanted] * 4
        for verb, text in report["errors"].items():
            start = f"{verb}: wanted processes 0, 1, 2, 3 to make this call, but process 1 did not "
            assert text.startswith(start + "in 3 s. "), text


@pytest.mark.slow
def test_what_takes_the_writing_process_longer_than_gloo_waits_is_waited_for(tmp_path):
    assert in_processes(2, SAVES, str(tmp_path), devices=1) == [1, 0]
    saved = li.open_checkpoint(tmp_path)
    assert np.array_equal(saved["b"].read((slice(64),)), np.arange(64.0))
