"""Counts, over models of several sorts, the leaves and bytes that no shared program draws.

``python benchmarks/ways.py`` records each model, at the sizes that it is used at where that is
known (``transformers``' own defaults), and asks which way each leaf would be made on a CPU.
Nothing is made. A leaf that is not drawn is replayed, equation by equation, whole, on one device.
``--leaves`` lists these; ``--time`` makes each model, too, and says how many user CPU seconds
that takes over eager ``init``, when both have run before. ``--cold`` says it of the first time in a
process, which is what users wait for. ``--sort`` counts one sort of models alone. Those of
google-tunix are counted where it is installed (``tunix_models`` says how).
"""

import argparse
import contextlib
import functools
import importlib.util
import os
import statistics
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ["USE_TORCH"] = "0"  # transformers would import it if it is there.

import jax
import jax.numpy as jnp
from flax import nnx

import lazyinit as li
from lazyinit import paths
from lazyinit.make import elementwise, steps
from lazyinit.make.proofs import TRUSTED
from lazyinit.make.selfcheck import proofs_on
from lazyinit.make.ways import Drawn, Job, way_of
from lazyinit.params import LazyParam, label
from lazyinit.program.equations import is_key

_TESTS = Path(__file__).parents[1] / "tests"


@dataclass(frozen=True, slots=True)
class Model:
    """A model that can be recorded, and made eagerly.

    Attributes:
      sort: which group it is counted in.
      name: what it is called.
      record: returns its tree of thunks.
      eager: returns its tree of arrays.
    """

    sort: str
    name: str
    record: Callable[[], Any]
    eager: Callable[[], Any]


def of_the_suite() -> Iterator[Model]:
    """Yields the models that the suite compares with eager ``init``, as small as they are there."""
    sys.path.insert(0, str(_TESTS))
    import models
    import nnx_models

    for name, (module, rngs, args, kwargs) in models.CASES.items():
        yield Model(
            "Linen, of the suite",
            name,
            lambda m=module, r=rngs, a=args, k=kwargs: li.lazy(m).init(r, *a, **k),
            lambda m=module, r=rngs, a=args, k=kwargs: m.init(r, *a, **k),
        )
    for name, build in nnx_models.CASES.items():
        yield Model(
            "NNX, of the suite",
            name,
            lambda b=build: li.lazy(b)(nnx_models.rngs())[1],
            lambda b=build: nnx.split(b(nnx_models.rngs()))[1],
        )


def of_transformers() -> Iterator[Model]:
    """Yields Flax models of ``transformers``, with the defaults of their own configurations."""
    if importlib.util.find_spec("transformers") is None:
        return
    import transformers

    ids, positions = jnp.ones((1, 8), jnp.int32), jnp.arange(8)[None]
    image = jnp.ones((1, 224, 224, 3))
    inputs = {
        "BertForSequenceClassification": (ids, ids, ids, positions, None),
        "GPT2LMHeadModel": (ids, ids, positions),
        "T5ForConditionalGeneration": (ids, ids, ids, ids),
        "ViTForImageClassification": (image,),
        "CLIPModel": (ids, image, ids, positions),
        "BartForConditionalGeneration": (ids, ids, ids, ids, positions, positions),
        "WhisperForConditionalGeneration": (jnp.ones((1, 80, 3000)), ids, ids, positions),
        "ResNetForImageClassification": (image,),
    }
    for name, args in inputs.items():
        family = name.split("For")[0].removesuffix("Model").removesuffix("LMHead")
        config = getattr(transformers, f"{family}Config")()
        module = getattr(transformers, f"Flax{name}")(config, _do_init=False).module
        key = jax.random.key(0)
        yield Model(
            "transformers",
            name,
            lambda m=module, a=args, k=key: li.lazy(m).init(k, *a),
            lambda m=module, a=args, k=key: m.init(k, *a),
        )


def of_tunix() -> Iterator[Model]:
    """Yields NNX models of google-tunix, as wide as they are, with fewer layers and words."""
    if importlib.util.find_spec("tunix") is None:
        return
    import tunix_models

    sizes = {
        "llama3": ("Llama3", "llama3p2_1b"),
        "qwen2": ("Qwen2", "qwen2p5_0p5b"),
        "qwen3": ("Qwen3", "qwen3_0p6b"),
    }
    for package, (name, size) in sizes.items():
        module = tunix_models.module_of(package)
        cls, config = getattr(module, name), getattr(module.ModelConfig, size)()
        build = functools.partial(cls, replace(config, num_layers=4, vocab_size=32_000))
        yield Model(
            "google-tunix",
            size,
            lambda b=build: _unplaced(lambda: li.lazy(b)(rngs=nnx.Rngs(0))[1]),
            lambda b=build: _unplaced(lambda: nnx.state(b(rngs=nnx.Rngs(0)))),
        )


def _unplaced(make: Callable[[], Any]) -> Any:
    with nnx.use_eager_sharding(False):
        return make()


@contextlib.contextmanager
def _clip_as_before() -> Iterator[None]:
    clip = jnp.clip

    def clipped(x: Any, *bounds: Any, a_max: Any = None, **kwargs: Any) -> Any:
        return clip(x, *bounds, **kwargs) if a_max is None else clip(x, max=a_max)

    jnp.clip = clipped  # T5 uses a keyword that is gone.
    try:
        yield
    finally:
        jnp.clip = clip


