"""Says which versions of JAX this package is made for, as ``pyproject.toml`` states it."""

import importlib.metadata
import re

import jax

from lazyinit import errors

DISTRIBUTION = "lazyinit-jax"


def supported() -> tuple[str, str] | None:
    """Returns the oldest version of JAX and the first that is too new, ``None`` if unknown.

    The range is unknown if the package runs from a folder that was never installed.
    """
    try:
        required = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    line = next((r for r in required if re.match(r"jax\b(?!-)", r)), "")
    bounds = dict(re.findall(r"(>=|<)\s*([0-9.]+)", line))
    return (bounds[">="], bounds["<"]) if len(bounds) == 2 else None


def warn_outside() -> None:
    """Warns if JAX is older or newer than what the package is made for."""
    bounds = supported()
    if bounds is None or _numbers(bounds[0]) <= _numbers(jax.__version__) < _numbers(bounds[1]):
        return
    errors.warn(
        f"lazyinit: wanted jax >= {bounds[0]}, < {bounds[1]}, got jax {jax.__version__}. A "
        "self-check decides what is made in a fast way; the rest is made as eager init makes it."
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version.partition(".dev")[0]))
