"""The self-check: whether the fast ways give the bits of replay on this machine.

Where the test suite was run (``TESTED_JAX``, ``TESTED_UNITS``), all kinds are taken as proven.
Anywhere else (another version of JAX, a GPU, a CPU with other vector units, compiler options that
somebody set) the *canaries* are made both ways first. They come from the simplest on, and later
ones combine what earlier ones have proven. If a canary has other bits than its replay, the kinds
that it needs, and that no earlier one has proven, have failed. The outcome is kept in the user's
cache folder, by all that it depends on.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform as machine
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from lazyinit import compat
from lazyinit.compat import Cut
from lazyinit.keys import Key, RngPath
from lazyinit.make.canaries import (
    CANARIES,
    CANARIES_BY_PARTS,
    PLACES,
    SHAPE_BY_PARTS,
    Function,
    Init,
    shapes_of,
)
from lazyinit.make.proofs import TRUSTED, Proofs, kinds_by_parts, kinds_of
from lazyinit.make.run import make
from lazyinit.make.ways import Compiled, Drawn, Job, ways_of
from lazyinit.params import LazyParam
from lazyinit.program.partwise import Partwise
from lazyinit.program.slices import Slice, gather
from lazyinit.program.small_values import SmallValues
from lazyinit.program.tracing import trace

# Where the whole suite was run: versions of jax and jaxlib, and the units of the CPU.
_UNITS = "avx avx2 fma f16c avx512f avx512vl avx512dq avx512bw avx512_bf16 avx512_fp16 amx_bf16"
TESTED_JAX = ("0.10.2", "0.12.0.1")
TESTED_UNITS = frozenset([" ".join(["x86_64", *sorted(_UNITS.split())])])  # Sapphire Rapids.


@dataclass(frozen=True, slots=True)
class Environment:
    """All that the bits of a compiled program may depend on.

    Attributes:
      jax: its version.
      jaxlib: its version.
      platform: ``"cpu"``, ``"gpu"``, ``"tpu"``.
      device: the kind of device; for a CPU, its vector units.
      runtime: the version of what is below jaxlib; ``""`` for a CPU.
      options: compiler options that somebody set.
    """

    jax: str
    jaxlib: str
    platform: str
    device: str
    runtime: str
    options: str

    def __str__(self) -> str:
        device = self.device.split()[0] if self.platform == "cpu" else self.device
        options = f" with {self.options}" if self.options else ""
        return f"jax {self.jax}, {self.platform} ({device}){options}"

    @property
    def is_tested(self) -> bool:
        """Whether the suite was run here."""
        return (
            self.jax in TESTED_JAX
            and self.jax == self.jaxlib
            and self.platform == "cpu"
            and self.device in TESTED_UNITS
            and not self.options
        )


def environment(platform: str) -> Environment:
    """Returns what the bits of programs on a platform depend on."""
    device = jax.local_devices(backend=platform)[0]
    is_cpu = platform == "cpu"
    return Environment(
        jax.__version__,
        _jaxlib(),
        platform,
        _cpu() if is_cpu else device.device_kind,
        "" if is_cpu else str(device.client.platform_version),
        " ".join(_options()),
    )


@functools.cache
def _jaxlib() -> str:
    return importlib.metadata.version("jaxlib")  # It reads a file.


@functools.cache
def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:  # Not on Linux.
        flags = machine.processor()
    return " ".join([machine.machine(), *sorted(set(_UNITS.split()) & set(flags.split()))])


def _options() -> Iterator[str]:
    for flag in os.environ.get("XLA_FLAGS", "").split():
        if not flag.startswith(("--xla_force_host_platform_device_count", "--xla_dump")):
            yield flag
    yield from os.environ.get("LIBTPU_INIT_ARGS", "").split()
    # It may replace the compiler options that drawing asks for (jax 0.10.2).
    if not compat.setting("jax_compiler_enable_remat_pass"):
        yield "jax_compiler_enable_remat_pass=False"


def run(platform: str) -> Proofs:
    """Runs the self-check on this process's devices of a platform, whatever is remembered."""
    where = str(environment(platform))
    passed: set[str] = set()
    failed: dict[str, str] = {}
    made = [(n, init, d, _try) for n, init, dtypes in CANARIES for d in dtypes]
    derived = [(n, fn, d, _try_by_parts) for n, fn, dtypes in CANARIES_BY_PARTS for d in dtypes]
    canaries = [*made, *derived]
    # Settings, meshes and traces of the caller's stay on its thread.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tried = list(pool.map(lambda canary: canary[3](*canary[1:3], platform), canaries))
    for (name, _, dtype, _), (kinds, differs) in zip(canaries, tried, strict=True):
        if not differs:
            passed |= kinds
        else:
            failed |= dict.fromkeys(kinds - passed or kinds, f"{name} {dtype}")
    return Proofs(where, False, frozenset(passed - set(failed)), failed)


