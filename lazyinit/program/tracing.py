"""Traces an initialization once, abstractly, in the steps that eager JAX takes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import numpy as np

from lazyinit import compat
from lazyinit.keys import AnyKey
from lazyinit.program.equations import Equation, Program, Value


def trace(
    fn: Callable[[Mapping[str, Any], Sequence[Any]], Sequence[Any]],
    keys: Mapping[str, AnyKey],
    abstract: Sequence[tuple[str, jax.ShapeDtypeStruct]] = (),
    *,
    answers_all: bool = False,
) -> tuple[Program, list[Value]]:
    """Traces an initialization, allocating nothing.

    Args:
      fn: takes root keys by stream and the abstract inputs, and returns arrays.
      keys: the root keys.
      abstract: name and shape of each input that has no value.
      answers_all: whether a value is computed, too, where JAX itself asks for one.

    Returns:
      The program, and the value of each array that ``fn`` returned. The program has all the
      equations that these need, and no others.
    """
    roots = {stream: key.array() for stream, key in keys.items()}

    looked_at: set[str] = set()

    def in_steps(keys: Mapping[str, Any], stand_ins: Sequence[Any]) -> Sequence[Any]:
        steps = compat.eager_steps(answers_all=answers_all)
        known = {stream: steps.known(stream, key, roots[stream]) for stream, key in keys.items()}
        unknown = [steps.unknown(n, x) for (n, _), x in zip(abstract, stand_ins, strict=True)]
        with steps.current():
            made = fn(known, unknown)
        looked_at.update(steps.looked_at)
        return [steps.unwrap(x) for x in made]

    closed = jax.make_jaxpr(in_steps)(roots, [struct for _, struct in abstract])
    names = [*sorted(roots), *(name for name, _ in abstract)]
    builder = _Builder()
    env = dict(zip(closed.jaxpr.invars, map(builder.value, closed.in_avals), strict=True))
    inputs = dict(zip(env.values(), names, strict=True))
    outputs = builder.inline(closed.jaxpr, closed.consts, env)
    streams = {v: name for v, name in inputs.items() if v < len(roots)}
    return (
        builder.finish(
            outputs,
            streams=streams,
            abstract={v: n for v, n in inputs.items() if v not in streams},
            looked_at=frozenset(looked_at),
        ),
        outputs,
    )


class _Builder:
    """Numbers the values of a jaxpr, with what eager JAX runs step by step laid out in steps."""

    def __init__(self) -> None:
        self.avals: list[Any] = []
        self.equations: list[Equation] = []
        self.producers: dict[Value, Equation] = {}
        self.constants: dict[Value, Any] = {}
        self.literals: set[Value] = set()

    def value(self, aval: Any) -> Value:
        self.avals.append(aval)
        return len(self.avals) - 1

    def constant(self, aval: Any, array: Any) -> Value:
        value = self.value(aval)
        self.constants[value] = array
        return value

    def atom(self, atom: Any, env: dict[jex.Var, Value]) -> Value:
        if not isinstance(atom, jex.Literal):
            return env[atom]
        value = self.constant(atom.aval, atom.val)
        if np.ndim(atom.val) == 0:
            self.literals.add(value)
        return value

    def inline(
        self, jaxpr: jex.Jaxpr, consts: Iterable[Any], env: dict[jex.Var, Value]
    ) -> list[Value]:
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            env[var] = self.constant(var.aval, const)
        for eqn in jaxpr.eqns:
            inputs = [self.atom(a, env) for a in eqn.invars]
            if body := compat.transparent_body(eqn):
                inner, inner_consts = body
                results = self.inline(
                    inner, inner_consts, dict(zip(inner.invars, inputs, strict=True))
                )
            else:
                results = [self.value(v.aval) for v in eqn.outvars]
                equation = Equation(eqn, tuple(inputs), tuple(results), len(self.equations))
                self.equations.append(equation)
                self.producers.update(dict.fromkeys(results, equation))
            env.update(zip(eqn.outvars, results, strict=True))
        return [self.atom(a, env) for a in jaxpr.outvars]

    def finish(
        self,
        outputs: Iterable[Value],
        *,
        streams: Mapping[Value, str],
        abstract: Mapping[Value, str],
        looked_at: frozenset[str],
    ) -> Program:
        kept: set[Value] = set()
        stack = list(outputs)
        while stack:
            value = stack.pop()
            if value in kept:
                continue
            kept.add(value)
            if equation := self.producers.get(value):
                kept.update(equation.outputs)
                stack += equation.inputs
        return Program(
            {v: self.avals[v] for v in kept},
            {v: e for v, e in self.producers.items() if v in kept},
            {v: a for v, a in self.constants.items() if v in kept},
            frozenset(self.literals & kept),
            streams,
            abstract,
            bool(compat.setting("jax_enable_x64")),
            looked_at,
        )
