"""Rules read backwards: the tensors that a checkpoint would hold for the leaves of a tree.

Leaves with their sources come in, and sources by the names of tensors go out. The result is matched
again before it is returned, so that ``fill`` would read the same leaves back.
"""

from collections.abc import Hashable, Iterator, Sequence

from lazyinit import errors
from lazyinit.checkpoint import Checkpoint
from lazyinit.match.fits import Group, RuleIndex
from lazyinit.match.match import match
from lazyinit.match.places import Place
from lazyinit.patterns import slashed
from lazyinit.rules.renames import Rename
from lazyinit.rules.rule import AnyRule, Constant, Rule
from lazyinit.sources import Source
from lazyinit.tensors.joined import Agreeing


def unmatch(
    leaves: Sequence[tuple[Place, Source]], *, rules: Sequence[AnyRule], at: str = ""
) -> dict[str, Source]:
    """Returns the tensors of a checkpoint from which ``fill`` would make these leaves again.

    The first rule that fits a leaf makes its tensors. A leaf that no rule fits keeps its name,
    with ``.`` between its keys if the rules' names of tensors have dots. If two leaves share one
    tensor, both are compared when the tensor is read, and must be equal.

    Args:
      leaves: the leaves of one tree, each after its place, as sources of their values.
      rules: as ``fill`` takes them.
      at: the path of the subtree that the checkpoint is for; leaves outside it are left out.

    Returns:
      The sources by the names of tensors, in the order of the leaves.

    Raises:
      FillError: a rule cannot be read backwards, a rule needs a leaf that is not there, or
        ``fill`` would not read these leaves back from the tensors.
    """
    at = slashed(at).strip("/")
    index = RuleIndex([rule for rule in rules if isinstance(rule, Rule)])
    tensors = _Tensors(rules)
    groups: dict[Hashable, Group] = {}
    waiting: list[tuple[Place, Source] | Group] = []
    for place, source in leaves:
        # A rule across collections is for a checkpoint whose names have no collection in them.
        fit = next(index.fits(place, at, innermost=True), None)
        if fit is not None:
            key, number = fit.key(fit.rule.unstacked), fit.rule.unstacked
            if key not in groups:
                groups[key] = Group(fit, number)
                waiting.append(groups[key])
            groups[key].add(fit, place.path, source)
        elif place.below(at):
            waiting.append((place, source))
    for each in waiting:
        if isinstance(each, Group):
            tensors.put_group(each)
        else:
            place, source = each
            tensors.put(_own_name(place, at), source, [place.path])
    tensors.check([place for place, _ in leaves], at)
    return tensors.sources


def _own_name(place: Place, at: str) -> str:
    """Returns a tensor's name for a leaf that no rule fits: its path below ``at``, dots and all."""
    path = place.path[: len(place.name)]  # Cuts off the "value" of a metadata box.
    return path[len(at) + 1 :] if at else path


class _Tensors:
    """Collects tensors under the names that rules give them, each with the leaves behind it."""

    def __init__(self, rules: Sequence[AnyRule]) -> None:
        self._rules = rules
        self._renames = [rule for rule in rules[::-1] if isinstance(rule, Rename)]
        self._dotted = any("." in text for text in _tensor_texts(rules))
        self._makers: dict[str, list[str]] = {}
        self.sources: dict[str, Source] = {}

    def put_group(self, group: Group) -> None:
        """Adds the tensors that a rule, read backwards, makes of a group of leaves."""
        rule = group.rule
        if isinstance(rule.tensor, Constant):
            return
        leaves = group.grid(rule.leaves)
        try:
            grid = rule.changes().backward(leaves)
        except errors.FillError as error:
            raise errors.FillError(f"{group.labels[0]}: {rule}: {error}") from None
        for name, source in group.names(rule.tensors, rule.stacked, grid):
            self.put(name, source, group.labels)

    def put(self, name: str, source: Source, paths: list[str]) -> None:
        """Adds a tensor under its name after renames; one that is there already must be equal."""
        for rename in self._renames:
            name = rename.tensor_for(slashed(name)) or name
        name = name.replace("/", ".") if self._dotted else name
        held = self.sources.setdefault(name, source)
        if held.shape != source.shape:
            raise errors.FillError(
                f"{paths[0]}: wanted a tensor of its own for this leaf, but the rules call both it "
                f"and {self._makers[name][0]} {name!r}, and the shapes {list(source.shape)} and "
                f"{list(held.shape)} differ. Write another rule for one of them."
            )
        if held != source:
            parts = held.parts if isinstance(held, Agreeing) else (held,)
            self.sources[name] = Agreeing((*parts, source), name)
        self._makers.setdefault(name, []).extend(paths)

    def check(self, leaves: Sequence[Place], at: str) -> None:
        """Raises a ``FillError`` if ``fill`` would not read these leaves back from the tensors."""
        made: dict[str, list[str]] = {}
        for name, paths in self._makers.items():
            for path in paths:
                made.setdefault(path, []).append(name)
        found = match(leaves, Checkpoint("", self.sources), rules=self._rules, at=at).matches
        problems = [
            f"{path}: wanted rules that read this leaf back from {names}, got rules that read it "
            f"from {list(found[path].tensors) if path in found else 'no tensor'}. Write a rule for "
            "this leaf before the others, or give the other leaf's tensor another name."
            for path, names in made.items()
            if path not in found or found[path].problem or [*found[path].tensors] != names
        ]
        if problems:
            raise errors.FillError(errors.listing(problems))


def _tensor_texts(rules: Sequence[AnyRule]) -> Iterator[str]:
    """Yields how rules write the names of tensors, to see whether they have dots."""
    for rule in rules:
        if isinstance(rule, Rule):
            yield from rule.tensors
        elif isinstance(rule, Rename):
            yield rule.tensor if isinstance(rule.tensor, str) else "."
