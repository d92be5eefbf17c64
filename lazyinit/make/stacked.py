"""The stacked form of a work: its leaf has rows, and each row is made from a key of its own.

This is how ``nn.scan`` and ``nnx.vmap`` make the parameters of layers; the rows lie along the first
axis. XLA compiles the body of a scan as one, so a row is drawn by the steps of the body, with no
barrier between them. Under a ``vmap``, eager JAX runs each equation for all rows at once, so a row
is drawn by the steps of the work, with its barriers. A device makes only the rows that it holds.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp

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
      row: the form that makes one row, from its key.
      count: how many rows there are.
      fold: the number that is folded into each key first; ``-1`` if there is none.
      place: the position of the array of keys among the inputs of the work.
      under: the origin of the rows: ``"scan"``, ``"vmap"``, ``"scan_of_vmap"``, ``"scan_of_scan"``.
      keys: computes the array of keys from the inputs of the work; ``None`` if it is an input.
    """

    row: Elementwise
    count: int
    fold: int = -1
    place: int = 0
    under: str = "scan"
    keys: Callable[..., Any] | None = None

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
        return None if row is None else cls(row, shape[0], place=places[0], under="vmap")

    @classmethod
    def _of_scan(cls, work: Work) -> "Stacked | None":
        if len(work.equations) != 1 or len(work.outputs) != 1 or len(work.inputs) > 1:
            return None
        (equation,) = (e.origin for e in work.equations)
        found = _scanned(equation)
        if found is None or len(equation.invars) != len(work.inputs):  # It takes a key twice.
            return None
        row, count, fold = found
        return cls(row, count, fold)

    @classmethod
    def of_steps(cls, work: Work) -> "Stacked | None":
        """Returns a scan in this form whose keys follow from counts, as those of ``nnx.Rngs`` do.

        The counts may be carried from step to step. Keys and counts are exact, so they can be
        computed apart, before the rows. A step may make several rows, by a ``vmap`` or a scan.
        """
        return cls._of_counts(work, 0) or cls._of_counts(work, 1)

    @classmethod
    def _of_counts(cls, work: Work, ndim: int) -> "Stacked | None":
        """Returns a scan in this form whose keys and counts have at most ``ndim`` dimensions."""
        if len(work.equations) != 1 or len(work.outputs) != 1:
            return None
        (equation,) = work.equations
        scan = compat.scan_of(equation.origin)
        if scan is None or not scan.length or scan.body.consts:
            return None
        jaxpr = scan.body.jaxpr
        place = equation.outputs.index(work.outputs[0])
        avals = [v.aval for v in jaxpr.invars]
        if (
            place < scan.num_carry
            or equation.idle
            or not all(_is_count(aval, ndim) for aval in avals)
        ):
            return None
        if any(v not in work.inputs for v in equation.inputs):
            return None
        places = [work.inputs.index(v) for v in equation.inputs]
        result = jaxpr.outvars[place]
        counts = [e for e in jaxpr.eqns if all(_is_count(v.aval, ndim) for v in _arrays(e))]
        rest = [e for e in jaxpr.eqns if e not in counts]
        made = {v for e in rest for v in e.outvars}
        taken = {v for e in rest for v in e.invars if isinstance(v, jex.Var)} - made
        # All other results of a step must be counts, as XLA would fuse floats with the row.
        needed = {result, *(v for e in rest for v in e.invars if isinstance(v, jex.Var))}
        if len(taken) != 1 or not all(needed & set(e.outvars) for e in rest):
            return None
        (key,) = taken
        counted = {v for e in counts for v in e.invars if isinstance(v, jex.Var)}
        others = {v for v in jaxpr.outvars if isinstance(v, jex.Var)} - {result}
        if not is_key(key.aval) or made & (counted | others):
            return None
        body = SimpleNamespace(invars=[key], constvars=[], eqns=rest, outvars=[result])
        found = _rows_of(body)
        if found is None:
            return None
        row, count, fold, under = found
        keys = functools.partial(_keys, scan, places, counts, key)
        return cls(row, scan.length * count, fold, under=under, keys=keys)

    def rows(self, parts: Sequence[tuple[Any, ...]]) -> Sequence[Sequence[tuple[Any, ...]]]:
        """Returns the host values to hand in for each row; one empty list if the work takes none.

        Args:
          parts: the host values for each input of the work; for the array of keys,
            uint32[...,2], with the rows in their order.
        """
        if not parts:  # All elements have one value.
            return [[]]
        (words,) = parts[self.place]
        before, behind = parts[: self.place], parts[self.place + 1 :]
        words = words.reshape(-1, words.shape[-1])
        keys = [w if self.fold < 0 else fold_in(w, self.fold) for w in words]
        return [[*before, (key,), *behind] for key in keys]


