"""The checks that every format makes of its headers: limits, JSON, dtypes, shapes, nested names.

A file may say anything about itself. What it says is checked here against limits that no honest
file reaches, so that a broken or hostile file costs neither memory nor time.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from lazyinit import errors

HEADER_LIMIT = 100_000_000  # Bytes of one header or index; the safetensors format's own limit.
NODE_LIMIT = 1_000_000  # The most leaves and containers of one checkpoint.
DEPTH_LIMIT = 100  # The most containers within one another.
MAX_NDIM = 64  # NumPy's limit.
MAX_BYTES = 2**63 - 1
FETCH_AGAIN = "It is damaged or incomplete: fetch it again."

DTYPES: Mapping[str, np.dtype] = {
    dtype.name: dtype
    for dtype in (
        *map(np.dtype, ("bool", "int8", "int16", "int32", "int64")),
        *map(np.dtype, ("uint8", "uint16", "uint32", "uint64")),
        *map(np.dtype, ("float16", "float32", "float64", "complex64", "complex128")),
        *(
            np.dtype(getattr(ml_dtypes, name))
            for name in (
                "bfloat16",
                "float8_e4m3fn",
                "float8_e5m2",
                "float8_e4m3fnuz",
                "float8_e5m2fnuz",
                "float8_e8m0fnu",
                "float8_e4m3",
                "float8_e3m4",
                "float8_e4m3b11fnuz",
                "int4",
                "uint4",
                "float4_e2m1fn",
            )
        ),
    )
}
"""The dtypes that a tensor may have, by NumPy's names, which Flax, PyTorch and Orbax share."""


def damaged(path: str, tensor: str, wanted: str, got: object) -> errors.CheckpointError:
    """Returns the error for a tensor whose description in the file cannot be true."""
    return errors.CheckpointError(
        f"{path}: tensor {tensor!r}: wanted {wanted}, got {got!r:.80}. {FETCH_AGAIN}"
    )


def parse_object(path: str, text: bytes) -> dict[str, Any]:
    """Parses a JSON object, and refuses a name that stands twice in it.

    Raises:
      CheckpointError: the text is anything but such an object; the message starts with ``path``.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) < len(pairs):
            ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
            raise errors.CheckpointError(f"{path}: the name {twice!r} stands twice. {FETCH_AGAIN}")
        return members

    try:
        parsed = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except errors.CheckpointError:
        raise
    # ValueError: also wrong UTF-8 and numbers of thousands of digits.
    except (ValueError, RecursionError) as error:
        raise errors.CheckpointError(
            f"{path}: wanted JSON in UTF-8, got something else: {error!s:.200}. {FETCH_AGAIN}"
        ) from error
    if not isinstance(parsed, dict):
        raise errors.CheckpointError(
            f"{path}: wanted a JSON object, got {type(parsed).__name__}. {FETCH_AGAIN}"
        )
    return parsed


def is_text_map(value: object) -> bool:
    """Tells whether a JSON value is an object with nothing but strings in it."""
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def are_counts(value: object) -> bool:
    """Tells whether a parsed value is a list of non-negative integers."""
    return isinstance(value, list) and all(type(count) is int and count >= 0 for count in value)


def is_text(name: str) -> bool:
    """Tells whether a name can be written as UTF-8 (JSON can hold half a surrogate pair)."""
    return name.isascii() or name.encode("utf-8", "replace").decode() == name


def check_shape(path: str, tensor: str, shape: object, dtype: np.dtype) -> tuple[int, ...]:
    """Returns a parsed shape as a tuple, after checking it.

    Raises:
      CheckpointError: it is no list of counts, or NumPy could not hold such an array.
    """
    if not are_counts(shape) or len(shape) > MAX_NDIM:  # pyright: ignore[reportArgumentType]
        wanted = f"a shape of at most {MAX_NDIM} non-negative integers"
        raise damaged(path, tensor, wanted, shape)
    dims: tuple[int, ...] = tuple(shape)  # pyright: ignore[reportArgumentType]
    # NumPy multiplies the dimensions that are not zero even where there is nothing to hold.
    if math.prod(dim for dim in dims if dim) * dtype.itemsize > MAX_BYTES:
        raise damaged(path, tensor, "a shape whose bytes can be counted in 63 bits", shape)
    return dims


def named_leaves(
    path: str, tree: Any, plain: Callable[[Any], Any] = lambda node: node
) -> Iterator[tuple[str, Any]]:  # Any: whatever the file holds.
    """Yields ``(name, leaf)`` for all but mappings, lists and tuples, in the order of the file.

    A name is the keys above the leaf, joined by ``/``, as JAX would print its path.

    Args:
      path: the path of the file, for messages.
      tree: what the file holds.
      plain: returns the value that a node stands for, which is most often the node itself.

    Raises:
      CheckpointError: containers too deep or too many, or two leaves of one name.
    """
    seen: set[str] = set()
    nodes = 0
    above: list[Iterator[tuple[str, Any]]] = [iter([("", tree)])]
    while above:
        try:
            name, node = next(above[-1])
        except StopIteration:
            above.pop()
            continue
        nodes, node = nodes + 1, plain(node)
        if nodes > NODE_LIMIT:
            raise errors.CheckpointError(
                f"{path}: wanted at most {NODE_LIMIT} tensors and containers, got more. "
                "It is damaged, or no checkpoint."
            )
        if isinstance(node, Mapping | list | tuple):
            if len(above) > DEPTH_LIMIT:
                raise too_deep(path)
            above.append(_children(path, name, node))
            continue
        if name in seen:
            raise errors.CheckpointError(
                f"{path}: two tensors are called {name!r}. Rename one where they were saved."
            )
        seen.add(name)
        yield name, node


def too_deep(path: str) -> errors.CheckpointError:
    """Returns the error for containers that lie too deep within one another."""
    return errors.CheckpointError(
        f"{path}: wanted containers at most {DEPTH_LIMIT} deep, got more. "
        "It is damaged, or no checkpoint."
    )


def _children(
    path: str, above: str, node: Mapping[Any, Any] | Sequence[Any]
) -> Iterator[tuple[str, Any]]:
    for key, child in node.items() if isinstance(node, Mapping) else enumerate(node):
        if not isinstance(key, str | int) or not is_text(str(key)):
            raise errors.CheckpointError(
                f"{path}: wanted keys that are text or whole numbers, got {key!r:.80}"
                f"{f' below {above!r}' if above else ''}. Save it as a dict of names."
            )
        yield f"{above}/{key}" if above else str(key), child
