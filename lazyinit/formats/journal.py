"""The journal of a save: it lists what may be left over in a folder if the process is killed.

It is a file that its process locks, with JSON on each line. The first line lists files that count
once a reader sees them. The second, if there is one, lists files beside them, which count once the
checkpoint does. A line is on disk before the first of the files that it lists is made.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from lazyinit import errors

PREFIX = ".lazyinit-"  # The start of the names of unfinished files.
JOURNAL = f"{PREFIX}save.json"


@dataclass(frozen=True, slots=True)
class Companions:
    """Files that come with a checkpoint and are no part of it.

    Attributes:
      names: the names of the files of the checkpoint.
      step: the name that its one file, or its index, has until the checkpoint counts.
      files: for each path below the folder, the file's bytes and its time in nanoseconds.
      folders: the folders that were made for them, from the outermost on.
    """

    names: Sequence[str]
    step: str
    files: Mapping[str, Sequence[int]]
    folders: Sequence[str]

    def remove(self, folder: Path) -> None:
        """Removes the files that nobody has changed since, and folders that are empty then."""
        for name, facts in self.files.items():
            path = folder / name
            if _is_inside(folder, name) and path.is_file() and [*facts_of(path)] == [*facts]:
                path.unlink()
        for name in reversed(self.folders):
            if _is_inside(folder, name):
                with contextlib.suppress(OSError):  # Somebody has put something there.
                    (folder / name).rmdir()


def facts_of(path: Path) -> tuple[int, int]:
    """Returns the facts by which a file is recognized: its bytes, its time in nanoseconds."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


@contextlib.contextmanager
def open_journal(folder: Path) -> Iterator[BinaryIO]:
    """Opens the journal of a folder, and holds its lock.

    Raises:
      SaveError: another process is saving there.
    """
    path = folder / JOURNAL
    while True:
        stream = open(path, "a+b", buffering=0)  # noqa: SIM115 (closed below, or tried again)
        with stream:
            if not lock(stream.fileno()):
                raise errors.SaveError(
                    f"{folder}: another process is saving there ({JOURNAL} is locked). Wait for "
                    "it, or save elsewhere."
                )
            # Whoever held the lock before may have removed the file.
            if path.exists() and os.path.samestat(os.stat(path), os.fstat(stream.fileno())):
                yield stream
                return


def read_journal(journal: BinaryIO) -> tuple[list[str], list[Companions]]:
    """Returns the names of the first line, and what the second says, if there is one."""
    journal.seek(0)
    first, _, second = journal.read().partition(b"\n")
    names: list[str] = []
    beside: list[Companions] = []
    # A line is empty or unfinished only if none of its files had been made yet.
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        names = [name for name in json.loads(first) if isinstance(name, str)]
    with contextlib.suppress(ValueError, TypeError, AttributeError, RecursionError):
        said = Companions(**json.loads(second))
        texts = [*said.names, said.step, *said.files, *said.folders]
        if all(isinstance(text, str) for text in texts):
            beside = [Companions(said.names, said.step, {**said.files}, said.folders)]
    return names, beside


def begin_journal(journal: BinaryIO, names: Sequence[str]) -> None:
    """Writes the first line, in place of all that the journal held."""
    journal.truncate(0)
    _write(journal, sorted(set(names)))


def note_beside(journal: BinaryIO, beside: Companions) -> None:
    """Writes the second line, which lists the files that come along."""
    _write(journal, asdict(beside))


def _write(journal: BinaryIO, said: object) -> None:
    journal.write(json.dumps(said).encode() + b"\n")
    os.fsync(journal.fileno())


def _is_inside(folder: Path, name: str) -> bool:
    """Tells whether a path stays inside a folder, as anybody may have written the journal."""
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/") or any(c in name for c in "\\\0"):
        return False
    return (folder / name).parent.resolve().is_relative_to(folder.resolve())


def lock(file: int) -> bool:
    """Tries to lock an open file for as long as this process lives, and tells if it could."""
    try:
        import fcntl
    except ImportError:  # Windows, where an open file cannot be removed anyway.
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # A file system without locks.
        return True
    return True
