"""Reads stored leaves for devices other than CPUs into host blocks, and copies them from there.

The distinct shards of a leaf that this process's devices hold are read in *batches*. All threads
read a batch, as ``read`` does on CPU: what is replicated is read once, and casts happen on the way
into the block. The thread that reads the last piece of a batch copies its shards to their devices,
and waits. Meanwhile the other threads read the next batch. A device gets one batch at a time: its
link is busy with one copy, and a second would only hold a block for longer.

**The bound.** The blocks of one ``materialize`` that are filled, copied from or kept for the next
batch have ``HOST_BYTES`` together, or the size of one shard if that is larger. A thread that finds
no room waits for a copy to end. It cannot wait forever: threads take pieces in the order in which
they were handed out, so all pieces of a batch that has a block are with threads that do not wait
for one.

**Who owns the memory.** A block is filled again once the copy out of it has ended, if its devices
are known to copy into memory of their own. The platform of a device decides that: JAX on CPU takes
an aligned block as the array itself, even with ``may_alias=False`` (0.10.2, 0.12.0.1). A device
that is not known to copy keeps the block. Memory of kind ``pinned_host`` does not serve as a block:
JAX fills it by a copy out of such a block, which the runtime does anyway when it stages the
transfer, and writing into it from here would change an array behind JAX's back.
"""

import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from lazyinit import compat
from lazyinit.make.read import Piece, cut_up
from lazyinit.make.shards import ALIGNMENT, Bounds, aligned, places_of, size_of
from lazyinit.make.ways import Job
from lazyinit.sources import describe

HOST_BYTES = 2**29  # Bytes of the host blocks of one call: filled, copied from, or kept.
_COPYING = frozenset({"gpu", "cuda", "rocm", "tpu"})  # Platforms whose memory is not the host's.


class Host:
    """The host blocks of one call, and the devices that are being copied to, for all threads."""

    def __init__(self) -> None:
        """Starts with no block."""
        self._room = threading.Condition()
        self._used = 0  # Bytes of the blocks that are taken.
        self._idle: list[np.ndarray] = []
        self._copying: defaultdict[Any, threading.Lock] = defaultdict(threading.Lock)

    @property
    def alive(self) -> int:
        """The bytes of all blocks, taken or idle."""
        with self._room:
            return self._used + sum(block.size for block in self._idle)

    def take(self, size: int) -> np.ndarray:
        """Waits until there is room for a block of at least ``size`` bytes, and returns it (uint8).

        Raises:
          MemoryError: the system has too little memory.
        """
        with self._room:
            while self._used and self._used + size > HOST_BYTES:
                self._room.wait()
            block = self._again(size)
            self._used += block.size
            return block

    def _again(self, size: int) -> np.ndarray:
        fitting = [b for b in self._idle if size <= b.size <= 2 * size]
        block = min(fitting, key=lambda b: b.size, default=None)
        if block is not None and (not self._used or self._used + block.size <= HOST_BYTES):
            self._idle = [b for b in self._idle if b is not block]
        else:
            block = None
        while self._idle and self._over(size if block is None else block.size):
            self._idle.pop(0)
        return aligned(size) if block is None else block

    def _over(self, size: int) -> bool:
        return self._used + size + sum(b.size for b in self._idle) > HOST_BYTES

    def give(self, block: np.ndarray, *, again: bool) -> None:
        """Takes a block back.

        Args:
          block: what ``take`` returned.
          again: whether it may be filled again. If not, it is the memory of an array now.
        """
        with self._room:
            self._used -= block.size
            if again:
                self._idle.append(block)
            self._room.notify_all()

    @contextlib.contextmanager
    def copying(self, devices: Sequence[Any]) -> Iterator[None]:
        """Reserves devices for one copy."""
        with self._room:
            locks = [self._copying[d] for d in sorted(devices, key=lambda d: (d.platform, d.id))]
        with contextlib.ExitStack() as held:
            for lock in locks:  # All threads take them in one order, so that none deadlocks.
                held.enter_context(lock)
            yield


