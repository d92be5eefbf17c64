"""What the processes of one program share: the key-value store of JAX's distributed runtime.

It lies on the host of the first process and needs no device, so that processes with meshes of
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
    """Values by key that every process sees; keys have ``/`` in them, as paths of files have."""

    _client: Any  # Of a type that JAX does not export.

    def put(self, key: str, value: bytes) -> None:
        """Writes a value, over another if there is one."""
        self._client.key_value_set_bytes(key, value, allow_overwrite=True)

    def below(self, folder: str) -> dict[str, bytes]:
        """Returns the values whose keys start with ``folder/``, by what follows."""
        found = self._client.key_value_dir_get_bytes(folder + "/")
        return {key.rpartition("/")[2]: value for key, value in found}

    def wait_for(self, key: str, seconds: float) -> None:
        """Returns once there is a value for a key, or when the time is up."""
        try:
            self._client.blocking_key_value_get_bytes(key, int(1000 * seconds))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise

    def forget(self, key: str) -> None:
        """Deletes a value."""
        self._client.key_value_delete(key)


def store() -> Store | None:
    """Returns what the processes share; ``None`` where there is one process, or no such store.

    Drop when ``jax.distributed`` has a key-value store of its own.
    """
    client = getattr(distributed.global_state, "client", None)
    return Store(client) if all(hasattr(client, name) for name in _METHODS) else None
