# SPDX-License-Identifier: GPL-3.0-or-later
"""Bad input, through the real playbook: one clear error before any host is touched."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from . import hostroot

REPOSITORY = Path(__file__).parents[2]
PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
Site = dict[str, Any]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """An inventory of two bare hosts, each a root of its own."""
    hosts = {
        name: {"flexai_root": str(hostroot.bare(tmp_path / name))} for name in ("gpu1", "gpu2")
    }
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": "/usr/bin/python3",
        "flexai_manifest": str(hostroot.manifest(tmp_path / "artefacts")),
        "preflight_min_free_mib": 1,
    }
    return {"all": {"vars": variables, "children": {"flexai_nodes": {"hosts": hosts}}}}


def run(tmp_path: Path, site: Site, playbook: str, *more: str) -> subprocess.CompletedProcess[str]:
    inventory = tmp_path / "inventory.yml"
    inventory.write_text(yaml.safe_dump(site))
    environment = {**os.environ, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg")}
    return subprocess.run(
        [str(PLAYBOOK), f"flexai.xpu.{playbook}", "-i", str(inventory), *more],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def variables(site: Site) -> dict[str, Any]:
    found: dict[str, Any] = site["all"]["vars"]
    return found


def hosts(site: Site) -> dict[str, Any]:
    found: dict[str, Any] = site["all"]["children"]["flexai_nodes"]["hosts"]
    return found


def set_variable(name: str, value: Any) -> Callable[[Site], None]:
    return lambda site: variables(site).update({name: value})


def set_host(host: str, **values: Any) -> Callable[[Site], None]:
    return lambda site: hosts(site)[host].update(values)


def artefact_file(site: Site) -> Path:
    return Path(variables(site)["flexai_manifest"]).with_name("driver.run")


CASES: dict[str, tuple[Callable[[Site], Any], str]] = {
    "unknown variable": (
        set_variable("nvidia_driver_verion", "1"),
        "Unknown variable nvidia_driver_verion. Remedy: did you mean nvidia_driver_version?",
    ),
    "wrong type": (
        set_variable("preflight_min_free_mib", "plenty"),
        "argument 'preflight_min_free_mib' is of type",
    ),
    "wrong choice": (
        set_variable("container_runtime_engine", "podman"),
        "value of container_runtime_engine must be one of: auto, containerd, docker, got: podman",
    ),
    "contradicting versions": (
        set_host("gpu2", container_toolkit_version="1.16.1"),
        "gpu2: container_toolkit_version 1.16.1 has known container escapes; take 1.17.4 or newer",
    ),
    "duplicate host": (
        lambda site: hosts(site).update({"gpu3": dict(hosts(site)["gpu1"], ansible_host="gpu1")}),
        "Duplicate host: gpu1 and gpu3 are both gpu1",
    ),
    "no manifest": (
        set_variable("flexai_manifest", "/nowhere/manifest.yml"),
        "The artefact manifest /nowhere/manifest.yml (flexai_manifest) does not exist.",
    ),
    "manifest not set": (
        lambda site: variables(site).pop("flexai_manifest"),
        "Variable flexai_manifest is required.",
    ),
    "version without artefact": (
        set_variable("nvidia_driver_version", "590.10.01"),
        "has no artefact nvidia-driver 590.10.01; it has 580.95.05.",
    ),
    "missing artefact": (
        lambda site: artefact_file(site).unlink(),
        "driver.run does not exist.",
    ),
    "wrong digest": (
        lambda site: artefact_file(site).write_text("altered"),
        "driver.run has SHA-256 " + hashlib.sha256(b"altered").hexdigest() + "",
    ),
    "unreachable host": (
        set_host("gpu2", ansible_connection="ssh", ansible_host="127.0.0.1", ansible_port=9),
        "gpu2 is unreachable (Task failed: Data could not be sent to remote host",
    ),
    "blocked host": (
        set_host("gpu2", container_runtime_engine="docker"),
        "gpu2: container_runtime is blocked: dockerd is not installed; install Docker first.",
    ),
}


def files(root: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in root.rglob("*")}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_clear_error_and_no_host_is_touched(
    case: str, tmp_path: Path, site: Site
) -> None:
    spoil, text = CASES[case]
    spoil(site)
    before = files(tmp_path / "gpu1")
    done = run(tmp_path, site, "preflight")
    assert done.returncode != 0, done.stdout
    assert " ".join(text.split()) in " ".join(done.stdout.replace("\\n", "\n").split())
    assert files(tmp_path / "gpu1") == before


def test_preflight_shows_the_plan_and_changes_nothing(tmp_path: Path, site: Site) -> None:
    before = files(tmp_path / "gpu1")
    done = run(tmp_path, site, "preflight")
    assert done.returncode == 0, done.stdout
    assert "gpu1  nvidia_driver      install  driver absent → 580.95.05" in done.stdout
    assert "changed=0" in done.stdout
    assert files(tmp_path / "gpu1") == before
