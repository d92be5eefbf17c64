"""Python's collector of cyclic garbage, paused while many objects are made that all stay."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Pauses the collector, which would walk over all that was made so far again and again.

    Recording Llama-2-70B spent a third of its time so. What is counted by reference is freed as
    ever. What was made meanwhile is old afterwards: a full collection still finds what of it is
    garbage, and the many smaller ones do not walk over it. Of two threads that record, the first
    one that is done lets the collector run again.
    """
    was_enabled = gc.isenabled()
    if was_enabled:
        gc.collect(1)  # What is young now, large arrays perhaps, is not to wait as well.
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
            if not gc.get_freeze_count():  # What somebody froze is to stay so.
                gc.freeze()
                gc.unfreeze()  # Into the oldest generation.
