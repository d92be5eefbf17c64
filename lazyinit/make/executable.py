"""Programs that XLA has compiled, and the arguments that they take.

There are two sorts. One makes whole leaves, by all the equations of a work, and each device makes
its own shard (``prepare_program``). The other draws a sheet of elements (``draw``). There is one
program for each signature, dtype and sharding. Programs are compiled on threads, several at a time,
and kept for the next call.
"""

import collections
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from lazyinit import compat
from lazyinit.keys import Key, RngPath
from lazyinit.make.elementwise import Elementwise
from lazyinit.make.limits import COLUMNS, ROWS
from lazyinit.make.threefry import fold_in
from lazyinit.make.ways import Compiled
from lazyinit.program.equations import Value, is_key
from lazyinit.program.slices import Work
from lazyinit.program.small_values import SmallValues

Executable: TypeAlias = Any  # A jax.stages.Compiled that takes the parts and returns arrays.

_KEPT = 256  # Programs; the least recently used ones are dropped.


@dataclass(frozen=True, slots=True)
class Argument:
    """How an input of a work is handed to its compiled program: as a few host values, its *part*.

    Keys are handed in as raw words, because every mesh and every host can take those.

    Attributes:
      kind: ``"plain"`` (the value itself), ``"key"`` (its words), or ``"folded"`` (the words of a
        root key, and the number to fold into it).
      impl: the PRNG implementation of a key.
      typed: whether the work wants a typed key, and not raw words.
    """

    kind: str
    impl: str = ""
    typed: bool = True

    @property
    def is_key(self) -> bool:
        """Whether the input is a key."""
        return self.kind != "plain"

    def decode(self, *parts: Any) -> Any:
        """Returns the input that a part stands for. Called while the program is traced."""
        if self.kind == "plain":
            return parts[0]
        key = jax.random.wrap_key_data(parts[0], impl=self.impl)
        if self.kind == "folded":
            key = jax.random.fold_in(key, parts[1])
        return key if self.typed else jax.random.key_data(key)


def encode(
    work: Work, own_keys: Mapping[Value, RngPath], small: SmallValues
) -> tuple[tuple[Argument, ...], list[tuple[Any, ...]]]:
    """Returns for each input of a work how it is handed in, and its part: the host values for it.

    Args:
      work: what will run.
      own_keys: the inputs that are a leaf's own key, and how to derive each.
      small: the other keys and scalars.
    """
    arguments, parts = [], []
    for value in work.inputs:
        if value in own_keys:
            argument, words = encode_key(own_keys[value])
            arguments.append(argument)
            parts.append(words)
            continue
        array = small[value]
        if is_key(work.program.avals[value]):
            arguments.append(Argument("key", str(jax.random.key_impl(array))))
            parts.append((np.asarray(jax.random.key_data(array)),))
        else:
            arguments.append(Argument("plain"))
            parts.append((_on_host(array, work.program.avals[value]),))
    return tuple(arguments), parts


def encode_key(path: RngPath) -> tuple[Argument, tuple[Any, ...]]:
    """Returns how a leaf's own key is handed in, and the host values to hand in for it."""
    (root,) = path.roots.values()
    assert isinstance(root, Key), "a traced key has no value to hand in"
    words = np.frombuffer(root.data, np.uint32).reshape(root.shape)
    if path.fold < 0:
        return Argument("key", root.impl, root.typed), (words,)
    if root.impl == "threefry2x32" and words.shape == (2,):
        return Argument("key", root.impl, root.typed), (fold_in(words, path.fold),)
    return Argument("folded", root.impl, root.typed), (words, np.uint32(path.fold))


def _on_host(array: Any, aval: Any) -> Any:
    if aval.weak_type and aval.shape == ():
        return np.asarray(array).item()  # A Python scalar stays weakly typed under jit.
    return np.asarray(array, aval.dtype)


