"""The stacked form of a work: its leaf has rows, and each row is made from a key of its own.

This is how ``nn.scan`` and ``nnx.vmap`` make the parameters of layers; the rows lie along the first
axis. XLA compiles the body of a scan as one, so a row is drawn by the steps of the body, with no
barrier between them. Under a ``vmap``, eager JAX runs each equation for all rows at once, so a row
is drawn by the steps of the work, with its barriers. A device makes only the rows that it holds.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
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
      moves: equations that end each step of a ``"scan_of_scan"``, and may only move its elements.
    """

    row: Elementwise
    count: int
    fold: int = -1
    place: int = 0
    under: str = "scan"
    keys: Callable[..., Any] | None = None
    moves: tuple[jex.JaxprEqn, ...] = ()

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
        if len(work.equations) != 1 or len(work.outputs) != 1:
            return None
        (equation,) = work.equations
        if equation.idle or any(v not in work.inputs for v in equation.inputs):
            return None
        place = equation.outputs.index(work.outputs[0])
        tried = (cls._of_counts(equation.origin, place, ndim) for ndim in (0, 1))
        found = next(filter(None, tried), None)
        if found is None or found.keys is None:
            return None if work.inputs else found
        places = [work.inputs.index(v) for v in equation.inputs]
        return replace(found, keys=functools.partial(_of_inputs, found.keys, places))

    @classmethod
    def _of_counts(cls, equation: jex.JaxprEqn, place: int, ndim: int) -> "Stacked | None":
        """Returns a scan in this form whose keys and counts have at most ``ndim`` dimensions.

        Its ``keys`` take the inputs of the equation.
        """
        scan = compat.scan_of(equation)
        if scan is None or not scan.length or scan.body.consts or place < scan.num_carry:
            return None
        jaxpr = scan.body.jaxpr
        if not all(_is_count(v.aval, ndim) for v in jaxpr.invars):
            return None
        result = jaxpr.outvars[place]
        counts = [e for e in jaxpr.eqns if all(_is_count(v.aval, ndim) for v in _arrays(e))]
        rest = [e for e in jaxpr.eqns if e not in counts]
        made = {v for e in rest for v in e.outvars}
        taken = {v for e in rest for v in e.invars if isinstance(v, jex.Var)} - made
        # All other results of a step must be counts, as XLA would fuse floats with the row.
        needed = {result, *(v for e in rest for v in e.invars if isinstance(v, jex.Var))}
        if not rest or not all(needed & set(e.outvars) for e in rest):
            return None
        counted = {v for e in counts for v in e.invars if isinstance(v, jex.Var)}
        others = {v for v in jaxpr.outvars if isinstance(v, jex.Var)} - {result}
        if made & (counted | others):
            return None
        found = cls._of_rows(rest, taken, result) or cls._of_scan_within(rest)
        if found is None:
            return None
        step, inputs = found
        keys = step.keys and functools.partial(_keys, scan, counts, inputs, step.keys)
        return replace(step, count=scan.length * step.count, keys=keys)

    @classmethod
    def _of_rows(
        cls, equations: Sequence[jex.JaxprEqn], taken: Iterable[jex.Var], result: Any
    ) -> "tuple[Stacked, Sequence[Any]] | None":
        """Returns the equations of a step that make one row of one key, or a ``vmap`` of rows.

        Beside it stand the inputs of its ``keys``.
        """
        keys: list[Any] = [*taken]
        avals: list[Any] = [v.aval for v in keys]
        if len(keys) > 1 or not all(is_key(aval) and aval.size for aval in avals):
            return None
        rows = sum(aval.size for aval in avals if aval.ndim)
        if rows and len(equations) == 1 and (found := _scanned(equations[0])):
            return cls(*found, under="scan_of_scan", keys=_same), keys
        body = SimpleNamespace(invars=keys, constvars=[], eqns=equations, outvars=[result])
        closed = SimpleNamespace(in_avals=avals, out_avals=[result.aval], jaxpr=body, consts=())
        row = form_of_body(closed, rows=rows)
        if row is None:
            return None
        step = cls(row, rows or 1, under="scan_of_vmap" if rows else "scan")
        return (replace(step, keys=_same) if keys else step), keys

    @classmethod
    def _of_scan_within(
        cls, equations: Sequence[jex.JaxprEqn]
    ) -> "tuple[Stacked, Sequence[Any]] | None":
        """Returns what ``_of_rows`` returns, for a scan that has counts, and moves behind it."""
        inner, *moves = equations
        scan = compat.scan_of(inner)
        if scan is None or len(inner.outvars) != 1 or (moves and not scan.is_loop):
            return None
        if any(list(b.invars) != a.outvars for a, b in itertools.pairwise(equations)):
            return None
        found = cls._of_counts(inner, 0, 0)
        if found is None or found.under != "scan":
            return None
        return replace(found, under="scan_of_scan", moves=tuple(moves)), inner.invars

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


def _is_count(aval: Any, ndim: int) -> bool:
    """Tells whether a value is one key or one integer, or an array of such."""
    if not hasattr(aval, "dtype") or len(aval.shape) > ndim:
        return False
    return is_key(aval) or bool(jnp.issubdtype(aval.dtype, jnp.integer))


def _arrays(equation: jex.JaxprEqn) -> list[Any]:
    return [*equation.invars, *equation.outvars]


def _same(key: Any) -> Any:
    return key


def _of_inputs(keys: Callable[..., Any], places: Sequence[int], *values: Any) -> Any:
    """Computes keys; ``places`` says which of the values they are computed from."""
    return keys(*(values[n] for n in places))


def _keys(
    scan: Any,
    counts: Sequence[jex.JaxprEqn],
    inputs: Sequence[Any],
    keys: Callable[..., Any],
    *values: Any,
) -> Any:
    """Runs those equations of a scan that compute keys and counts.

    Args:
      scan: the scan.
      counts: the equations of its body that are run.
      inputs: the variables and literals of the body that ``keys`` takes.
      keys: computes the keys of one step.
      *values: the values of the inputs of the scan.

    Returns:
      The keys of each step.
    """
    jaxpr = scan.body.jaxpr
    consts, rest = values[: scan.num_consts], values[scan.num_consts :]
    carry, over = rest[: scan.num_carry], rest[scan.num_carry :]

    def step(carry: Sequence[Any], row: Sequence[Any]) -> tuple[list[Any], Any]:
        env = dict(zip(jaxpr.invars, [*consts, *carry, *row], strict=True))

        def taken(atom: Any) -> Any:
            return atom.val if isinstance(atom, jex.Literal) else env[atom]

        for equation in counts:
            made = compat.bind(equation, *map(taken, equation.invars))
            env.update(zip(equation.outvars, made, strict=True))
        carried = [taken(v) for v in jaxpr.outvars[: scan.num_carry]]
        return carried, keys(*map(taken, inputs))

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
