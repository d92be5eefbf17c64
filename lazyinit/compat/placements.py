"""Where the results of an equation go, taken apart from what they are.

A constraint, a mesh in the context, the type of a mesh axis, an ``out_sharding`` say where an array
lies. None of them changes an element. ``Unplaced`` gives each equation as it would have been traced
under no mesh, and ``placements`` says where its results would have gone.

It rests on how JAX writes placements into equations: as values of the public types ``Sharding``,
``Mesh`` and ``AbstractMesh`` among the parameters, in the context, and in the type of an Explicit
value. Drop when a jaxpr can be traced anew for another mesh.
"""

import functools
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.extend.core as jex
import numpy as np
from jax._src import core
from jax._src import mesh as mesh_lib
from jax.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)

from lazyinit.compat import primitives
from lazyinit.compat.primitives import ClosedJaxpr, Fact

Placement: TypeAlias = Sharding | None  # ``None`` where nothing was said.

# What gives each of its inputs as it is, at another place.
_MOVES = frozenset(
    ["device_put", "layout_constraint", "mesh_cast", "reshard", "sharding_constraint"]
)

_NOWHERE = AbstractMesh((), ())


class OnMeshError(Exception):
    """What an equation computes depends on a mesh: a ``shard_map`` does."""


def moves(equation: jex.JaxprEqn) -> bool:
    """Tells whether an equation gives its inputs as they are, at another place."""
    return equation.primitive.name in _MOVES


class Unplaced:
    """Equations as they would have been traced under no mesh, and where their results would go.

    Each body is looked at, and traced anew, once.
    """

    def __init__(self) -> None:
        """Starts with none known."""
        self._contexts: dict[int, tuple[Any, Any]] = {}
        # With what has the id, so that it stays.
        self._bodies: dict[int, tuple[Any, Any]] = {}
        self._silent: dict[int, tuple[Any, bool]] = {}

    def equation(self, equation: jex.JaxprEqn) -> jex.JaxprEqn:
        """Returns an equation with no placement in it; as it is, if it needs its mesh."""
        try:
            return self._equation(equation)
        except OnMeshError:
            return equation

    def aval(self, aval: Any) -> Any:
        """Returns the type of a value, with no sharding in it."""
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
                return value if all(a is b for a, b in zip(new, value, strict=True)) else new
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

    def placements(self, equation: jex.JaxprEqn, given: Sequence[Placement]) -> Sequence[Placement]:
        """Returns where the results of an equation go.

        Where an equation says nothing of it, its results go where the first input of their shape
        is, if it works element by element: so XLA passes a placement on. Else they go where they go
        in eager mode, anywhere: ``None``.

        Args:
          equation: as it was traced.
          given: where each of its inputs is.
        """
        found = [_of_type(v.aval) for v in equation.outvars]
        if any(place is None for place in found):
            said = self._said(equation, given)
            found = [a if a is not None else b for a, b in zip(found, said, strict=True)]
        return found

    def _said(self, equation: jex.JaxprEqn, given: Sequence[Placement]) -> Sequence[Placement]:
        params = equation.params
        match equation.primitive.name:
            case "sharding_constraint":
                return [_whole_where_free(params["sharding"])]
            case "device_put":
                pairs = zip(params["devices"], given, strict=True)
                return [before if to is None else _of_device(to, before) for to, before in pairs]
            case "scan":
                return self._of_scan(equation, given)
        if inner := primitives.jit_body(equation) or primitives.transparent_body(equation):
            made = self._of_body(inner[0], given)
            wanted = params.get("out_shardings", (None,) * len(made))
            return [s if isinstance(s, Sharding) else m for s, m in zip(wanted, made, strict=True)]
        if moves(equation):
            return given
        if all(place is None for place in given):
            return [None] * len(equation.outvars)
        if Fact.BY_ELEMENT not in primitives.facts(equation):
            return [None] * len(equation.outvars)
        shapes = [getattr(a.aval, "shape", None) for a in equation.invars]
        wanted = [getattr(v.aval, "shape", None) for v in equation.outvars]
        return [_first_like(shape, shapes, given) for shape in wanted]

    def _of_body(self, jaxpr: Any, given: Sequence[Placement]) -> Sequence[Placement]:
        if all(place is None for place in given) and self._is_silent(jaxpr):
            return [None] * len(jaxpr.outvars)
        env: dict[Any, Placement] = dict(zip(jaxpr.invars, given, strict=True))

        def taken(atom: Any) -> Placement:
            return None if isinstance(atom, jex.Literal) else env.get(atom)

        for equation in jaxpr.eqns:
            made = self.placements(equation, [taken(a) for a in equation.invars])
            env.update(zip(equation.outvars, made, strict=True))
        return [taken(a) for a in jaxpr.outvars]

    def _of_scan(self, equation: jex.JaxprEqn, given: Sequence[Placement]) -> Sequence[Placement]:
        scan = primitives.scan_of(equation)
        assert scan is not None
        kept = scan.num_consts + scan.num_carry
        inner = [*given[:kept], *[None] * (len(given) - kept)]
        made = self._of_body(primitives.open_body(scan.body)[0], inner)
        return [s if n < scan.num_carry else _stacked(s) for n, s in enumerate(made)]

    def _is_silent(self, jaxpr: Any) -> bool:
        """Tells whether nothing in a body says where anything goes."""
        if id(jaxpr) not in self._silent:
            silent = all(self._says_nothing(equation) for equation in jaxpr.eqns)
            self._silent[id(jaxpr)] = jaxpr, silent
        return self._silent[id(jaxpr)][1]

    def _says_nothing(self, equation: jex.JaxprEqn) -> bool:
        wanted = equation.params.get("out_shardings", ())
        if moves(equation) or any(isinstance(s, Sharding) for s in wanted):
            return False
        if any(_of_type(v.aval) is not None for v in equation.outvars):
            return False
        return all(map(self._is_silent, primitives.bodies(equation)))


