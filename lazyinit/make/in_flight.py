"""How many of the leaves that no threads fill are made at a time.

``side_by_side`` keeps to this, and ``plan`` counts the memory by it. Such leaves need temporaries
beside them, so only a few are in flight at a time (``limits.IN_FLIGHT``), and large ones are made
one by one (``BYTES_IN_FLIGHT``). So are leaves that LAPACK makes on a CPU: it uses all cores for
one of them, and several at a time take half as long again.
"""

from collections.abc import Hashable, Sequence

from lazyinit import compat
from lazyinit.make.limits import BYTES_IN_FLIGHT, IN_FLIGHT
from lazyinit.make.ways import Replayed, Way
from lazyinit.params import StoredParam


def made_alone(way: Way) -> Hashable | None:
    """Returns a token if the leaves of a way are made while nothing else is in flight, or ``None``.

    The several results of one decomposition have the same token.
    """
    if not isinstance(way, Replayed) or not any(map(compat.decomposes, way.work.origins)):
        return None
    # Equations that two leaves share come first in the work of each.
    return (id(way.work.program), way.work.equations[0].index, way.jobs[0].leaf.rng_path)


def may_start(way: Way, in_flight: Sequence[Way]) -> bool:
    """Tells whether the leaves of a way may be made beside those that are in flight."""
    if not in_flight:
        return True
    together = (way, *in_flight)
    if len(together) > IN_FLIGHT or sum(map(_temporary, together)) > BYTES_IN_FLIGHT:
        return False
    return made_alone(way) is None and made_alone(in_flight[0]) is None


def _temporary(way: Way) -> int:
    """Returns the bytes of the leaves of a way that need temporaries; stored leaves need none."""
    return sum(job.leaf.nbytes for job in way.jobs if not isinstance(job.leaf, StoredParam))
