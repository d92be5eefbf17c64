"""Rules about names alone: ``Rename`` gives tensors other names, ``Ignore`` passes over tensors."""

import re
from dataclasses import dataclass

from lazyinit import errors
from lazyinit.patterns import check_alike, escape, pattern, slashed


@dataclass(frozen=True, slots=True, repr=False)
class Rename:
    r"""Gives tensors other names before leaves are matched.

    A regular expression replaces each part of a name that it matches. It sees names with ``.``
    between keys, even if the checkpoint has ``/``.

    Attributes:
      tensor: the name in the checkpoint: a pattern such as ``"model.**"``, with wildcards as in
        ``Rule``, or ``re.compile(r"^h\.(\d+)")``.
      name: the new name: ``"**"``, or ``r"layers.\1"``.
      back: a regular expression and its replacement that turn a new name into the old one.
        Without it a rename by regular expression cannot be read backwards.

    Raises:
      FillError: the two patterns do not have the same wildcards.

    Example:
      >>> Rename("decoder.h.*.**", "layers.*.**").name_for("decoder/h/3/ln/weight")
      'layers/3/ln/weight'
      >>> Rename(re.compile(r"gamma$"), "weight").name_for("ln/gamma")
      'ln/weight'
    """

    tensor: str | re.Pattern[str]
    name: str
    back: tuple[re.Pattern[str], str] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.tensor, str):
            check_alike(self, (self.tensor,), (self.name,), apart=0)
        if self.back is not None:
            object.__setattr__(self, "back", (re.compile(self.back[0]), self.back[1]))

    def __repr__(self) -> str:
        back = "" if self.back is None else f", back={self.back!r}"
        return f"Rename({self.tensor!r}, {self.name!r}{back})"

    def name_for(self, name: str) -> str:
        """Returns the new ``/``-joined name of a tensor, or ``""`` if the rule does not fit it."""
        if isinstance(self.tensor, str):
            return _renamed(self.tensor, self.name, name)
        return _substituted(self.tensor, self.name, name)

    def tensor_for(self, name: str) -> str:
        """Returns the old ``/``-joined name for a new one, or ``""`` if the rule does not fit it.

        Raises:
          FillError: the rule has a regular expression, and no ``back``.
        """
        if isinstance(self.tensor, str):
            return _renamed(self.name, self.tensor, name)
        if self.back is None:
            raise errors.FillError(
                f"{self}: wanted a rule that can be read backwards, got a regular expression. Pass "
                "what undoes it as back=(re.compile(...), ...)."
            )
        return _substituted(*self.back, name)


@dataclass(frozen=True, slots=True, repr=False)
class Ignore:
    """Keeps tensors from counting as unexpected: ``Ignore("**.masked_bias")``.

    Attributes:
      tensor: the pattern of their names after any ``Rename``; wildcards as in ``Rule``.

    Raises:
      FillError: the pattern is empty.

    Example:
      >>> Ignore("**.position_ids").fits("text_model/embeddings/position_ids")
      True
    """

    tensor: str

    def __post_init__(self) -> None:
        if not self.tensor:
            raise errors.FillError("Ignore: wanted a pattern such as '**.position_ids', got ''.")

    def __repr__(self) -> str:
        return f"Ignore({self.tensor!r})"

    def fits(self, name: str) -> bool:
        """Tells whether the pattern fits a ``/``-joined name."""
        return pattern(self.tensor).match(name) is not None


def strip_prefix(prefix: str) -> Rename:
    """Returns a rule that drops leading keys from the names of tensors.

    Raises:
      FillError: the prefix is empty.

    Example:
      >>> strip_prefix("model.")
      Rename('model.**', '**')
    """
    keys = prefix.strip("./")
    if not keys:
        raise errors.FillError(
            f"strip_prefix: wanted leading keys of names, such as 'model.', got {prefix!r}."
        )
    return Rename(f"{escape(keys)}.**", "**")


def _renamed(old: str, new: str, name: str) -> str:
    found = pattern(old).match(name)
    return "" if found is None else pattern(new).write(found)


def _substituted(regex: re.Pattern[str], template: str, name: str) -> str:
    new, count = regex.subn(template, name.replace("/", "."))
    return slashed(new) if count else ""
