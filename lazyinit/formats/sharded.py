"""Opens checkpoints of several files: an index in the same folder says which tensor is in which."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import PurePosixPath

from lazyinit import errors
from lazyinit.formats import ties
from lazyinit.tensors.base import Checkpoint
from lazyinit.tensors.headers import FETCH_AGAIN, HEADER_LIMIT, is_text_map, parse_object


def open_index(
    path: str,
    text: bytes,
    *,
    origin: str,
    siblings: Collection[str],
    open_shard: Callable[[str], Checkpoint],
) -> Checkpoint:
    """Opens the shards that a Hugging Face index (``*.index.json``) names.

    A shard may be a symbolic link, also to outside the folder: Hugging Face's cache is made of
    them. What the index itself says is not trusted: a name that leads out of the folder is refused.

    Args:
      path: the path or the address of the index; messages start with it.
      text: the content of the index.
      origin: the name of the checkpoint, which is the folder or the index.
      siblings: the names of files beside the index, to suggest one if a shard is missing.
      open_shard: opens the file of a name beside the index, or raises ``FileNotFoundError``.

    Raises:
      CheckpointError: the index or a shard is broken, unsafe or missing; the message starts with
        the file.
    """
    weight_map, metadata = _read_index(path, text)
    shards: dict[str, Checkpoint] = {}
    names = dict.fromkeys(weight_map.values())
    for name in names:
        _check_shard(path, name)
    for name in names:
        try:
            shards[name] = open_shard(name)
        except FileNotFoundError as error:
            raise errors.CheckpointError(
                f"{path}: the shard {name!r} is missing from the folder"
                f"{errors.nearest(name, siblings) or '.'} Fetch it, or fetch the checkpoint again."
            ) from error
    for tensor, name in weight_map.items():
        if tensor not in shards[name]:
            raise errors.CheckpointError(
                f"{path}: tensor {tensor!r}: wanted it in {name!r}, which does not hold it"
                f"{errors.nearest(tensor, shards[name]) or '.'} {FETCH_AGAIN}"
            )
    tensors = {tensor: shards[name][tensor] for tensor, name in weight_map.items()}
    tied = ties.read_note(metadata, tensors)
    return Checkpoint(origin, tensors | tied, _undisputed([s.metadata for s in shards.values()]))


def _undisputed(metadata: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Returns the entries of the metadata of several files, without those on which files disagree.

    An entry that only some of the files have is kept.
    """
    entries = dict.fromkeys(entry for one in metadata for entry in one.items())
    times = Counter(key for key, _ in entries)
    return {key: text for key, text in entries if times[key] == 1}


def _read_index(path: str, text: bytes) -> tuple[Mapping[str, str], object]:
    """Returns the shard's name for each tensor, and the metadata, unchecked."""
    if len(text) > HEADER_LIMIT:
        raise errors.CheckpointError(
            f"{path}: wanted an index of at most {HEADER_LIMIT} bytes, got a larger file. "
            f"{FETCH_AGAIN}"
        )
    index = parse_object(path, text)
    weight_map = index.get("weight_map")
    if weight_map is None or not is_text_map(weight_map):
        raise errors.CheckpointError(
            f"{path}: wanted 'weight_map' to map tensor names to file names, got "
            f"{weight_map!r:.80}. {FETCH_AGAIN}"
        )
    return weight_map, index.get("metadata")


def _check_shard(path: str, shard: str) -> None:
    parts = PurePosixPath(shard).parts
    # "//host/file" is absolute too, of parts that start with "//".
    if not parts or ".." in parts or shard.startswith("/") or any(c in shard for c in "\\:\0"):
        raise errors.CheckpointError(
            f"{path}: wanted shards inside the folder of the index, got {shard!r}, which is unsafe "
            "to follow. Put the shard beside the index and name it plainly."
        )
    if shard.endswith(".index.json"):
        raise errors.CheckpointError(
            f"{path}: wanted shards that hold tensors, got the index {shard!r}. {FETCH_AGAIN}"
        )
