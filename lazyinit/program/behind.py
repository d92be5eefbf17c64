"""Computes outputs of an equation from another output of it that is given.

``jax.jit(init)`` returns ``w`` and ``ema = cast(w)`` at once. If ``w`` is then read from a file,
``ema`` has to be the cast of what was read: the part of the body behind ``w`` becomes a ``jit`` of
its own. The arrays that a ``scan`` stacks are treated alike, step by step. An output that does not
follow from ``w`` (if ``w`` is the cast, and ``ema`` what was cast) stays as it was.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex

from lazyinit import compat, meshes
from lazyinit.program.equations import Equation, Program, Value


def computed_from(program: Program, given: Collection[Value]) -> Program:
    """Returns a program that computes further outputs of an equation from a given output of it.

    Args:
      program: any program.
      given: values of the program that are known, such as a leaf that was read from a file.

    Returns:
      The same program if no output can be computed so; if not, a program with the same values,
      some of which other equations make.
    """
    made = {e.index: e for v in given if (e := program.producers.get(v))}
    behind = {n: e for n, one in made.items() if (e := _behind(program, one, given))}
    if not behind:
        return program
    # Doubled, the indices leave room for one more equation behind each.
    producers = {v: replace(e, index=2 * e.index) for v, e in program.producers.items()}
    for equation in behind.values():
        producers.update(dict.fromkeys(equation.outputs, equation))
    fresh = {name: {} for name in ("_small", "_on_keys", "_narrowed", "_idled", "_fingerprints")}
    lists = {name: [] for name in ("stable", "_pickled", "_traced")}
    return replace(program, producers=producers, **fresh, **lists)


def _behind(program: Program, equation: Equation, given: Collection[Value]) -> Equation | None:
    """Returns the equation that computes other outputs of ``equation`` from its given outputs.

    ``None`` if all of its outputs are given, or none of the others follows from them.
    """
    places = {n for n, v in enumerate(equation.outputs) if v in given}
    origin = equation.origin
    if len(places) == len(equation.outputs) or not _is_open(origin):
        return None
    flags = _flags(origin, places, [_Flags(False, False)] * len(origin.invars))
    wanted = [n for n, f in enumerate(flags) if n not in places and f.follows and not f.is_barred]
    if not wanted:
        return None
    ordered = sorted(places)

    def lazyinit_behind(taken: Sequence[Any], values: Sequence[Any]) -> list[Any]:
        found = _values(origin, taken, dict(zip(ordered, values, strict=True)), wanted)
        return [found[n] for n in wanted]

    avals = program.avals
    taken = [*equation.inputs, *(equation.outputs[n] for n in ordered)]
    structs = [jax.ShapeDtypeStruct(avals[v].shape, avals[v].dtype) for v in taken]
    cut = len(equation.inputs)

    def traced() -> Any:
        with compat.enable_x64(program.x64):
            return jax.make_jaxpr(jax.jit(lazyinit_behind))(structs[:cut], structs[cut:])

    jaxpr = meshes.outside(traced).jaxpr
    (whole,) = jaxpr.eqns
    narrowed = compat.narrow(whole, [True] * len(wanted)) or whole
    number = dict(zip(jaxpr.invars, taken, strict=True))
    inputs = tuple(number[v] for v in narrowed.invars)
    outputs = tuple(equation.outputs[n] for n in wanted)
    return Equation(narrowed, inputs, outputs, 2 * equation.index + 1)


class _Flags(NamedTuple):
    """What is known of a value in a body.

    Attributes:
      follows: whether it is a given value, or is computed from one (and perhaps from others).
      is_barred: whether it is also computed from a carry of a scan, which is not known.
    """

    follows: bool
    is_barred: bool


def _is_open(equation: jex.JaxprEqn) -> bool:
    return bool(compat.jit_body(equation) or compat.scan_of(equation))


def _any(flags: Sequence[_Flags]) -> _Flags:
    return _Flags(any(f.follows for f in flags), any(f.is_barred for f in flags))


def _flags(equation: jex.JaxprEqn, given: Collection[int], taken: Sequence[_Flags]) -> list[_Flags]:
    """Returns the flags of an equation's outputs; ``given`` are positions of given outputs."""
    scan, body = compat.scan_of(equation), compat.jit_body(equation)
    jaxpr = scan.body.jaxpr if scan else body[0] if body else None
    if jaxpr is None or not given:
        return [_Flags(True, False) if n in given else _any(taken) for n in _outputs(equation)]
    known = dict.fromkeys(jaxpr.constvars, _Flags(False, False))
    known.update(zip(jaxpr.invars, taken, strict=True))
    if scan:
        carried = jaxpr.invars[scan.num_consts :][: scan.num_carry]
        known.update(dict.fromkeys(carried, _Flags(False, True)))
    stops: set[Any] = {jaxpr.outvars[n] for n in given}
    known.update(dict.fromkeys(stops, _Flags(True, False)))
    for inner in jaxpr.eqns:
        variables = [v for v in inner.invars if isinstance(v, jex.Var)]
        is_given = _places(inner, stops)
        flags = _flags(inner, is_given, [_flag(v, known) for v in inner.invars])
        if not is_given:
            flags = [_any([known[v] for v in variables])] * len(inner.outvars)
        found = zip(inner.outvars, flags, strict=True)
        known.update((v, f) for v, f in found if v not in stops)
    made = [_flag(v, known) for v in jaxpr.outvars]
    is_carry = range(scan.num_carry if scan else 0)
    return [_Flags(f.follows, f.is_barred or n in is_carry) for n, f in enumerate(made)]


