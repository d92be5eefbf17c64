"""The stacked form of a work: its leaf has rows, and each row is made from a key of its own.

This is how ``nn.scan`` and ``nnx.vmap`` make the parameters of layers; the rows lie along the first
axis. XLA compiles the body of a scan as one, so a row is drawn by the steps of the body, with no
barrier between them. Under a ``vmap``, eager JAX runs each equation for all rows at once, so a row
has the steps of the work, with its barriers. A device makes the rows that it holds, and no others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lazyinit import compat
from lazyinit.make.elementwise import Elementwise, elementwise_of, form_of_body
from lazyinit.make.steps import Step
from lazyinit.make.threefry import fold_in
from lazyinit.program.equations import is_key
from lazyinit.program.slices import Work


@dataclass(frozen=True, slots=True)
class Stacked:
    """A work that makes one leaf, in a form that makes each row along the first axis from its key.

    Attributes:
      row: what makes one row, from its key.
      fold: the number that is folded into each key first; ``-1`` if none is.
      place: the position of the array of keys among the inputs of the work.
      under: what made the rows, ``"scan"`` or ``"vmap"``.
    """

    row: Elementwise
    fold: int = -1
    place: int = 0
    under: str = "scan"

    @classmethod
    def of(cls, work: Work) -> "Stacked | None":
        """Returns a work in this form; ``None`` if its leaf has no such rows."""
        return cls._of_vmap(work) or cls._of_scan(work)

    @classmethod
    def _of_vmap(cls, work: Work) -> "Stacked | None":
        avals: list[Any] = [work.program.avals[v] for v in work.inputs]
        places = [n for n, aval in enumerate(avals) if is_key(aval)]
        shape = work.program.avals[work.outputs[0]].shape
        if len(places) != 1 or avals[places[0]].shape != shape[:1] or not shape:
            return None
        row = elementwise_of(work, rows=shape[0]) if shape[0] else None
        return None if row is None else cls(row, place=places[0], under="vmap")

    @classmethod
    def _of_scan(cls, work: Work) -> "Stacked | None":
        if len(work.equations) != 1 or len(work.outputs) != 1 or len(work.inputs) > 1:
            return None
        (equation,) = (e.origin for e in work.equations)
        scan = compat.scan_of(equation)
        if scan is None or scan.num_carry or scan.num_consts or len(equation.outvars) != 1:
            return None
        avals: list[Any] = [v.aval for v in equation.invars]
        if len(avals) != len(work.inputs):  # The scan takes the same keys twice.
            return None
        if not scan.length or any(a.ndim != 1 or not is_key(a) for a in avals):
            return None
        row = form_of_body(scan.body)
        if row is None or (avals and all(step.kind != "bits" for step in row.steps)):
            return None
        return cls(*_without_fold(row))

    def rows(self, parts: Sequence[tuple[Any, ...]]) -> Sequence[Sequence[tuple[Any, ...]]]:
        """Returns the host values to hand in for each row, or once if all rows are alike.

        Args:
          parts: the host values for each input of the work; for the array of keys, uint32[rows,2].
        """
        if not parts:  # One value throughout.
            return [[]]
        (words,) = parts[self.place]
        before, behind = parts[: self.place], parts[self.place + 1 :]
        keys = [w if self.fold < 0 else fold_in(w, self.fold) for w in words]
        return [[*before, (key,), *behind] for key in keys]


def _without_fold(row: Elementwise) -> tuple[Elementwise, int]:
    """Takes the fold at the start out of the steps, so that one program serves leaves of all names.

    Returns:
      The other steps, and the number that was folded in; ``-1`` if there was no such fold.
    """
    first = row.steps[0] if row.steps else None
    if first is None or first.kind != "whole":
        return row, -1
    is_fold = compat.is_fold(first.equation) and first.inputs[0].number == 0
    used = [r.number for s in row.steps[1:] for r in s.inputs if r.constant is None]
    if not is_fold or first.inputs[1].constant is None or 0 in used:
        return row, -1

    def earlier(step: Step) -> Step:
        inputs = (
            r if r.constant is not None else replace(r, number=r.number - 1) for r in step.inputs
        )
        return replace(step, inputs=tuple(inputs))

    output = replace(row.output, number=row.output.number - 1)
    steps = tuple(map(earlier, row.steps[1:]))
    return Elementwise.with_signature(steps, output, row.dtype), int(first.inputs[1].constant)
