"""Hosts of their own for processes of one machine: network namespaces of Linux behind one switch."""

import contextlib
import os
import subprocess
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Network:
    """Hosts that reach each other through one switch, and nothing else.

    Attributes:
      hosts: their names, which are those of their namespaces, too.
      address: of the first.
      within: for each, the command that another one is run by in it.
    """

    hosts: list[str]
    address: str
    within: list[list[str]]

    def unplug(self, n):
        """Takes the cable out of a host."""
        _ip("-n", self.hosts[n], "link", "set", "eth0", "down")


@contextlib.contextmanager
def network_of(count):
    """Sets up hosts; skips the test where that is not permitted, as in most containers."""
    label = uuid.uuid4().hex[:8]
    switch, hosts = f"lz{label}s", [f"lz{label}{n}" for n in range(count)]
    with contextlib.ExitStack() as ended, tempfile.TemporaryDirectory() as folder:
        try:
            for name in (switch, *hosts):
                _ip("netns", "add", name)
                ended.callback(_ip, "netns", "del", name)
                _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
            _ip("-n", switch, "link", "set", "bridge", "up")
            for n, name in enumerate(hosts):
                cable = ("link", "add", f"port{n}", "netns", switch, "type", "veth")
                _ip(*cable, "peer", "name", "eth0", "netns", name)
                _ip("-n", switch, "link", "set", f"port{n}", "master", "bridge", "up")
                _ip("-n", name, "addr", "add", f"10.77.0.{n + 1}/24", "dev", "eth0")
                _ip("-n", name, "link", "set", "eth0", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or error
            pytest.skip(f"network namespaces are not permitted here: {said}")
        # Gloo listens on the address of the host's name.
        known = Path(folder, "hosts")
        lines = [f"10.77.0.{n + 1} {name}" for n, name in enumerate(hosts)]
        known.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        start = 'mount --bind "$1" /etc/hosts && hostname "$2" && shift 2 && exec "$@"'
        shell = ["unshare", "--uts", "--mount", "sh", "-c", start, "sh", os.fspath(known)]
        into = [["ip", "netns", "exec", name, *shell, name] for name in hosts]
        yield Network(hosts, "10.77.0.1", into)


def _ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
