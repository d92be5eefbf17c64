"""Finds which outputs of a jit or a scan can be made without the others, with the same bits.

XLA compiles the body of an equation as one, and what it fuses, and so how it rounds, depends on
everything in there. ``p`` and ``q = p + noise`` are an example: beside ``p``, ``q`` may be made
of the rounded ``p`` in memory; alone, of a product that was never rounded. So a body may be
narrowed to some of its outputs only if no floating-point value on the way to them is used for
anything else. Integers, random bits among them, and constants are exact however they are fused.

A wanted output may itself be used for something else if it is *drawn*: its elements then do not
depend on the loop that XLA computes them in. If it is *replayed*, it may not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from lazyinit import compat
from lazyinit.compat import Fact
from lazyinit.program.fingerprint import fingerprint


def is_separable(equation: jex.JaxprEqn, wanted: Sequence[bool], *, drawn: bool) -> bool:
    """Tells whether the wanted outputs of an equation have the same bits without the others.

    Args:
      equation: a jit, a scan or any other.
      wanted: for each of its outputs, whether it is wanted.
      drawn: whether the wanted outputs are drawn, not replayed.
    """
    return _needed(equation, wanted, drawn) is not None


def idle_inputs(equation: jex.JaxprEqn, wanted: Sequence[bool]) -> frozenset[int]:
    """Returns the positions of the input arrays that no wanted output of an equation depends on.

    Returns none for an equation with a ``while`` loop, as an array may decide how long that runs.
    """
    if all(wanted) or not compat.bodies(equation) or compat.may_loop(equation):
        return frozenset()
    narrowed = compat.narrow(equation, wanted)
    read = equation.invars if narrowed is None else narrowed.invars
    needed = {v for v in read if isinstance(v, jex.Var)}
    return frozenset(
        n
        for n, v in enumerate(equation.invars)
        if isinstance(v, jex.Var) and v not in needed and compat.is_array(v.aval)
    )


def _needed(equation: jex.JaxprEqn, wanted: Sequence[bool], drawn: bool) -> Sequence[bool] | None:
    """Returns which inputs the wanted outputs need, ``None`` if they cannot be made alone."""
    if all(wanted):
        return [True] * len(equation.invars)
    if body := compat.jit_body(equation) or compat.transparent_body(equation):
        return _needed_in(body[0], wanted, drawn)
    if scan := compat.scan_of(equation):
        carry, rest = list(wanted[: scan.num_carry]), wanted[scan.num_carry :]
        while True:  # A carry that the next step needs counts as wanted, too.
            needed = _needed_in(scan.body.jaxpr, [*carry, *rest], drawn)
            if needed is None:
                return None
            taken = needed[scan.num_consts : scan.num_consts + scan.num_carry]
            more = [a or b for a, b in zip(carry, taken, strict=True)]
            if more == carry:
                return needed
            carry = more
    return None


@dataclass(frozen=True, slots=True)
class _Use:
    """An equation of a body, and which of its inputs are still read: none if it is dropped."""

    equation: jex.JaxprEqn
    needed: Sequence[bool]


def _needed_in(body: jex.Jaxpr, wanted: Sequence[bool], drawn: bool) -> Sequence[bool] | None:
    """Returns which inputs of a body the wanted outputs need, ``None`` if they must not be alone.

    Equations are taken from the last to the first, to see which inputs of each are still read
    once the unwanted outputs are gone. The wanted outputs may be made alone if kept and dropped
    equations read no rounded value in common, and draw numbers from no key in common.
    """
    outputs = [(v, w) for v, w in zip(body.outvars, wanted, strict=True) if isinstance(v, jex.Var)]
    live = {v for v, w in outputs if w}
    uses: list[_Use] = []
    for equation in reversed(body.eqns):
        used = [v in live for v in equation.outvars]
        needed: Sequence[bool] | None = [False] * len(equation.invars)
        if any(used):
            needed = _needed(equation, used, drawn)
            if needed is None:
                return None
            live.update(_variables(equation, needed))
        uses.append(_Use(equation, needed))
    value = _numbered(body)
    results = {value[v] for v, w in outputs if w}
    kept: set[Any] = set()
    dropped = {value[v] for v, w in outputs if not w}
    keys: tuple[set[Any], set[Any]] = set(), set()  # Drawn from: by dropped equations, by kept.
    for use in uses:
        keys[any(use.needed)].update(value[v] for v in _drawn_from(use.equation))
        kept.update(value[v] for v in _variables(use.equation, use.needed))
        dropped.update(value[v] for v in _variables(use.equation, [not n for n in use.needed]))
    made = {value[v] for use in uses for v in use.equation.outvars if _is_rounded(v)} - {None}
    shared = dropped & (kept if drawn else kept | results)
    # Numbers drawn from one key are made once for both.
    is_alone = not shared & made and not keys[False] & keys[True]
    return [v in live for v in body.invars] if is_alone else None


def _drawn_from(equation: jex.JaxprEqn) -> list[jex.Var]:
    """Returns the keys that an equation draws numbers from; splitting or folding one draws none."""
    if all(_is_key(v) for v in equation.outvars):
        return []
    return [v for v in equation.invars if isinstance(v, jex.Var) and _is_key(v)]


def _variables(equation: jex.JaxprEqn, which: Sequence[bool]) -> list[jex.Var]:
    atoms = zip(equation.invars, which, strict=True)
    return [v for v, w in atoms if w and isinstance(v, jex.Var)]


def _numbered(body: jex.Jaxpr) -> Mapping[jex.Var, Any]:
    """Returns a hashable stand-in for each variable; equal values, which XLA makes once, share it.

    A scalar that is computed from constants alone gets ``None``, even if it is broadcast: XLA
    computes it beforehand, so that no two outputs share it.
    """
    numbers: dict[Any, int] = {}
    value: dict[Any, Any] = {v: ("input", n) for n, v in enumerate((*body.constvars, *body.invars))}

    def taken(atom: Any) -> Any:
        return str(atom) if isinstance(atom, jex.Literal) else value[atom]

    constants: set[Any] = set()
    for equation in body.eqns:
        variables = _variables(equation, [True] * len(equation.invars))
        is_exact = Fact.SAME_ORDER in compat.facts(equation) or all(
            map(_is_number, equation.outvars)
        )
        if is_exact and all(v in constants for v in variables):
            constants.update(equation.outvars)
            value.update(dict.fromkeys(equation.outvars))
            continue
        done = (equation.primitive, fingerprint(equation.params), *map(taken, equation.invars))
        number = numbers.setdefault(done, len(numbers))
        value.update({v: (number, n) for n, v in enumerate(equation.outvars)})
    return value


def _is_number(v: Any) -> bool:
    return _is_rounded(v) and v.aval.shape == ()


def _is_key(v: Any) -> bool:
    return hasattr(v.aval, "dtype") and jnp.issubdtype(v.aval.dtype, jax.dtypes.prng_key)


def _is_rounded(v: Any) -> bool:
    return hasattr(v.aval, "dtype") and jnp.issubdtype(v.aval.dtype, jnp.inexact)
