"""Checkpoints in several files, which an index in the same folder names."""

import os
from pathlib import Path, PurePosixPath

from lazyinit import errors
from lazyinit.checkpoint import safetensors
from lazyinit.checkpoint.protocol import Checkpoint


def open_index(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens the shards that a Hugging Face index (``*.safetensors.index.json``) names.

    A shard may be a symbolic link, also to outside the folder: Hugging Face's cache is made of
    them. What the index itself says is not trusted: a name that climbs out is refused.

    Raises:
      CheckpointError: the index or a shard is broken, unsafe or missing; the file comes first.
    """
    folder = Path(path).parent
    weight_map = _read_weight_map(path)
    for shard in dict.fromkeys(weight_map.values()):
        _check_shard(path, folder, shard)
    shards = {
        shard: safetensors.open_file(folder / shard) for shard in dict.fromkeys(weight_map.values())
    }
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            raise errors.CheckpointError(
                f"{path}: tensor {name!r}: wanted it in {shard!r}, which does not hold it"
                f"{errors.nearest(name, shards[shard])}. {safetensors.FETCH_AGAIN}"
            )
    origin = str(folder) if Path(path).name == "model.safetensors.index.json" else os.fspath(path)
    return Checkpoint(origin, {name: shards[shard][name] for name, shard in weight_map.items()})


def _read_weight_map(path: str | os.PathLike[str]) -> dict[str, str]:
    with open(path, "rb") as stream:
        text = stream.read(safetensors.HEADER_LIMIT + 1)
    if len(text) > safetensors.HEADER_LIMIT:
        raise errors.CheckpointError(
            f"{path}: wanted an index of at most {safetensors.HEADER_LIMIT} bytes, got a larger "
            f"file. {safetensors.FETCH_AGAIN}"
        )
    weight_map = safetensors.parse_object(os.fspath(path), text).get("weight_map")
    if weight_map is None or not safetensors.is_text_map(weight_map):
        raise errors.CheckpointError(
            f"{path}: wanted 'weight_map' to map tensor names to file names, got "
            f"{weight_map!r:.80}. {safetensors.FETCH_AGAIN}"
        )
    return weight_map


def _check_shard(path: str | os.PathLike[str], folder: Path, shard: str) -> None:
    parts = PurePosixPath(shard).parts
    if not parts or ".." in parts or parts[0] == "/" or any(c in shard for c in "\\:\0"):
        raise errors.CheckpointError(
            f"{path}: wanted shards inside the folder of the index, got {shard!r}, which is unsafe "
            "to follow. Put the shard beside the index and name it plainly."
        )
    if not (folder / shard).is_file():
        siblings = [file.name for file in folder.iterdir() if file.name.endswith(".safetensors")]
        raise errors.CheckpointError(
            f"{path}: the shard {shard!r} is missing from the folder"
            f"{errors.nearest(shard, siblings)}. Fetch it, or fetch the checkpoint again."
        )