def _try(init: Init, dtype: str, platform: str) -> tuple[frozenset[str], bool]:
    """Returns what making a canary in the fast way relies on, and whether its bits differ."""
    key = Key.of(jax.random.key(7, impl="threefry2x32"))

    def tree(keys: Any, _: Any) -> list[Any]:
        return [
            init(jax.random.fold_in(keys["params"], n), s, dtype)
            for n, s in enumerate(shapes_of(init, dtype))
        ]

    with compat.enable_x64(dtype == "float64"), jax.threefry_partitionable(True):
        traced, results = trace(tree, {"params": key})
    leaves = [
        LazyParam(aval.shape, aval.dtype, Slice(traced, value), RngPath({"params": key}))
        for value, aval in ((r.value, traced.avals[r.value]) for r in results)
    ]
    kinds: set[str] = set()
    differs = False
    for sharding_of in _placements(platform):
        jobs = [Job(dtype, x, sharding_of(x), x.dtype) for x in leaves]
        for way in ways_of(jobs, lambda _: TRUSTED):
            match way:
                case Drawn(work=work, form=form):
                    kinds |= kinds_of(work, form)
                case Compiled(work=work):
                    kinds |= kinds_of(work, None)
        for place, job in enumerate(jobs):
            job.places.append(place)
        try:
            for _ in make(jobs, lambda _: TRUSTED, check=True):
                pass
        except Exception:  # Other bits, or an error of the compiler: not to be relied on.
            differs = True
    return frozenset(kinds), differs


def _try_by_parts(fn: Function, dtype: str, platform: str) -> tuple[frozenset[str], bool]:
    """Returns what computing a canary by parts relies on, and whether its bits differ."""
    kinds: set[str] = set()
    differs = False
    x = np.random.default_rng(7).standard_normal(SHAPE_BY_PARTS).astype(jnp.dtype(dtype))
    struct = jax.ShapeDtypeStruct(x.shape, x.dtype)
    device = jax.local_devices(backend=platform)[0]
    with compat.enable_x64(False), jax.default_device(device):
        traced, results = trace(lambda _, xs: jax.tree.leaves(fn(*xs)), {}, [("x", struct)])
        (given,) = traced.abstract
        for result, want in zip(results, jax.tree.leaves(fn(jnp.asarray(x))), strict=True):
            work = gather([Slice(traced, result.value, given=(given,))])
            cuts: list[Cut] = [(("x",), ()) if v == given else () for v in work.inputs]
            parted = Partwise.of(work, cuts, {"x": PLACES})
            if parted is not None:
                small = SmallValues(traced, {}, {given: x})
                kinds |= kinds_by_parts(work)
                differs |= _differs_by_parts(parted, cuts, [small[v] for v in work.inputs], want)
    return frozenset(kinds), differs


def _differs_by_parts(
    parted: Partwise, cuts: Sequence[Cut], whole: Sequence[Any], want: jax.Array
) -> bool:
    """Tells whether the parts have other bits, where one device takes each place in turn."""
    for place in range(PLACES):
        inputs = [_part(x, cut, place) for x, cut in zip(whole, cuts, strict=True)]
        try:
            made = parted.run_at({"x": place}, inputs)
        except Exception:  # An error of the compiler: not to be relied on.
            return True
        assert made is not None
        if np.asarray(made[0]).tobytes() != _part(want, parted.cuts[0], place).tobytes():
            return True
    return False


def _part(array: Any, cut: Cut, place: int) -> Any:
    return np.split(np.asarray(array), PLACES)[place] if any(cut) else np.asarray(array)


def _placements(platform: str) -> Sequence[Callable[[Any], Sharding]]:
    devices = jax.local_devices(backend=platform)
    alone = SingleDeviceSharding(devices[0])
    if len(devices) == 1:
        return [lambda _: alone]
    mesh = jax.sharding.Mesh(np.array(devices), ("x",), axis_types=(AxisType.Auto,))

    def cut(leaf: Any) -> Sharding:
        axis = next((n for n, size in enumerate(leaf.shape) if size % len(devices) == 0), None)
        spec = [] if axis is None else [None] * axis + ["x"]
        return NamedSharding(mesh, PartitionSpec(*spec))

    return [lambda _: alone, cut]


# What is remembered.

_known: dict[Environment, Proofs] = {}
_lock = threading.Lock()


def proofs_on(platform: str) -> Proofs:
    """Returns what is proven on a platform: tested, remembered, or checked now."""
    here = environment(platform)
    with _lock:
        if here not in _known:
            _known[here] = (
                Proofs(str(here), is_tested=True)
                if here.is_tested
                else _remembered(here) or _checked(here)
            )
        return _known[here]


def _checked(here: Environment) -> Proofs:
    found = run(here.platform)
    with contextlib.suppress(OSError):  # A folder that cannot be written: it is checked again.
        path = _path(here)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(
            {"where": asdict(here), "passed": sorted(found.passed), "failed": dict(found.failed)}
        )
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(text)
        os.replace(file.name, path)
    return found


def _remembered(here: Environment) -> Proofs | None:
    try:
        stored = json.loads(_path(here).read_text())
        passed, failed = frozenset(stored["passed"]), dict(stored["failed"])
        if stored["where"] != asdict(here) or not all(isinstance(k, str) for k in passed):
            return None
    except (OSError, ValueError, TypeError, KeyError):  # Not there, or rubbish: it is checked anew.
        return None
    return Proofs(str(here), False, passed, failed)


def _path(here: Environment) -> Path:
    folder = os.environ.get("LAZYINIT_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "lazyinit"
    )
    name = hashlib.sha256(f"{here!r} {_code()}".encode()).hexdigest()[:32]
    return Path(folder) / f"self-check-{name}.json"


@functools.cache
def _code() -> str:
    """Returns a digest of the code that is checked, and of what it decides by.

    What a leaf needs of its program, and what is known of primitives, decide what is drawn: after
    a change there, too, the check has to run again.
    """
    package = Path(__file__).parents[1]
    rooms = ("compat", "make", "program")
    files = [file for room in rooms for file in sorted((package / room).glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
