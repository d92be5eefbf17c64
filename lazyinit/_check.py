"""The verb ``check``: tells which of the fast ways are proven on this JAX and these devices.

A platform comes in; a ``Check`` goes out, which prints as a table.
"""

import time
import typing
from dataclasses import dataclass

import jax

from lazyinit.make import selfcheck
from lazyinit.make.proofs import Sort
from lazyinit.view.shown import Shown
from lazyinit.view.table import Table


@dataclass(frozen=True, slots=True, repr=False)
class Check(Shown):
    """What a self-check found; prints as a table.

    Attributes:
      where: the versions and the device, as text.
      is_tested: whether the test suite was run there, so that ``materialize`` needs no check.
      passed: the kinds of steps that give the bits of eager JAX.
      failed: the kinds of steps that give other bits, each with the canary that showed it. Leaves
        that need such a step are made equation by equation, as eager JAX makes them.
      seconds: how long the check took.
    """

    where: str
    is_tested: bool
    passed: tuple[str, ...]
    failed: dict[str, str]
    seconds: float

    def _table(self) -> Table:
        title = (
            f"{self.where}: {len(self.passed)} kinds of steps proven, {len(self.failed)} not, in "
            f"{self.seconds:.1f} s"
        )
        rows: dict[tuple[str, str, str], list[str]] = {}
        for kind in self.passed:
            way, step, *dtype = kind.split()
            rows.setdefault((way, step, "proven"), []).extend(dtype)
        for kind, canary in self.failed.items():
            way, step, *dtype = kind.split()
            rows.setdefault((way, step, f"other bits, shown by {canary!r}"), []).extend(dtype)
        cells = [(way, step, ", ".join(d), found) for (way, step, found), d in rows.items()]
        end = (
            "The test suite was run on these versions and this CPU: everything is taken as proven."
            if self.is_tested
            else "What is not proven is made equation by equation: the same bits, more slowly."
        )
        once = (
            "These are all steps. materialize checks those of 16 and 8 bits, those of 32, those of "
            "64, and those of `part` when it first needs one."
        )
        return Table(title, ("way", "step", "dtypes", "found"), cells, notes=(once, end))


def check(platform: str | None = None) -> Check:
    """Runs the self-check: makes small arrays in the fast ways and as eager JAX does, and compares.

    ``materialize`` runs it by itself where it is needed, and keeps the outcome in
    ``$LAZYINIT_CACHE``, by default ``~/.cache/lazyinit``. It checks only the sort of steps that its
    leaves need: those of 32 bits, those of 16 and 8 bits, those of 64 bits, or those of derived
    leaves that are computed by parts. ``check`` checks all four.

    Args:
      platform: ``"cpu"``, ``"gpu"`` or ``"tpu"``; ``None`` for JAX's default.

    Returns:
      The kinds of steps that are proven, and those that are not. It prints as a table.
    """
    platform = platform or jax.default_backend()
    start = time.perf_counter()
    found = [selfcheck.run(platform, sort) for sort in typing.get_args(Sort)]
    here = selfcheck.environment(platform)
    passed = sorted(kind for proofs in found for kind in proofs.passed)
    failed = {kind: canary for proofs in found for kind, canary in proofs.failed.items()}
    seconds = time.perf_counter() - start
    return Check(str(here), here.is_tested, tuple(passed), failed, seconds)
