"""The equations of a leaf as steps, some for keys and scalars, some for each element.

A leaf can be drawn if each of its elements follows from the element's index and from single values:
keys, scalars, small arrays. ``Builder`` goes through the equations, puts the body of a ``jit`` in
place of the ``jit``, and forgets the shape of the leaf. It raises ``NotElementwiseError`` for
whatever would give other bits than eager JAX, or would need more than the index.
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

_SMALL = 1024  # Elements, at most, of a value that is computed whole, such as a small array.


@dataclass(frozen=True, slots=True)
class Ref:
    """A value that a step takes.

    Attributes:
      number: the number of the value, counted over the inputs of the work and then the results of
        the steps; ``-1`` for a constant.
      constant: a NumPy array of no dimensions; ``None`` if it is no constant.
      is_elements: whether it stands for all elements of the leaf.
      repeated: for a single value, the equations that repeat it to another shape than the leaf's.
    """

    number: int
    constant: Any = None  # Any: NumPy's arrays are not compared by ==.
    is_elements: bool = False
    repeated: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One operation.

    Attributes:
      kind: ``"whole"`` (an equation on keys and scalars), ``"elements"`` (an equation on a run of
        elements), ``"bits"`` (random bits for a run of elements), ``"barrier"`` (nothing is fused
        across it, so it ends a loop), or ``"fence"`` (it keeps roundings apart within a loop).
      equation: the equation to run; ``None`` for a barrier and a fence.
      inputs: the values that it takes.
    """

    kind: str
    equation: Any
    inputs: tuple[Ref, ...]

    @property
    def gives(self) -> int:
        """The number of its results."""
        return len(self.inputs if self.equation is None else self.equation.outvars)


def with_fences(steps: Sequence[Step], values: int) -> tuple[Step, ...]:
    """Turns a barrier into a fence where the steps behind it may share a loop with those before.

    Each loop takes 15 ms to compile. But what is in a loop decides whether LLVM vectorizes it, and
    so which form an ``exp`` in it has. So only steps that are sure to be vectorized share a loop.

    Args:
      steps: the steps to run.
      values: the number of inputs.
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
        if in_front and behind and not used_later:  # A later step would join the loop, too.
            fenced[n] = replace(steps[n], kind="fence")
    return tuple(fenced)


def _may_share(wanted: Fact, step: Step) -> bool:
    if step.kind != "elements" or not any(r.is_elements for r in step.inputs):
        return True  # Such a step has a loop of its own, or needs none.
    is_word = all(v.aval.dtype in (np.float32, np.uint32) for v in step.equation.outvars)
    return wanted in compat.facts(step.equation) and is_word


class NotElementwiseError(Exception):
    """Some element does not follow from its index in a way that keeps the bits of eager JAX."""


class Builder:
    """Turns equations into steps, one after the other.

    Attributes:
      steps: the steps so far.
    """

    def __init__(self, shape: Sequence[int], inputs: Sequence[Any], *, rows: int = 0) -> None:
        """Starts with no step.

        Args:
          shape: of the leaf.
          inputs: the avals of the inputs.
          rows: under a ``vmap``, how many keys one of the inputs has: one for each place along the
            first axis of the leaf, and every equation handles all of them. Otherwise ``0``.
        """
        self._size = math.prod(shape)
        self._rows = rows
        self._is_short = False  # Whether the equation that is being added has a short last axis.
        self._values = len(inputs)
        # The values that differ from row to row of a sheet: keys, and what may come from a key.
        self._by_row = {n for n, aval in enumerate(inputs) if not _is_single(aval)}
        self._products: set[int] = set()  # Elementwise products since the last barrier.
        self.steps: list[Step] = []

    def add(self, equation: jex.JaxprEqn, inputs: Sequence[Ref]) -> Sequence[Ref]:
        """Adds an equation that stands in no body, and a barrier behind it if it needs a step.

        Args:
          equation: what to add.
          inputs: the values that it takes.

        Returns:
          Its results.

        Raises:
          NotElementwiseError: it does not compute each element from its index.
        """
        before = len(self.steps)
        # XLA unrolls a loop over a short last axis, and then vectorizes it in another way. A body
        # is compiled as one, and may have a loop over any of its shapes.
        self._is_short = self._has_short([equation])
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
            # One value for each row makes an array, whose elements XLA may compute in another form
            # than eager JAX computes the scalar.
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
            return self.add_body(*inner, inputs)
        if any(r.is_elements for r in inputs):
            return self._on_elements(equation, inputs)
        if Fact.RANDOM_BITS in known and self._covers(equation):
            key: Any = equation.invars[0].aval
            is_row = key.shape == ((self._rows,) if self._rows else ())
            if not is_row or not compat.counts_by_index(equation):
                raise NotElementwiseError
            return self._step("bits", equation, inputs, [True])
        if all(_is_single(v.aval) for v in (*equation.invars, *equation.outvars)):
            # The number of dimensions of a single value, all of size 1, does not matter.
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
        """Returns a repeated value as a small array, for an equation that does more with it."""
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
            # LLVM rounds the sum and one of the products together; we cannot know which product.
            raise NotElementwiseError
        made = self._step("elements", equation, inputs, [True])
        is_negated = Fact.NEGATION in known and inputs[0].number in self._products
        if Fact.PRODUCT in known or is_negated:
            self._products.add(made[0].number)
        return made

    def _has_short(self, equations: Sequence[jex.JaxprEqn]) -> bool:
        avals: list[Any] = [v.aval for e in equations for v in e.outvars]
        shapes = [aval.shape for aval in avals if _size(aval) == self._size]
        inner = (body.eqns for e in equations for body in compat.bodies(e))
        return any(not s or s[-1] < SHORT for s in shapes) or any(map(self._has_short, inner))

    def _covers(self, equation: jex.JaxprEqn) -> bool:
        return len(equation.outvars) == 1 and _size(equation.outvars[0].aval) == self._size

    def add_body(self, jaxpr: jex.Jaxpr, consts: Sequence[Any], inputs: Sequence[Ref]) -> list[Ref]:
        """Adds the equations of a body, with no barrier between them, and returns its results.

        Args:
          jaxpr: the body.
          consts: its constants.
          inputs: the values that it takes.

        Raises:
          NotElementwiseError: some equation does not compute each element from its index.
        """
        self._is_short = self._is_short or self._has_short(jaxpr.eqns)
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
    return getattr(aval, "size", _SMALL + 1)  # A token or a mutable array counts as too large.


def _is_rounded(is_elements: bool, var: Any) -> bool:
    return not is_elements and _is_inexact(var)


def _is_inexact(var: Any) -> bool:
    return not is_key(var.aval) and jnp.issubdtype(var.aval.dtype, jnp.inexact)


def _is_single(aval: Any) -> bool:
    return _size(aval) == 1 and not is_key(aval)
