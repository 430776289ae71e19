# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts for benchmarks: many roots on one machine, each a host of its own to the node path.

A root is made once by the product's own writers (``tests/unit/hostroot.py``) and copied. Each host
gets an interpreter of its own, a shell line that counts its starts: the number of module
executions is counted where they happen, not taken from Ansible's word.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from unit import hostroot

INTERPRETER = "/usr/bin/python3"
LIBRARIES = hostroot.LIBRARIES.lstrip("/")


@dataclass(frozen=True)
class FleetHost:
    """One root directory that stands for a host."""

    name: str
    root: Path

    @property
    def counter(self) -> Path:
        """A file with one line per module execution."""
        return self.root.parent / "executions"

    @property
    def interpreter(self) -> Path:
        """What Ansible starts as this host's Python."""
        return self.root.parent / "python3"

    def executions(self) -> int:
        """How many modules ran on this host since the counter was cleared."""
        return len(self.counter.read_text().splitlines()) if self.counter.exists() else 0


def make(directory: Path, count: int) -> list[FleetHost]:
    """*count* hosts on which everything is in force."""
    template = directory / "template"
    hostroot.ready(template)
    hosts = []
    for number in range(count):
        host = FleetHost(f"host{number:04d}", directory / f"host{number:04d}" / "root")
        shutil.copytree(template, host.root, symlinks=True)
        count_start = f'echo >> "{host.counter}"'
        host.interpreter.write_text(f'#!/bin/sh\n{count_start}\nexec {INTERPRETER} "$@"\n')
        host.interpreter.chmod(0o755)
        hosts.append(host)
    return hosts


def inventory(hosts: list[FleetHost], manifest: Path, path: Path) -> Path:
    """An inventory of local hosts, each with its own root."""
    entries = {
        host.name: {
            "flexai_root": str(host.root),
            "ansible_python_interpreter": str(host.interpreter),
        }
        for host in hosts
    }
    document: Mapping[str, object] = {
        "flexai_nodes": {
            "hosts": entries,
            "vars": {
                "ansible_connection": "local",
                "flexai_site": "bench",
                "flexai_manifest": str(manifest),
                "nvidia_driver_version": hostroot.DRIVER,
                "container_toolkit_version": hostroot.TOOLKIT,
                "xpu_runtime_version": hostroot.XPU,
            },
        }
    }
    path.write_text(yaml.safe_dump(document))
    return path


# -- drift: one observed fact changed; the component that must notice -----------------------------


def _older_driver(host: FleetHost) -> None:
    link = host.root / LIBRARIES / "libcuda.so.1"
    link.unlink()
    link.symlink_to("libcuda.so.535.183.06")
    (host.root / LIBRARIES / "libcuda.so.535.183.06").write_text("older\n")


def _removed_package(host: FleetHost) -> None:
    status = host.root / "var/lib/dpkg/status"
    name = "Package: nvidia-container-toolkit-base\n"
    status.write_text(status.read_text().replace(name, "Package: something-else\n"))


def _altered_drop_in(host: FleetHost) -> None:
    with (host.root / "etc/containerd/conf.d/flexai-xpu.toml").open("a") as stream:
        stream.write("# an edit by hand\n")


def _changed_base(host: FleetHost) -> None:
    with (host.root / "etc/containerd/config.toml").open("a") as stream:
        stream.write("\n# the site changed its own file\n")


def _altered_library(host: FleetHost) -> None:
    library = (host.root / "opt/xpu/lib").resolve() / "libcuda_direct.so"
    library.chmod(0o644)
    library.write_text("tampered with\n")


DRIFTS: Mapping[str, tuple[str, Callable[[FleetHost], None]]] = {
    "older driver library": ("nvidia_driver", _older_driver),
    "toolkit package removed": ("container_toolkit", _removed_package),
    "drop-in edited": ("container_runtime", _altered_drop_in),
    "containerd base changed": ("container_runtime", _changed_base),
    "library altered": ("xpu_runtime", _altered_library),
}


def drift(hosts: list[FleetHost], share: float, seed: int) -> dict[str, str]:
    """Change one random fact on a random *share* of the hosts; returns ``{host: component}``."""
    chance = random.Random(seed)
    chosen = chance.sample(hosts, max(1, round(len(hosts) * share)))
    expected = {}
    for host in chosen:
        component, change = DRIFTS[chance.choice(sorted(DRIFTS))]
        change(host)
        expected[host.name] = component
    return expected
