"""What is known of JAX's primitives: facts about each, and the layout of their parameters.

Both are JAX's and not public. Facts are looked up by the name of a primitive. Nothing is known of a
primitive without a row in the table, so callers take the safe way. A parameter that some version
lacks is not guessed at: an equation that cannot be read is run as it stands.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp


class Fact(enum.Flag):
    """What may be known of a primitive."""

    NOTHING = 0
    ORDER_FREE = enum.auto()
    """It adds up nothing, so its elements are the same however an array is cut."""
    BY_ELEMENT = enum.auto()
    """Each element of its output is made of the elements of its inputs at the same place."""
    TWO_FORMS = enum.auto()
    """XLA's CPU compiler has it in two forms, for vectors and for single elements. Their last bits
    differ, and which elements get which form depends on the size of the array."""
    IN_VECTORS = enum.auto()
    """LLVM has vector instructions for it on any machine: loops with it can be vectorized."""
    JOINS_LOOP = enum.auto()
    """It is so simple that it may join the loop in front of it."""
    PRODUCT = enum.auto()
    """It multiplies, as XLA may do to divide: LLVM may join it with a sum to one rounding."""
    SUM = enum.auto()
    """It adds two values, and LLVM may join it with a product to one rounding."""
    NEGATION = enum.auto()
    """It only changes the sign, so a negated product still counts as a product."""
    SAME_ORDER = enum.auto()
    """Its output has the elements of its input in the same order, if it has as many."""
    BROADCAST = enum.auto()
    """It repeats its input along new dimensions."""
    RANDOM_BITS = enum.auto()
    """It draws random bits from a key."""
    ONE_ROUNDING = enum.auto()
    """Each element is exact, or rounded once as IEEE 754 says: its bits depend on nothing else."""
    PICKS = enum.auto()
    """It gives elements of its inputs, or where they are, by their values, and computes none."""
    DECOMPOSITION = enum.auto()
    """LAPACK computes it on a CPU, on all cores."""


_ELEMENT = Fact.ORDER_FREE | Fact.BY_ELEMENT
_ROUNDED = _ELEMENT | Fact.ONE_ROUNDING
_VECTOR = _ELEMENT | Fact.IN_VECTORS
_SIMPLE = _VECTOR | Fact.JOINS_LOOP | Fact.ONE_ROUNDING
_SHAPE = Fact.ORDER_FREE | Fact.SAME_ORDER

# Each primitive stands in one row, behind the facts that are known of it.
_TABLE: Sequence[tuple[Fact, str]] = (
    (
        Fact.ORDER_FREE,
        """
        and_invert bessel_i0e bessel_i1e broadcast checkpoint closed_call concatenate cond
        core_call custom_jvp_call custom_vjp_call device_put digamma dynamic_slice
        dynamic_update_slice eq_to expand_dims imag iota jit lgamma optimization_barrier pad pjit
        random_clone random_fold_in random_gamma random_seed random_split random_unwrap
        random_wrap real reduce_and reduce_max reduce_min reduce_or remat2 rev rsqrt scan slice
        split threefry2x32 transpose while
        """,
    ),
    (Fact.ORDER_FREE | Fact.RANDOM_BITS, "random_bits"),
    (Fact.PICKS, "argmax argmin cummax cummin scatter sort top_k"),
    (Fact.DECOMPOSITION, "cholesky eigh geqrf householder_product lu qr svd"),
    (_SHAPE, "reshape squeeze"),
    (_SHAPE | Fact.BROADCAST, "broadcast_in_dim"),
    (
        _ELEMENT,
        """
        atan2 cbrt cos cosh erf erfc sin sinh tan
        """,
    ),
    (
        _ROUNDED,
        """
        abs and ceil clamp convert_element_type copy copy_p eq floor ge gt is_finite le lt ne
        nextafter not population_count reduce_precision rem round select_n shift_left
        shift_right_arithmetic sign sqrt stop_gradient xor
        """,
    ),
    (_ELEMENT | Fact.TWO_FORMS, "exp exp2 expm1 log log1p logistic pow tanh"),
    (_ROUNDED | Fact.PRODUCT, "div integer_pow square"),
    (_VECTOR, "erf_inv"),
    (_VECTOR | Fact.ONE_ROUNDING, "bitcast_convert_type or shift_right_logical"),
    (_SIMPLE, "max min"),
    (_SIMPLE | Fact.SUM, "add sub"),
    (_SIMPLE | Fact.NEGATION, "neg"),
    (_SIMPLE | Fact.PRODUCT, "mul"),
)
_FACTS = {name: facts for facts, names in _TABLE for name in names.split()}


def facts(equation: jex.JaxprEqn) -> Fact:
    """Returns all that is known of the primitive of an equation."""
    return _FACTS.get(equation.primitive.name, Fact.NOTHING)


def is_order_free(equation: jex.JaxprEqn) -> bool:
    """Tells whether an equation has no sum, product or the like whose rounding depends on order."""
    return Fact.ORDER_FREE in facts(equation) and all(
        is_order_free(inner) for body in bodies(equation) for inner in body.eqns
    )


def differs_where_cut(equation: jex.JaxprEqn) -> bool:
    """Tells whether eager JAX may give other bits where an input is cut over a mesh.

    What adds up rounds by how it is cut, but for whole numbers. A ``gather`` adds up, too: each
    device gives zeros for what others have, and so a -0.0 becomes 0.0.
    """
    known, inner = facts(equation), [one for body in bodies(equation) for one in body.eqns]
    is_alike = bool(known & (Fact.ORDER_FREE | Fact.PICKS)) or not (
        inner or _gives_floats(equation)
    )
    return not is_alike or any(map(differs_where_cut, inner))


def _gives_floats(equation: jex.JaxprEqn) -> bool:
    dtypes = [getattr(v.aval, "dtype", None) for v in equation.outvars]
    return any(dtype is None or jnp.issubdtype(dtype, jnp.inexact) for dtype in dtypes)


def decomposes(equation: jex.JaxprEqn) -> bool:
    """Tells whether an equation, or one in its bodies, decomposes a matrix."""
    return Fact.DECOMPOSITION in facts(equation) or any(
        decomposes(inner) for body in bodies(equation) for inner in body.eqns
    )


def is_fold(equation: jex.JaxprEqn) -> bool:
    """Tells whether an equation folds a number into a key."""
    # Recording asks this of many equations, so the table is not used.
    return equation.primitive.name == "random_fold_in"


def title(equation: jex.JaxprEqn) -> str:
    """Returns what people call an equation: the function of a ``jit``, or the primitive."""
    return str(equation.params.get("name", equation.primitive.name))


def bit_width(equation: jex.JaxprEqn) -> int:
    """Returns the number of bits of each integer that a ``random_bits`` draws."""
    return equation.params["bit_width"]


def is_transposing(equation: jex.JaxprEqn) -> bool:
    """Tells whether a ``reshape`` takes the dimensions of its input in another order."""
    return equation.primitive.name == "reshape" and equation.params["dimensions"] is not None


def index_taken(equation: jex.JaxprEqn) -> tuple[slice | int, ...] | None:
    """Returns the index that a ``slice`` or ``squeeze`` applies, ``None`` for any other."""
    params = equation.params
    match equation.primitive.name:
        case "slice":
            strides = params["strides"] or (1,) * len(params["start_indices"])
            bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
            return tuple(slice(*bound) for bound in bounds)
        case "squeeze":
            aval: Any = equation.invars[0].aval
            gone = params["dimensions"]
            return tuple(0 if n in gone else slice(None) for n in range(len(aval.shape)))
    return None


# A jaxpr with its constants; since jax 0.12 every jaxpr may have them.
ClosedJaxpr: Any = getattr(jex, "ClosedJaxpr", jex.Jaxpr)

# Eager JAX runs the body of each of these equation by equation, as the transform matters to
# derivatives and batches alone. The value is the parameter that holds the body. Drop when JAX
# exposes its eval rules.
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
    """Returns the body and constants of an equation whose body eager JAX runs step by step.

    ``None`` for any other equation.
    """
    name = _TRANSPARENT.get(equation.primitive.name)
    return None if name is None else open_body(equation.params[name])


def jit_body(equation: jex.JaxprEqn) -> tuple[jex.Jaxpr, Sequence[Any]] | None:
    """Returns the body and constants of a ``jit``, ``None`` for any other equation."""
    return (
        open_body(equation.params["jaxpr"]) if equation.primitive.name in ("jit", "pjit") else None
    )


@dataclass(frozen=True, slots=True)
class Scan:
    """The parts of a ``scan``. Its inputs are constants, carries, and the arrays it scans over.

    Attributes:
      body: the jaxpr of one step, closed over its constants.
      num_consts: how many inputs are the same in each step.
      num_carry: how many inputs and outputs go from step to step.
      length: how many steps.
      is_reversed: whether the last step comes first.
      is_loop: whether XLA gets a loop of single steps, and so fuses nothing behind it with them.
    """

    body: Any
    num_consts: int
    num_carry: int
    length: int
    is_reversed: bool
    is_loop: bool


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
    length = params["length"]
    is_loop = length > 1 and params["unroll"] == 1
    return Scan(params["jaxpr"], *counts, length, params["reverse"], is_loop)


def not_inlined(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns parameters with which ``make_jaxpr`` keeps a ``jit`` as one equation.

    Until jax 0.10 a bool says whether it is inlined, since then a ``jax.Inline``.
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
    return [open_body(body)[0] for body in jex.jaxprs_in_params(equation.params)]


def may_loop(equation: jex.JaxprEqn) -> bool:
    """Tells whether an equation has a loop in it that ends by a condition on values."""
    return equation.primitive.name == "while" or any(
        may_loop(inner) for body in bodies(equation) for inner in body.eqns
    )


def open_body(body: Any) -> tuple[jex.Jaxpr, Sequence[Any]]:
    """Returns a jaxpr and its constants, of which an open jaxpr has none."""
    # Since jax 0.12 one type serves for both, with constants that may be none.
    return (body.jaxpr, body.consts) if isinstance(body, ClosedJaxpr) else (body, ())
