"""Replaces files so that a reader finds either the old or the new ones, whole, at any instant.

New files are written beside the old ones, under names that no reader looks for, and reach the disk
before one step makes them count. For one file that step is ``os.replace``. For a folder it
depends on what readers look for first (``model.safetensors``, then the index):

    to one file      os.replace model.safetensors; it hides an old index
    to shards        os.replace the index; if model.safetensors was there, which hides the index,
                     its removal is the step

New shards never take a name that is in use. Before the first of them is made, a journal in the
folder lists all files that may be left over; the next save removes those that no reader sees.

Files that come along (a configuration, a tokenizer) get their names just before that step; nothing
may have these names before. If the step does not happen, they are removed, by the next save at the
latest.
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
from lazyinit.formats.journal import (
    JOURNAL,
    PREFIX,
    Companions,
    begin_journal,
    facts_of,
    lock,
    note_beside,
    open_journal,
    read_journal,
)

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@contextlib.contextmanager
def replacing_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a new file that takes the place of ``path`` when the block ends without an error.

    Raises:
      WriteError: the file cannot be written; the old one is left as it was.
    """
    with _os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f"{PREFIX}????????-{glob.escape(path.name)}"):
            _remove_if_abandoned(left)
        temporary = path.with_name(f"{PREFIX}{secrets.token_hex(4)}-{path.name}")
        try:
            with open(temporary, "xb") as stream:
                lock(stream.fileno())
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
      folder: the folder.
      names: the final names of its files.
      beside: the paths, below the folder, of files that come along.
      token: a part of the names of unfinished files.
    """

    folder: Path
    names: tuple[str, ...]
    beside: tuple[str, ...]
    token: str

    @property
    def index(self) -> str:
        """The final name of the index."""
        return INDEX

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """Opens any of the files for writing, by its final name; flushes it to disk at the end."""
        with open(self.folder / self.staged(name), "xb") as stream:
            yield stream
            _to_disk(stream)

    def staged(self, name: str) -> str:
        """Returns the name that a file has until the checkpoint counts."""
        if name in self.beside:
            return f"{PREFIX}{self.token}-{self.beside.index(name)}"
        return f"{PREFIX}{self.token}-{name}" if name in (SINGLE, INDEX) else name

    @property
    def last(self) -> str:
        """The name of the file that is renamed last: from then on readers see the checkpoint."""
        return SINGLE if self.names == (SINGLE,) else INDEX


@contextlib.contextmanager
def replacing_checkpoint(folder: Path, count: int, beside: Sequence[str] = ()) -> Iterator[Staged]:
    """Puts a new checkpoint into a folder when the block ends without an error.

    Within the block, the caller creates every file of ``names`` and ``beside``, and the index if
    there are several names. Files that belong to no checkpoint stay.

    Args:
      folder: the folder, which is made if it is not there.
      count: how many files the checkpoint has.
      beside: the paths, below the folder, of files that come along; nothing may be there yet.

    Raises:
      SaveError: another process is saving there.
      WriteError: a file cannot be written; the old one is left as it was.
    """
    with _os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with open_journal(folder) as journal:
            _clear(folder, journal)
            token = secrets.token_hex(4)
            staged = Staged(folder, _names(folder, count, token), tuple(beside), token)
            old = _old_files(folder)
            new = [*map(staged.staged, (SINGLE, INDEX, *beside)), *staged.names]
            try:
                begin_journal(journal, [*old, *new, SINGLE, INDEX])
                _folder_to_disk(folder)
                yield staged
                _folder_to_disk(folder)
                if beside:
                    _put_beside(staged, journal)
                _commit(staged)
                _folder_to_disk(folder)
            except BaseException:
                _remove_beside(folder, journal)
                is_new = not set(staged.names).isdisjoint(_shards(folder))
                _remove(folder, [*new, *[INDEX] * is_new])
                raise
            else:
                _remove(folder, old)
            finally:
                (folder / JOURNAL).unlink()
                _folder_to_disk(folder)


def _put_beside(staged: Staged, journal: BinaryIO) -> None:
    """Renames the files that come along to their final names."""
    folder = staged.folder
    above = {above for name in staged.beside for above in (folder / name).parents}
    made = sorted(path for path in above if path.is_relative_to(folder) and not path.exists())
    note = Companions(
        staged.names,
        staged.staged(staged.last),
        {name: facts_of(folder / staged.staged(name)) for name in staged.beside},
        [path.relative_to(folder).as_posix() for path in made],
    )
    note_beside(journal, note)
    for path in made:
        path.mkdir()
    for name in staged.beside:
        os.replace(folder / staged.staged(name), folder / name)
    for path in {(folder / name).parent for name in staged.beside}:
        _folder_to_disk(path)


def _commit(staged: Staged) -> None:
    os.replace(staged.folder / staged.staged(staged.last), staged.folder / staged.last)
    if staged.last == INDEX:
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
    """Returns the names of the checkpoint's files that a reader of the folder sees."""
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
    # A damaged index must not keep a new checkpoint from being saved.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def _is_plain(name: object) -> bool:
    """Tells whether a name can be that of a file of a checkpoint, in its folder."""
    return (
        isinstance(name, str)
        and os.path.basename(name) == name
        and (name.endswith(".safetensors") or name == INDEX or name.startswith(PREFIX))
        and name != JOURNAL
    )


def _clear(folder: Path, journal: BinaryIO) -> None:
    """Removes the files that a killed save has left over."""
    _remove_beside(folder, journal)
    _remove(folder, filter(_is_plain, read_journal(journal)[0]))


def _remove_beside(folder: Path, journal: BinaryIO) -> None:
    """Removes the files that came along with a checkpoint that was not completed."""
    for note in read_journal(journal)[1]:
        counts = {*note.names} <= _seen(folder) and not (folder / note.step).exists()
        if not counts:
            note.remove(folder)


def _remove(folder: Path, names: Iterable[str]) -> None:
    """Removes those of the named files that no reader sees."""
    seen = _seen(folder)
    for name in names:
        if name not in seen:
            (folder / name).unlink(missing_ok=True)


def _remove_if_abandoned(path: Path) -> None:
    with contextlib.suppress(OSError), open(path, "rb") as stream:
        if lock(stream.fileno()):
            path.unlink()


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
            "is unchanged."
        ) from error
