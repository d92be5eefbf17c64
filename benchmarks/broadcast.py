"""Leaves that several processes hold: read by all, or by one and passed on (``broadcast=True``).

``python benchmarks/broadcast.py [--processes 4] [--mib 128]`` prints a Markdown table: of each
process the bytes that it reads, as parts of the checkpoint, and the time with ``broadcast`` divided
by the time without, from files in the page cache, and from a disk that gives each process a bounded
number of bytes in a second (which is modeled: whoever reads sleeps).
"""

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

LEAVES = 8
WIDTH = 1024
RATES = (0, 128, 32)  # MiB in a second for each process; 0 for what the page cache gives.


def measure(rank: int, port: int, count: int, folder: str) -> None:
    """Loads in one of the processes; the first one prints rows."""
    import jax

    jax.config.update("jax_num_cpu_devices", 1)
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=count, process_id=rank)
    from jax.experimental import multihost_utils
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    import lazyinit as li
    from lazyinit.tensors.mapped import MappedTensor

    read, lock, rate, real = [0], threading.Lock(), [0], MappedTensor.read

    def counted(self: Any, index: Any) -> np.ndarray:
        values = real(self, index)
        with lock:  # One disk: its bytes come one after the other.
            read[0] += values.nbytes
            if rate[0]:
                time.sleep(values.nbytes / rate[0] / 2**20)
        return values

    MappedTensor.read = counted
    mesh = jax.make_mesh((2, count // 2), ("data", "model"))
    opened = li.open_checkpoint(folder)
    structs = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in opened.items()}
    tree, _ = li.fill(structs, folder)
    size = sum(leaf.nbytes for leaf in tree.values())

    def load(spec: P, broadcast: bool) -> tuple[float, int]:
        read[0] = 0
        multihost_utils.sync_global_devices("start")
        began = time.perf_counter()
        made = li.materialize(tree, sharding=NamedSharding(mesh, spec), broadcast=broadcast)
        jax.block_until_ready(made)
        multihost_utils.sync_global_devices("end")
        return time.perf_counter() - began, read[0]

    for said, spec in (("copied to all", P()), ("cut over model, copied over data", P("model"))):
        for rate[0] in RATES:
            best: dict[bool, float] = {}
            parts: dict[bool, float] = {}
            for broadcast in (False, True) * 3:
                seconds, own = load(spec, broadcast)
                best[broadcast] = min(seconds, best.get(broadcast, seconds))
                parts[broadcast] = own / size
            if rank == 0:
                disk = f"{rate[0]} MiB/s" if rate[0] else "page cache"
                cells = [said, disk, *(f"{parts[b]:.2f}" for b in (False, True))]
                cells.append(f"{best[True] / best[False]:.2f}")
                print(f"| {' | '.join(cells)} |", file=sys.stderr, flush=True)  # Gloo: stdout.


def main() -> None:
    parser = argparse.ArgumentParser(description="broadcast=True, measured")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--mib", type=int, default=128)
    parser.add_argument("--worker", help="what a process is given")
    options = parser.parse_args()
    if options.worker:
        measure(*json.loads(options.worker))
        return
    from safetensors.numpy import save_file

    rows = options.mib * 2**20 // LEAVES // WIDTH // 2
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        random = np.random.default_rng(0)
        tensors = {
            f"w{n}": random.integers(0, 2**16, (rows, WIDTH), np.uint16).view(np.float16)
            for n in range(LEAVES)
        }
        save_file(tensors, Path(folder, "model.safetensors"))
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        print("| Leaves | Disk | Read by each | With broadcast | Time, of that without |")
        print("|---|---|--:|--:|--:|", flush=True)
        each = [
            subprocess.Popen(
                [sys.executable, __file__, "--worker", json.dumps([n, port, count, folder])],
                stdout=subprocess.DEVNULL,
            )
            for count in [options.processes]
            for n in range(count)
        ]
        codes = [process.wait() for process in each]
        if any(codes):
            sys.exit("a process failed")


if __name__ == "__main__":
    main()
