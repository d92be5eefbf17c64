"""Prepares and starts each kind of way, with what the ways of one call share.

A way comes in, and a function goes out that starts it. For leaves that threads fill, that function
returns their shards; for others, it returns a function that waits for the arrays.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from lazyinit.make.draw import Drawer
from lazyinit.make.executable import prepare_program
from lazyinit.make.read import prepare_reading
from lazyinit.make.replay import inline, prepare_replay
from lazyinit.make.shards import Blocks, Shards
from lazyinit.make.transfer import Host, Transfer
from lazyinit.make.ways import (
    Compiled,
    Computed,
    Drawn,
    Inlined,
    Job,
    Moved,
    Read,
    Replayed,
    Transferred,
)
from lazyinit.params import StoredParam
from lazyinit.program.small_values import SmallValues
from lazyinit.tensors.key_data import KeyData

Finish: TypeAlias = Callable[[], Sequence[Any]]
"""Waits for what was started, and returns the arrays, one for each job of its way."""

Start: TypeAlias = Callable[[], Finish]
"""Starts what was prepared."""


@dataclass(frozen=True, slots=True)
class Makers:
    """What the leaves of one call are made with.

    Attributes:
      compiling: threads that compile, and that replay.
      reading: threads that read files.
      drawer: draws elements, on threads of its own.
      blocks: host memory that arrays on CPU devices keep.
      host: host memory from which arrays are copied to other devices.
      known: keys and scalars that were computed, by program and root keys.
    """

    compiling: ThreadPoolExecutor
    reading: ThreadPoolExecutor
    drawer: Drawer
    blocks: Blocks
    host: Host = field(default_factory=Host)
    known: dict[Any, SmallValues] = field(default_factory=dict)

    def small_values(self, way: Computed) -> SmallValues:
        """Returns the keys and scalars of a way; ways with the same root keys share them."""
        program, roots = way.work.program, way.roots
        which = (id(program), frozenset(roots.items()))
        if which not in self.known:
            arrays = {stream: key.array() for stream, key in roots.items()}
            self.known[which] = SmallValues(program, arrays, {})
        return self.known[which]

    def prepare_filling(self, way: Drawn | Read) -> Callable[[], Shards]:
        """Returns a function that begins to fill the shards of a leaf."""
        if isinstance(way, Read):
            return prepare_reading(way, self.reading, self.blocks)
        with way.settings():
            return self.drawer.prepare(way, self.small_values(way))

    def prepare(self, way: Compiled | Replayed | Inlined | Transferred | Moved) -> Start:
        """Returns a function that starts leaves which are made in any other way."""
        match way:
            case Compiled():
                with way.settings():
                    run = prepare_program(way, self.small_values(way), self.compiling)
                return lambda: _hold(run())
            case Replayed():
                with way.settings():
                    replay = prepare_replay(way, self.small_values(way), self.blocks)
                return lambda: self.compiling.submit(replay).result
            case Inlined():
                small = self.small_values(way)
                return lambda: _hold(inline(way, small))
            case Transferred(jobs=[job]):
                return _prepare_transfer(job, self.host, self.reading)
            case Moved(jobs=[job]):
                return lambda: _hold([_move(job)])
        raise AssertionError(f"no way: {way}")


def _hold(arrays: Sequence[Any]) -> Finish:
    return lambda: arrays


def _move(job: Job) -> Any:
    match job.leaf:
        case StoredParam(source=KeyData() as keys):
            return job.move(keys.keys())
        case array:
            return job.move(array)


def _prepare_transfer(job: Job, host: Host, reading: ThreadPoolExecutor) -> Start:
    transfer = Transfer(job, host)

    def start() -> Finish:
        tasks = transfer.start(reading)

        def finish() -> Sequence[Any]:
            for task in tasks:
                task.result()
            return [transfer.array()]

        return finish

    return start
