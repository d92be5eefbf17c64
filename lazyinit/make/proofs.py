"""What the fast ways rely on, and how much of that is proven on this machine.

A *kind* is one operation on one dtype in one way, such as ``draw erf_inv float32``. A work needs a
set of kinds. It is made in a fast way only if each of them is proven to give the bits of replay.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import jax.extend.core as jex

from lazyinit import compat, errors
from lazyinit.make.elementwise import Elementwise
from lazyinit.make.stacked import Stacked
from lazyinit.make.steps import Step
from lazyinit.program.slices import Work

Sort: TypeAlias = Literal["double", "wide", "narrow", "by parts"]
"""Sorts of kinds, each of which is checked by itself once something needs it. Leaves that are made
from keys in a fast way (``kinds_of``) need double kinds, whose results have 64 bits, wide ones,
whose results have 32, narrow ones, whose results have 16 or 8, or several of these; derived leaves
of which each device computes its own part need the last sort (``kinds_by_parts``)."""

_DOUBLE = frozenset({"float64", "int64", "uint64"})
_NARROW = frozenset({"bfloat16", "float16", "int16", "uint16", "int8", "uint8"})


def sort_of(way: str, dtypes: Sequence[str]) -> Sort:
    """Returns the sort of a kind, by its way (``"draw"``, ``"compile"``, ``"part"``) and dtypes."""
    if way == "part":
        return "by parts"
    if not _NARROW.isdisjoint(dtypes):
        return "narrow"
    return "wide" if _DOUBLE.isdisjoint(dtypes) else "double"


def _sort_of_kind(kind: str) -> Sort:
    way, _, *dtypes = kind.split()
    return sort_of(way, "+".join(dtypes).split("+"))


@dataclass(frozen=True, slots=True)
class Found:
    """What the self-check found about the kinds of one sort.

    Attributes:
      passed: the kinds that it has proven.
      failed: the kinds that have other bits, and the canary that showed it.
    """

    passed: Set[str] = frozenset()
    failed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Proofs:
    """What is proven on one kind of device.

    Attributes:
      where: the versions and the device, for messages.
      is_tested: whether the whole test suite was run there, so that everything is proven.
      of: returns what the self-check found about a sort of kinds; it may run the check for that.
    """

    where: str
    is_tested: bool = False
    of: Callable[[Sort], Found] = lambda sort: Found()

    def allow(self, kinds: Callable[[], Set[str]]) -> bool:
        """Tells whether all of these kinds are proven; warns once if not.

        Args:
          kinds: returns the kinds; it is not called where everything is proven.
        """
        if self.is_tested:
            return True
        needed = kinds()
        untyped = {kind for kind in needed if len(kind.split()) == 2}
        sorts: list[Sort] = sorted({_sort_of_kind(kind) for kind in needed - untyped})
        found = [self.of(sort) for sort in sorts]
        # A kind without a dtype may be shown by canaries of any sort, and some by wide ones alone.
        if not untyped.issubset(kind for one in found for kind in one.passed):
            found.append(self.of("wide"))
        passed = {kind for one in found for kind in one.passed}
        # A canary of one sort may show that a kind of another sort fails beside its own.
        failed = {kind: canary for one in found for kind, canary in one.failed.items()}
        unproven = sorted(kind for kind in needed if kind in failed or kind not in passed)
        if not unproven:
            return True
        self._warn_once(unproven, failed)
        return False

    def _warn_once(self, unproven: Sequence[str], failed: Mapping[str, str]) -> None:
        way = unproven[0].split()[0]  # Each way (draw, compile, part) warns by itself.
        if (self.where, way) in _warned:
            return
        _warned.add((self.where, way))
        wrong = [f"{kind} (shown by {canary!r})" for kind, canary in sorted(failed.items())]
        if wrong:
            why = f"the self-check found other bits than those of eager JAX in {', '.join(wrong)}"
        else:
            why = f"the self-check does not cover {', '.join(unproven)}"
        errors.warn(
            f"lazyinit on {self.where}: {why}. Leaves that need it are made equation by equation, "
            "as eager init makes them: the same bits, more slowly. `lazyinit check` prints what is "
            "proven."
        )


_warned: set[tuple[str, str]] = set()  # The places and ways of which this process has warned.

TRUSTED = Proofs("everywhere", is_tested=True)  # For the self-check, which tries kinds.


def kinds_of(work: Work, form: Elementwise | Stacked | None) -> frozenset[str]:
    """Returns the kinds that have to be proven before a work is made in a fast way.

    Args:
      work: what to make.
      form: how it is drawn; ``None`` if it is compiled.
    """
    if form is None:
        return frozenset(_kind("compile", e) for e in _without_bodies(work))
    row = form.row if isinstance(form, Stacked) else form
    rows = {f"draw rows_of_{form.under}"} if isinstance(form, Stacked) else set()
    return frozenset(rows | set(map(_drawn, row.steps)))


def _drawn(step: Step) -> str:
    return f"draw {step.kind}" if step.equation is None else _kind("draw", step.equation)


def kinds_by_parts(work: Work) -> frozenset[str]:
    """Returns the kinds that have to be proven before each device computes its part of a work.

    Only operations on floating-point numbers are among them. One that moves elements, or computes
    with integers, gives the same bits for a part on any device.
    """
    return frozenset(
        f"part {one.primitive.name} {'+'.join(dtypes)}"
        for one in _without_bodies(work)
        if (dtypes := compat.floats_computed(one))
    )


def _without_bodies(work: Work) -> Iterator[jex.JaxprEqn]:
    """Yields the equations of a work; one that has a body is replaced by those of its body."""
    stack = [equation.origin for equation in work.equations]
    while stack:
        equation = stack.pop()
        inner = [one for body in compat.bodies(equation) for one in body.eqns]
        stack += inner
        if not inner:
            yield equation


def _kind(way: str, equation: jex.JaxprEqn) -> str:
    dtypes = sorted({str(getattr(v.aval, "dtype", v.aval)) for v in equation.outvars})
    return f"{way} {equation.primitive.name} {'+'.join(dtypes)}"
