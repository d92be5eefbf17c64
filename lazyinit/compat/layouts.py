"""How JAX lays out the parameters of the primitives that are looked into, on any version.

Names and layouts of parameters are not public. What a version lacks is not guessed at: an
equation that cannot be read is one that is run as it stands.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.extend.core as jex

# A jaxpr with its constants; since jax 0.12 every jaxpr may have them.
ClosedJaxpr: Any = getattr(jex, "ClosedJaxpr", jex.Jaxpr)

# What eager JAX runs equation by equation, although a body that was traced before has it as one:
# the transform matters to derivatives and batches alone. Drop when JAX exposes its eval rules.
_TRANSPARENT = {
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vmap_call": "call",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
}


def transparent_body(equation: jex.JaxprEqn) -> tuple[jex.Jaxpr, Sequence[Any]] | None:
    """Returns the body and constants of an equation that eager JAX runs step by step, if it is."""
    name = _TRANSPARENT.get(equation.primitive.name)
    return None if name is None else _open(equation.params[name])


def jit_body(equation: jex.JaxprEqn) -> tuple[jex.Jaxpr, Sequence[Any]] | None:
    """Returns the body and constants of a ``jit``, ``None`` for any other equation."""
    return _open(equation.params["jaxpr"]) if equation.primitive.name in ("jit", "pjit") else None


@dataclass(frozen=True, slots=True)
class Scan:
    """The parts of a ``scan``: what it takes is constants, carries, then what it scans over.

    Attributes:
      body: the jaxpr of one step, closed over its constants.
      num_consts: how many inputs are the same in each step.
      num_carry: how many inputs and outputs go from step to step.
      length: how many steps.
    """

    body: Any
    num_consts: int
    num_carry: int
    length: int


def scan_of(equation: jex.JaxprEqn) -> Scan | None:
    """Returns the parts of a ``scan``, ``None`` for any other equation."""
    params = equation.params
    if equation.primitive.name != "scan":
        return None
    if "num_carry" in params:  # Until jax 0.11.
        counts = params["num_consts"], params["num_carry"]
    else:  # A tree of the inputs, in three parts.
        consts, carry, _ = params["ft_in"].update(range(len(equation.invars))).unpack()
        counts = len(list(consts)), len(list(carry))
    return Scan(params["jaxpr"], *counts, params["length"])


def not_inlined(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the parameters of a primitive such that ``make_jaxpr`` keeps a ``jit`` as one.

    Whether it says so by a bool (until jax 0.10) or by ``jax.Inline``.
    """
    inline = params.get("inline")
    if inline is None or inline is False:
        return params
    choices: Any = getattr(jax, "Inline", None)
    if choices is None:
        return {**params, "inline": False}
    return {**params, "inline": choices.AUTO} if inline is choices.JAX_EARLY else params


def bodies(equation: jex.JaxprEqn) -> Sequence[jex.Jaxpr]:
    """Returns the jaxprs inside an equation, opened: those of a jit, a scan, a cond."""
    return [_open(body)[0] for body in jex.jaxprs_in_params(equation.params)]


def may_loop(equation: jex.JaxprEqn) -> bool:
    """Tells whether an equation has a loop in it that ends by a condition on values."""
    return equation.primitive.name == "while" or any(
        may_loop(inner) for body in bodies(equation) for inner in body.eqns
    )


def _open(body: Any) -> tuple[jex.Jaxpr, Sequence[Any]]:
    # Since jax 0.12 a jaxpr is one that may be closed, and is told as such by its type.
    return (body.jaxpr, body.consts) if isinstance(body, ClosedJaxpr) else (body, ())
