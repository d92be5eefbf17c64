"""Writes and reads sharding rules as JSON, which people can keep and edit.

``{"**/kernel": [null, "model"], "embed": [["data", "model"]]}``: each pattern is a glob. Its spec
has an entry for each dimension: an axis of the mesh, a list of axes, or ``null``.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from jax.sharding import PartitionSpec

from lazyinit import errors

SpecRules: TypeAlias = tuple[tuple[str, PartitionSpec], ...]


def written(rules: Sequence[tuple[str, PartitionSpec]]) -> str:
    """Returns rules as text, one on each line.

    Example:
      >>> print(written([("**/kernel", PartitionSpec(None, "model"))]))
      {
       "**/kernel": [null, "model"]
      }
    """
    lines = [f" {json.dumps(pattern)}: {json.dumps(list(spec))}" for pattern, spec in rules]
    return "{\n" + ",\n".join(lines) + "\n}"


def read(path: str | Path) -> SpecRules:
    """Returns the rules in a file.

    Raises:
      ShardingError: the file cannot be read, or it holds no such rules.
    """
    try:
        pairs = json.loads(Path(path).read_text(), object_pairs_hook=tuple)
    except (OSError, ValueError) as error:
        raise errors.ShardingError(
            f"{path}: wanted a file with rules as JSON, got an error: {error}"
        ) from error
    if not isinstance(pairs, tuple):
        raise errors.ShardingError(
            f"{path}: wanted a JSON object from patterns to specs, such as "
            f'{{"**/kernel": [null, "model"]}}, got {pairs!r:.80}.'
        )
    return tuple((pattern, _spec(path, pattern, spec)) for pattern, spec in pairs)


def _spec(path: str | Path, pattern: str, spec: Any) -> PartitionSpec:
    if not isinstance(spec, list) or not all(map(_is_axes, spec)):
        raise errors.ShardingError(
            f"{path}: {pattern}: wanted a list with an axis, a list of axes or null for each "
            f'dimension, such as [null, "model"], got {json.dumps(spec):.80}.'
        )
    return PartitionSpec(*(tuple(axes) if isinstance(axes, list) else axes for axes in spec))


def _is_axes(axes: Any) -> bool:
    names = axes if isinstance(axes, list) else [axes or ""]
    return axes is None or all(isinstance(name, str) for name in names)