def _flag(atom: Any, known: Mapping[Any, _Flags]) -> _Flags:
    return _Flags(False, False) if isinstance(atom, jex.Literal) else known[atom]


def _outputs(equation: jex.JaxprEqn) -> range:
    return range(len(equation.outvars))


def _places(equation: jex.JaxprEqn, stops: Collection[Any]) -> set[int]:
    return {n for n, v in enumerate(equation.outvars) if v in stops}


def _values(
    equation: jex.JaxprEqn, taken: Sequence[Any], given: Mapping[int, Any], wanted: Sequence[int]
) -> Mapping[int, Any]:
    """Computes wanted outputs of an equation from its inputs and given outputs, in a trace."""
    if scan := compat.scan_of(equation):
        consts = taken[: scan.num_consts]
        over = taken[scan.num_consts + scan.num_carry :]
        carried = [None] * scan.num_carry  # No wanted output depends on a carry.

        def step(_: None, row: tuple[Sequence[Any], Mapping[int, Any]]) -> tuple[None, list[Any]]:
            jaxpr = scan.body.jaxpr
            all_taken = [*consts, *carried, *row[0]]
            found = _in_body(jaxpr, scan.body.consts, all_taken, row[1], wanted)
            return None, [found[n] for n in wanted]

        _, made = jax.lax.scan(step, None, (list(over), dict(given)), scan.length)
        return dict(zip(wanted, made, strict=True))
    body = compat.jit_body(equation)
    assert body is not None
    return _in_body(*body, taken, given, wanted)


def _in_body(
    jaxpr: jex.Jaxpr,
    consts: Sequence[Any],
    taken: Sequence[Any],
    given: Mapping[int, Any],
    wanted: Sequence[int],
) -> Mapping[int, Any]:
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, taken, strict=True))
    stops = {jaxpr.outvars[n]: x for n, x in given.items()}
    env.update(stops)
    live = {jaxpr.outvars[n] for n in wanted} - stops.keys()
    runs: list[jex.JaxprEqn] = []
    for inner in reversed(jaxpr.eqns):
        if any(v in live for v in inner.outvars):
            runs.append(inner)
            live |= {v for v in inner.invars if isinstance(v, jex.Var)} - stops.keys()

    def value(atom: Any) -> Any:
        return atom.val if isinstance(atom, jex.Literal) else env.get(atom)

    for inner in reversed(runs):
        places = _places(inner, stops)
        inputs = list(map(value, inner.invars))
        if places and _is_open(inner):
            inside = {n: stops[inner.outvars[n]] for n in places}
            others = [n for n in _outputs(inner) if n not in places and inner.outvars[n] in live]
            made = _values(inner, inputs, inside, others)
        elif any(x is None for x in inputs):
            continue  # It depends on a carry, so no wanted output needs it.
        else:
            made = dict(enumerate(compat.bind(inner, *inputs)))
        env.update((inner.outvars[n], x) for n, x in made.items() if n not in places)
    return {n: value(jaxpr.outvars[n]) for n in wanted}
