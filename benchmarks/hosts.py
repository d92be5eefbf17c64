"""What it costs to compare processes and to digest values, in CPU time of one process.

``python benchmarks/hosts.py [--leaves 20000] [--mib 1024]``
"""

import argparse
import hashlib
import tempfile
import time
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from safetensors.numpy import save_file

import lazyinit as li
from lazyinit import paths
from lazyinit.agree.entries import Entry, digest_of


class Many(nn.Module):
    leaves: int

    @nn.compact
    def __call__(self, x):
        for n in range(self.leaves // 2):
            self.param(f"layer_{n}_kernel", nn.initializers.lecun_normal(), (4, 8))
            self.param(f"layer_{n}_bias", nn.initializers.zeros, (8,))
        return x


def shortest(do, times=7):
    """Returns CPU seconds: other people's work on the machine counts less."""
    taken = []
    for _ in range(times):
        began = time.process_time()
        do()
        taken.append(time.process_time() - began)
    return min(taken)


def compared(tree):
    entries = [Entry(path, x, True, None, x.dtype) for path, x in paths.leaves_with_paths(tree)]
    return lambda: digest_of(entries)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--leaves", type=int, default=20_000)
    parser.add_argument("--mib", type=int, default=1024)
    args = parser.parse_args()

    began = time.process_time()
    tree = li.lazy(Many(args.leaves)).init(jax.random.key(0), jax.ShapeDtypeStruct((), "float32"))
    print(f"{args.leaves} leaves: recorded in {time.process_time() - began:.2f} s")
    program = jax.tree.leaves(tree)[0].init_fn.program
    again = compared(tree)
    first = shortest(lambda: (program.stable.clear(), again()))
    print(f"compared the first time: {1000 * first:.0f} ms, then {1000 * shortest(again):.0f} ms")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "many.safetensors")
        save_file({p: np.zeros(x.shape, x.dtype) for p, x in paths.leaves_with_paths(tree)}, file)
        filled, _ = li.fill(tree, file)
        print(f"stored leaves: {1000 * shortest(compared(filled)):.0f} ms")

    values = np.random.default_rng(0).random((args.mib, 2**18), np.float32)
    for dtype in ("float32", "uint16", "uint8"):
        array = values.view(dtype)
        seconds = shortest(lambda array=array: li.digest([array]), 3)
        print(f"li.digest, {dtype}: {array.nbytes / seconds / 2**30:.2f} GiB/s of one core")
    for name in ("blake2b", "sha256"):
        seconds = shortest(lambda name=name: hashlib.new(name, values).digest(), 3)
        print(f"hashlib.{name}: {values.nbytes / seconds / 2**30:.2f} GiB/s of one core")


if __name__ == "__main__":
    main()
