"""All that there is to measure on a machine with an accelerator, in one command.

    python benchmarks/accelerator.py [--large] [--cases N] [--repeats N] [--markdown FILE]

The project was written on machines that had no GPU and no TPU. This command is for whoever has
one. It runs on whatever backend JAX starts by itself (``JAX_PLATFORMS`` chooses another), on all
devices of this host, and prints one page of Markdown that can be sent as it is. On a CPU it runs
too, on eight devices, so that it is known to work before somebody pays for an hour of a machine.

It answers three questions, in this order.

**What is proven here?** The self-check makes each kind of step in the fast way and equation by
equation, and compares the bits. What fails is no fault: lazyinit makes such leaves equation by
equation on this backend, with the bits of eager JAX, only slower. The page says how many kinds
passed, which failed, and how long it took. An outcome is kept in the user's cache folder, so this
time is paid once for each version of JAX.

**Are the bits those of eager ``init``?** The modules of ``tests/models.py`` and
``tests/nnx_models.py`` are initialized eagerly on the backend, and by lazyinit twice: for the
default device, and cut over a mesh of all local devices. Every leaf must have the same bits. A
difference here, unlike a failed kind, is a fault of lazyinit: it is listed with its leaf, and the
command ends with 1. ``--cases N`` takes N of the cases, from all over the list; on a CPU, where the
test suite compares all of them, 72 unless told otherwise.

**How long does it take, and in how much memory?** A decoder is initialized, loaded from a
safetensors file, and half loaded, half initialized, with its parameters cut over all local devices
(``shard_fsdp``). Beside lazyinit stands what one would write without it: ``jax.jit`` of ``init``
with ``out_shardings``; ``safetensors.numpy.load_file`` and one ``jax.device_put`` for each tensor;
or the one and then the other. Each contender has a fresh process of its own, and they take turns.
Nothing is compiled before, so compiling counts; the start of the process and of the backend does
not. The file is in the page cache: what is measured is the way from there to the device. Peak
memory of a device is what its own allocator counted, less what was in use before, of the device
that had most; a CPU device has no such count. Peak memory of the host is how far resident memory
rose (``measure.py`` says more): for a device with memory of its own, that is what passes through.

What is looked at first runs in a process that has ended before the first contender starts, because
a process takes most of a GPU's memory for itself. Ratios are taken within a repeat.
"""

import argparse
import dataclasses
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import complete
import initialize
import jax
import load
import numpy as np
import safetensors.numpy
from decoder import Size, decoder
from harness import Case, ContenderError, Spread, run_once
from measure import Measured

import lazyinit as li

_PLATFORMS = "LAZYINIT_BENCHMARK_PLATFORMS"
if _PLATFORMS in os.environ:  # In a contender's process, which else is for CPU.
    jax.config.update("jax_platforms", os.environ[_PLATFORMS] or None)

_TESTS = Path(__file__).parent.parent / "tests"
_SMALL = Size(layers=8)
_LARGE = Size(layers=8, width=2048, vocab=32768)
_CASES_ON_CPU = 72  # Of some 150: all takes less than three minutes on two cores.


# The contenders.


def eager(measured: Measured, size: Size, folder: Path) -> Any:
    _prove()
    return _on_host(initialize.eager(measured, size, folder))


def lazyinit_init(measured: Measured, size: Size, folder: Path) -> Any:
    return _watched(initialize.lazyinit_sharded, measured, size, folder)


def jit_init(measured: Measured, size: Size, folder: Path) -> Any:
    return _watched(initialize.jit_sharded, measured, size, folder)


def write(measured: Measured, size: Size, folder: Path) -> Any:
    return load.write(measured, size, folder)


def lazyinit_load(measured: Measured, size: Size, folder: Path) -> Any:
    return _watched(load.lazyinit, measured, size, folder)


def load_file(measured: Measured, size: Size, folder: Path) -> Any:
    def contend(measured: Measured, size: Size, folder: Path) -> Any:
        shardings = _shardings(size)
        measured.ready(load.file_in(folder))
        with measured:
            return jax.block_until_ready(_loaded(folder, shardings))

    return _watched(contend, measured, size, folder)