def bind(equation: jex.JaxprEqn, *args: Any) -> Sequence[Any]:
    """Runs one equation, eagerly or under a trace, in the context that it was traced in."""
    # Drop the manager when jax.extend.core.eval_jaxpr runs single equations.
    params = equation.params
    ctx_mesh = params.get("ctx_mesh")
    if isinstance(ctx_mesh, AbstractMesh) and not ctx_mesh.empty:
        # What needs its mesh was recorded under one without devices: it runs on those that are set.
        here = mesh_lib.get_concrete_mesh()
        params = params if here.empty else {**params, "ctx_mesh": here}
    params = equation.primitive.get_bind_params(params)
    with equation.ctx.manager:
        out = equation.primitive.bind(*args, **params)
    return out if equation.primitive.multiple_results else [out]


def _first_like(shape: Any, shapes: Sequence[Any], given: Sequence[Placement]) -> Placement:
    pairs = zip(shapes, given, strict=True)
    return next((place for one, place in pairs if place is not None and one == shape), None)


def _stacked(placement: Placement) -> Placement:
    if not isinstance(placement, NamedSharding):
        return placement
    spec = PartitionSpec(None, *placement.spec)
    return NamedSharding(placement.mesh, spec, memory_kind=placement.memory_kind)


def _whole_where_free(placement: Sharding) -> Sharding:
    """Returns a placement with those dimensions whole that a constraint leaves open."""
    if not isinstance(placement, NamedSharding):
        return placement
    free = PartitionSpec.UNCONSTRAINED
    if free not in tuple(placement.spec):
        return placement
    spec = PartitionSpec(*(None if axes is free else axes for axes in placement.spec))
    return NamedSharding(placement.mesh, spec, memory_kind=placement.memory_kind)


def _of_device(to: Any, before: Placement) -> Placement:
    if isinstance(to, jax.Device):
        return SingleDeviceSharding(to)
    if isinstance(to, Sharding):
        return to
    # A kind of memory alone, which JAX has as an enumeration.
    kind = {"Device": "device", "Host": "pinned_host"}.get(getattr(to, "name", ""))
    return before if before is None or kind is None else before.with_memory_kind(kind)


def _of_type(aval: Any) -> Placement:
    sharding = getattr(aval, "sharding", None)
    if not isinstance(sharding, NamedSharding) or sharding.mesh.empty:
        return None
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None


def _struct(variable: Any) -> jax.ShapeDtypeStruct:
    aval = variable.aval
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)


@functools.cache
def _of_jit() -> dict[str, Any]:
    """Returns the parameters of a ``jit`` with one input and output, traced under no mesh."""
    with jax.sharding.use_abstract_mesh(_NOWHERE):
        (equation,) = jax.make_jaxpr(jax.jit(lambda x: x + 1))(1.0).eqns
    return {**equation.params, "ctx_mesh": Mesh(np.empty((), object), ())}


def is_cut(placement: Placement) -> bool:
    """Tells whether no device has the whole of what lies there."""
    if not isinstance(placement, NamedSharding):
        return False
    names = [n for axes in placement.spec for n in (axes if isinstance(axes, tuple) else (axes,))]
    return any(placement.mesh.shape.get(name, 1) > 1 for name in names)


def mesh_around() -> Mesh | None:
    """Returns the mesh of devices that is set, whatever trace is current; ``None`` if none is."""
    mesh = mesh_lib.get_concrete_mesh()
    return None if mesh.empty else mesh
