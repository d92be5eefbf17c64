"""Python's collector of cyclic garbage, paused while a model is recorded."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Pauses the collector, and collects what is young once before and once after.

    A recording makes many objects that all stay, and the collector would walk over them again and
    again: for a fifth of the time of 32 layers. The collection at the end costs less than the
    walks by which the objects would age otherwise, while they are materialized.

    What is counted by reference is freed as ever. Of two threads that record, the first one that
    is done lets the collector run again.
    """
    if not gc.isenabled():
        yield
        return
    gc.collect(1)  # Young garbage, of large arrays perhaps, does not have to wait.
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect(1)
