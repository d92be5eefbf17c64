"""The key-value store of JAX's distributed runtime, which all processes of a program share.

The store lives on the host of the first process and needs no device. So processes with meshes of
their own reach each other, and none waits for another's devices.
"""

from dataclasses import dataclass
from typing import Any

import jax
from jax._src import distributed

_METHODS = (
    "blocking_key_value_get_bytes",
    "key_value_delete",
    "key_value_dir_get_bytes",
    "key_value_set_bytes",
)


@dataclass(frozen=True, slots=True)
class Store:
    """Bytes by key, for all processes to see; a key is a path with ``/``, as that of a file."""

    _client: Any  # Of a type that JAX does not export.

    def put(self, key: str, value: bytes) -> None:
        """Writes the value of a key, in place of the one that it may have."""
        self._client.key_value_set_bytes(key, value, allow_overwrite=True)

    def below(self, folder: str) -> dict[str, bytes]:
        """Returns the values whose keys start with ``folder/``, by the last part of the key."""
        found = self._client.key_value_dir_get_bytes(folder + "/")
        return {key.rpartition("/")[2]: value for key, value in found}

    def wait_for(self, key: str, seconds: float) -> None:
        """Waits until a key has a value, but no longer than the given seconds."""
        try:
            self._client.blocking_key_value_get_bytes(key, int(1000 * seconds))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise

    def forget(self, key: str) -> None:
        """Deletes a key and its value."""
        self._client.key_value_delete(key)


def store() -> Store | None:
    """Returns the store of all processes; ``None`` for a single process, or if JAX has none.

    Drop when ``jax.distributed`` has a key-value store of its own.
    """
    client = getattr(distributed.global_state, "client", None)
    return Store(client) if all(hasattr(client, name) for name in _METHODS) else None
