"""Walks from a value of a program back to all that it is computed from.

Neither walk recurs: the forward pass of a deep model is one long chain.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol


class _Producer(Protocol):
    """What computes values: an ``Equation``. Values are numbers here, as in a ``Program``."""

    @property
    def inputs(self) -> Sequence[int]: ...


def walk_back(
    value: int, producers: Mapping[int, _Producer], is_stop: Callable[[int], bool]
) -> Iterator[int]:
    """Yields the values at which the walk ends: those that nothing produces, and stops.

    Args:
      value: where the walk starts.
      producers: what produces each value, if anything does.
      is_stop: whether the walk ends at a value that is produced; asked of no other.
    """
    seen = {value}
    stack = [value]
    while stack:
        v = stack.pop()
        producer = producers.get(v)
        if producer is None or is_stop(v):
            yield v
            continue
        fresh = [i for i in producer.inputs if i not in seen]
        seen.update(fresh)
        stack += fresh


def holds_for_ancestors(
    value: int, verdict: Callable[[int], bool | Sequence[int]], memo: dict[int, bool]
) -> bool:
    """Tells whether a value has a property that it may inherit from all values it is made of.

    Args:
      value: the value in question.
      verdict: returns whether a value has the property, or else the values of which all must have
        it.
      memo: the answers for values that were asked about before; new ones are added.
    """
    stack = [value]
    while stack:
        v = stack[-1]
        inputs = memo[v] if v in memo else verdict(v)
        if isinstance(inputs, bool):
            memo[v] = inputs
            stack.pop()
        elif unknown := [i for i in inputs if i not in memo]:
            stack += unknown
        else:
            memo[v] = all(memo[i] for i in inputs)
    return memo[value]
