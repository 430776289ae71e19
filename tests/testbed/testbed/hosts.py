# SPDX-License-Identifier: GPL-3.0-or-later
"""A running testbed as other code sees it: hosts to run commands on and put files on.

Everything here is read from the testbed's state file; nothing here creates or removes anything.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import TestbedError
from .topology import Topology, parse_topology

STATE_ROOT = Path(os.environ.get("FLEXAI_TESTBED_STATE", "/var/lib/flexai-testbed"))
STATE_VERSION = 1


@dataclass(frozen=True)
class Completed:
    """The end of a command on a host. Output is text; use :meth:`Host.get` for bytes."""

    rc: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Card:
    """One simulated PCI card."""

    profile: str
    uuid: str
    serial: str
    pci_address: str
    numa_node: int


@dataclass(frozen=True)
class Host:
    """One systemd container that plays a machine."""

    name: str
    container: str
    address: str
    os: str
    roles: tuple[str, ...]
    cards: tuple[Card, ...]
    directory: Path
    switches: int = 0

    def exec(
        self,
        argv: Sequence[str],
        *,
        input: str | bytes | None = None,
        check: bool = True,
        timeout: float = 120,
    ) -> Completed:
        """Run *argv* as root on the host.

        The time limit is enforced on the host itself, so that nothing is left running there.
        """
        words = [str(word) for word in argv]
        limited = ["timeout", "--kill-after=5", f"{timeout:g}", *words]
        data = input.encode() if isinstance(input, str) else input
        done = subprocess.run(
            ["podman", "exec", "-i", self.container, *limited],
            input=data,
            stdin=None if data is not None else subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout + 30,
            check=False,
        )
        result = Completed(
            done.returncode,
            done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
        )
        if check and result.rc != 0:
            raise TestbedError(self._failure(words, result, timeout))
        return result

    def put(self, path: str, data: bytes | Path, mode: int = 0o644) -> None:
        """Write a file on the host: parents are made, the file appears whole by rename."""
        target = shlex.quote(str(path))
        temporary = shlex.quote(f"{path}.flexai-put")
        parent = shlex.quote(str(PurePosixPath(path).parent))
        script = (
            f"mkdir -p {parent} && cat > {temporary} && chmod {mode:o} {temporary} && "
            f"mv -f {temporary} {target}"
        )
        if isinstance(data, Path):
            with data.open("rb") as stream:
                self._inside(["sh", "-c", script], stream, f"write {path}")
            return
        with tempfile.TemporaryFile() as stream:
            stream.write(data)
            stream.seek(0)
            self._inside(["sh", "-c", script], stream, f"write {path}")

    def get(self, path: str) -> bytes:
        """Content of a file on the host."""
        return self._inside(["cat", "--", str(path)], None, f"read {path}")

    def pid(self) -> int:
        """Process id of the host's init, as the machine sees it."""
        try:
            pid = int((self.directory / "pid").read_text())
            # The pid file outlives a crash of the machine: believe it only when init says so.
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            pid, environment = 0, []
        if f"FLEXAI_TESTBED_HOST={self.container}".encode() not in environment:
            raise TestbedError(
                f"host {self.name} (container {self.container}) is not running",
                "run `python -m testbed up` again with the same topology; it starts what is down",
            )
        return pid

    def _inside(self, argv: list[str], stdin: Any, action: str) -> bytes:
        """Run in the host's file system without podman's stream relay, which is slow for files."""
        done = subprocess.run(
            ["nsenter", "--target", str(self.pid()), "--mount", "--root", "--wd=/", *argv],
            stdin=stdin if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
            check=False,
        )
        if done.returncode != 0:
            detail = done.stderr.decode(errors="replace").strip()
            raise TestbedError(f"host {self.name}: could not {action}: {detail}")
        return done.stdout

    def _failure(self, words: list[str], result: Completed, timeout: float) -> str:
        what = f"host {self.name}: {shlex.join(words)}"
        if result.rc == 124:
            return (
                f"{what} did not end within {timeout:g} s\n{result.stdout}{result.stderr}".rstrip()
            )
        return f"{what} exited {result.rc}\n{result.stdout}{result.stderr}".rstrip()


@dataclass(frozen=True)
class Testbed:
    """One testbed, loaded from its state file."""

    # pytest collects classes named Test*; this is none.
    __test__ = False

    name: str
    topology: Topology
    network: str
    subnet: str
    hosts: tuple[Host, ...]
    kubeconfig: Path | None
    state_dir: Path

    def host(self, name: str) -> Host:
        """The host called *name*; the error lists the ones there are."""
        for host in self.hosts:
            if host.name == name:
                return host
        known = ", ".join(host.name for host in self.hosts)
        raise TestbedError(f"testbed {self.name} has no host {name!r}", f"use one of: {known}")

    def by_role(self, role: str) -> tuple[Host, ...]:
        """Hosts with *role*, in the topology's order."""
        return tuple(host for host in self.hosts if role in host.roles)

    def document(self) -> dict[str, Any]:
        """The content of the state file (docs/interfaces.md §9)."""
        return {
            "version": STATE_VERSION,
            "name": self.name,
            "topology": self.topology.document(),
            "network": {"name": self.network, "subnet": self.subnet},
            "hosts": [_host_document(host) for host in self.hosts],
            "kubeconfig": str(self.kubeconfig) if self.kubeconfig else None,
        }

    def save(self) -> None:
        """Write the state file; it is whole or absent, never half."""
        self.state_dir.mkdir(parents=True, exist_ok=True)
        temporary = self.state_dir / ".state.json.new"
        temporary.write_text(json.dumps(self.document(), indent=2) + "\n")
        temporary.rename(self.state_dir / "state.json")


def _host_document(host: Host) -> dict[str, Any]:
    document = asdict(host)
    del document["directory"]
    return document


def _host(document: dict[str, Any], state_dir: Path) -> Host:
    fields = dict(document)
    fields["roles"] = tuple(document["roles"])
    fields["cards"] = tuple(Card(**card) for card in document["cards"])
    return Host(**fields, directory=state_dir / "hosts" / document["name"])


def from_document(document: dict[str, Any], state_dir: Path) -> Testbed:
    """The testbed a state file describes."""
    kubeconfig = document["kubeconfig"]
    return Testbed(
        name=document["name"],
        topology=parse_topology(document["topology"]),
        network=document["network"]["name"],
        subnet=document["network"]["subnet"],
        hosts=tuple(_host(host, state_dir) for host in document["hosts"]),
        kubeconfig=Path(kubeconfig) if kubeconfig else None,
        state_dir=state_dir,
    )


def load(name: str, root: Path = STATE_ROOT) -> Testbed:
    """The testbed called *name*; an error that says how to get it when there is none."""
    path = root / name / "state.json"
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        raise TestbedError(
            f"there is no testbed {name!r} ({path} does not exist)",
            f"python -m testbed up tests/testbed/topologies/demo.yaml --name {name}",
        ) from None
    except ValueError as error:
        raise TestbedError(
            f"{path} is not valid JSON: {error}", f"python -m testbed down --name {name}"
        ) from error
    if document.get("version") != STATE_VERSION:
        raise TestbedError(
            f"{path} has version {document.get('version')!r}, this program writes {STATE_VERSION}",
            f"python -m testbed down --name {name}, then up again",
        )
    return from_document(document, root / name)
