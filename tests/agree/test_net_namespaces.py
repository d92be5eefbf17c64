"""Processes on hosts of their own: network namespaces, joined by a switch."""

import jax
import numpy as np
import pytest
from namespaces import network_of
from processes import in_processes, started
from safetensors.numpy import save_file

import lazyinit as li

PROGRAM = """
import os, socket, time
import lazyinit as li
from jax.sharding import NamedSharding, PartitionSpec as P
from lazyinit.make import read, spread

folder, waits = args
mesh = jax.make_mesh((jax.device_count(),), ("x",))
spread.LEAST = 0

def model(key):
    return {f"w{n}": jax.random.normal(jax.random.fold_in(key, n), (8, 64)) for n in range(4)}

def by(spec):
    return lambda path, leaf: NamedSharding(mesh, spec)

lazy = li.lazy(model)(jax.random.key(0))
made = li.materialize(lazy, sharding=by(P("x")))
if waits:
    real = read.Piece.read_into
    def slow(*args):
        open(f"{folder}/reading{rank}", "w").close()
        time.sleep(8)
        return real(*args)
    read.Piece.read_into = slow
else:
    li.save(made, folder)
filled, _ = li.fill(lazy, f"{folder}/model.safetensors")
copied = li.materialize(filled, sharding=by(P()), broadcast=True)
digests = [str(li.digest(tree)) for tree in (made, copied)]
say({"digests": digests, "host": socket.gethostname()})
"""


def model(key):
    return {f"w{n}": jax.random.normal(jax.random.fold_in(key, n), (8, 64)) for n in range(4)}


@pytest.mark.slow
def test_hosts_of_their_own_make_save_read_and_pass_on_the_same_bits(tmp_path):
    with network_of(4) as network:
        reports = in_processes(4, PROGRAM, str(tmp_path), "", devices=1, network=network)
    assert [report["host"] for report in reports] == network.hosts
    wanted = str(li.digest(model(jax.random.key(0))))
    assert [report["digests"] for report in reports] == [[wanted] * 2] * 4


@pytest.mark.slow
def test_a_host_that_is_unplugged_while_it_reads_ends_all(tmp_path):
    eager = model(jax.random.key(0))
    save_file({name: np.asarray(x) for name, x in eager.items()}, tmp_path / "model.safetensors")
    with network_of(2) as network:
        settings = {"devices": 1, "heartbeat": 5, "network": network}
        with started(2, PROGRAM, str(tmp_path), "wait", **settings) as (processes, reports):
            while not all((tmp_path / f"reading{n}").exists() for n in range(2)):
                assert not any(process.poll() for process in processes)
            network.unplug(1)
            said = [process.communicate(timeout=60)[1] for process in processes]
            assert all(process.returncode for process in processes), said
            assert not any(report.exists() for report in reports)
