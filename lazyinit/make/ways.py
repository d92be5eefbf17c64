"""How a leaf is made: one decision, which ``plan`` asks for and ``materialize`` follows.

*Replay* is right by construction: it does what eager ``init`` does. The fast ways rest on what
XLA happens to do, so each is taken only where it is proven (``proofs``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from jax.sharding import Sharding

from lazyinit import sharding as shardings
from lazyinit.make.elementwise import Elementwise, elementwise
from lazyinit.make.proofs import Proofs, kinds_of
from lazyinit.make.stacked import Stacked
from lazyinit.program.slices import Slice, Work, gather, is_order_free


@dataclass(frozen=True, slots=True)
class Draw:
    """By index, in host memory: any run of elements by one small program that knows no shape."""

    form: Elementwise | Stacked


@dataclass(frozen=True, slots=True)
class Compile:
    """By one program for the whole work, each device its own shard: on accelerators."""


@dataclass(frozen=True, slots=True)
class Replay:
    """Equation by equation, eagerly, at its own shape, on one device; then cut."""


Way: TypeAlias = Draw | Compile | Replay


def draw_of(
    made: Slice, placement: Sharding | None, proofs: Callable[[str], Proofs]
) -> tuple[Work, Draw] | None:
    """Returns how a leaf is drawn, and what of its program that does; ``None`` if it is not.

    Args:
      made: what makes the leaf.
      placement: where it goes; ``None`` is the default device.
      proofs: returns what is proven on a platform (``"cpu"``).
    """
    platform = shardings.platform_of(placement)
    if platform != "cpu":
        return None
    work = gather([made], drawn=True)
    form = _form(work)
    if form is None:  # The keys of its rows may be made of its own key.
        work = gather([made], drawn=True, keys_apart=True)
        form = _form(work)
    if form is None or not proofs(platform).allow(lambda: kinds_of(work, form)):
        return None
    return work, Draw(form)


def _form(work: Work) -> Elementwise | Stacked | None:
    # What is not kept alive would be fused anew.
    return (elementwise(work) or Stacked.of(work)) if work.keeps_all() else None


def whole_of(
    slices: Sequence[Slice], placement: Sharding | None, proofs: Callable[[str], Proofs]
) -> tuple[Work, Compile | Replay]:
    """Returns how leaves that are not drawn are made together, and what to run for them.

    Args:
      slices: what makes each of them.
      placement: where the first of them goes; ``None`` is the default device.
      proofs: returns what is proven on a platform.
    """
    platform = shardings.platform_of(placement)
    work = gather(slices)
    # What rounds by order is made once; what a compiler would drop is kept alive.
    is_plain = platform != "cpu" and is_order_free(work) and work.keeps_all()
    is_proven = is_plain and proofs(platform).allow(lambda: kinds_of(work, None))
    return work, Compile() if is_proven else Replay()
