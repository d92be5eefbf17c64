"""Removes placements from equations, as if they had been traced under no mesh.

A sharding constraint, a mesh in the context, the type of a mesh axis and an ``out_sharding`` say
where an array lies. None of them changes an element.

This rests on how JAX writes placements into equations: as values of the public types ``Sharding``,
``Mesh`` and ``AbstractMesh`` among the parameters, in the context, and in the type of an Explicit
value. Drop when a jaxpr can be traced anew for another mesh.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.extend.core as jex
import numpy as np
from jax._src import core
from jax._src import mesh as mesh_lib
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, Sharding

from lazyinit.compat import primitives
from lazyinit.compat.placements import moves
from lazyinit.compat.primitives import ClosedJaxpr

_NOWHERE = AbstractMesh((), ())


class OnMeshError(Exception):
    """The result of an equation depends on a mesh, as that of a ``shard_map`` does."""


class Unplaced:
    """Removes placements from equations, and remembers the bodies that it has rewritten."""

    def __init__(self) -> None:
        """Starts with no context and no body known."""
        # By the identity of the original, which is kept, too, so that its identity stays its own.
        self._contexts: dict[int, tuple[Any, Any]] = {}
        self._bodies: dict[int, tuple[Any, Any]] = {}

    def equation(self, equation: jex.JaxprEqn) -> jex.JaxprEqn:
        """Returns an equation without placements, or as it is if it needs its mesh."""
        try:
            return self._equation(equation)
        except OnMeshError:
            return equation

    def aval(self, aval: Any) -> Any:
        """Returns the type of a value, without its sharding."""
        if not isinstance(aval, core.ShapedArray) or aval.sharding.mesh.empty:
            return aval
        with jax.sharding.use_abstract_mesh(_NOWHERE):
            return core.ShapedArray(aval.shape, aval.dtype, weak_type=aval.weak_type)

    def _equation(self, equation: jex.JaxprEqn) -> jex.JaxprEqn:
        context = self._context(equation.ctx)
        changed = {}
        for name, value in equation.params.items():
            is_mesh = isinstance(value, Mesh | AbstractMesh) and not value.empty
            if is_mesh and name != "ctx_mesh":
                raise OnMeshError
        for name, value in equation.params.items():
            new = self._parameter(name, value)
            if new is not value:
                changed[name] = new
        if not changed and context is equation.ctx:
            return equation
        return equation.replace(params={**equation.params, **changed}, ctx=context)

    def _context(self, context: Any) -> Any:
        if context.cur_abstract_mesh.empty:
            return context
        if id(context) not in self._contexts:
            with context.manager, jax.sharding.use_abstract_mesh(_NOWHERE):
                self._contexts[id(context)] = context, type(context)()
        return self._contexts[id(context)][1]

    def _parameter(self, name: str, value: Any) -> Any:
        match value:
            case jex.Jaxpr() | ClosedJaxpr():
                return self._body(value)
            case NamedSharding() if value.mesh.empty:
                return value
            case Sharding() | PartitionSpec():
                return None
            case Mesh() | AbstractMesh():
                return value if value.empty else _of_jit()["ctx_mesh"]
            case tuple() if name in ("in_shardings", "out_shardings"):
                plain = _of_jit()[name][0]
                return value if all(x is plain for x in value) else (plain,) * len(value)
            case tuple() if any(isinstance(x, jex.Jaxpr | ClosedJaxpr) for x in value):
                new = tuple(self._parameter(name, x) for x in value)
                if all(a is b for a, b in zip(new, value, strict=True)):
                    return value
                # The bodies of a linear solve are a named tuple.
                return type(value)(*new) if hasattr(value, "_fields") else new
            case _:
                return value

    def _body(self, body: Any) -> Any:
        if id(body) not in self._bodies:
            self._bodies[id(body)] = body, self._traced_anew(body)
        return self._bodies[id(body)][1]

    def _traced_anew(self, body: Any) -> Any:
        jaxpr, consts = primitives.open_body(body)
        is_placed = any(self.aval(v.aval) is not v.aval for v in (*jaxpr.invars, *jaxpr.constvars))
        if not is_placed and not any(moves(e) or self._equation(e) is not e for e in jaxpr.eqns):
            return body
        variables = [*jaxpr.constvars, *jaxpr.invars]
        is_open = len(consts) < len(jaxpr.constvars)
        taken = variables if is_open else jaxpr.invars
        if not all(isinstance(v.aval, core.ShapedArray) for v in taken):
            raise OnMeshError  # A mutable array, a token: left to the mesh that it was made under.

        def run(*args: Any) -> Any:
            return self._run(jaxpr, args if is_open else (*consts, *args))

        with jax.sharding.use_abstract_mesh(_NOWHERE):
            closed = jax.make_jaxpr(run)(*map(_struct, taken))
        if isinstance(body, ClosedJaxpr) and not is_open:
            return closed
        if closed.consts:
            raise OnMeshError
        opened, _ = primitives.open_body(closed)
        return opened.replace(
            constvars=opened.invars[: len(jaxpr.constvars)],
            invars=opened.invars[len(jaxpr.constvars) :],
        )

    def _run(self, jaxpr: Any, args: Sequence[Any]) -> Sequence[Any]:
        env = dict(zip([*jaxpr.constvars, *jaxpr.invars], args, strict=True))

        def taken(atom: Any) -> Any:
            return atom.val if isinstance(atom, jex.Literal) else env[atom]

        for equation in jaxpr.eqns:
            inputs = list(map(taken, equation.invars))
            results = inputs if moves(equation) else bind(self._equation(equation), *inputs)
            env.update(zip(equation.outvars, results, strict=True))
        return list(map(taken, jaxpr.outvars))


def bind(equation: jex.JaxprEqn, *args: Any) -> Sequence[Any]:
    """Runs one equation, eagerly or under a trace, in the context that it was traced in."""
    # Drop the manager when jax.extend.core.eval_jaxpr runs single equations.
    params = equation.params
    ctx_mesh = params.get("ctx_mesh")
    if isinstance(ctx_mesh, AbstractMesh) and not ctx_mesh.empty:
        # An equation that needs a mesh was recorded under an abstract one; it runs on the one set.
        here = mesh_lib.get_concrete_mesh()
        params = params if here.empty else {**params, "ctx_mesh": here}
    params = equation.primitive.get_bind_params(params)
    with equation.ctx.manager:
        out = equation.primitive.bind(*args, **params)
    return out if equation.primitive.multiple_results else [out]


def _struct(variable: Any) -> jax.ShapeDtypeStruct:
    aval = variable.aval
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)


@functools.cache
def _of_jit() -> dict[str, Any]:
    """Returns the parameters of a ``jit`` with one input and output, traced under no mesh."""
    with jax.sharding.use_abstract_mesh(_NOWHERE):
        (equation,) = jax.make_jaxpr(jax.jit(lambda x: x + 1))(1.0).eqns
    return {**equation.params, "ctx_mesh": Mesh(np.empty((), object), ())}