def write_half(measured: Measured, size: Size, folder: Path) -> Any:
    _prove()
    return _on_host(complete.write(measured, size, folder))


def lazyinit_both(measured: Measured, size: Size, folder: Path) -> Any:
    return _watched(complete.lazyinit, measured, size, folder)


def jit_and_load_file(measured: Measured, size: Size, folder: Path) -> Any:
    def contend(measured: Measured, size: Size, folder: Path) -> Any:
        model, key, ids = decoder(size)
        shardings = _shardings(size)
        measured.ready(load.file_in(folder))
        with measured:
            made = jax.jit(lambda *a: load.flat(model.init(*a)), out_shardings=shardings)(key, ids)
            made |= _loaded(folder, shardings)
            return jax.block_until_ready(made)

    return _watched(contend, measured, size, folder)


def _loaded(folder: Path, shardings: dict[str, Any]) -> dict[str, Any]:
    tensors = safetensors.numpy.load_file(load.file_in(folder))
    return {name: jax.device_put(tensor, shardings[name]) for name, tensor in tensors.items()}


def _shardings(size: Size) -> dict[str, Any]:
    model, key, ids = decoder(size)
    rule = li.shard_fsdp(jax.make_mesh((size.devices,), ("data",)), "data")
    leaves = load.flat(jax.eval_shape(model.init, key, ids))
    return {name: rule(name, leaf) for name, leaf in leaves.items()}


def _watched(
    contend: Callable[[Measured, Size, Path], Any], measured: Measured, size: Size, folder: Path
) -> Any:
    """Runs a contender, and notes the peak of the device that had most beside what it had."""
    before = [_counted(device, "bytes_in_use") for device in jax.local_devices()]
    result = contend(measured, size, folder)
    peaks = [_counted(device, "peak_bytes_in_use") for device in jax.local_devices()]
    rose = [peak - b for peak, b in zip(peaks, before, strict=True) if None not in (peak, b)]
    measured.device_peak_bytes = max(rose, default=None)
    return _on_host(result)  # Not every backend tells the addresses that the facts ask for.


def _counted(device: Any, name: str) -> int | None:
    return (device.memory_stats() or {}).get(name)


def _on_host(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)


def _prove() -> None:
    """Sees to it that no contender pays for the self-check: its outcome is kept on disk."""
    from lazyinit.make.selfcheck import proofs_on

    proofs_on(jax.default_backend()).of("wide")


_JIT = "`jax.jit(model.init, out_shardings=...)`"
_LOAD = "`safetensors.numpy.load_file`, `jax.device_put` for each tensor"

CASES = (
    Case(
        name="init",
        title="init",
        module="accelerator",
        contenders={"lazyinit_init": "lazyinit", "jit_init": _JIT},
        reference="eager",
    ),
    Case(
        name="load",
        title="load",
        module="accelerator",
        contenders={"lazyinit_load": "lazyinit", "load_file": _LOAD},
        reference="write",
    ),
    Case(
        name="both",
        title="init and load",
        module="accelerator",
        contenders={"lazyinit_both": "lazyinit", "jit_and_load_file": f"{_JIT}, then {_LOAD}"},
        reference="write_half",
    ),
)


# What is looked at in a process of its own: the device, the self-check, the bits.


def look(limit: int | None) -> dict[str, Any]:
    """Returns what is found on this backend, as JSON has it.

    Args:
      limit: how many cases to compare; ``None`` for all, or for ``_CASES_ON_CPU``.
    """
    sys.path.insert(0, str(_TESTS))
    import cases_table  # Makes eight devices of a CPU.

    here = jax.default_backend()
    device = jax.local_devices()[0]
    proofs = li.check(here)
    _say(f"self-check: {proofs.seconds:.1f} s")
    if limit is None and here == "cpu":
        limit = _CASES_ON_CPU
    mesh = _mesh()
    found = []
    for name, init, record in _chosen(list(cases_table.cases()), limit):
        _say(name)
        found.append((name, *_compared(init, record, mesh, cases_table)))
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "devices": jax.local_device_count(),
        "runtime": str(device.client.platform_version).splitlines()[0],
        "memory": _counted(device, "bytes_limit"),
        "mesh": list(mesh.devices.shape),
        "passed": len(proofs.passed),
        "failed": dict(proofs.failed),
        "seconds": proofs.seconds,
        "cases": found,
    }