class Compiler:
    """Compiles several programs at a time, each of them once."""

    def __init__(self) -> None:
        """Starts with nothing compiled."""
        self._lock = threading.Lock()
        self._kept: collections.OrderedDict[Any, Future[Executable]] = collections.OrderedDict()

    def request(
        self,
        pool: ThreadPoolExecutor,
        work: Work,
        arguments: tuple[Argument, ...],
        parts: Sequence[tuple[Any, ...]],
        dtypes: tuple[Any, ...],
        placements: tuple[Sharding | None, ...],
    ) -> Future[Executable]:
        """Returns a future of the compiled program of a work.

        Args:
          pool: threads that compile.
          work: what to compile.
          arguments: how its inputs are handed in.
          parts: host values of the shapes and dtypes that will be handed in.
          dtypes: what to cast each output to.
          placements: the sharding of each output.
        """
        device = compat.setting("jax_default_device")
        wanted = (work.signature(), arguments, dtypes, placements, device)
        return self._once(
            pool, wanted, {}, lambda: _lower(work, arguments, parts, dtypes, placements)
        )

    def request_sheet(
        self,
        pool: ThreadPoolExecutor,
        work: Elementwise,
        arguments: tuple[Argument, ...],
        parts: Sequence[tuple[Any, ...]],
        dtype: Any,
    ) -> Future[Executable]:
        """Returns a future of the compiled program that draws any sheet of a work.

        Args:
          pool: threads that compile.
          work: what to compile.
          arguments: how its inputs are handed in.
          parts: host values of the shapes and dtypes that will be handed in for one row.
          dtype: what to cast the elements to.
        """
        wanted = (work.signature, arguments, _types(parts), dtype)
        options = compat.for_one_thread()
        return self._once(
            pool, wanted, options, lambda: _lower_sheet(work, arguments, parts, dtype)
        )

    def _once(
        self,
        pool: ThreadPoolExecutor,
        wanted: Any,
        options: dict[str, Any],
        lower: Callable[[], jax.stages.Lowered],
    ) -> Future[Executable]:
        wanted = (wanted, bool(compat.setting("jax_enable_x64")))
        with self._lock:
            known = self._kept.get(wanted)
            if known is not None and not (known.done() and known.exception()):
                self._kept.move_to_end(wanted)
                return known
            compiled = self._kept[wanted] = pool.submit(lower().compile, options)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return compiled


def _types(parts: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple((type(x), np.shape(x), getattr(x, "dtype", None)) for part in parts for x in part)


def _lower_sheet(
    work: Elementwise, arguments: tuple[Argument, ...], parts: Sequence[tuple[Any, ...]], dtype: Any
) -> jax.stages.Lowered:
    def lazyinit_sheet(
        parts: Sequence[tuple[Any, ...]], bases: Any, offsets: Any, zero: Any
    ) -> Any:
        # A value that all rows share stays a scalar, as XLA may compute an array in another form.
        inputs = [
            jax.vmap(a.decode)(*p) if a.is_key else a.decode(*p)
            for a, p in zip(arguments, parts, strict=True)
        ]
        low = bases[:, 1:] + offsets
        high = bases[:, :1] + (low < offsets).astype(np.uint32)  # Adds the carry.
        made = work.run(inputs, [a.is_key for a in arguments], high, low, zero)
        if made.dtype == dtype:
            return made
        # Without a barrier, XLA drops the rounding to bfloat16 before a cast to float32.
        return jax.lax.convert_element_type(jax.lax.optimization_barrier(made), dtype)

    handed_in = [
        tuple(np.broadcast_to(x, (ROWS, *np.shape(x))) for x in part) if a.is_key else part
        for a, part in zip(arguments, parts, strict=True)
    ]
    words = [np.zeros((ROWS, n), np.uint32) for n in (2, COLUMNS)]
    here = SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    return jax.jit(lazyinit_sheet, out_shardings=here).lower(handed_in, *words, np.uint32(0))


def _lower(
    work: Work,
    arguments: tuple[Argument, ...],
    parts: Sequence[tuple[Any, ...]],
    dtypes: tuple[Any, ...],
    placements: tuple[Sharding | None, ...],
) -> jax.stages.Lowered:
    def lazyinit_make(parts: Sequence[tuple[Any, ...]]) -> list[Any]:
        inputs = [a.decode(*p) for a, p in zip(arguments, parts, strict=True)]
        outputs = work.run(inputs, barrier=True)
        return [
            x if x.dtype == dtype else jax.lax.convert_element_type(x, dtype)
            for x, dtype in zip(outputs, dtypes, strict=True)
        ]

    return jax.jit(lazyinit_make, out_shardings=list(placements)).lower(parts)


compiler = Compiler()


def prepare_program(
    way: Compiled, small: SmallValues, compiling: ThreadPoolExecutor
) -> Callable[[], list[jax.Array]]:
    """Returns a function that runs the program of some leaves, and begins to compile that program.

    Args:
      way: what to make.
      small: its keys and scalars.
      compiling: threads that compile.
    """
    placements = tuple(job.sharding for job in way.jobs)
    dtypes = tuple(job.dtype for job in way.jobs)
    # The arguments are computed now, even if the caller is in a trace. The compiler stands outside
    # of this context, in which JAX would compute what it is to compile.
    with jax.ensure_compile_time_eval():
        arguments, parts = encode(way.work, way.own_keys, small)
    program = compiler.request(compiling, way.work, arguments, parts, dtypes, placements)

    def run() -> list[jax.Array]:
        with way.settings():
            made = program.result()(parts)
        return [  # Empty arrays stay whole under jit (jax 0.10.2).
            a if s is None or s == a.sharding else jax.device_put(a, s)
            for a, s in zip(made, placements, strict=True)
        ]

    return run
