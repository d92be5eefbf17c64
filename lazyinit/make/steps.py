"""Equations -> steps: what is done once, with keys and scalars, and what to each element.

What is inside of a jit is laid out in its place, the shapes of the leaf are forgotten, and what
does not give each element from its index and from single values is refused.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from lazyinit import compat
from lazyinit.compat import Fact
from lazyinit.make.limits import SHORT
from lazyinit.program.equations import is_key

_SMALL = 1024  # Elements of a value that is made whole beside the elements: keys, scalars.


@dataclass(frozen=True, slots=True)
class Ref:
    """A value that a step takes.

    Attributes:
      number: which value, counted from the inputs of the work on; ``-1`` for a constant.
      constant: a NumPy array of no dimensions, if it is one.
      is_elements: whether it stands for all elements of the leaf.
      repeated: the equations that repeat it, one value, to another shape than the leaf's.
    """

    number: int
    constant: Any = None  # Any: NumPy's arrays are not compared by ==.
    is_elements: bool = False
    repeated: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One operation.

    Attributes:
      kind: ``"whole"`` (an equation on keys and scalars), ``"elements"`` (one on a run of
        elements), ``"bits"`` (random ones for a run of elements), ``"barrier"`` (between two
        loops), or ``"fence"`` (one within a loop).
      equation: what to run; ``None`` for a barrier and a fence.
      inputs: what it takes.
    """

    kind: str
    equation: Any
    inputs: tuple[Ref, ...]

    @property
    def gives(self) -> int:
        """How many values it gives."""
        return len(self.inputs if self.equation is None else self.equation.outvars)


def with_fences(steps: Sequence[Step], values: int) -> tuple[Step, ...]:
    """Turns barriers into fences where what is behind them may share the loop in front.

    Every loop more takes 15 ms to compile. But what else is in a loop can change whether LLVM makes
    it of vectors, and so the form of an ``exp`` in it: only what is sure of its vectors may share.

    Args:
      steps: what to run.
      values: how many values are handed in.
    """
    fenced = list(steps)
    ends = [n for n, step in enumerate(steps) if step.kind == "barrier"]
    first_made = [*itertools.accumulate((s.gives for s in steps), initial=values)]
    last_use = {r.number: n for n, step in enumerate(steps) for r in step.inputs}
    for start, n, end in zip([-1, *ends], ends, ends[1:], strict=False):
        made = range(first_made[n], first_made[n + 1])
        used_later = any(last_use.get(number, -1) > end for number in made)
        in_front = all(_may_share(Fact.IN_VECTORS, s) for s in steps[start + 1 : n])
        behind = all(_may_share(Fact.JOINS_LOOP, s) for s in steps[n + 1 : end])
        if in_front and behind and not used_later:  # Later ones would share it, too.
            fenced[n] = replace(steps[n], kind="fence")
    return tuple(fenced)


def _may_share(wanted: Fact, step: Step) -> bool:
    if step.kind != "elements" or not any(r.is_elements for r in step.inputs):
        return True  # In a loop of its own, or in none.
    is_word = all(v.aval.dtype in (np.float32, np.uint32) for v in step.equation.outvars)
    return wanted in compat.facts(step.equation) and is_word


class NotElementwiseError(Exception):
    """What was laid out does not give each element from its index."""


