# SPDX-License-Identifier: GPL-3.0-or-later
"""Roles on one host of a testbed, as a site's own play has them, and what is looked at then."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import yaml
from testbed.hosts import Host

from e2e import snapshot

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
# In a network of its own, with nothing but a loopback.
WITHOUT_NETWORK = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
# A check can't know what the vendor's programs will write: the toolkit's packages bring their
# configuration, nvidia-ctk describes the cards once the driver runs. That they change is predicted.
UNPREDICTED = ("/etc/nvidia-container-runtime/config.toml", "/etc/cdi/nvidia.yaml")


class Run(NamedTuple):
    """A finished playbook."""

    rc: int
    output: str


def write_play(
    tmp_path: Path, host: Host, tasks: list[dict[str, object]], more: dict[str, object]
) -> None:
    variables = {
        "ansible_connection": "containers.podman.podman",
        "ansible_python_interpreter": "/usr/bin/python3",
        **more,
    }
    inventory = {"all": {"hosts": {host.container: variables}}}
    plays = [{"hosts": "all", "gather_facts": False, "tasks": tasks}]
    for name, content in {"play.yml": plays, "inventory.yml": inventory}.items():
        (tmp_path / name).write_text(yaml.safe_dump(content))


def _run(tmp_path: Path, *flags: str) -> Run:
    files = (str(tmp_path / "inventory.yml"), str(tmp_path / "play.yml"))
    done = subprocess.run(
        [str(PLAYBOOK), *flags, "-i", *files],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return Run(done.returncode, done.stdout + done.stderr)


def play(tmp_path: Path, host: Host, tasks: list[dict[str, object]], **more: object) -> Run:
    """Tasks on one host, as a site's own play has them."""
    write_play(tmp_path, host, tasks, more)
    return _run(tmp_path)


def predict(tmp_path: Path, host: Host, tasks: list[dict[str, object]], **more: object) -> Run:
    """What they would do."""
    write_play(tmp_path, host, tasks, more)
    return _run(tmp_path, "--check", "--diff")


def run_site(inventory: Path, playbook: str, *more: str) -> Run:
    """A playbook of ours, on a controller that has no network either."""
    done = subprocess.run(
        [*WITHOUT_NETWORK, str(PLAYBOOK), f"flexai.xpu.{playbook}", "-i", str(inventory), *more],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return Run(done.returncode, done.stdout + done.stderr)


def changes(output: str) -> dict[str, str]:
    """What a run with --diff says that it changes or would change: task, and file → how."""
    found: dict[str, str] = {}
    task, file, in_diff = "", "", False
    for line in output.splitlines():
        if line.startswith("TASK ["):
            task = line.removeprefix("TASK [").partition("]")[0]
        elif line.startswith("--- before"):
            file, in_diff = line.partition(": ")[2], True
            found[f"{task} {file}"] = ""
        elif line.startswith("changed: ["):
            found.setdefault(task, "")
            in_diff = False
        elif in_diff:
            found[f"{task} {file}"] += f"{line}\n"
    return {
        thing: "" if thing.endswith(UNPREDICTED) else how.strip() for thing, how in found.items()
    }


def role(name: str, entry: str = "main") -> dict[str, object]:
    include = {"name": f"flexai.xpu.{name}", "tasks_from": entry}
    return {"ansible.builtin.include_role": include}


def look(host: Host) -> snapshot.Snapshot:
    """Without what a restart changes of necessity, and the cache that the linker writes anew."""
    found = snapshot.take(lambda _, *argv: host.exec(argv).stdout, host.name)
    return {
        thing: what
        for thing, what in found.items()
        if not thing.startswith("start of ") and thing != "/etc/ld.so.cache"
    }


def driver_variables(manifest: Path, version: str, **more: object) -> dict[str, object]:
    return {
        "flexai_manifest": str(manifest),
        "nvidia_driver_version": version,
        "nvidia_driver_allow_downgrade": True,
        **more,
    }


def in_force(host: Host) -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return host.exec(query, check=False).stdout.strip()
