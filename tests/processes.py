"""Real processes that work together on loopback, by ``jax.distributed``."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from forked import run_together

START = """
import json, sys
import jax, numpy as np
rank, address, to, devices, processes, heartbeat, *args = sys.argv[1:]
rank = int(rank)
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", int(devices))
jax.distributed.initialize(
    address,
    num_processes=int(processes),
    process_id=rank,
    heartbeat_timeout_seconds=int(heartbeat),
)
def say(result):
    with open(to, "w") as file:  # Gloo writes to stdout.
        json.dump(result, file)
"""


def two_processes(program, *args, devices=4):
    """Runs a program in two processes that know each other; see ``in_processes``."""
    return in_processes(2, program, *args, devices=devices)


def in_processes(count, program, *args, devices=4, network=None):
    """Runs a program in processes that know each other; returns what each handed to ``say``.

    Args:
      count: how many processes.
      program: Python source, which finds ``rank``, ``args``, ``jax``, ``np`` and ``say(result)``, and
        may import what lies beside the tests.
      *args: strings, which become ``args``.
      devices: CPU devices of each process.
      network: a ``Network`` in which each process has a host of its own; ``None`` for loopback.
    """
    if network is None:
        with arguments(count, *args, devices=devices) as (each, reports):
            run_together(START + program, each)
            return [json.loads(report.read_text()) for report in reports]
    with started(count, program, *args, devices=devices, network=network) as (processes, reports):
        errors = [process.communicate(timeout=240)[1] for process in processes]
        said = "".join(error[-2000:] for error in errors)
        assert not any(process.returncode for process in processes), said
        return [json.loads(report.read_text()) for report in reports]


@contextlib.contextmanager
def arguments(count, *args, devices, heartbeat=100, network=None):
    """Gives what each process finds in ``sys.argv``, and the files that ``say`` writes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"{network.address if network else '127.0.0.1'}:{port}"
    shared = [*map(str, (devices, count, heartbeat)), *args]
    with tempfile.TemporaryDirectory() as folder:
        reports = [Path(folder, str(rank)) for rank in range(count)]
        yield (
            [[str(rank), address, report, *shared] for rank, report in enumerate(reports)],
            reports,
        )


@contextlib.contextmanager
def started(count, program, *args, devices=4, heartbeat=100, network=None):
    """Starts such processes anew, to be killed; gives them, and the files that ``say`` writes.

    Args:
      count: how many processes.
      program: as above.
      *args: as above.
      devices: as above.
      heartbeat: seconds after which JAX takes a process that is not heard of for dead.
      network: as above.
    """
    within = network.within if network else [[]] * count
    path = os.pathsep.join([*sys.path, os.environ.get("PYTHONPATH", "")])
    shared = arguments(count, *args, devices=devices, heartbeat=heartbeat, network=network)
    with shared as (each, reports), contextlib.ExitStack() as ended:
        processes = [
            subprocess.Popen(
                [*before, sys.executable, "-c", START + program, *own],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": path},
                text=True,
            )
            for before, own in zip(within, each, strict=True)
        ]
        for process in processes:
            ended.callback(process.kill)
        yield processes, reports
