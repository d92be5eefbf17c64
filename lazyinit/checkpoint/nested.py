"""Names the leaves of the nested containers that a file holds."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lazyinit import errors
from lazyinit.checkpoint.headers import DEPTH_LIMIT, NODE_LIMIT, is_text


def leaves(path: str, tree: Any) -> Iterator[tuple[str, Any]]:  # Any: whatever the file holds.
    """Yields ``(name, leaf)`` for what is no mapping, list or tuple, in the order of the file.

    A name is the keys above the leaf, joined by ``/``, as JAX would print its path.

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
        nodes += 1
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
