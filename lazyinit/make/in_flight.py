"""What is made at a time of leaves that no threads fill: ``run`` keeps to it, ``plan`` adds it up.

Such leaves need temporaries beside them, so only a few are in flight at a time
(``limits.IN_FLIGHT``), and large ones one by one (``BYTES_IN_FLIGHT``). So are those that LAPACK
makes on a CPU: it takes all cores for one, and several at a time take half as long again.
"""

from collections.abc import Hashable, Sequence

from lazyinit import compat
from lazyinit.make.limits import BYTES_IN_FLIGHT, IN_FLIGHT
from lazyinit.make.ways import Replayed, Way
from lazyinit.params import StoredParam


def made_alone(way: Way) -> Hashable | None:
    """Returns a name for what is made while nothing else is in flight; ``None`` for other leaves.

    Leaves that are made together, such as the results of one decomposition, have one name.
    """
    if not isinstance(way, Replayed) or not any(map(compat.decomposes, way.work.origins)):
        return None
    # What two leaves have in common comes before all else that makes them.
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
    """Returns the bytes of leaves that need temporaries beside them: not of what is read."""
    return sum(job.leaf.nbytes for job in way.jobs if not isinstance(job.leaf, StoredParam))
