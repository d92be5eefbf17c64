"""Cases, the processes that contend in them, and the statistics of what they report.

Each contender runs in a fresh process of its own. Repeats are interleaved (A B C A B C), so that
a slow minute of the machine hits all alike, and a ratio is taken within each repeat: what is
reported is the median of the ratios, with the smallest and the largest.
"""

import dataclasses
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decoder import Size

_CONTENDER = Path(__file__).with_name("contender.py")
_NORM_TOLERANCE = 1e-6  # Relative. Other keys would give other norms by 1e-4 and more.


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to do, and who does it.

    Attributes:
      name: what to call it on the command line.
      title: what to call it in the table; ``{bytes}`` stands for the size of the result,
        ``{layers}`` for the number of layers, ``{devices}`` for that of devices, ``{cache}`` for
        the state of the page cache.
      module: where the contenders are.
      contenders: by name of their function, what to call them in the table; lazyinit first.
      reference: a contender, or another function of the module, which is run once, first. All
        contenders must have its result: the same paths, shapes and dtypes, norms that agree.
      exact: contenders that must have its very bits.
      owned: whether no array may lie in a memory map.
      reads: whether to count, in one more process each, what is read from disk.
      size: of the full run.
      quick: of a quick run, where that is another.
      needs: packages without which the case is left out.
    """

    name: str
    title: str
    module: str
    contenders: Mapping[str, str]
    reference: str
    exact: Sequence[str] = ()
    owned: bool = False
    reads: bool = False
    size: Size = Size()  # noqa: RUF009 (immutable)
    quick: Size | None = None
    needs: Sequence[str] = ()

    def missing(self) -> list[str]:
        """Returns the packages that the case needs and that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


class ContenderError(Exception):
    """A contender failed, or had a wrong result."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, smallest and largest of some numbers."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> "Spread":
        return cls(statistics.median(numbers), min(numbers), max(numbers))


@dataclass(frozen=True, slots=True)
class Score:
    """What one contender did in all repeats.

    Attributes:
      label: who.
      seconds: of the timed part.
      times: its seconds over lazyinit's of the same repeat.
      cpu_seconds: what its threads computed, together.
      peak_bytes: what resident memory grew by at most.
      peaks: that over lazyinit's.
      kept_bytes: what it is larger by with the result alone.
      parts: seconds of parts of the timed part, by name.
      read_bytes: what came from the disk with no file in the page cache, at least; ``None`` if not
        counted.
      same_bits: whether the result had the bits of the reference; ``None`` if it has no bits.
      peak_was_reset: whether ``peak_bytes`` misses nothing (see ``measure``).
    """

    label: str
    seconds: Spread
    times: Spread
    cpu_seconds: Spread
    peak_bytes: Spread
    peaks: Spread
    kept_bytes: Spread
    parts: Mapping[str, Spread]
    read_bytes: int | None
    same_bits: bool | None
    peak_was_reset: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """A case, run: its title and one score per contender."""

    title: str
    scores: Sequence[Score]


def run_case(
    case: Case,
    *,
    quick: bool,
    repeats: int,
    say: Callable[[str], None],
    devices: int = 0,
    cold: bool = False,
) -> Outcome:
    """Runs the contenders of a case in turn, and checks their results.

    Args:
      case: what to run.
      quick: whether to take the quick size.
      repeats: how often each contender runs.
      devices: how many there are; 0 for as many as the case has.
      cold: whether the file that is read is out of the page cache, and what is read is counted.
      say: takes a line about each process that ended.

    Raises:
      ContenderError: a process failed, or a result differs from the reference.
    """
    size = case.quick if quick and case.quick else case.size
    size = dataclasses.replace(size, devices=devices or size.devices)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in case.contenders}
    with tempfile.TemporaryDirectory(prefix="lazyinit-benchmark-") as folder:
        if case.reference not in case.contenders:
            wanted = run_once(case, case.reference, size, folder)["facts"]
            say(f"{case.name}: {case.reference} (reference)")
        flags = ("--evict",) if cold else ()
        for repeat in range(repeats):
            for name in case.contenders:
                runs[name].append(run := run_once(case, name, size, folder, *flags))
                say(f"{case.name}: {name} {repeat + 1}/{repeats}: {run['seconds']:.3f} s")
        read: dict[str, int] = {}
        for name in case.contenders if case.reads and not cold else ():
            read[name] = run_once(case, name, size, folder, "--evict")["read_bytes"]
            say(f"{case.name}: {name} read {_binary(read[name])}")
    if cold:
        read = {name: min(run["read_bytes"] for run in runs[name]) for name in runs}
    if case.reference in case.contenders:
        wanted = runs[case.reference][0]["facts"]
    for name in case.contenders:
        for run in runs[name]:
            _check(case, name, run["facts"], wanted)
    lazyinit = next(iter(runs.values()))
    scores = [
        _score(case.contenders[name], runs[name], lazyinit, wanted, read.get(name)) for name in runs
    ]
    title = case.title.format(
        bytes=_binary(wanted.get("bytes", 0)),
        layers=size.layers,
        devices=f"{size.devices} device{'s' * (size.devices > 1)}",
        cache=f"page cache {'cold' if cold else 'warm'}",
    )
    return Outcome(title, scores)


def run_once(case: Case, function: str, size: Size, folder: str, *flags: str) -> dict[str, Any]:
    """Runs one contender in a fresh process, and returns what it measured."""
    command = [sys.executable, str(_CONTENDER), case.module, function]
    command += [json.dumps(dataclasses.asdict(size)), folder, *flags]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join(done.stderr.splitlines()[-20:])
        raise ContenderError(f"{case.name}: {function} ended with {done.returncode}:\n{tail}")
    return json.loads(done.stdout.splitlines()[-1])


def _environment() -> dict[str, str]:
    """Returns this process's environment, less what would change JAX for some contenders."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    return kept | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}


