"""The page of ``li.inspect``: seconds of a core, and megabytes.

``python benchmarks/look.py`` makes the pages of 20,000 leaves: of alike layers, and of leaves that
have nothing in common, which is the worst that there is; to be initialized, and in a checkpoint.
"""

import random
import sys
import time
from collections.abc import Iterator

import jax
import numpy as np

import lazyinit as li
from lazyinit import paths


def alike(count: int) -> Iterator[tuple[str, int]]:
    """Yields the path and the size of each leaf of layers that are alike, ten in each."""
    for number in range(count):
        yield f"params/layers_{number // 10}/{'abcdefghij'[number % 10]}/kernel", 16


def unlike(count: int) -> Iterator[tuple[str, int]]:
    """Yields the path and the size of leaves with names of letters, and a shape of its own each."""
    letters = random.Random(0)
    for number in range(count):
        words = ("".join(letters.choices("abcdefgh", k=8)) for _ in range(2))
        yield f"params/{'/'.join(words)}", 16 + number


def main(count: int) -> None:
    """Prints a line for each sort of tree."""
    init = jax.nn.initializers.normal(0.02)
    li.inspect({"w": np.ones(3)}).to_html()  # Imports what draws pictures.
    for sort in (alike, unlike):
        lazy: dict = {}
        for path, size in sort(count):
            *above, last = path.split("/")
            node = lazy
            for key in above:
                node = node.setdefault(key, {})
            node[last] = li.LazyParam((16, size), "float32", init)
        zeros = {
            p: np.broadcast_to(np.float32(0), x.shape) for p, x in paths.leaves_with_paths(lazy)
        }
        stored, _ = li.fill(lazy, zeros)
        for state, tree in (("lazy", lazy), ("stored", stored)):
            times = []
            for _ in range(5):
                start = time.process_time()
                page = li.inspect(tree).to_html()
                times.append(time.process_time() - start)
            print(
                f"{count:,} {sort.__name__} {state} leaves: {min(times):.2f} s, "
                f"{len(page) / 1e6:.2f} MB"
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
