"""How time grows with depth, width, devices and file size, as plots.

Each point is a fresh process, as in ``harness.py``; contenders take turns within a point. A
contender is left out beyond the size at which it would take minutes.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness import Case, ContenderError, run_once
from initialize import CASES as INITIALIZE
from load import CASES as LOAD
from models import Size
from record import CASES as RECORD


@dataclass(frozen=True, slots=True)
class Scan:
    """One plot: a case at several sizes.

    Attributes:
      name: of the file, and of the case that its contenders come from.
      case: where the contenders are.
      axis: what changes, for people.
      sizes: of each point, by its place on the axis.
      last: by contender, the last place at which it runs.
    """

    name: str
    case: Case
    axis: str
    sizes: Mapping[float, Size]
    last: Mapping[str, float]


def _case(cases: Sequence[Case], name: str) -> Case:
    return next(case for case in cases if case.name == name)


def scans(quick: bool) -> Sequence[Scan]:
    """Returns the plots to make."""
    deep = (6, 12, 24) if quick else (6, 12, 24, 48, 96)
    widths = (128, 256, 512) if quick else (128, 256, 512, 1024)
    devices = (1, 4, 8) if quick else (1, 2, 4, 8, 16)
    full, load = _case(INITIALIZE, "init-32"), _case(LOAD, "load")
    base = Size(layers=32, width=384, vocab=13312, devices=8)
    return (
        Scan("record-depth", _case(RECORD, "record-32"), "decoder layers",
             {n: Size(layers=n) for n in deep}, {}),
        Scan("init-depth", full, "decoder layers", {n: Size(layers=n) for n in deep},
             {"jit": 12 if quick else 24, "lazy_init": 24}),
        Scan("init-width", full, "width, 4 layers",
             {n: Size(layers=4, width=n) for n in widths}, {}),
        Scan("sharded-devices", _case(INITIALIZE, "sharded-init"), "devices, 8 layers",
             {n: Size(layers=8, devices=n) for n in devices}, {}),
        Scan("load-devices", load, "devices",
             {n: replace(base, devices=n) for n in devices}, {}),
        Scan("load-size", load, "decoder layers in the file, 6.8 MiB each",
             {n: replace(base, layers=n) for n in ((8, 32) if quick else (8, 32, 64, 128))}, {}),
    )  # fmt: skip


def plot_all(folder: Path, *, quick: bool, repeats: int, say: Callable[[str], None]) -> None:
    """Runs every scan and writes a plot for each into a folder."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    for scan in scans(quick):
        if missing := scan.case.missing():
            say(f"{scan.name}: left out, {', '.join(missing)} is not installed.")
            continue
        found = _measure(scan, repeats, say)
        figure, axes = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
        for function, times in found.items():
            label = scan.case.contenders[function].replace("`", "")
            axes.plot(list(times), list(times.values()), marker="o", label=label)
        axes.set_xlabel(scan.axis)
        axes.set_ylabel("seconds, cold")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(list(scan.sizes), [f"{x:g}" for x in scan.sizes])
        axes.grid(True, alpha=0.3)
        axes.legend(fontsize=7)
        figure.savefig(folder / f"scaling-{scan.name}.png", dpi=110)
        plt.close(figure)


def _measure(scan: Scan, repeats: int, say: Callable[[str], None]) -> dict[str, dict[float, float]]:
    found: dict[str, dict[float, float]] = {name: {} for name in scan.case.contenders}
    for place, size in scan.sizes.items():
        with tempfile.TemporaryDirectory(prefix="lazyinit-benchmark-") as folder:
            if scan.case.module == "load":
                run_once(scan.case, scan.case.reference, size, folder)
            for _ in range(repeats):
                for name in scan.case.contenders:
                    if place > scan.last.get(name, place):
                        continue
                    try:
                        seconds = run_once(scan.case, name, size, folder)["seconds"]
                    except ContenderError as error:
                        say(f"{scan.name}: {error}")
                        continue
                    found[name][place] = min(seconds, found[name].get(place, seconds))
                    say(f"{scan.name}: {name} at {place}: {seconds:.3f} s")
    return found
