"""Finds where the results of an equation are placed, apart from what they are.

A constraint, a ``jax.device_put``, the ``out_shardings`` of a ``jit`` and the type of an Explicit
value say it. Where nothing says it, the placement follows from the inputs, as it does in XLA.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.extend.core as jex
from jax._src import mesh as mesh_lib
from jax.sharding import (
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)

from lazyinit.compat import primitives
from lazyinit.compat.primitives import Fact

Placement: TypeAlias = Sharding | None  # ``None`` where nothing was said.

# Primitives that return each of their inputs unchanged, at another place.
_MOVES = frozenset(
    ["device_put", "layout_constraint", "mesh_cast", "reshard", "sharding_constraint"]
)

# Primitives that leave results where their input is, beside those that work element by element.
_IN_PLACE = frozenset(["cummax", "cummin", "rev", "scatter", "sort"])


def moves(equation: jex.JaxprEqn) -> bool:
    """Tells whether an equation returns its inputs unchanged, at another place."""
    return equation.primitive.name in _MOVES


class Placements:
    """Finds where the results of equations go, and remembers what it found in bodies."""

    def __init__(self) -> None:
        """Starts with no body known."""
        # By identity. Each body is kept as well, so that its identity is not used again.
        self._silent: dict[int, tuple[Any, bool]] = {}

    def of(self, equation: jex.JaxprEqn, given: Sequence[Placement]) -> Sequence[Placement]:
        """Returns where the results of an equation go.

        If nothing says where, the results of an element-by-element equation go where the first
        input of the same shape is, as XLA passes a placement on. So do those of an equation that
        reorders elements along an axis, and a transpose permutes the placement. Those of any other
        equation go to the default device (``None``), although XLA passes on some more.

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
        """Returns the placements that an equation's parameters say, or that follow from inputs."""
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
        if equation.primitive.name == "transpose":
            return [_permuted(given[0], params["permutation"])]
        if not _is_in_place(equation):
            return [None] * len(equation.outvars)
        shapes = [getattr(a.aval, "shape", None) for a in equation.invars]
        wanted = [getattr(v.aval, "shape", None) for v in equation.outvars]
        return [_first_like(shape, shapes, given) for shape in wanted]

    def _of_body(self, jaxpr: Any, given: Sequence[Placement]) -> Sequence[Placement]:
        """Returns where the results of a body go, found equation by equation."""
        if all(place is None for place in given) and self._is_silent(jaxpr):
            return [None] * len(jaxpr.outvars)
        env: dict[Any, Placement] = dict(zip(jaxpr.invars, given, strict=True))

        def taken(atom: Any) -> Placement:
            return None if isinstance(atom, jex.Literal) else env.get(atom)

        for equation in jaxpr.eqns:
            made = self.of(equation, [taken(a) for a in equation.invars])
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


def _first_like(shape: Any, shapes: Sequence[Any], given: Sequence[Placement]) -> Placement:
    pairs = zip(shapes, given, strict=True)
    return next((place for one, place in pairs if place is not None and one == shape), None)


def _is_in_place(equation: jex.JaxprEqn) -> bool:
    """Tells whether XLA leaves results where an input of their shape is."""
    return Fact.BY_ELEMENT in primitives.facts(equation) or equation.primitive.name in _IN_PLACE


def _permuted(placement: Placement, axes: Sequence[int]) -> Placement:
    if not isinstance(placement, NamedSharding):
        return placement
    spec = [*placement.spec, *[None] * (len(axes) - len(placement.spec))]
    turned = PartitionSpec(*(spec[axis] for axis in axes))
    return NamedSharding(placement.mesh, turned, memory_kind=placement.memory_kind)


def _stacked(placement: Placement) -> Placement:
    if not isinstance(placement, NamedSharding):
        return placement
    spec = PartitionSpec(None, *placement.spec)
    return NamedSharding(placement.mesh, spec, memory_kind=placement.memory_kind)


def _whole_where_free(placement: Sharding) -> Sharding:
    """Returns a placement that does not cut the dimensions that a constraint leaves open."""
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


def is_cut(placement: Placement) -> bool:
    """Tells whether a placement cuts an array over several devices."""
    if not isinstance(placement, NamedSharding):
        return False
    names = [n for axes in placement.spec for n in (axes if isinstance(axes, tuple) else (axes,))]
    return any(placement.mesh.shape.get(name, 1) > 1 for name in names)


def mesh_around() -> Mesh | None:
    """Returns the mesh of devices that is set, whatever trace is current; ``None`` if none is."""
    mesh = mesh_lib.get_concrete_mesh()
    return None if mesh.empty else mesh
