"""Numbers of bytes as people write them: ``"5GB"``, ``"16 GiB"``."""

import re

from lazyinit import errors

_UNITS = {"": 1, "B": 1} | {
    f"{unit}{suffix}": base**power
    for power, unit in enumerate("KMGTP", 1)
    for suffix, base in (("B", 1000), ("IB", 1024))
}


def bytes_of(size: int | str, argument: str, error: type[errors.LazyinitError]) -> int:
    """Returns a size in bytes: ``"5GB"`` is five billion, ``"5GiB"`` five times 2**30.

    Args:
      size: a number of bytes, or text.
      argument: the name of the argument with this value, for messages.
      error: the class of the error to raise if it is no size.

    Example:
      >>> [bytes_of(size, "hbm", errors.PlanError) for size in ("5GB", "1.5 MiB", 7)]
      [5000000000, 1572864, 7]
    """
    text = str(size).upper().replace(" ", "")
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([A-Z]*)", text)
    unit = _UNITS.get(found[2]) if found else None
    count = 0 if found is None or unit is None else int(float(found[1]) * unit)
    if count < 1 or isinstance(size, bool):
        raise error(
            f"{argument}: wanted a number of bytes, or text such as '5GB' or '512MiB', got "
            f"{size!r}."
        )
    return count
