"""How time grows with depth, width, devices and file size: a table and a plot for each.

Each point is a fresh process, as in ``harness.py``; contenders take turns within a point. A
contender is left out beyond the size at which it would take minutes.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from decoder import Size
from harness import Case, ContenderError, Spread, run_once
from initialize import CASES as INITIALIZE
from load import CASES as LOAD
from record import CASES as RECORD
from transposed import CASES as TRANSPOSED

_TIED = ("load", "transposed")  # Cases of these read a file, which is written for each point.


@dataclass(frozen=True, slots=True)
class Scan:
    """A case at several sizes.

    Attributes:
      name: of the file with the plot.
      title: what is done.
      axis: what changes, for people.
      case: where the contenders are.
      sizes: of each point, by its place on the axis.
      contenders: by name of their function, what to call them; those of the case by default.
      last: by contender, the last place at which it runs.
    """

    name: str
    title: str
    axis: str
    case: Case
    sizes: Mapping[int, Size]
    contenders: Mapping[str, str] = field(default_factory=dict)
    last: Mapping[str, int] = field(default_factory=dict)

    def who(self) -> Mapping[str, str]:
        return self.contenders or self.case.contenders


Found = Mapping[str, Mapping[int, Spread]]  # Seconds, by contender and place.


def scans(quick: bool) -> Sequence[Scan]:
    """Returns what to run; of a quick run, three of them at two sizes."""
    deep = (6, 24) if quick else (6, 12, 24, 48, 96)
    devices = (1, 8) if quick else (1, 2, 4, 8, 16)
    made = _case(INITIALIZE, "cache")
    cold_and_warm = {"lazyinit_recorded": "lazyinit", "lazyinit_again": "lazyinit, warm"}
    few = (
        Scan(
            "record-depth",
            "Recording, by depth",
            "decoder layers",
            _case(RECORD, "record-32"),
            {n: Size(layers=n) for n in deep},
        ),
        Scan(
            "materialize-depth",
            "Materializing cold, 256 wide, recording aside, by depth",
            "decoder layers",
            made,
            {n: Size(layers=n) for n in deep},
            cold_and_warm,
        ),
        Scan(
            "sharded-devices",
            "Cold full init, 8 layers, sharded, by devices",
            "devices",
            _case(INITIALIZE, "sharded-init"),
            {n: Size(layers=8, devices=n) for n in devices},
        ),
    )
    if quick:
        return few
    full, loaded = _case(INITIALIZE, "init-32"), _case(LOAD, "load")
    turned = _case(TRANSPOSED, "load-transposed")
    base = Size(layers=32, width=384, vocab=13312, devices=8)
    return (
        *few,
        Scan(
            "materialize-depth-narrow",
            "Materializing cold, 64 wide, recording aside, by depth",
            "decoder layers",
            made,
            {n: Size(layers=n, width=64, vocab=512) for n in deep},
            cold_and_warm,
        ),
        Scan(
            "init-depth",
            "Cold full init, recording included, by depth",
            "decoder layers",
            full,
            {n: Size(layers=n) for n in deep},
            last={"jit": 24, "lazy_init": 24, "eager": 48},
        ),
        Scan(
            "init-width",
            "Cold full init, 4 layers, by width",
            "width",
            full,
            {n: Size(layers=4, width=n) for n in (128, 256, 512, 1024)},
        ),
        Scan(
            "transposed-devices",
            "Loading a Llama of Hugging Face into an NNX model, by devices",
            "devices",
            replace(turned, needs=()),
            {n: replace(turned.quick or turned.size, devices=n) for n in devices},
            {"lazyinit": "lazyinit"},
        ),
        Scan(
            "load-devices",
            "Loading, by devices",
            "devices",
            loaded,
            {n: replace(base, devices=n) for n in devices},
        ),
        Scan(
            "load-size",
            "Loading onto 8 devices, by layers in the file of 6.8 MiB each",
            "layers",
            loaded,
            {n: replace(base, layers=n) for n in (8, 32, 64, 128)},
        ),
    )


def _case(cases: Sequence[Case], name: str) -> Case:
    return next(case for case in cases if case.name == name)


def run_all(
    folder: Path, *, quick: bool, repeats: int, say: Callable[[str], None]
) -> Iterator[str]:
    """Runs every scan, writes a plot for each into a folder, and yields lines of Markdown."""
    for scan in scans(quick):
        if missing := scan.case.missing():
            yield f"Left out: {scan.title}: {', '.join(missing)} is not installed."
            continue
        found = _measure(scan, repeats, say)
        _plot(scan, found, folder / f"scaling-{scan.name}.png")
        yield from table(scan, found)


def table(scan: Scan, found: Found) -> Iterator[str]:
    """Yields the lines of a table: a row for each place, with each contender's seconds."""
    who = {name: label for name, label in scan.who().items() if found[name]}
    yield f"\n{scan.title}, seconds:\n"
    yield f"| {scan.axis} | {' | '.join(who.values())} |"
    yield f"|--:{'|--:' * len(who)}|"
    for place in scan.sizes:
        cells = (_seconds(found[name].get(place)) for name in who)
        yield f"| {place} | {' | '.join(cells)} |"


def _seconds(spread: Spread | None) -> str:
    return f"{spread.median:.3f} ({spread.least:.3f} - {spread.most:.3f})" if spread else ""


def _measure(scan: Scan, repeats: int, say: Callable[[str], None]) -> Found:
    seconds: dict[str, dict[int, list[float]]] = {name: {} for name in scan.who()}
    for place, size in scan.sizes.items():
        with tempfile.TemporaryDirectory(prefix="lazyinit-benchmark-") as folder:
            if scan.case.module in _TIED:
                run_once(scan.case, scan.case.reference, size, folder)
            for _ in range(repeats):
                for name in scan.who():
                    if place > scan.last.get(name, place):
                        continue
                    try:
                        took = run_once(scan.case, name, size, folder)["seconds"]
                    except ContenderError as error:
                        say(f"{scan.name}: {error}")
                        continue
                    seconds[name].setdefault(place, []).append(took)
                    say(f"{scan.name}: {name} at {place}: {took:.3f} s")
    return {
        name: {place: Spread.of(numbers) for place, numbers in by_place.items()}
        for name, by_place in seconds.items()
    }


def _plot(scan: Scan, found: Found, file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    for function, spreads in found.items():
        medians = [spread.median for spread in spreads.values()]
        below = [s.median - s.least for s in spreads.values()]
        above = [s.most - s.median for s in spreads.values()]
        label = scan.who()[function].replace("`", "")
        axes.errorbar(list(spreads), medians, (below, above), marker="o", capsize=3, label=label)
    axes.set_title(scan.title, fontsize=8)
    axes.set_xlabel(scan.axis)
    axes.set_ylabel("seconds")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(list(scan.sizes), [str(x) for x in scan.sizes])
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize=6)
    figure.savefig(file, dpi=110)
    plt.close(figure)
