"""Measures lazyinit against what its users would write otherwise, and prints tables.

    python benchmarks/run.py [--quick] [--only NAME ...] [--repeats N]
                             [--devices N ...] [--cold] [--markdown FILE] [--plots FOLDER]

Every number is measured in this one run. Each contender has a fresh process of its own, and
contenders take turns. Not timed: process start, imports, the start of JAX's backend, the making
of inputs, the checks of the results. What time and memory mean is said in ``measure.py``; how
ratios are taken, in ``harness.py``; what each contender does, in its case's module.
"""

import argparse
import fnmatch
import itertools
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import complete
import hugging_face
import initialize
import load
import on_mesh
import record
import transposed
from harness import Case, ContenderError, Outcome, Spread, run_case
from scaling import run_all

CASES: Sequence[Case] = (
    *record.CASES,
    *initialize.CASES,
    *hugging_face.CASES,
    *transposed.CASES,
    *load.CASES,
    *complete.CASES,
    *on_mesh.CASES,
)

_NOTES = """
Medians of {repeats} repeat(s) (smallest - largest). A ratio is taken within each repeat, against
lazyinit: above 1 is slower, or larger, than lazyinit. Time is wall clock, cold: tracing and
compilation count; process start, imports and the start of JAX's backend do not. CPU is what all
threads computed, the median. Peak memory is
how far resident memory rose above what the process had before, mapped files included; its ratio
is left out where lazyinit's is below 1 MiB. Kept is what remains of it with the result alone.
"Same bits" compares with eager `model.init`, or with what was written to the file. Every result
was checked outside of the timed part.
"""


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    wanted = options.only or ["*"]
    chosen = [c for c in CASES if any(fnmatch.fnmatch(c.name, p) for p in wanted)]
    if not chosen:
        names = ", ".join(c.name for c in CASES)
        _say(f"--only {' '.join(wanted)}: no such case. There are {names}.")
        return 2
    for folder in (options.plots, options.markdown and options.markdown.parent):
        if folder:  # Now, and not when all is measured.
            folder.mkdir(parents=True, exist_ok=True)
    repeats = options.repeats or (1 if options.quick else 5)
    outcomes, failed, lines = [], False, _header(arguments)
    for case, devices in itertools.product(chosen, options.devices):
        if missing := case.missing():
            lines.append(f"Left out: {case.title}: {', '.join(missing)} is not installed.")
            continue
        try:
            of = {"quick": options.quick, "devices": devices, "cold": options.cold}
            outcomes.append(run_case(case, repeats=repeats, say=_say, **of))
        except ContenderError as error:
            lines.append(f"Failed: {error}")
            failed = True
    lines += ["", *table(outcomes), _NOTES.format(repeats=repeats)]
    if options.plots:
        few = min(repeats, 3)
        lines += run_all(options.plots, quick=options.quick, repeats=few, say=_say)
    text = "\n".join(lines)
    print(text)
    if options.markdown:
        options.markdown.write_text(f"# Numbers\n\n{text}\n")
    return int(failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes, one repeat")
    parser.add_argument(
        "--only",
        action="extend",
        nargs="+",
        metavar="NAME",
        help=f"a case, or a glob over cases; or several ({', '.join(c.name for c in CASES)})",
    )
    parser.add_argument("--repeats", type=int, metavar="N", help="5, with --quick 1")
    parser.add_argument(
        "--devices", type=int, nargs="+", default=[0], metavar="N", help="each case on each count"
    )
    parser.add_argument(
        "--cold", action="store_true", help="read files that are not in the page cache"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there too")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="run scaling too, plots there")
    return parser


def _header(arguments: Sequence[str]) -> list[str]:
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "safetensors"))
    return [
        f"`{shlex.join(['python', 'benchmarks/run.py', *arguments])}`, "
        f"{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, {versions}, "
        f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} at the start.",
    ]


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    ratio = "/ lazyinit's"
    yield _row(
        "Case",
        "Contender",
        "Time, s",
        ratio,
        "CPU, s",
        "Peak memory, MiB",
        ratio,
        "Kept, MiB",
        "Read, MiB",
        "Same bits",
    )
    yield "|---|---|--:|--:|--:|--:|--:|--:|--:|:-:|"
    for outcome in outcomes:
        own = outcome.scores[0]
        for score in outcome.scores:
            yield _row(
                outcome.title if score is own else "",
                score.label,
                _seconds(score.seconds),
                "1" if score is own else _ratio(score.times),
                f"{score.cpu_seconds.median:.2f}",
                _mebibytes(score.peak_bytes) + ("" if score.peak_was_reset else ", at least"),
                "1" if score is own else _ratio(score.peaks, own.peak_bytes.median >= 2**20),
                _mebibytes(score.kept_bytes),
                "" if score.read_bytes is None else f"{score.read_bytes / 2**20:.0f}",
                {None: "", True: "yes", False: "no"}[score.same_bits],
            )
            for name, seconds in score.parts.items():
                yield _row("", f"- its {name}", _seconds(seconds), *[""] * 7)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _seconds(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.least:.2f} - {spread.most:.2f})"


def _ratio(spread: Spread, told: bool = True) -> str:
    return f"**{spread.median:.2f}** ({spread.least:.2f} - {spread.most:.2f})" if told else ""


def _mebibytes(spread: Spread) -> str:
    median, least, most = (
        f"{size / 2**20:.0f}" for size in (spread.median, spread.least, spread.most)
    )
    return f"{median} ({least} - {most})"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
