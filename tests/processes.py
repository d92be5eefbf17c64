"""Real processes that work together on loopback, by ``jax.distributed``."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

START = """
import json, sys
import jax, numpy as np
rank, port, to, devices, processes, *args = sys.argv[1:]
rank = int(rank)
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", int(devices))
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=int(processes), process_id=rank)
def say(result):
    with open(to, "w") as file:  # Gloo writes to stdout.
        json.dump(result, file)
"""


def two_processes(program, *args, devices=4):
    """Runs a program in two processes that know each other; see ``in_processes``."""
    return in_processes(2, program, *args, devices=devices)


def in_processes(count, program, *args, devices=4):
    """Runs a program in processes that know each other; returns what each handed to ``say``.

    Args:
      count: how many processes.
      program: Python source, which finds ``rank``, ``args``, ``jax``, ``np`` and ``say(result)``, and
        may import what lies beside the tests.
      *args: strings, which become ``args``.
      devices: CPU devices of each process.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    path = os.pathsep.join([*sys.path, os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ended:
        reports = [Path(folder, str(rank)) for rank in range(count)]
        started = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    START + program,
                    str(rank),
                    port,
                    report,
                    str(devices),
                    str(count),
                    *args,
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": path},
                text=True,
            )
            for rank, report in enumerate(reports)
        ]
        for process in started:
            ended.callback(process.kill)
        errors = [p.communicate(timeout=240)[1] for p in started]
        said = "".join(error[-2000:] for error in errors)
        assert not any(p.returncode for p in started), said
        return [json.loads(report.read_text()) for report in reports]