def _check(case: Case, name: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    where = f"{case.name}: {name}"
    if found["structure"] != wanted["structure"]:
        raise ContenderError(f"{where}: other paths, shapes or dtypes than {case.reference}.")
    for path, norm in wanted.get("norms", {}).items():
        if not math.isclose(found["norms"][path], norm, rel_tol=_NORM_TOLERANCE):
            raise ContenderError(
                f"{where}: {path}: wanted norm {norm}, as {case.reference} has, "
                f"got {found['norms'][path]}."
            )
    if name in case.exact and found["bits"] != wanted["bits"]:
        raise ContenderError(f"{where}: other bits than {case.reference}.")
    if case.owned and found["borrowed"]:
        raise ContenderError(f"{where}: {found['borrowed']} arrays lie in a memory map.")


def _score(
    label: str,
    runs: Sequence[Mapping[str, Any]],
    lazyinit: Sequence[Mapping[str, Any]],
    wanted: Mapping[str, Any],
    read_bytes: int | None,
) -> Score:
    def ratios(name: str) -> Spread:
        pairs = zip(runs, lazyinit, strict=True)
        return Spread.of([a[name] / b[name] if b[name] else math.nan for a, b in pairs])

    return Score(
        label=label,
        seconds=Spread.of([run["seconds"] for run in runs]),
        times=ratios("seconds"),
        cpu_seconds=Spread.of([run["cpu_seconds"] for run in runs]),
        peak_bytes=Spread.of([run["peak_bytes"] for run in runs]),
        peaks=ratios("peak_bytes"),
        kept_bytes=Spread.of([run["kept_bytes"] for run in runs]),
        parts={p: Spread.of([run["parts"][p] for run in runs]) for p in runs[0]["parts"]},
        read_bytes=read_bytes,
        same_bits=_same_bits(runs, wanted),
        peak_was_reset=all(run["peak_was_reset"] for run in runs),
    )


def _same_bits(runs: Sequence[Mapping[str, Any]], wanted: Mapping[str, Any]) -> bool | None:
    if "bits" not in wanted:
        return None
    return all(run["facts"]["bits"] == wanted["bits"] for run in runs)


def _binary(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
