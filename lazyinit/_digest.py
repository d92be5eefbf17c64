"""The verb ``digest``: arrays -> a short value, which does not depend on their shardings."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lazyinit import agree, checksum, compat, errors
from lazyinit import paths as tree_paths
from lazyinit.params import Thunk
from lazyinit.sources import describe
from lazyinit.tensors.arrays import on_host
from lazyinit.tensors.held import Ranges, ranges
from lazyinit.tensors.key_data import is_typed_key

_BLOCK = 2**22  # The most elements that a thread copies from a device and sums up at a time.
_VERSION = "lazyinit-digest-1"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Digest:
    """What ``digest`` returns: equal for trees with the same paths, shapes, dtypes and values.

    A digest also equals the text of an equal digest, ``str(digest)``.

    Attributes:
      leaves: for each path the leaf's dtype and shape, and 32 hex digits for its values.
    """

    leaves: Mapping[str, str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "leaves", MappingProxyType(dict(sorted(self.leaves.items()))))

    def __str__(self) -> str:
        told = hashlib.blake2b(digest_size=16)
        for path, leaf in self.leaves.items():
            told.update(json.dumps([path, leaf]).encode())
        return f"{_VERSION}:{told.hexdigest()}"

    def __repr__(self) -> str:
        return f"Digest({len(self.leaves)} leaves, {self})"

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other) if isinstance(other, Digest | str) else NotImplemented

    def __hash__(self) -> int:
        return hash(str(self))

    def differences(self, old: "Digest") -> tuple[str, ...]:
        """Returns a line for each path whose leaf differs from that of ``old``; none if equal."""
        lines = []
        for path in sorted({**self.leaves, **old.leaves}):
            new, was = self.leaves.get(path, "no leaf"), old.leaves.get(path, "no leaf")
            if new != was:
                lines.append(f"{path}: {new}, was {was}")
        return tuple(lines)

    def to_json(self) -> str:
        """Returns the digest as JSON text, a line for each leaf."""
        return json.dumps({"digest": str(self), "leaves": dict(self.leaves)}, indent=0)

    @classmethod
    def from_json(cls, text: str) -> "Digest":
        """Returns the digest that ``to_json`` wrote.

        Raises:
          DigestError: the text is not what ``to_json`` writes, or its leaves do not have the
            digest that it names.
        """
        try:
            said = json.loads(text)
            found = cls(said["leaves"])
            is_whole = said["digest"] == str(found)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise errors.DigestError(
                f"from_json: wanted what Digest.to_json wrote, got {text[:40]!r}: {error}."
            ) from error
        if not is_whole:
            raise errors.DigestError(
                f"from_json: wanted leaves with the digest that the text names, {said['digest']}, "
                f"got leaves with {found}. The text was changed, or another version of lazyinit "
                "wrote it. Make the digest again."
            )
        return found


def digest(tree: Any) -> Digest:
    """Returns a digest of the values of a tree: the same on every mesh and number of processes.

    It tells whether two runs have the same weights, or began with the same ones. Each process sums
    up what its own devices hold (``lazyinit.checksum`` says how), which takes a few MiB of memory,
    and sends 48 bytes for each leaf to the other processes. Two trees that differ by accident have
    the same digest with a probability of less than ``2**-110``. But somebody can construct two such
    trees on purpose.

    Args:
      tree: any pytree of arrays (of JAX, on any devices, or of NumPy), PRNG keys and Python
        numbers. If an array is on devices of another process, that process must call this, too,
        with the same tree.

    Returns:
      The digest of the tree, with that of each leaf. Paths, shapes and dtypes are part of it; the
      order of leaves and their shardings are not. Of a Python number, the type and the value are
      part of it.

    Raises:
      NotMaterializedError: a leaf is not made yet, and has no values.
      DigestError: a leaf is no array.
      HostsError: another process has another tree, or did not call this in time.

    Example:
      >>> import jax, numpy as np, lazyinit as li
      >>> old = str(li.digest({"w": np.ones((2, 3), "float32")}))
      >>> li.digest({"w": jax.numpy.ones((2, 3))}) == old
      True
      >>> before = li.digest({"w": np.zeros(3), "b": np.int32(1)})
      >>> li.digest({"w": np.ones(3), "b": np.int32(1)}).differences(before)
      ('w: float64[3] ..., was float64[3] ...',)
    """
    leaves = tree_paths.leaves_with_paths(tree)
    _check(leaves)
    texts, arrays = {}, {}
    for path, leaf in leaves:
        if isinstance(leaf, bool | int | float | complex) and not isinstance(leaf, np.generic):
            texts[path] = _text(type(leaf).__name__, repr(leaf).encode())
        else:
            arrays[path] = leaf
    for (path, leaf), sums in zip(arrays.items(), _sums(arrays), strict=True):
        texts[path] = _text(describe(leaf.shape, leaf.dtype.name), sums.astype("<i8").tobytes())
    return Digest(texts)


def _text(kind: str, said: bytes) -> str:
    return f"{kind} {hashlib.blake2b(kind.encode() + said, digest_size=16).hexdigest()}"


def _check(leaves: Sequence[tuple[str, Any]]) -> None:
    not_made = [
        f"{path}: wanted values, got {leaf!r}, which is not made yet. Make it with "
        f"lazyinit.materialize(tree, {path!r}), or leave it out of the tree."
        for path, leaf in leaves
        if isinstance(leaf, Thunk | jax.ShapeDtypeStruct)
    ]
    if not_made:
        raise errors.NotMaterializedError(errors.listing(not_made))
    seen: set[str] = set()
    problems = []
    for path, leaf in leaves:
        if path in seen:
            problems.append(f"{path}: wanted one leaf at this path, got two. Rename one of them.")
        elif problem := _problem(leaf):
            problems.append(f"{path}: wanted an array with values, got {problem}")
        seen.add(path)
    if problems:
        raise errors.DigestError(errors.listing(problems))


def _problem(leaf: Any) -> str:
    """Returns what a message says after "got" of a leaf without a digest; ``""`` if it has one."""
    if compat.is_tracer(leaf):
        return "a tracer. Call lazyinit.digest outside of jax.jit."
    if isinstance(leaf, jax.Array):
        gone = "one that was deleted or donated. Pass the array that took its place."
        return gone if leaf.is_deleted() else ""
    if isinstance(leaf, np.ndarray | np.generic):
        # A long double has padding bytes, which hold anything.
        has_digest = jnp.issubdtype(leaf.dtype, np.number) or leaf.dtype == bool
        if has_digest and np.dtype(leaf.dtype).char not in "gG":
            return ""
        return f"dtype {leaf.dtype}, which JAX does not have. Leave it out of the tree."
    if isinstance(leaf, bool | int | float | complex):
        return ""
    return f"{type(leaf).__name__}. Leave it out of the tree."


def _sums(arrays: Mapping[str, Any]) -> np.ndarray:
    """Returns the sums over each whole array, wherever its shards are: int64[leaves, COLUMNS]."""
    leaves = arrays.values()
    words = [jax.random.key_data(leaf) if is_typed_key(leaf) else leaf for leaf in leaves]
    spread = {
        n: agree.processes_of([array.sharding])
        for n, array in enumerate(words)
        if isinstance(array, jax.Array) and not array.is_fully_addressable
    }
    # One exchange for all arrays: a process cannot tell which arrays only the others share.
    group = tuple(sorted({jax.process_index()}.union(*spread.values())))
    if spread:
        agree.before_digesting(list(arrays.items()), group)
    totals = np.zeros((len(words), checksum.COLUMNS), np.int64)
    work = [(n, block) for n, array in enumerate(words) for block in _blocks(array)]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        summed = threads.map(lambda each: _of_block(*each[1]), work)
        for (n, _), found in zip(work, summed, strict=True):
            totals[n] += found
    if spread:
        totals %= checksum.PRIME
        said = agree.exchange(group, totals.tobytes(), "digest, the sums")
        others = {
            p: np.frombuffer(text, np.int64).reshape(totals.shape) for p, text in said.items()
        }
        for n, processes in spread.items():
            totals[n] = sum(others[process][n] for process in processes)
    return totals % checksum.PRIME


def _blocks(array: Any) -> Iterator[tuple[Any, Ranges, Ranges]]:
    """Yields the parts of an array that this process sums up.

    Each element of the array is in exactly one part, in exactly one process.

    Yields:
      The data of one block of the array, the indices of that block, and those of a part of it.
    """
    if isinstance(array, jax.Array):
        held = [
            (shard.data, ranges(shard.index, array.shape))
            for shard in array.addressable_shards
            if shard.replica_id == 0
        ]
    else:
        held = [(array, tuple(map(range, np.shape(array))))]
    for data, block in held:
        for index in checksum.cuts([len(r) for r in block], [r.start for r in block], _BLOCK):
            yield data, block, tuple(r[cut] for r, cut in zip(block, index, strict=True))


def _of_block(data: Any, held: Ranges, part: Ranges) -> np.ndarray:
    if isinstance(data, jax.Array):
        values = on_host(data, part, held)
    else:
        values = np.asarray(data)[tuple(slice(p.start, p.stop) for p in part)]
    return checksum.sums(values, [p.start for p in part])
