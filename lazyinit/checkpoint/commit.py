"""New files in place of old ones: at every instant a reader finds the old or the new, whole.

New files are written beside the old ones, under names that no reader looks for, and reach the disk
before one step makes them count. For one file that step is ``os.replace``. For a folder it
depends on what readers look for first (``model.safetensors``, then the index):

    to one file      os.replace model.safetensors; it hides an old index
    to shards        os.replace the index; if model.safetensors was there, which hides the index,
                     its removal is the step

New shards never take a name that is in use. Before the first of them is made, a journal in the
folder lists all that may be left over; whoever saves next removes what of it no reader sees.
"""

import contextlib
import glob
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lazyinit import errors

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PREFIX = ".lazyinit-"  # Of files that are not finished.
_JOURNAL = f"{_PREFIX}save.json"


@contextlib.contextmanager
def replacing_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a new file that takes the place of ``path`` when the block ends without an error.

    Raises:
      WriteError: the file cannot be written; the old one is left as it was.
    """
    with _os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f"{_PREFIX}????????-{glob.escape(path.name)}"):
            _remove_if_abandoned(left)
        temporary = path.with_name(f"{_PREFIX}{secrets.token_hex(4)}-{path.name}")
        try:
            with open(temporary, "xb") as stream:
                _lock(stream.fileno())
                yield stream
                _to_disk(stream)
            os.replace(temporary, path)
            _folder_to_disk(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Staged:
    """A checkpoint on its way into a folder.

    Attributes:
      folder: where.
      names: what its files will be called.
      token: part of the names of unfinished files.
    """

    folder: Path
    names: tuple[str, ...]
    token: str

    @property
    def index(self) -> str:
        """What the index will be called."""
        return INDEX

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """Opens one of the files, or the index, to be written; it is on disk when this ends."""
        with open(self.folder / self.staged(name), "xb") as stream:
            yield stream
            _to_disk(stream)

    def staged(self, name: str) -> str:
        """Returns what a file is called before it counts."""
        return f"{_PREFIX}{self.token}-{name}" if name in (SINGLE, INDEX) else name


@contextlib.contextmanager
def replacing_checkpoint(folder: Path, count: int) -> Iterator[Staged]:
    """Puts a new checkpoint into a folder when the block ends without an error.

    Within the block, every one of ``names`` is to be created; if there are several, the index too.
    Files that belong to no checkpoint stay.

    Args:
      folder: is made if it is not there.
      count: how many files.

    Raises:
      SaveError: another process is saving there.
      WriteError: a file cannot be written; the old one is left as it was.
    """
    with _os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _journal(folder) as journal:
            _remove(folder, _read_journal(journal))
            token = secrets.token_hex(4)
            staged = Staged(folder, _names(folder, count, token), token)
            old = _old_files(folder)
            new = [*map(staged.staged, (SINGLE, INDEX)), *staged.names]
            try:
                _write_journal(journal, [*old, *new, SINGLE, INDEX])
                _folder_to_disk(folder)
                yield staged
                _folder_to_disk(folder)
                _commit(staged)
                _folder_to_disk(folder)
            except BaseException:
                is_new = not set(staged.names).isdisjoint(_shards(folder))
                _remove(folder, [*new, *[INDEX] * is_new])
                raise
            else:
                _remove(folder, old)
            finally:
                (folder / _JOURNAL).unlink()
                _folder_to_disk(folder)


def _commit(staged: Staged) -> None:
    name = SINGLE if staged.names == (SINGLE,) else INDEX
    os.replace(staged.folder / staged.staged(name), staged.folder / name)
    if name == INDEX:
        _folder_to_disk(staged.folder)  # The index must be there when the old file is not.
        (staged.folder / SINGLE).unlink(missing_ok=True)


def _names(folder: Path, count: int, token: str) -> tuple[str, ...]:
    if count == 1:
        return (SINGLE,)
    names = [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    if any(os.path.lexists(folder / name) for name in names):
        names = [name.replace(".safetensors", f"-{token}.safetensors") for name in names]
    return tuple(names)


def _seen(folder: Path) -> set[str]:
    """Returns the files that a reader of the folder sees, in the order in which it looks."""
    if (folder / SINGLE).exists():
        return {SINGLE}
    return {INDEX, *_shards(folder)} if (folder / INDEX).exists() else set()


def _old_files(folder: Path) -> list[str]:
    there = [name for name in (SINGLE, INDEX) if os.path.lexists(folder / name)]
    return [*there, *_shards(folder)]


def _shards(folder: Path) -> list[str]:
    try:
        index = json.loads((folder / INDEX).read_bytes())
        return [name for name in dict.fromkeys(index["weight_map"].values()) if _is_plain(name)]
    # Whatever is wrong with an index, it is no reason not to write a better one.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def _is_plain(name: object) -> bool:
    """Tells whether a name can be that of a file of a checkpoint, in its folder."""
    return (
        isinstance(name, str)
        and os.path.basename(name) == name
        and (name.endswith(".safetensors") or name == INDEX or name.startswith(_PREFIX))
        and name != _JOURNAL
    )


def _remove(folder: Path, names: Iterable[str]) -> None:
    """Removes those files that no reader sees."""
    seen = _seen(folder)
    for name in names:
        if name not in seen:
            (folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _journal(folder: Path) -> Iterator[BinaryIO]:
    path = folder / _JOURNAL
    while True:
        stream = open(path, "a+b", buffering=0)  # noqa: SIM115 (closed below, or tried again)
        with stream:
            if not _lock(stream.fileno()):
                raise errors.SaveError(
                    f"{folder}: another process is saving there ({_JOURNAL} is locked). Wait for "
                    "it, or save elsewhere."
                )
            # Whoever held the lock before may have removed the file.
            if path.exists() and os.path.samestat(os.stat(path), os.fstat(stream.fileno())):
                yield stream
                return


def _read_journal(journal: BinaryIO) -> list[str]:
    journal.seek(0)
    try:
        names = json.loads(journal.read())
        return [name for name in names if _is_plain(name)]
    # Empty, or not finished: then nothing it was to list had been made yet.
    except (ValueError, TypeError, RecursionError):
        return []


def _write_journal(journal: BinaryIO, names: Sequence[str]) -> None:
    journal.truncate(0)
    journal.write(json.dumps(sorted(set(names))).encode())
    os.fsync(journal.fileno())


def _remove_if_abandoned(path: Path) -> None:
    with contextlib.suppress(OSError), open(path, "rb") as stream:
        if _lock(stream.fileno()):
            path.unlink()


def _lock(file: int) -> bool:
    """Locks an open file for this process, and tells whether it could; a killed one lets go."""
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


def _to_disk(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _folder_to_disk(folder: Path) -> None:
    with contextlib.suppress(OSError):  # Not every system can open a folder.
        file = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


@contextlib.contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, errors.LazyinitError):
            raise
        raise errors.WriteError(
            f"{path}: it could not be written: {error.strerror or error}. What was there before "
            "still is."
        ) from error