def _chosen(all_of_them: list[Any], limit: int | None) -> list[Any]:
    """Returns so many, evenly from all over the list."""
    if limit is None or limit >= len(all_of_them):
        return all_of_them
    return [all_of_them[n * len(all_of_them) // limit] for n in range(limit)]


def _compared(
    init: Callable[[], Any], record: Callable[[], Any], mesh: Any, cases_table: Any
) -> list[str]:
    """Says whether the bits are equal, on the default device and on the mesh: ``yes``, or why not.

    ``not run`` begins what is no answer, since eager JAX fails here.
    """
    try:
        want = init()
    except Exception as error:  # A dtype that the backend lacks, say.
        return [f"not run: eager init: {_short(error)}"] * 2

    def alone(tree: Any) -> str:
        return cases_table.equal(li.materialize(tree), want)

    def cut(tree: Any) -> str:
        made = li.materialize(tree, sharding=cases_table.kernel_sharding(mesh))
        return cases_table.equal(*map(cases_table.without_numpy, (made, want)))

    answers = []
    try:
        tree = record()
        for compare in (alone, cut):
            answers.append(compare(tree))
    except Exception as error:  # The other cases are of interest, too.
        answers += [f"no: {_short(error)}"] * (2 - len(answers))
    return answers


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]


def _mesh() -> Any:
    count = jax.local_device_count()
    rows = next(n for n in range(math.isqrt(count), 0, -1) if count % n == 0)
    auto = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh(
        (rows, count // rows), ("a", "b"), axis_types=auto, devices=jax.local_devices()
    )


# The page.


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    if options.look:
        print(json.dumps(look(options.cases)))
        return 0
    if options.markdown:  # Now, and not when all is measured.
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
    os.environ[_PLATFORMS] = os.environ.get("JAX_PLATFORMS", "")
    found = _looked(options.cases)
    size = _LARGE if options.large else _SMALL
    size = dataclasses.replace(size, devices=found["devices"], layers=options.layers or size.layers)
    lines = [*_header(arguments), "", *page(found), ""]
    timed, is_good = [], not _different(found)
    for case in CASES:
        try:
            runs = run(case, size, options.repeats)
            timed += rows(case, *runs)
            is_good &= _is_exact(case, *runs)
        except ContenderError as error:
            lines += [f"Failed: {error}", ""]
            is_good = False
    lines += table(timed)
    text = "\n".join(lines)
    print(text)
    if options.markdown:
        options.markdown.write_text(f"# Accelerator\n\n{text}\n")
    return int(not is_good)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", action="store_true", help="2 GiB of parameters, not 40 MiB")
    parser.add_argument("--layers", type=int, metavar="N", help="of the decoder (8)")
    parser.add_argument("--cases", type=int, metavar="N", help="compare the bits of N cases only")
    parser.add_argument("--repeats", type=int, metavar="N", default=1, help="of what is timed (1)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page there too")
    parser.add_argument("--look", action="store_true", help=argparse.SUPPRESS)
    return parser


def _looked(limit: int | None) -> dict[str, Any]:
    command = [sys.executable, __file__, "--look"]
    command += [] if limit is None else ["--cases", str(limit)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _header(arguments: Sequence[str]) -> list[str]:
    names = ("jax", "jaxlib", "flax", "safetensors", "lazyinit-jax")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    return [
        f"`{shlex.join(['python', 'benchmarks/accelerator.py', *arguments])}`, "
        f"{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, {versions}, "
        f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} at the start.",
    ]


def page(found: dict[str, Any]) -> Iterator[str]:
    """Yields the table of what was looked at, and what is wrong."""
    memory = f", {found['memory'] / 2**30:.1f} GiB each" if found["memory"] else ""
    mesh = "x".join(map(str, found["mesh"]))
    yield _row("What", "Found")
    yield "|---|---|"
    yield _row("Devices", f"{found['devices']} of {found['kind']} ({found['platform']}){memory}")
    yield _row("Runtime", found["runtime"])
    yield _row(
        "Self-check",
        f"{found['passed']} kinds passed, {len(found['failed'])} failed, {found['seconds']:.1f} s",
    )
    for n, where in enumerate(("default device", f"{mesh} devices"), 1):
        answers = [case[n] for case in found["cases"]]
        equal = answers.count("yes")
        skipped = sum(a.startswith("not run") for a in answers)
        more = f", {skipped} not run" if skipped else ""
        yield _row(
            f"Bits of eager `init`, {where}",
            f"{equal} cases equal, {len(answers) - equal - skipped} differ{more}",
        )
    problems = [f"- Failed kind: {kind} (shown by {by})" for kind, by in found["failed"].items()]
    for name, *answers in found["cases"]:
        for answer in sorted({a for a in answers if a != "yes"}):
            problems.append(f"- {name}: {answer}")
    if problems:
        yield ""
        yield from problems


def _different(found: dict[str, Any]) -> list[str]:
    return [name for name, *answers in found["cases"] if any(a.startswith("no:") for a in answers)]


def run(case: Case, size: Size, repeats: int) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Returns the facts of the reference, and what each contender measured, in each repeat.

    Raises:
      ContenderError: a process failed, or has other paths, shapes or dtypes than the reference.
    """
    runs: dict[str, list[Any]] = {name: [] for name in case.contenders}
    with tempfile.TemporaryDirectory(prefix="lazyinit-benchmark-") as folder:
        wanted = run_once(case, case.reference, size, folder)["facts"]
        for repeat in range(repeats):
            for name in case.contenders:
                runs[name].append(one := run_once(case, name, size, folder))
                _say(f"{case.name}: {name} {repeat + 1}/{repeats}: {one['seconds']:.3f} s")
                if one["facts"]["structure"] != wanted["structure"]:
                    raise ContenderError(f"{case.name}: {name}: other paths, shapes or dtypes.")
    return wanted, runs


def rows(
    case: Case, wanted: dict[str, Any], runs: dict[str, list[Any]]
) -> Iterator[tuple[str, ...]]:
    """Yields the cells of each contender."""
    own = next(iter(runs.values()))
    for name, ours in runs.items():
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(ours, own, strict=True)]
        yield (
            f"{case.title} ({wanted['bytes'] / 2**20:.0f} MiB)" if ours is own else "",
            case.contenders[name],
            f"{Spread.of([run['seconds'] for run in ours]).median:.2f}",
            "1" if ours is own else f"**{Spread.of(ratios).median:.2f}**",
            _mebibytes([run["device_peak_bytes"] for run in ours]),
            _mebibytes([run["peak_bytes"] for run in ours]),
            "yes" if all(run["facts"]["bits"] == wanted["bits"] for run in ours) else "no",
        )


def _is_exact(case: Case, wanted: dict[str, Any], runs: dict[str, list[Any]]) -> bool:
    ours = runs[next(iter(case.contenders))]
    return all(run["facts"]["bits"] == wanted["bits"] for run in ours)


def table(timed: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yields the table of what was timed."""
    yield _row(
        "Case",
        "Contender",
        "Time, s",
        "/ lazyinit's",
        "Device peak, MiB",
        "Host peak, MiB",
        "Same bits",
    )
    yield "|---|---|--:|--:|--:|--:|:-:|"
    for cells in timed:
        yield _row(*cells)


def _mebibytes(sizes: Sequence[int | None]) -> str:
    known = [size for size in sizes if size is not None]
    return f"{Spread.of(known).median / 2**20:.0f}" if known else "not counted"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
