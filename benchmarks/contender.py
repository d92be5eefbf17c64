"""Runs one contender in this process, and prints what was measured as JSON.

``python benchmarks/contender.py MODULE FUNCTION SIZE FOLDER [--evict]`` is what ``harness.py``
starts; with ``--evict`` the file that is read is out of the page cache. The function prepares its
inputs, does its work inside ``with measured``, and returns the result. Process start, imports, the
start of JAX's backend and the making of inputs are not timed.
"""

import importlib
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from decoder import Size
from measure import Measured, facts, touch

_TOUCHED = 2**29  # Bytes; the cases that initialize peak about there, load touches more.


def main(module: str, function: str, size: str, folder: str, *flags: str) -> None:
    chosen = Size(**json.loads(size))
    jax.config.update("jax_num_cpu_devices", chosen.devices)
    contend = getattr(importlib.import_module(module), function)
    jax.jit(lambda x: x + 1)(jnp.zeros(8)).block_until_ready()  # Starts the backend and LLVM.
    touch(_TOUCHED)
    measured = Measured(evicts="--evict" in flags)
    result = contend(measured, chosen, Path(folder))
    measured.settle()
    print(json.dumps(vars_of(measured) | {"facts": facts(result)}))


def vars_of(measured: Measured) -> dict[str, object]:
    return {k: v for k, v in vars(measured).items() if not k.startswith("_")}


if __name__ == "__main__":
    main(*sys.argv[1:])
