"""Which inputs a traced value is computed from, so that a trace knows whether it has a value."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class Origins:
    """The names of the inputs that a value is computed from.

    Attributes:
      known: the inputs that have a value, which are root keys.
      unknown: the inputs of which only the shape is known.
    """

    known: frozenset[str] = frozenset()
    unknown: frozenset[str] = frozenset()

    @staticmethod
    def union(several: Iterable["Origins"]) -> "Origins":
        """Returns the origins of what is computed from several values."""
        distinct = set(several)
        if len(distinct) == 1:
            return distinct.pop()
        distinct = {o for o in distinct if o.known or o.unknown} or {CONSTANTS}
        if len(distinct) == 1:
            return distinct.pop()
        known = frozenset[str]().union(*(o.known for o in distinct))
        return Origins(known, frozenset[str]().union(*(o.unknown for o in distinct)))


SCALARS = Origins()  # Constants of one element alone: told apart by identity.
CONSTANTS = Origins()
ELSEWHERE = Origins(unknown=frozenset(["a trace around this one"]))
