"""What ``li.plan`` says, beside what a process then takes: bytes on eight CPU devices.

``python benchmarks/planned.py`` makes and loads some trees, each in a process of its own, and
prints a Markdown table. CPU devices share the memory of the process, so it should take what the
plan says for all of them together: the bytes that stay, and the largest of what is needed beside
them, which is counted on one device. ``--large`` adds a train state of a billion parameters.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MIB = 2**20
CASES = (
    "drawn",
    "orthogonal",
    "stored as the leaves are",
    "transposed",
    "transposed and stacked",
    "half made, half loaded",
    "float8 in blocks of 128, transposed",
)
LARGE = "a train state of 10^9 parameters, bfloat16, with adam"


def tree_of(case: str, folder: Path) -> Any:
    """Returns the lazy tree of a case: 512 MiB but for the large one."""
    import jax
    import jax.numpy as jnp
    import ml_dtypes
    import numpy as np
    import optax
    from safetensors.numpy import save_file

    import lazyinit as li

    count, side = 32, 2048

    def model(key: Any) -> Any:
        init = jax.nn.initializers.normal(0.02)
        if case == "orthogonal":
            init = jax.nn.initializers.orthogonal()
        if case == LARGE:
            shape = (15625, 4096)
            params = {f"w{n}": init(key, shape, jnp.bfloat16) for n in range(16)}
            return {"params": params, "state": optax.adam(1e-3).init(params)}
        if case == "transposed and stacked":
            return {f"w{n}": init(key, (8, side, side)) for n in range(count // 8)}
        return {f"w{n}": init(jax.random.fold_in(key, n), (side, side)) for n in range(count)}

    tree = li.lazy(model)(jax.random.key(0))
    if case in ("drawn", "orthogonal", LARGE):
        return tree
    random = np.random.default_rng(0)
    held = {}
    for n in range(count // (2 if case.startswith("half") else 1)):
        bits = random.integers(0, 2**14, (side, side), np.uint16).view(ml_dtypes.bfloat16)
        held[f"t{n // 8}.{n % 8}" if "stacked" in case else f"t{n}"] = bits.astype(np.float32)
        if "float8" in case:
            held[f"t{n}"] = bits.view(np.uint8)[:, ::2].view(ml_dtypes.float8_e4m3fn)
            held[f"s{n}"] = np.ones((side // 128, side // 128), np.float32)
    save_file(held, folder / "model.safetensors")
    turned = [li.Transpose("a b -> b a")] if "transposed" in case else []
    rules = [li.Rule("w{n}", "t{n}", turned)]
    if "stacked" in case:
        rules = [li.Rule("w{n}", "t{n}.{k}", [*turned, li.Stack(axis=0)])]
    if "float8" in case:
        rules = [li.Rule("w{n}", ["t{n}", "s{n}"], [li.Dequantize(block=(128, 128)), *turned])]
    return li.fill(tree, folder, rules, on_missing="init")[0]


def measure_case(case: str) -> None:
    """Prints the row of a case."""
    import jax

    jax.config.update("jax_num_cpu_devices", 8)
    from measure import Measured

    import lazyinit as li

    mesh = jax.make_mesh((8,), ("x",))
    shard = li.shard_fsdp(mesh, "x", min_size=1)
    with tempfile.TemporaryDirectory() as folder:
        tree = tree_of(case, Path(folder))
        planned = li.plan(tree, shard)
        steady = planned.bytes_per_device
        beside = max(planned.peak_bytes_per_device[d] - steady[d] for d in steady)
        jax.block_until_ready(li.materialize(li.lazy(small)(jax.random.key(0)), sharding=shard))
        measured = Measured()
        with measured:
            made = jax.block_until_ready(li.materialize(tree, sharding=shard))
        measured.settle()
    arrays = sum(s.data.nbytes for x in jax.tree.leaves(made) for s in x.addressable_shards)
    numbers = [sum(steady.values()), arrays, sum(steady.values()) + beside, measured.peak_bytes]
    cells = [
        case,
        *(f"{number / MIB:,.1f}" for number in numbers),
        f"{numbers[2] / numbers[3]:.2f}",
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


def small(key: Any) -> Any:
    """Makes what starts the devices, so that they are not counted."""
    import jax

    return jax.random.normal(key, (64, 64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", help="this one alone, in this process")
    parser.add_argument("--large", action="store_true", help="with a billion parameters: 6 GiB")
    options = parser.parse_args()
    if options.case:
        measure_case(options.case)
        return
    print(
        "| Case | Planned to stay, MiB | Arrays, MiB | Planned peak | Peak | Planned / measured |"
    )
    print("|---|--:|--:|--:|--:|--:|", flush=True)
    for case in (*CASES, *([LARGE] if options.large else [])):
        subprocess.run([sys.executable, __file__, "--case", case], check=True)


if __name__ == "__main__":
    main()