@dataclass(frozen=True, slots=True)
class Counted:
    """One leaf.

    Attributes:
      path: of it.
      nbytes: of its array.
      why: why it is not drawn; ``""`` if it is.
      made_by: the name of its initializer.
    """

    path: str
    nbytes: int
    why: str
    made_by: str


def count(tree: Any) -> Sequence[Counted]:
    """Returns what there is to count of a tree: leaves that are computed of keys, no keys."""
    found, seen = [], set[int]()
    for path, leaf in paths.leaves_with_paths(tree):
        if not isinstance(leaf, LazyParam) or is_key(leaf) or id(leaf) in seen or not leaf.size:
            continue
        seen.add(id(leaf))
        job = Job(path, leaf, None, leaf.dtype)
        why = "" if _is_drawn(job) else _why(job)
        found.append(Counted(path, leaf.nbytes, why, label(leaf.init_fn)))
    return found


def _is_drawn(job: Job) -> bool:
    return isinstance(way_of([job], lambda _: TRUSTED), Drawn)


def _why(job: Job) -> str:
    short, known = steps.SHORT, dict(elementwise._known)
    try:
        steps.SHORT = 0
        elementwise._known.clear()
        if _is_drawn(job):
            return f"its last axis is under {short}"
    finally:
        steps.SHORT = short
        elementwise._known.clear()
        elementwise._known.update(known)
    if job.leaf.size == 1:
        return "it is a number"
    if jnp.issubdtype(job.leaf.dtype, jnp.integer):
        return "it counts"
    return f"made by {label(job.leaf.init_fn)}"


def _times(model: Model) -> float:
    """Returns the median of the user CPU seconds over those of eager, after a first call of both.

    On a machine that does nothing else, these say as much as a clock does, and on others more.
    """
    ratios = []
    for n in range(6):
        start = os.times().user
        jax.block_until_ready(jax.tree.leaves(li.materialize(model.record())))
        middle = os.times().user
        jax.block_until_ready(jax.tree.leaves(model.eager()))
        if n:
            ratios.append((middle - start) / (os.times().user - middle))
    return statistics.median(ratios)


def _cold_times(model: Model) -> float:
    """Returns the CPU seconds over those of eager, each in a process that has made nothing yet."""
    proofs_on(jax.default_backend()).of("wide")  # Its outcome is kept, so that it counts in none.
    used = []
    for way in ("lazyinit", "eager"):
        command = [sys.executable, __file__, "--make", model.name, way]
        told = subprocess.run(command, check=True, capture_output=True, text=True)
        used.append(float(told.stdout))
    return used[0] / used[1]


def make(models: Iterable[Model], name: str, way: str) -> None:
    """Makes one model, and prints how many CPU seconds that took."""
    with warnings.catch_warnings(), _clip_as_before():
        warnings.simplefilter("ignore")
        model = next(m for m in models if m.name == name)
        before = os.times()
        made = li.materialize(model.record()) if way == "lazyinit" else model.eager()
        jax.block_until_ready(jax.tree.leaves(made))
        after = os.times()
    print(after.user + after.system - before.user - before.system)


def main(
    models: Callable[[], Iterable[Model]],
    *,
    leaves: bool = False,
    time: Callable[[Model], float] | None = None,
) -> None:
    """Prints, for each sort of models, the shares that are not drawn, and why."""
    by_sort: dict[str, list[tuple[Model, Sequence[Counted]]]] = {}
    with warnings.catch_warnings(), _clip_as_before():
        warnings.simplefilter("ignore")
        for model in models():
            by_sort.setdefault(model.sort, []).append((model, count(model.record())))
        for sort, counted in by_sort.items():
            everything = [leaf for _, some in counted for leaf in some]
            left = [leaf for leaf in everything if leaf.why]
            print(
                f"{sort}: {len(counted)} models, {len(everything)} leaves; not drawn "
                f"{_share(len(left), len(everything))} of leaves, "
                f"{_share(_bytes(left), _bytes(everything))} of bytes"
            )
            number, nbytes = Counter[str](), Counter[str]()
            for leaf in left:
                number[leaf.why] += 1
                nbytes[leaf.why] += leaf.nbytes
            for why, size in nbytes.most_common():
                print(f"  {why}: {number[why]} leaves, {_share(size, _bytes(everything))} of bytes")
            for model, some in counted:
                for leaf in some if leaves else ():
                    if leaf.why:
                        print(f"    {model.name}: {leaf.path} ({leaf.made_by}): {leaf.why}")
            for model, _ in counted if time else ():
                print(f"    {model.name}: {time(model):.2f} of eager's CPU seconds", flush=True)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.1f} %"


def _bytes(leaves: Sequence[Counted]) -> int:
    return sum(leaf.nbytes for leaf in leaves)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--leaves", action="store_true")
    parser.add_argument("--time", dest="time", action="store_const", const=_times)
    parser.add_argument("--cold", dest="time", action="store_const", const=_cold_times)
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--sort", default="", help="a part of its name")
    chosen = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)
    every = (of_the_suite, of_transformers, of_tunix)
    if chosen.make:
        make((m for some in every for m in some()), *chosen.make)
    else:
        main(
            lambda: (m for some in every for m in some() if chosen.sort in m.sort),
            leaves=chosen.leaves,
            time=chosen.time,
        )