class Builder:
    """Lays equations out in steps, with what is inside of a jit in its place."""

    def __init__(self, shape: Sequence[int], inputs: Sequence[Any], *, rows: int = 0) -> None:
        """Takes the shape of the leaf, and the avals of what is handed in.

        Args:
          shape: of the leaf.
          inputs: avals.
          rows: how many keys there are where an array of keys is handed in, one for each place
            along the first axis of the leaf, and every equation is on all of them; ``0`` for none.
        """
        self._size = math.prod(shape)
        self._rows = rows
        # XLA unrolls loops over short last axes, and joins what it unrolled to other vectors.
        self._is_short = shape[-1] < SHORT if shape else True
        self._values = len(inputs)
        # Single values that differ from row to row of a sheet: what is, or may be, made of a key.
        self._by_row = {n for n, aval in enumerate(inputs) if not _is_single(aval)}
        self._products: set[int] = set()  # Of elements, in the stretch since the last barrier.
        self.steps: list[Step] = []

    def top(self, equation: jex.JaxprEqn, inputs: Sequence[Ref]) -> Sequence[Ref]:
        """Adds a top-level equation, with a barrier behind it if it has taken a step."""
        before = len(self.steps)
        made = self._equation(equation, inputs)
        if len(self.steps) == before or any(is_key(v.aval) for v in equation.outvars):
            return made
        fenced = [r for r in made if r.constant is None]
        self._products.clear()
        numbered = iter(self._step("barrier", None, fenced, [r.is_elements for r in fenced]))
        return [next(numbered) if r.constant is None else r for r in made]

    def _step(
        self, kind: str, equation: Any, inputs: Sequence[Ref], gives: Sequence[bool]
    ) -> list[Ref]:
        self.steps.append(Step(kind, equation, tuple(inputs)))
        first, self._values = self._values, self._values + len(gives)
        if any(r.number in self._by_row for r in inputs):
            # One for each row is an array, of which XLA may compute an element in another form.
            if equation is not None and any(map(_is_rounded, gives, equation.outvars)):
                raise NotElementwiseError
            self._by_row.update(range(first, self._values))
        return [Ref(first + n, None, is_elements) for n, is_elements in enumerate(gives)]

    def _equation(self, equation: jex.JaxprEqn, inputs: Sequence[Ref]) -> Sequence[Ref]:
        known = compat.facts(equation)
        if not compat.is_anywhere(equation):
            raise NotElementwiseError
        if Fact.SAME_ORDER in known and len(inputs) == 1 and not inputs[0].is_elements:
            is_single = _is_single(equation.outvars[0].aval)
            if inputs[0].repeated or (_is_single(equation.invars[0].aval) and not is_single):
                return [self._repeated(equation, inputs[0])]
        inputs = list(map(self._whole, inputs))
        inner = compat.jit_body(equation) or compat.transparent_body(equation)
        if inner is not None:
            return self.body(*inner, inputs)
        if any(r.is_elements for r in inputs):
            return self._on_elements(equation, inputs)
        if Fact.RANDOM_BITS in known and self._covers(equation):
            key: Any = equation.invars[0].aval
            is_row = key.shape == ((self._rows,) if self._rows else ())
            if not is_row or not compat.counts_by_index(equation):
                raise NotElementwiseError
            return self._step("bits", equation, inputs, [True])
        if all(_is_single(v.aval) for v in (*equation.invars, *equation.outvars)):
            # How many dimensions of 1 it has follows from the leaf's, and does not matter.
            if Fact.SAME_ORDER in known:
                return [inputs[0]]
            if Fact.BY_ELEMENT in known:
                return self._step("elements", equation, inputs, [False])
        if any(_size(v.aval) > _SMALL for v in (*equation.invars, *equation.outvars)):
            raise NotElementwiseError
        if self._rows and any(r.number in self._by_row for r in inputs):
            raise NotElementwiseError
        return self._step("whole", equation, inputs, [False] * len(equation.outvars))

    def _repeated(self, equation: jex.JaxprEqn, ref: Ref) -> Ref:
        if self._covers(equation):
            return replace(ref, is_elements=True, repeated=())
        return replace(ref, repeated=(*ref.repeated, equation))

    def _whole(self, ref: Ref) -> Ref:
        """Repeats a single value, where something else than repeating it again is done with it."""
        made = replace(ref, repeated=())
        for equation in ref.repeated:
            if _size(equation.outvars[0].aval) > _SMALL:
                raise NotElementwiseError
            (made,) = self._step("whole", equation, [made], [False])
        return made

    def _on_elements(self, equation: jex.JaxprEqn, inputs: Sequence[Ref]) -> Sequence[Ref]:
        known = compat.facts(equation)
        pairs = zip(equation.invars, inputs, strict=True)
        is_single = all(r.is_elements or _size(a.aval) == 1 for a, r in pairs)
        if not self._covers(equation) or not is_single:
            raise NotElementwiseError
        if Fact.SAME_ORDER in known and not compat.is_transposing(equation):
            return [inputs[0]]
        may_differ = self._is_short and _is_inexact(equation.outvars[0])
        if Fact.BY_ELEMENT not in known or Fact.TWO_FORMS in known or may_differ:
            raise NotElementwiseError
        if Fact.SUM in known and all(r.number in self._products for r in inputs):
            # LLVM joins one of the two products with the sum to one rounding, and we cannot know
            # which.
            raise NotElementwiseError
        made = self._step("elements", equation, inputs, [True])
        is_negated = Fact.NEGATION in known and inputs[0].number in self._products
        if Fact.PRODUCT in known or is_negated:
            self._products.add(made[0].number)
        return made

    def _covers(self, equation: jex.JaxprEqn) -> bool:
        return len(equation.outvars) == 1 and _size(equation.outvars[0].aval) == self._size

    def body(self, jaxpr: jex.Jaxpr, consts: Sequence[Any], inputs: Sequence[Ref]) -> list[Ref]:
        """Adds the equations of a body, with no barrier."""
        env: dict[Any, Ref] = dict(zip(jaxpr.invars, inputs, strict=True))
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            env[var] = _constant(const, var.aval)

        def taken(atom: Any) -> Ref:
            is_literal = isinstance(atom, jex.Literal)
            return _constant(atom.val, atom.aval) if is_literal else env[atom]

        for equation in jaxpr.eqns:
            made = self._equation(equation, [taken(a) for a in equation.invars])
            env.update(zip(equation.outvars, made, strict=True))
        return [taken(a) for a in jaxpr.outvars]


def _constant(value: Any, aval: Any) -> Ref:
    if is_key(aval) or aval.size != 1 or compat.is_tracer(value):
        raise NotElementwiseError
    return Ref(-1, np.asarray(value, aval.dtype).reshape(()))


def _size(aval: Any) -> int:
    return getattr(aval, "size", _SMALL + 1)  # A mutable array, a token: nothing for us.


def _is_rounded(is_elements: bool, var: Any) -> bool:
    return not is_elements and _is_inexact(var)


def _is_inexact(var: Any) -> bool:
    return not is_key(var.aval) and jnp.issubdtype(var.aval.dtype, jnp.inexact)


def _is_single(aval: Any) -> bool:
    return _size(aval) == 1 and not is_key(aval)
