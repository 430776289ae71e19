# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator does on the testbed: run a playbook, ask the cluster, read the verdict.

Everything here goes through the same doors as a real site: the collection installed from its
tarball, an inventory, `ansible-playbook`, `kubectl`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from testbed.recipes import kubernetes
from xpubuild.cache import Cache

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sysconfig.get_path("scripts"))
WORKLOAD = ROOT / "tests" / "e2e" / "manifests" / "slice-demo.yaml"
TOPOLOGY = ROOT / "tests" / "testbed" / "topologies" / "demo.yaml"
STATE = Path("/var/lib/flexai-testbed")
# How much of a failed command's output goes into the error.
LAST_LINES = 40


class PlatformError(RuntimeError):
    """A step of the main job failed; the message holds the command and its output."""


@dataclass(frozen=True)
class Run:
    """A finished command."""

    rc: int
    output: str


@dataclass(frozen=True)
class Platform:
    """One testbed with the collection on it. ``name`` is the testbed's, ``connection`` how
    Ansible reaches its hosts (``podman`` or ``ssh``)."""

    name: str
    connection: str = "podman"

    @property
    def directory(self) -> Path:
        """Where the runs of this testbed leave what they write on the controller."""
        return ROOT / "build" / "sites" / self.name

    @property
    def collections(self) -> Path:
        """Collections path that holds flexai.xpu, installed from its tarball."""
        return self.directory / "collections"

    @property
    def verdict_file(self) -> Path:
        """The verdict of the last run."""
        return self.directory / "verdict.json"

    @property
    def state_file(self) -> Path:
        """What the testbed says of itself (docs/interfaces.md section 9)."""
        return STATE / self.name / "state.json"

    @property
    def kubeconfig(self) -> Path:
        """Kubeconfig of the testbed's cluster."""
        state = json.loads(self.state_file.read_text(encoding="utf-8"))
        return Path(state["kubeconfig"])

    def install_collection(self) -> None:
        """Build the tarball and install it where the playbooks of this testbed are run from."""
        must([sys.executable, "-m", "xpubuild", "collection", "--into", str(self.collections)])

    def playbook(self, name: str, *arguments: str, check: bool = True) -> Run:
        """Run ``flexai.xpu.<name>`` on the testbed's inventory."""
        variables = {"flexai_verdict_file": str(self.verdict_file)}
        return self.play(f"flexai.xpu.{name}", variables, *arguments, check=check)

    def play(
        self,
        playbook: str | Path,
        variables: Mapping[str, object],
        *arguments: str,
        check: bool = True,
    ) -> Run:
        """Run any playbook on the testbed's inventory, with the collection installed there."""
        self.directory.mkdir(parents=True, exist_ok=True)
        env = {
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_COLLECTIONS_PATH": str(self.collections),
            "ANSIBLE_NOCOLOR": "1",
            "FLEXAI_TESTBED": self.name,
            "FLEXAI_TESTBED_CONNECTION": self.connection,
        }
        command = [
            str(SCRIPTS / "ansible-playbook"),
            str(playbook),
            "--inventory",
            str(ROOT / "inventories" / "sandbox" / "testbed.yml"),
            "--extra-vars",
            json.dumps(dict(variables)),
            *arguments,
        ]
        return run(command, env=env, check=check)

    def verdict(self) -> dict[str, Any]:
        """The verdict of the last run, as data (DESIGN section 11)."""
        return dict(json.loads(self.verdict_file.read_text(encoding="utf-8")))

    def kubectl(self, *arguments: str, check: bool = True, stdin: str | None = None) -> Run:
        """Run the testbed's own kubectl against its cluster."""
        program = kubernetes.build(Cache()) / "kubectl"
        command = [str(program), f"--kubeconfig={self.kubeconfig}", *arguments]
        return run(command, check=check, stdin=stdin)

    def on_host(self, host: str, *command: str, check: bool = True) -> Run:
        """Run a command on one host of the testbed."""
        return run(["podman", "exec", f"{self.name}-{host}", *command], check=check)

    def start_workload(self, timeout_s: int = 120) -> str:
        """Apply document 000's Deployment and Service, wait until it serves, return the pod."""
        self.kubectl("apply", "-f", str(WORKLOAD))
        document = next(
            part
            for part in yaml.safe_load_all(WORKLOAD.read_text(encoding="utf-8"))
            if part["kind"] == "Deployment"
        )
        name, namespace = document["metadata"]["name"], document["metadata"]["namespace"]
        self.kubectl(
            "-n", namespace, "rollout", "status", f"deployment/{name}", f"--timeout={timeout_s}s"
        )
        label = document["spec"]["selector"]["matchLabels"]["app"]
        found = self.kubectl(
            "-n", namespace, "get", "pods", "-l", f"app={label}",
            "--field-selector=status.phase=Running", "-o", "jsonpath={.items[0].metadata.name}",
        )  # fmt: skip
        return f"{namespace}/{found.output.strip()}"

    def in_pod(self, pod: str, *command: str, check: bool = True) -> Run:
        """Run a command in a pod given as ``namespace/name``."""
        namespace, _, name = pod.partition("/")
        return self.kubectl("-n", namespace, "exec", name, "--", *command, check=check)


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    stdin: str | None = None,
) -> Run:
    """Run a command; its stdout and stderr come back together, as a person would see them."""
    done = subprocess.run(
        list(command),
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if check and done.returncode != 0:
        raise PlatformError(f"{' '.join(command)}\nexited {done.returncode}:\n{done.stdout}")
    return Run(done.returncode, done.stdout)


def must(command: Sequence[str]) -> None:
    """Run a command whose output a person should see while it works; its end is in the error."""
    last: deque[str] = deque(maxlen=LAST_LINES)
    # Through a pipe the command can't see how wide the terminal is.
    width = str(shutil.get_terminal_size().columns)
    with subprocess.Popen(
        list(command),
        cwd=ROOT,
        env={**os.environ, "COLUMNS": width},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last.append(line)
    if process.returncode != 0:
        raise PlatformError(f"{' '.join(command)} exited {process.returncode}:\n{''.join(last)}")


def recap(output: str) -> dict[str, dict[str, int]]:
    """Ansible's closing lines as ``{host: {ok, changed, unreachable, failed, …}}``."""
    hosts: dict[str, dict[str, int]] = {}
    for line in output.partition("PLAY RECAP")[2].splitlines():
        host, colon, counts = line.partition(" : ")
        if colon:
            hosts[host.strip()] = {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", counts)}
    return hosts


def changed(done: Run) -> set[int]:
    """How many tasks changed something, of each host that the run names at its end."""
    counts = recap(done.output)
    assert counts, done.output
    return {host["changed"] for host in counts.values()}
