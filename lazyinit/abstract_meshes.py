"""Meshes without devices: how they are written as text, and values that stand for devices."""

import re
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, Sharding

from lazyinit import errors

MeshLike: TypeAlias = Mesh | AbstractMesh | str

_AXIS = re.compile(r"\s*([A-Za-z_]\w*)\s*=\s*([1-9][0-9]{0,8})\s*")


@dataclass(frozen=True, slots=True, order=True)
class MeshDevice:
    """Stands for one device of a mesh without devices.

    Attributes:
      id: the index of the device in the mesh; the last axis varies fastest.
      process_index: the host that the device would belong to.
    """

    id: int
    process_index: int = 0

    def __str__(self) -> str:
        return f"device {self.id}"


def mesh_of(mesh: MeshLike) -> Mesh | AbstractMesh:
    """Returns a mesh unchanged; makes one without devices of text such as ``"data=4,model=8"``.

    Raises:
      ShardingError: the text is no mesh, or the value is neither text nor a mesh.

    Example:
      >>> dict(mesh_of("data=4,model=8").shape)
      {'data': 4, 'model': 8}
    """
    if isinstance(mesh, Mesh | AbstractMesh):
        return mesh
    if not isinstance(mesh, str):
        raise errors.ShardingError(
            f"mesh: wanted a jax.sharding.Mesh, an AbstractMesh, or text such as 'data=4,model=8', "
            f"got {mesh!r}."
        )
    axes: dict[str, int] = {}
    for part in mesh.split(","):
        found = _AXIS.fullmatch(part)
        if found is None or found[1] in axes:
            fault = f"the axis {found[1]!r} twice" if found else repr(part)
            raise errors.ShardingError(
                f"mesh {mesh!r}: wanted axes and their sizes, such as 'data=4,model=8', got "
                f"{fault}."
            )
        axes[found[1]] = int(found[2])
    auto = (AxisType.Auto,) * len(axes)
    return AbstractMesh(tuple(axes.values()), tuple(axes), axis_types=auto)


def is_abstract(sharding: Sharding | None) -> bool:
    """Tells whether a sharding is on a mesh that has no devices."""
    return isinstance(sharding, NamedSharding) and not isinstance(sharding.mesh, Mesh)


def devices_of(sharding: Any, hosts: int = 1) -> tuple[MeshDevice, ...]:
    """Returns values that stand for the devices of a mesh without devices, in the mesh's order.

    Args:
      sharding: a sharding on such a mesh.
      hosts: the number of hosts, all with the same number of devices. The first devices are on
        host 0, the next ones on host 1, and so on.

    Raises:
      PlanError: the hosts cannot have the same number of devices.
    """
    count = sharding.mesh.size
    if hosts < 1 or count % hosts:
        raise errors.PlanError(
            f"hosts: wanted a number that divides the {count} devices of the mesh "
            f"{dict(sharding.mesh.shape)}, got {hosts}."
        )
    return tuple(MeshDevice(n, n * hosts // count) for n in range(count))


def platform_of(sharding: Any) -> str:
    """Returns the platform that a mesh without devices is meant for; JAX's if it names none."""
    kind = sharding.mesh.abstract_device
    return jax.default_backend() if kind is None else kind.platform
