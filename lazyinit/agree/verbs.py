"""Says for each verb which processes take part, and what they compare."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Sharding

from lazyinit import compat, errors
from lazyinit.agree.calls import Group, exchange, seconds
from lazyinit.agree.differences import agree
from lazyinit.agree.entries import Entry
from lazyinit.params import StoredParam
from lazyinit.sources import Source

# The settings of JAX that decide the bits of a leaf, beside its program.
_SETTINGS = ("jax_enable_x64", "jax_threefry_partitionable", "jax_default_prng_impl")


def processes_of(shardings: Iterable[Sharding | None]) -> Group:
    """Returns the processes that have devices of these shardings, ascending."""
    distinct = {id(sharding): sharding for sharding in shardings if sharding is not None}
    devices = {device for sharding in distinct.values() for device in sharding.device_set}
    return tuple(sorted({device.process_index for device in devices}))


def before_making(
    leaves: Sequence[tuple[str, Any]],
    selected: Sequence[bool],
    shardings: Sequence[Sharding | None],
    dtypes: Sequence[Any],
    *,
    call: str = "materialize",
    also: str = "",
) -> None:
    """Compares what is about to be made in this process and in the others that make it.

    These are the processes whose devices the selected leaves go to. If this process is the only
    one, or does not belong to them, nothing is compared. Nor is anything compared within a trace,
    where no values are made.

    Args:
      leaves: paths and leaves, in the order of the tree.
      selected: which of them are made.
      shardings: where each goes.
      dtypes: the dtype that each will have.
      call: the verb.
      also: arguments of the verb that must be the same in all processes, as text.

    Raises:
      CheckpointError: a file is gone or has changed.
      HostsError: the processes are about to do different things.
      HostAbsentError: a process did not make this call in time, or its verb failed.
    """
    if compat.is_in_trace() or not _is_wanted():
        return
    group = processes_of(sharding for sharding, s in zip(shardings, selected, strict=True) if s)
    if len(group) < 2 or jax.process_index() not in group:
        return

    def entries() -> Iterator[Entry]:
        everything = zip(leaves, selected, shardings, dtypes, strict=True)
        for (path, leaf), is_selected, sharding, dtype in everything:
            yield Entry(path, leaf, is_selected, sharding, dtype)

    about = f"{_about()}, {also}" if also else _about()
    agree(call, about, entries, group)


def meet(shardings: Iterable[Sharding | None], *, call: str = "materialize") -> None:
    """Waits until every process with devices of these shardings makes the same call.

    Args:
      shardings: where the selected leaves go; ``None`` for others.
      call: the verb.

    Raises:
      HostAbsentError: a process did not make this call in time, or its verb failed.
    """
    group = processes_of(shardings)
    if len(group) > 1 and jax.process_index() in group and _is_wanted():
        exchange(group, b"", f"{call}, all have read")


def before_saving(leaves: Sequence[tuple[str, Any]], tensors: Sequence[tuple[str, Source]]) -> None:
    """Compares what is about to be written in all processes, each of which must call ``save``.

    Args:
      leaves: paths and leaves, in the order of the tree.
      tensors: names and sources, in the order in which they are written.

    Raises:
      HostsError: the processes are about to do different things.
      HostAbsentError: a process did not make this call in time, or its verb failed.
    """
    if not _is_wanted():
        return

    def entries() -> Iterator[Entry]:
        for path, leaf in leaves:
            sharding = leaf.sharding if isinstance(leaf, jax.Array) else None
            yield Entry(path, leaf, True, sharding, None)
        for name, source in tensors:
            stored = StoredParam(source.shape, source.dtype, source)
            yield Entry(f"tensor {name}", stored, True, None, None)

    agree("save", _about(), entries, tuple(range(jax.process_count())))


def before_digesting(leaves: Sequence[tuple[str, Any]], group: Group) -> None:
    """Compares the trees of which several processes are about to make one digest.

    Args:
      leaves: paths and leaves, in the order of the tree.
      group: the processes that hold parts of the arrays.

    Raises:
      HostsError: the processes have different trees.
      HostAbsentError: a process did not make this call in time, or its verb failed.
    """
    if not _is_wanted():
        return

    def entries() -> Iterator[Entry]:
        for path, leaf in leaves:
            yield Entry(path, leaf, True, getattr(leaf, "sharding", None), None)

    agree("digest", _about(), entries, group)


def as_first(names: Iterable[str], *, call: str) -> set[str]:
    """Returns the names that the first process has; every process must call this.

    Args:
      names: the names that this process has. They are returned if nothing is compared.
      call: the verb.

    Raises:
      HostAbsentError: a process did not make this call in time, or its verb failed.
    """
    own = list(names)
    if not _is_wanted():
        return set(own)
    everyone = tuple(range(jax.process_count()))
    said = exchange(everyone, json.dumps(own).encode(), f"{call}, as the first process")
    return set(json.loads(said[0]))


def _is_wanted() -> bool:
    if not seconds():
        return False
    if compat.store() is not None:
        return jax.process_count() > 1
    if jax.process_count() > 1:
        errors.warn(
            f"lazyinit finds no key-value store of jax.distributed, so it cannot check that the "
            f"{jax.process_count()} processes are about to do the same. Make sure that each makes "
            "the same calls, with the same keys, models and checkpoints."
        )
    return False


def _about() -> str:
    settings = ", ".join(f"{name} {compat.setting(name)}" for name in _SETTINGS)
    return f"jax {jax.__version__}, {settings}"
