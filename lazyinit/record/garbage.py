"""Pauses Python's collector of cyclic garbage while a model is recorded."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Pauses the collector, and collects the young generations once before and once after.

    A recording makes many objects that all stay, and the collector would walk over them again and
    again, which is a fifth of the time that 32 layers take. The collection at the end moves them to
    the oldest generation. That costs less than the walks over them during ``materialize``.

    Objects whose reference count falls to zero are freed as ever. If two threads record, the first
    one that is done lets the collector run again.
    """
    if not gc.isenabled():
        yield
        return
    gc.collect(1)  # Young garbage, which may hold large arrays, does not have to wait.
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect(1)
