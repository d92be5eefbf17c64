"""Programs as bytes that are the same in every process that recorded the same initialization.

``fingerprint`` tells equations apart by objects that only this process has. Here equations are
written as text: names, numbers, shapes, and values that print alike in every process. Of anything
else, such as a function, only the name is written. So two processes may take programs for equal
that differ only within such a function; they never take equal programs for different ones.
"""

import enum
import hashlib
import marshal
from collections.abc import Mapping
from typing import Any

import jax
import jax.extend.core as jex
import numpy as np

from lazyinit import compat
from lazyinit.program.equations import Program, is_key
from lazyinit.program.meaning import meaning
from lazyinit.program.slices import Slice

_NEXT = "; "  # Between the steps of a body.


def digest(program: Program) -> bytes:
    """Returns 16 bytes that are equal for programs with equal equations in the same order."""
    if not program.stable:
        program.stable.append(_digest(program))
    return program.stable[0]


def steps_of(made: Slice) -> str:
    """Returns 16 hex digits for the steps that make one leaf, wherever they stand in a program."""
    program = made.program
    steps = meaning(program, made.output, made.key, made.given, told=lambda eqn: _text(eqn.params))
    return hashlib.blake2b(repr(steps).encode(), digest_size=8).hexdigest()


def lines_of(made: Slice) -> list[str]:
    """Returns the steps that make one leaf for people, line by line.

    ``#2`` is what the third step made; within a body, values are numbered anew.
    """
    of = made.program, made.output, made.key, made.given
    _, given, steps, _ = meaning(*of, told=_body)
    values = [_shown(value) for value in given]
    lines = []
    for _, (name, body), taken in steps:
        known = (values[n] if n < len(values) else f"#{n - len(values)}" for n in taken)
        lines += [f"{name}({', '.join(known)})", *body]
    return lines


def _body(equation: jex.JaxprEqn) -> tuple[str, list[str]]:
    """Returns what people call an equation, and what it does, line by line."""
    body = compat.jit_body(equation)
    text = _of_jaxpr(body[0]) if body else _text(equation.params)
    return compat.title(equation), text.split(_NEXT)


def _shown(given: Any) -> str:
    """Returns a value that steps start from, as ``meaning`` tells it, for people."""
    match given:
        case (aval, _, bytes() as digest, shown):
            return f"{aval} {shown or digest.hex()[:8]}"
        case str():
            return given
        case kind, which:
            return f"{kind} {which}"
    raise AssertionError(f"nothing that steps start from: {given}")


def _digest(program: Program) -> bytes:
    number: dict[Any, int] = {}
    texts: dict[str, int] = {}
    rows = []
    for equation in {id(e): e for e in program.producers.values()}.values():
        origin = equation.origin
        params, name = origin.params, origin.primitive.name
        # Each text is written once. Equal layers have the same parameters, in dicts that differ, so
        # parameters are compared by identity. Of a jit, which most equations are, the body alone
        # decides what it computes.
        body = compat.jit_body(origin)
        if body is None:
            same = (name, *map(id, params.values()))
        else:
            same = (id(body[0]), *map(id, body[1]))
        if same not in number:
            number[same] = texts.setdefault(f"{name} {_text(params)}", len(texts))
        rows.append((number[same], equation.inputs, equation.outputs))
    given = sorted(program.streams.items()), sorted(program.abstract.items())
    # Version 2 writes each value out; later ones refer to objects that happen to be the same.
    told = marshal.dumps((program.x64, rows, list(texts), given, *_constants(program)), 2)
    return hashlib.blake2b(told, digest_size=16).digest()


def _constants(program: Program) -> tuple[list[Any], list[str]]:
    """Returns the constants of a program, and the names of the dtypes of its NumPy arrays.

    Each constant is an integer, bytes, or for a NumPy array its bytes, its shape, and the place of
    its dtype among the names.
    """
    found: list[Any] = []
    dtypes: dict[Any, int] = {}
    for value, constant in program.constants.items():
        if isinstance(constant, np.ndarray | np.generic):
            place = dtypes.setdefault(constant.dtype, len(dtypes))
            found.append((constant.tobytes(), constant.shape, place))
        elif isinstance(constant, int):
            found.append(int(constant))
        else:
            found.append(_of_array(constant, program.avals[value]))
    return found, list(map(str, dtypes))


def _of_array(constant: Any, aval: Any) -> bytes:
    """Returns the value of a constant as bytes; for a traced one, which has none, its type."""
    if compat.is_tracer(constant):
        return str(aval).encode()
    if isinstance(constant, bool | int | float | complex):
        return repr(constant).encode()
    if not isinstance(constant, np.generic | np.ndarray):
        with jax.ensure_compile_time_eval():
            constant = np.asarray(jax.random.key_data(constant) if is_key(aval) else constant)
    return constant.tobytes() + constant.dtype.char.encode()


def _text(param: Any) -> str:
    """Returns a parameter of an equation, of any type, as text without memory addresses."""
    match param:
        case None | bool() | int() | float() | complex() | str() | bytes() | np.dtype():
            return repr(param)
        case enum.Enum():
            return str(param)
        case compat.ClosedJaxpr():
            held = [
                _of_array(c, v.aval).hex()
                for c, v in zip(param.consts, param.jaxpr.constvars, strict=True)
            ]
            return f"{_of_jaxpr(param.jaxpr)} {held}"
        case jex.Jaxpr():
            return _of_jaxpr(param)
        case Mapping():
            return "{" + ", ".join(f"{k}: {_text(v)}" for k, v in sorted(param.items())) + "}"
        case tuple() | list():
            return f"{type(param).__name__}[{', '.join(map(_text, param))}]"
        case np.ndarray() | np.generic():
            return f"{param.dtype}{param.shape} {param.tobytes().hex()}"
        case _:
            return getattr(param, "__qualname__", type(param).__qualname__)


def _of_jaxpr(jaxpr: jex.Jaxpr) -> str:
    number: dict[Any, int] = {v: n for n, v in enumerate((*jaxpr.constvars, *jaxpr.invars))}

    def atom(a: Any) -> str:
        if isinstance(a, jex.Literal):
            shown = f"{a.val} " if np.ndim(a.val) == 0 and not is_key(a.aval) else ""
            return f"{a.aval.str_short()} {shown}({_of_array(a.val, a.aval).hex()})"
        return str(number[a])

    steps = [" ".join(v.aval.str_short() for v in number)]
    for eqn in jaxpr.eqns:
        taken = ", ".join(map(atom, eqn.invars))
        for v in eqn.outvars:
            number[v] = len(number)
        given = " ".join(v.aval.str_short() for v in eqn.outvars)
        steps.append(f"{given} = {eqn.primitive.name}({taken}) {_text(eqn.params)}")
    return _NEXT.join((*steps, ", ".join(map(atom, jaxpr.outvars))))
