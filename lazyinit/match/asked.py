"""Applies the policies of ``fill`` to the leaves and tensors at hand.

Leaves, their matches and policies come in. Replacements of leaves, paths to warn of and messages
about what is refused go out. Nothing is read.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from lazyinit import errors
from lazyinit.checkpoint import Checkpoint
from lazyinit.match import refusals
from lazyinit.match.match import Matching
from lazyinit.match.places import Place
from lazyinit.match.policies import Policy
from lazyinit.match.report import LeafReport
from lazyinit.params import StoredParam, Thunk, placement_of
from lazyinit.sources import Source
from lazyinit.tensors.as_dtype import AsDtype
from lazyinit.tensors.key_data import is_typed_key

Leaves: TypeAlias = Sequence[tuple[Place, Any]]  # Any: a leaf may be any Python object.


class Asked:
    """Asks the policies about each case, and collects the problems.

    Attributes:
      problems: a message for each case that is refused.
      to_warn_of: the paths of leaves that keep their initial values, for one warning.
    """

    def __init__(self, missing: Policy, mismatch: Policy, unexpected: Policy, cast: Policy) -> None:
        """Takes the policies for missing leaves, mismatches, unexpected tensors and casts."""
        self._missing, self._mismatch, self._unexpected = missing, mismatch, unexpected
        self._cast = cast
        self.problems: list[str] = []
        self.to_warn_of: list[str] = []

    def mismatched(
        self,
        leaves: Leaves,
        entries: Mapping[str, LeafReport],
        found: Matching,
        checkpoint: Checkpoint,
    ) -> dict[str, Any]:  # Any: a leaf, and what a callable puts in its place.
        """Returns the replacements of leaves whose tensors do not fit, by path."""
        adapted: dict[str, Any] = {}
        for place, leaf in leaves:
            entry = entries.get(place.path)
            if entry is None or entry.status != "mismatched":
                continue
            match = found.matches[place.path]
            # No callable is asked about tensors that cannot make the leaf in any shape.
            case = () if match.problem else (leaf, match.source)
            answer = self._ask(self._mismatch, place.path, *case)
            if answer == "error":
                self.problems.append(refusals.mismatch(entry, match.problem, checkpoint))
            elif is_array_like(answer):
                self.problems += refusals.unlike(place.path, leaf, answer)
                adapted[place.path] = answer
            else:
                self._check_word(self._mismatch, place.path, answer, ", or a leaf")
        return adapted

    def cast(
        self, leaves: Leaves, entries: Mapping[str, LeafReport], found: Matching
    ) -> dict[str, StoredParam]:
        """Collects a problem for each tensor that may not be cast to the dtype of its leaf.

        Returns:
          The replacements of leaves whose values may overflow in the cast, by path.
        """
        overflowing: dict[str, StoredParam] = {}
        for place, leaf in leaves:
            entry = entries.get(place.path)
            if entry is None or entry.status != "loaded" or is_typed_key(leaf):
                continue
            source = found.matches[place.path].source
            if source.dtype == leaf.dtype:
                continue
            answer = self._ask(self._cast, place.path, leaf, source)
            is_lossy = not np.can_cast(source.dtype, leaf.dtype, "safe")
            if answer == "error" or (answer == "lossless" and is_lossy):
                self.problems.append(refusals.cast(entry, answer))
            elif answer == "overflow":
                cast = AsDtype(source, leaf.dtype, overflow=True)
                overflowing[place.path] = stored_leaf(place.path, leaf, cast)
            else:
                self._check_word(self._cast, place.path, answer)
        return overflowing

    def missing(self, leaves: Leaves, entries: Mapping[str, LeafReport], at: str) -> list[Place]:
        """Returns the places of missing leaves that the policy refuses to initialize."""
        refused = []
        for place, leaf in leaves:
            if not is_fillable(leaf) or entries[place.path].status != "missing":
                continue
            answer = self._ask(self._missing, place.path, leaf)
            if answer == "error":
                refused.append(place)
            elif answer == "warn":
                # Outside of the subtree that is to be filled, nobody expects a tensor.
                self.to_warn_of += [place.path] if place.below(at) else []
            else:
                self._check_word(self._missing, place.path, answer)
        return refused

    def unexpected(self, checkpoint: Checkpoint, found: Matching) -> list[LeafReport]:
        """Returns the entries of unexpected tensors that the policy wants in the report."""
        reported = []
        for entry in _unexpected(checkpoint, found):
            answer = self._ask(self._unexpected, entry.path, checkpoint[entry.tensor])
            if answer == "error":
                self.problems.append(refusals.left_over(entry))
            elif answer == "report":
                reported.append(entry)
            else:
                self._check_word(self._unexpected, entry.path, answer)
        return reported

    def _ask(self, policy: Policy, path: str, *case: Any) -> Any:
        """Returns a policy's answer; notes a callable's refusal as a problem, and lets it pass."""
        try:
            return policy.decide(path, *case)
        except errors.FillError as error:
            self.problems.append(str(error))
            return policy.words[0] if policy.words[0] != "error" else policy.words[1]

    def _check_word(self, policy: Policy, path: str, answer: object, others: str = "") -> None:
        if not policy.knows(answer):
            self.problems.append(policy.refuse(path, answer, others))


def is_array_like(leaf: object) -> bool:
    """Tells whether a leaf is a thunk, an array or a shape, so that a tensor could replace it."""
    kinds = Thunk | jax.Array | jax.ShapeDtypeStruct | np.ndarray | np.generic
    return isinstance(leaf, kinds)


def is_fillable(leaf: Any) -> bool:  # Any: a leaf may be any Python object.
    """Tells whether rules may apply to a leaf: it is like an array, and no PRNG key."""
    return is_array_like(leaf) and not is_typed_key(leaf)


def stored_leaf(path: str, like: Any, source: Source) -> StoredParam:
    """Returns a leaf that is read from a source, of the shape, dtype and placement of another."""
    return StoredParam(like.shape, like.dtype, source, sharding=placement_of(like), path=path)


def _unexpected(checkpoint: Checkpoint, found: Matching) -> tuple[LeafReport, ...]:
    """Returns the entry of each tensor that makes no leaf and is not ignored."""
    used = {tensor for each in found.matches.values() for tensor in each.tensors} | found.ignored
    return tuple(
        LeafReport.of(
            name,
            stored_leaf(name, tensor, tensor),
            status="unexpected",
            tensor=name,
            stored_shape=tensor.shape,
            stored_dtype=tensor.dtype,
        )
        for name, tensor in checkpoint.items()
        if name not in used
    )
