"""What is measured in a contender's process, and what is checked of its result.

Time is wall clock, from entering ``with measured`` to leaving it. Peak memory is what the
process's resident set grew by in between: ``VmHWM`` at the end less ``VmRSS`` at the start, the
peak being reset at the start through ``/proc/self/clear_refs``. So memory that is given back
before the end counts too, and what the process had before (interpreter, imports, JAX's backend)
does not. Resident pages of mapped files count as the kernel counts them, although they are page
cache that it can take back. The kernel's counters lag by some hundred KiB.

Kept memory is what the resident set is larger by when the timed part has ended, garbage has been
collected and the allocator has given back what it can, with the result still there.

What is read is counted by the kernel (``read_bytes`` of ``/proc/self/io``: what came from the
disk), with the files out of the page cache. So bytes of a mapped file count when they are touched,
with what the kernel reads ahead.

Where the peak cannot be reset (no Linux, or no right to), growth is counted from the peak before
the start instead, which can hide some of it; ``peak_was_reset`` tells.
"""

import contextlib
import ctypes
import gc
import hashlib
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np


class Measured:
    """A context manager around the timed part of a contender.

    Attributes:
      seconds: of the whole timed part.
      cpu_seconds: what all threads of the process computed meanwhile; steadier beside a neighbor.
      parts: seconds of parts of it, by name.
      peak_bytes: what the resident set grew by at most.
      kept_bytes: what the resident set is larger by with the result alone.
      peak_was_reset: whether the peak before the start is out of ``peak_bytes``.
      read_bytes: what came from the disk.
    """

    def __init__(self, *, evicts: bool = False) -> None:
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self.parts: dict[str, float] = {}
        self.peak_bytes = 0
        self.kept_bytes = 0
        self.peak_was_reset = False
        self.read_bytes = 0
        self._evicts = evicts
        self._resident = 0

    def ready(self, file: Path) -> None:
        """Puts a file into the page cache, or out of it, so that all comes from the disk."""
        if self._evicts:
            with file.open("rb") as opened:
                os.fsync(opened.fileno())  # What is not on the disk yet stays.
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return
        with file.open("rb", buffering=0) as opened:
            while opened.read(1 << 22):
                pass

    def __enter__(self) -> "Measured":
        self._resident = _resident()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
            self.peak_was_reset = True
        self._before = status("VmRSS" if self.peak_was_reset else "VmHWM")
        self._read = _counted("/proc/self/io", "read_bytes")
        self._computed = time.process_time()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start
        self.cpu_seconds = time.process_time() - self._computed
        self.peak_bytes = max(0, status("VmHWM") - self._before)
        self.read_bytes = _counted("/proc/self/io", "read_bytes") - self._read

    def settle(self) -> None:
        """Takes the kept memory. The caller holds the result, and nothing else."""
        self.kept_bytes = _resident() - self._resident

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Times a part of the timed part by itself."""
        start = time.perf_counter()
        yield
        self.parts[name] = time.perf_counter() - start


def touch(size: int) -> None:
    """Writes to so much memory (bytes), and gives it back.

    On a virtual machine the first touch of a page, ever, costs a fault in the hypervisor: nine
    times the copy itself was measured. Without this, it would hit whichever contender comes first.
    """
    np.ones(size, np.uint8)


def _resident() -> int:
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc alone has it.
    return status("VmRSS")


def status(name: str) -> int:
    """Returns a size (bytes) in ``/proc/self/status``."""
    return 1024 * _counted("/proc/self/status", name)


def _counted(file: str, name: str) -> int:
    """Returns a number that the kernel keeps, 0 where there is no such file."""
    with contextlib.suppress(OSError):
        for line in Path(file).read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
    return 0


def facts(result: Any) -> dict[str, Any]:
    """Returns what must agree between contenders, computed after the timed part.

    Args:
      result: a pytree of arrays, or of shapes and dtypes alone.

    Returns:
      ``structure``: a digest of every path, shape and dtype. For arrays also ``bits``, a digest of
      all bits; ``norms``, by path; ``bytes``; and ``borrowed``, how many arrays have a buffer in
      a mapped file, so that their bytes were not copied.
    """
    leaves = sorted(
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(result)
    )
    structure = [f"{path} {np.dtype(leaf.dtype)}{list(leaf.shape)}" for path, leaf in leaves]
    found: dict[str, Any] = {"leaves": len(leaves), "structure": _digest(structure)}
    if not all(isinstance(leaf, jax.Array | np.ndarray) for _, leaf in leaves):
        return found
    files = _mapped_files()
    found |= {"norms": {}, "bytes": 0, "borrowed": 0}
    sums = []
    for path, leaf in leaves:
        found["borrowed"] += any(a in block for a in _addresses(leaf) for block in files)
        array = np.asarray(leaf)
        sums.append(f"{path} {zlib.crc32(np.ascontiguousarray(array).view(np.uint8))}")
        flat = array.astype(np.float64).ravel()
        found["norms"][path] = float(np.sqrt(flat @ flat))
        found["bytes"] += array.nbytes
    found["bits"] = _digest(sums)
    return found


def _digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _addresses(array: Any) -> list[int]:
    if isinstance(array, np.ndarray):
        return [array.ctypes.data]
    return [shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards]


def _mapped_files() -> list[range]:
    """Returns the addresses at which this process has files mapped, libraries included."""
    blocks = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            span, _, _, _, inode, *_ = line.split(maxsplit=5)
            start, end = (int(address, 16) for address in span.split("-"))
            if inode != "0":
                blocks.append(range(start, end))
    return blocks
