"""The self-check: it finds out whether the fast ways give the bits of replay on this machine.

Where the test suite was run (``environment``), all kinds are taken as proven. Anywhere else
(another version of JAX, a GPU, a CPU with other vector units, compiler options that the user set)
the *canaries* are made in both ways first. The simplest come first, and later ones combine what
earlier ones have proven. If a canary has other bits than its replay, the kinds that it needs, and
that no earlier one has proven, have failed.

Few people need all kinds: most leaves are float32, or 16 bits wide; few have 64, or are computed by
parts. So each sort of kinds (``Sort``) is checked when something first needs it. Its outcome is
kept in a file of its own in the user's cache folder, which is named by all that it depends on.
"""

import contextlib
import functools
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from lazyinit import compat
from lazyinit.compat import Cut
from lazyinit.keys import Key, RngPath
from lazyinit.make.canaries import CANARIES, CANARIES_BY_PARTS, FEW, PLACES, Canary
from lazyinit.make.environment import Environment, environment
from lazyinit.make.proofs import TRUSTED, Found, Proofs, Sort, kinds_by_parts, kinds_of, sort_of
from lazyinit.make.run import make
from lazyinit.make.ways import Compiled, Drawn, Job, ways_of
from lazyinit.params import LazyParam
from lazyinit.program.partwise import Partwise
from lazyinit.program.slices import Slice, gather
from lazyinit.program.small_values import SmallValues
from lazyinit.program.tracing import trace


def run(platform: str, sort: Sort) -> Found:
    """Runs the self-check on this process's devices of a platform, even if its outcome is known.

    Args:
      platform: ``"cpu"``, ``"gpu"``, ``"tpu"``.
      sort: the sort of kinds that are checked.
    """
    passed: set[str] = set()
    failed: dict[str, str] = {}
    attempt, each = _canaries(sort)
    # On other threads, the caller's settings, meshes and traces do not apply.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tried = list(pool.map(lambda one: attempt(one[0], one[1], platform), each))
    for (canary, dtype), (kinds, differs) in zip(each, tried, strict=True):
        if not differs:
            passed |= kinds
        else:
            failed |= dict.fromkeys(kinds - passed or kinds, f"{canary.name} {dtype}")
    return Found(frozenset(passed - set(failed)), failed)


def _canaries(sort: Sort) -> tuple[Callable[..., Any], list[tuple[Canary, str]]]:
    """Returns what tries a canary, and the canaries of a sort, each with a dtype."""
    if sort == "by parts":
        return _try_by_parts, [(one, dtype) for one in CANARIES_BY_PARTS for dtype in one.dtypes]
    each = [(one, dtype) for one in CANARIES for dtype in one.dtypes]
    return _try, [(one, dtype) for one, dtype in each if sort_of("draw", [dtype]) == sort]


