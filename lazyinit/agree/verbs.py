"""For each verb: which processes take part, and what they compare."""

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

# What decides bits beside the program of a leaf.
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
    """Compares what is about to be made with the other processes that make it.

    Those are the processes whose devices the selected leaves go to. Nothing is compared where it is
    this one alone, nor in a trace, where no values are made.

    Args:
      leaves: paths and leaves, in the order of the tree.
      selected: which of them are made.
      shardings: where each goes.
      dtypes: the dtype that each will have.
      call: the verb.
      also: what else it was told that all must be told alike.

    Raises:
      CheckpointError: a file is gone or has changed.
      HostsError: the processes differ, or one did not come.
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
    """Waits until all processes whose devices these shardings have are as far as this one.

    Args:
      shardings: where the selected leaves go; ``None`` for others.
      call: the verb.

    Raises:
      HostAbsentError: one of them failed on its way, or did not come.
    """
    group = processes_of(shardings)
    if len(group) > 1 and jax.process_index() in group and _is_wanted():
        exchange(group, b"", f"{call}, all have read")


def before_saving(leaves: Sequence[tuple[str, Any]], tensors: Sequence[tuple[str, Source]]) -> None:
    """Compares what is about to be written with all other processes: each calls ``save``.

    Args:
      leaves: paths and leaves, in the order of the tree.
      tensors: names and sources, in the order in which they are written.

    Raises:
      HostsError: the processes differ, or one did not come.
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
    """Compares what is about to be summed up with the processes that hold parts of it.

    Args:
      leaves: paths and leaves, in the order of the tree.
      group: these processes.

    Raises:
      HostsError: the processes differ, or one did not come.
    """
    if not _is_wanted():
        return

    def entries() -> Iterator[Entry]:
        for path, leaf in leaves:
            yield Entry(path, leaf, True, getattr(leaf, "sharding", None), None)

    agree("digest", _about(), entries, group)


def as_first(names: Iterable[str], *, call: str) -> set[str]:
    """Returns the names that the first process has, in all processes; each must call this.

    Args:
      names: those of this process, which are what counts where nothing is compared.
      call: the verb.

    Raises:
      HostAbsentError: a process failed on its way, or did not come.
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
            f"lazyinit finds no key-value store of jax.distributed, so that what the "
            f"{jax.process_count()} processes are about to do is not compared. Each must make the "
            "same calls, with the same keys, models and checkpoints."
        )
    return False


def _about() -> str:
    settings = ", ".join(f"{name} {compat.setting(name)}" for name in _SETTINGS)
    return f"jax {jax.__version__}, {settings}"
