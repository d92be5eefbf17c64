"""What may be in a sequence of rules."""

from collections.abc import Iterable
from typing import TypeAlias

from lazyinit import errors
from lazyinit.rules.renames import Ignore, Rename
from lazyinit.rules.rule import Rule

AnyRule: TypeAlias = Rule | Rename | Ignore


def check_rules(rules: Iterable[AnyRule]) -> tuple[AnyRule, ...]:
    """Returns the rules as a tuple.

    Raises:
      FillError: something in it is not a rule.
    """
    listed = tuple(rules) if isinstance(rules, Iterable) else (rules,)
    for place, rule in enumerate(listed):
        if not isinstance(rules, Iterable) or not isinstance(rule, AnyRule):
            raise errors.FillError(
                f"rules[{place}]: wanted a sequence of Rule or Rename values, got "
                f"{type(rule).__name__}. Write rules=[rule] or rules=[rule, *lazyinit.TORCH]."
            )
    return listed