def _try(canary: Canary, dtype: str, platform: str) -> tuple[frozenset[str], bool]:
    """Returns the kinds that a canary needs in the fast ways, and whether its bits differ there."""
    key = Key.of(jax.random.key(7, impl="threefry2x32"))
    # On an accelerator, a leaf is compiled as one, and a shape may change the bits of any equation.
    more = () if platform == "cpu" else FEW
    shapes = tuple(dict.fromkeys((*canary.shapes, *more)))

    def tree(keys: Any, _: Any) -> list[Any]:
        return [
            canary.function(jax.random.fold_in(keys["params"], n), shape, dtype)
            for n, shape in enumerate(shapes)
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
        jobs: list[Job] = []  # Without replayed leaves, which would be compared with themselves.
        for way in ways_of([Job(dtype, x, sharding_of(x), x.dtype) for x in leaves], _trust):
            match way:
                case Drawn(work=work, form=form):
                    kinds |= kinds_of(work, form)
                    jobs += way.jobs
                case Compiled(work=work):
                    kinds |= kinds_of(work, None)
                    jobs += way.jobs
        for place, job in enumerate(jobs):
            job.places.append(place)
        try:
            for _ in make(jobs, _trust, check=True):
                pass
        except Exception:  # Other bits, or an error of the compiler, which fails the kinds, too.
            differs = True
    return frozenset(kinds), differs


def _trust(platform: str) -> Proofs:
    return TRUSTED


def _try_by_parts(canary: Canary, dtype: str, platform: str) -> tuple[frozenset[str], bool]:
    """Returns the kinds that a canary needs by parts, and whether its bits differ there."""
    fn = canary.function
    (shape,) = canary.shapes
    kinds: set[str] = set()
    differs = False
    x = np.random.default_rng(7).standard_normal(shape).astype(jnp.dtype(dtype))
    struct = jax.ShapeDtypeStruct(x.shape, x.dtype)
    device = jax.local_devices(backend=platform)[0]
    with compat.enable_x64(False), jax.default_device(device):
        traced, results = trace(lambda _, xs: jax.tree.leaves(fn(*xs)), {}, [("x", struct)])
        (given,) = traced.abstract
        small = SmallValues(traced, {}, {given: jnp.asarray(x)})
        for result in results:
            work = gather([Slice(traced, result.value, given=(given,))])
            cuts: list[Cut] = [(("x",), ()) if v == given else () for v in work.inputs]
            parted = Partwise.of(work, cuts, {"x": PLACES})
            if parted is not None:  # Otherwise, such a leaf is never computed by parts.
                kinds |= kinds_by_parts(work)
                differs |= _differs_by_parts(parted, cuts, [small[v] for v in work.inputs])
    return frozenset(kinds), differs


def _differs_by_parts(parted: Partwise, cuts: Sequence[Cut], whole: Sequence[Any]) -> bool:
    """Tells whether the parts, computed in turn on one device, have other bits than a replay."""
    (want,) = parted.work.run(whole, barrier=False)
    for place in range(PLACES):
        inputs = [_part(x, cut, place) for x, cut in zip(whole, cuts, strict=True)]
        try:
            made = parted.run_at({"x": place}, inputs)
        except Exception:  # An error of the compiler fails the kinds, too.
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


# The outcomes, in this process and in the user's cache folder.

_known: dict[tuple[Environment, Sort], Found] = {}
_lock = threading.Lock()


def proofs_on(platform: str) -> Proofs:
    """Returns what is proven on a platform; the self-check runs once a sort of kinds is needed."""
    here = environment(platform)
    return Proofs(str(here), here.is_tested, functools.partial(_found, here))


def _found(here: Environment, sort: Sort) -> Found:
    with _lock:
        if (here, sort) not in _known:
            _known[here, sort] = _remembered(here, sort) or _checked(here, sort)
        return _known[here, sort]


def _checked(here: Environment, sort: Sort) -> Found:
    found = run(here.platform, sort)
    with contextlib.suppress(OSError):  # If it cannot be written, the next process checks again.
        path = _path(here, sort)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(
            {"where": asdict(here), "passed": sorted(found.passed), "failed": dict(found.failed)}
        )
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(text)
        os.replace(file.name, path)
    return found


def _remembered(here: Environment, sort: Sort) -> Found | None:
    try:
        stored = json.loads(_path(here, sort).read_text())
        passed, failed = frozenset(stored["passed"]), dict(stored["failed"])
        if stored["where"] != asdict(here) or not all(isinstance(k, str) for k in passed):
            return None
    except (OSError, ValueError, TypeError, KeyError):  # No file, or a damaged one.
        return None
    return Found(passed, failed)


def _path(here: Environment, sort: Sort) -> Path:
    folder = os.environ.get("LAZYINIT_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "lazyinit"
    )
    name = hashlib.sha256(f"{here!r} {sort} {_code()}".encode()).hexdigest()[:32]
    return Path(folder) / f"self-check-{name}.json"


@functools.cache
def _code() -> str:
    """Returns a digest of the code that is checked, and of the code that decides what is drawn.

    The latter knows what a leaf needs of its program (``program``), and facts about primitives
    (``compat``). After a change there, the check has to run again, too.
    """
    package = Path(__file__).parents[1]
    rooms = ("compat", "make", "program")
    files = [file for room in rooms for file in sorted((package / room).glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
