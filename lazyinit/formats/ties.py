"""Writes a tensor that has several names once, and finds it under each of them again.

A safetensors file cannot hold the same bytes under two names. The official library writes such a
tensor once, and leaves it to the model to tie what is missing. Here the names that were left out
are noted in the metadata of the file, or of the index, which other readers pass over.
"""

import json
from collections.abc import Mapping

from lazyinit.sources import Source

KEY = "lazyinit.tied"


def without_ties(tensors: Mapping[str, Source]) -> tuple[dict[str, Source], dict[str, str]]:
    """Returns each source under its first name, and a map from its other names to the first.

    Equal sources count as one: they are the same array, or the same bytes of a file.
    """
    first: dict[Source, str] = {}
    tied = {
        name: kept
        for name, source in tensors.items()
        if (kept := first.setdefault(source, name)) != name
    }
    return {name: x for name, x in tensors.items() if name not in tied}, tied


def note(tied: Mapping[str, str]) -> dict[str, str]:
    """Returns the metadata that says which names were left out; empty if none was."""
    return {KEY: json.dumps(tied, ensure_ascii=False)} if tied else {}


def read_note(metadata: object, tensors: Mapping[str, Source]) -> dict[str, Source]:
    """Returns tensors under the other names that a note in the metadata gives them.

    The metadata may be whatever a file holds: anything but such a note is ignored.
    """
    text = metadata.get(KEY) if isinstance(metadata, Mapping) else None
    try:
        tied = json.loads(text) if isinstance(text, str) else {}
    except (ValueError, RecursionError):
        return {}
    return {
        name: tensors[kept]
        for name, kept in (tied.items() if isinstance(tied, dict) else ())
        if isinstance(kept, str) and kept in tensors and name not in tensors
    }
