"""Looks up the rules and dtypes that options of the command line name."""

import importlib
from typing import Any

import numpy as np

from lazyinit import errors, maps
from lazyinit.rules.rule import AnyRule
from lazyinit.rules.torch import TORCH


def rules_of(name: str, option: str = "--rules") -> tuple[AnyRule, ...]:
    """Returns the rules of a name: ``torch``, a map, or ``module:NAME``; ``()`` for ``""``.

    Args:
      name: the value of the option.
      option: the option, for messages.

    Raises:
      FillError: there are no such rules.
    """
    if not name:
        return ()
    if name == "torch":
        return TORCH
    module, colon, attribute = name.partition(":")
    if not colon:
        known = {known.lower(): known for known in maps.__all__ if known.isupper()}
        if name.lower() in known:
            return getattr(maps, known[name.lower()])
        raise errors.FillError(
            f"{option} {name}: wanted one of torch, {', '.join(known)}, or module:NAME of rules"
            f"{errors.nearest(name, list(known)) or '.'}"
        )
    try:
        return tuple(getattr(importlib.import_module(module), attribute))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise errors.FillError(
            f"{option} {name}: wanted rules called {attribute!r} in the module {module!r}: {error}."
        ) from error


def dtype_of(name: str, option: str = "--dtype") -> Any:
    """Returns the dtype of a name, also one of ``ml_dtypes``; ``None`` for ``""``.

    Args:
      name: the value of the option.
      option: the option, for messages.

    Raises:
      SaveError: no dtype has this name.
    """
    if not name:
        return None
    import ml_dtypes

    try:
        return np.dtype(getattr(ml_dtypes, name, name))
    except TypeError as error:
        raise errors.SaveError(
            f"{option} {name}: wanted a dtype such as bfloat16, float16 or float32."
        ) from error