def _scanned(equation: jex.JaxprEqn) -> tuple[Elementwise, int, int] | None:
    """Returns the row of a scan over an array of keys, the count of rows, and what is folded in."""
    scan = compat.scan_of(equation)
    if scan is None or scan.num_carry or scan.num_consts or len(equation.outvars) != 1:
        return None
    avals: list[Any] = [v.aval for v in equation.invars]
    if not scan.length or len(avals) > 1 or any(a.ndim != 1 or not is_key(a) for a in avals):
        return None
    row = form_of_body(scan.body)
    if row is None or (avals and all(step.kind != "bits" for step in row.steps)):
        return None
    row, fold = _without_fold(row)
    return row, scan.length, fold


def _rows_of(body: Any) -> tuple[Elementwise, int, int, str] | None:
    """Returns what ``_scanned`` returns, for the body of a step that makes one row or several.

    The last item of the tuple is the origin of the rows (``Stacked.under``).
    """
    (key,), (result,) = (v.aval for v in body.invars), (v.aval for v in body.outvars)
    if key.ndim and len(body.eqns) == 1 and (found := _scanned(body.eqns[0])):
        return *found, "scan_of_scan"
    if not key.size:
        return None
    closed = SimpleNamespace(in_avals=[key], out_avals=[result], jaxpr=body, consts=())
    row = form_of_body(closed, rows=key.size if key.ndim else 0)
    return row and (row, key.size, -1, "scan_of_vmap" if key.ndim else "scan")


def _is_count(aval: Any, ndim: int) -> bool:
    """Tells whether a value is one key or one integer, or an array of such."""
    if not hasattr(aval, "dtype") or len(aval.shape) > ndim:
        return False
    return is_key(aval) or bool(jnp.issubdtype(aval.dtype, jnp.integer))


def _arrays(equation: jex.JaxprEqn) -> list[Any]:
    return [*equation.invars, *equation.outvars]


def _keys(
    scan: Any, places: Sequence[int], counts: Sequence[jex.JaxprEqn], key: jex.Var, *values: Any
) -> Any:
    """Runs those equations of a scan that compute keys and counts.

    Args:
      scan: the scan.
      places: for each input of the scan, which of the values it is; one may be taken twice.
      counts: the equations of its body that are run.
      key: the variable of the body that is the key.
      *values: the values of the inputs of the work.

    Returns:
      The key of each step.
    """
    jaxpr = scan.body.jaxpr
    inputs = [values[n] for n in places]
    consts, rest = inputs[: scan.num_consts], inputs[scan.num_consts :]
    carry, over = rest[: scan.num_carry], rest[scan.num_carry :]

    def step(carry: Sequence[Any], row: Sequence[Any]) -> tuple[list[Any], Any]:
        env = dict(zip(jaxpr.invars, [*consts, *carry, *row], strict=True))

        def taken(atom: Any) -> Any:
            return atom.val if isinstance(atom, jex.Literal) else env[atom]

        for equation in counts:
            made = compat.bind(equation, *map(taken, equation.invars))
            env.update(zip(equation.outvars, made, strict=True))
        return [taken(v) for v in jaxpr.outvars[: scan.num_carry]], env[key]

    carried = [jnp.asarray(x) for x in carry]
    return jax.lax.scan(step, carried, list(over), scan.length, scan.is_reversed)[1]


def _without_fold(row: Elementwise) -> tuple[Elementwise, int]:
    """Takes a fold at the start out of the steps, so that one program serves leaves of all names.

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