class Transfer:
    """One stored leaf on its way to its devices."""

    def __init__(self, job: Job, host: Host) -> None:
        """Takes what to read. Call it on the caller's thread, whose default device counts."""
        self._job, self.host = job, host
        self._made: dict[Any, jax.Array] = {}
        places = places_of(job.leaf.shape, job.sharding)
        self._devices = [_default_device() if d is None else d for d in places]
        self._holders: defaultdict[Bounds, list[Any]] = defaultdict(list)
        for device, at in zip(self._devices, places.values(), strict=True):
            self._holders[at].append(device)

    def start(self, reading: ThreadPoolExecutor) -> Sequence[Future[Any]]:
        """Begins to read and to copy, and returns the tasks to wait for."""
        cut = cut_up(self._job.leaf.source, self._job.path)
        tasks = []
        for starts, size in self._batches():
            batch = _Batch(self, starts, size=size, left=len(cut))
            tasks += [reading.submit(batch.read, piece) for piece in cut]
            if not cut:  # The leaf has no elements, so there is nothing to read.
                tasks.append(reading.submit(batch.copy))
        return tasks

    def array(self) -> jax.Array:
        """Returns the array, once all tasks are done."""
        job = self._job
        made = [self._made[device] for device in self._devices]
        if job.sharding is None:
            return made[0]
        with compat.enable_x64(True), jax.ensure_compile_time_eval():
            return jax.make_array_from_single_device_arrays(
                job.leaf.shape, job.sharding, made, dtype=job.dtype
            )

    def _batches(self) -> Iterator[tuple[dict[Bounds, int], int]]:
        """Yields for each batch where its shards begin in a block, and the block's size, in bytes.

        A block has half of ``HOST_BYTES`` at most, unless one shard is larger, so that one batch
        can be read while another is copied.
        """
        starts: dict[Bounds, int] = {}
        end = 0
        for at in self._holders:
            size = -(-_bytes_of(at, self._job.dtype) // ALIGNMENT) * ALIGNMENT
            if starts and end + size > HOST_BYTES // 2:
                yield starts, end
                starts, end = {}, 0
            starts[at] = end
            end += size
        if starts:
            yield starts, end

    def take(self, size: int) -> np.ndarray:
        """Returns a block of this size (bytes)."""
        try:
            return self.host.take(size)
        except MemoryError as error:
            raise MemoryError(
                f"{self._job.path}: wanted host memory for {size} bytes of "
                f"{describe(self._job.leaf.shape, self._job.dtype)}, got none: {error}. Cut the "
                "leaf over more devices, or give it a smaller dtype."
            ) from error

    def views(self, block: np.ndarray, starts: Mapping[Bounds, int]) -> dict[Bounds, np.ndarray]:
        """Returns the part of a block that belongs to each shard, in its dtype and shape."""
        dtype = self._job.dtype
        return {
            at: block[start : start + _bytes_of(at, dtype)]
            .view(dtype)
            .reshape([stop - first for first, stop in at])
            for at, start in starts.items()
        }

    def copy(self, shards: Mapping[Bounds, np.ndarray]) -> bool:
        """Copies shards to all devices that hold them, on any thread.

        Returns:
          Whether JAX no longer needs the memory of the shards.
        """
        pairs = [(device, at) for at in shards for device in self._holders[at]]
        devices = [device for device, _ in pairs]
        values = [shards[at] for _, at in pairs]
        sharding = self._job.sharding
        kind = None if sharding is None else sharding.memory_kind
        with self.host.copying(devices), compat.enable_x64(True):  # Settings belong to threads.
            if sharding is None:
                with jax.default_device(devices[0]):
                    made = jax.device_put(values)  # Not committed to its device.
            else:
                made = jax.device_put(
                    values, [SingleDeviceSharding(d, memory_kind=kind) for d in devices]
                )
            self._made.update(zip(devices, jax.block_until_ready(made), strict=True))
        return all(_copies(device, kind) for device in devices)


class _Batch:
    """Shards that are read into one block and copied out of it together."""

    def __init__(
        self, transfer: Transfer, starts: Mapping[Bounds, int], *, size: int, left: int
    ) -> None:
        self._transfer, self._starts, self._size = transfer, starts, size
        self._lock = threading.Lock()
        self._left = left  # How many pieces are still to be read.
        self._failed = False
        self._block: np.ndarray | None = None
        self._shards: dict[Bounds, np.ndarray] = {}

    def read(self, piece: Piece) -> None:
        """Reads a piece, on any thread, and after the last one copies all to the devices."""
        try:
            if not self._failed:
                piece.read_into(self._allocated())
        except BaseException:
            self._failed = True
            raise
        finally:
            with self._lock:
                self._left -= 1
                is_last = not self._left
            if is_last:  # No other thread writes to the block any more.
                self.copy()

    def copy(self) -> None:
        """Copies the shards to their devices, if all were read, and gives the block back."""
        is_free = False
        try:
            if not self._failed:
                is_free = self._transfer.copy(self._allocated())
        finally:
            self._shards = {}
            block, self._block = self._block, None
            if block is not None:
                self._transfer.host.give(block, again=is_free)

    def _allocated(self) -> dict[Bounds, np.ndarray]:
        with self._lock:
            if self._block is None:
                self._block = self._transfer.take(self._size)
                self._shards = self._transfer.views(self._block, self._starts)
            return self._shards


def _default_device() -> Any:
    device = compat.setting("jax_default_device")
    return device if hasattr(device, "platform") else jax.local_devices(backend=device)[0]


def _copies(device: Any, memory_kind: str | None) -> bool:
    """Tells whether JAX copies host arrays into a device's memory, rather than share theirs."""
    own = device.platform in _COPYING
    return own and memory_kind in (None, device.default_memory().kind)


def _bytes_of(at: Bounds, dtype: Any) -> int:
    return size_of(at) * dtype.itemsize
