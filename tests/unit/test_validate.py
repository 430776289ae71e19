# SPDX-License-Identifier: GPL-3.0-or-later
"""`tasks_from: validate` of each role: the host's own tools are asked about one component."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.flexai.xpu.plugins.module_utils._errors import XpuError
from ansible_collections.flexai.xpu.plugins.module_utils._host import Host
from ansible_collections.flexai.xpu.plugins.module_utils._judge import JUDGES, judge
from ansible_collections.flexai.xpu.plugins.modules import node_verdict

from . import hostroot

REPOSITORY = Path(__file__).parents[2]
PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
Desired = dict[str, object]


def wanted_of(desired: Desired) -> dict[str, Any]:
    releases = desired["xpu_runtime"]["releases"]  # type: ignore[index]
    return {
        "nvidia_driver": hostroot.DRIVER,
        "container_toolkit": hostroot.TOOLKIT,
        "container_runtime": "containerd",
        "xpu_runtime": releases["x86_64"],
        "xpu_agent": "",
        "images": {},
    }


# These are components only where a site wants them: test_cuda_toolkit.py, test_container_engine.py.
SOMETIMES = ("cuda_toolkit", "container_engine")
ALWAYS = tuple(component for component in JUDGES if component not in SOMETIMES)


@pytest.mark.parametrize("component", ALWAYS)
def test_one_component_is_judged_alone_by_what_is_wanted_of_it(
    component: str, ready_host: tuple[Host, Desired]
) -> None:
    host, desired = ready_host
    wanted = {component: wanted_of(desired)[component]}
    verdict = judge(host, "gpu1", wanted, {}, [component])
    assert [part["name"] for part in verdict["components"]] == [component]
    assert verdict["ready"], verdict


def strict(host: Host, desired: Desired, *components: str) -> dict[str, Any]:
    params = {
        "name": "gpu1",
        "wanted": wanted_of(desired),
        "planned": {},
        "components": list(components),
        "strict": True,
        "transaction": False,
    }
    return node_verdict.verdict(host, params)


def test_a_strict_verdict_that_is_not_ready_is_an_error_that_names_each_component(
    ready_host: tuple[Host, Desired],
) -> None:
    host, desired = ready_host
    assert strict(host, desired, *ALWAYS)["verdict"]["ready"]
    (Path(host.root) / "opt/xpu/current/lib/libcuda_direct.so").write_text("other\n")
    (Path(host.root) / "usr/bin/nvidia-ctk").unlink()
    with pytest.raises(XpuError) as error:
        strict(host, desired, *ALWAYS)
    release = wanted_of(desired)["xpu_runtime"]
    assert error.value.msg == (
        "gpu1 is not ready: container_toolkit is absent (wanted 1.17.8, found nothing): "
        f"nvidia-ctk is not installed; xpu_runtime is failed (wanted {release}, found {release}): "
        "altered: lib/libcuda_direct.so."
    )
    assert error.value.remedy == "run flexai.xpu.site, or the component's role, for this host."
    assert strict(host, desired, "container_runtime")["verdict"]["ready"]


def break_driver(root: Path) -> None:
    hostroot.put(root, "/sim/nvidia-smi", "")


def break_toolkit(root: Path) -> None:
    hostroot.put(root, "/sim/nvidia-ctk", "1.16.1\n")


def break_runtime(root: Path) -> None:
    (root / "etc/containerd/conf.d/flexai-xpu.toml").unlink()


def break_release(root: Path) -> None:
    (root / "opt/xpu/current/lib/libcuda_direct.so").write_text("other\n")


BREAKAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "nvidia_driver": (
        break_driver,
        "nvidia_driver is failed (wanted 580.95.05, found 580.95.05): nvidia-smi shows no card.",
    ),
    "container_toolkit": (
        break_toolkit,
        "container_toolkit is failed (wanted 1.17.8, found 1.16.1): ",
    ),
    "container_runtime": (
        break_runtime,
        "container_runtime is absent (wanted containerd, found nothing): no runtime",
    ),
    "xpu_runtime": (break_release, "xpu_runtime is failed (wanted 0.1.0-"),
}


def validate(tmp_path: Path, root: Path, role: str) -> subprocess.CompletedProcess[str]:
    manifest = hostroot.manifest(tmp_path / "artefacts")
    task = {
        "ansible.builtin.include_role": {"name": f"flexai.xpu.{role}", "tasks_from": "validate"}
    }
    play = {"hosts": "all", "gather_facts": False, "tasks": [task]}
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": "/usr/bin/python3",
        "flexai_root": str(root),
        f"{role}_manifest": str(manifest),
    }
    if role == "container_runtime":  # which installs nothing
        del variables[f"{role}_manifest"]
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    inventory = {"all": {"hosts": {"gpu1": variables}}}
    (tmp_path / "inventory.yml").write_text(yaml.safe_dump(inventory))
    return subprocess.run(
        [str(PLAYBOOK), str(tmp_path / "play.yml"), "-i", str(tmp_path / "inventory.yml")],
        cwd=REPOSITORY,
        env={**os.environ, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("role", BREAKAGES)
def test_a_role_validates_its_component_without_changing_it(
    role: str, tmp_path: Path, ready_host: tuple[Host, Desired]
) -> None:
    root = Path(ready_host[0].root)
    good = validate(tmp_path, root, role)
    assert good.returncode == 0 and "changed=0" in good.stdout, good.stdout + good.stderr
    change, text = BREAKAGES[role]
    change(root)
    bad = validate(tmp_path, root, role)
    assert bad.returncode != 0, bad.stdout
    assert f"gpu1 is not ready: {text}" in " ".join(bad.stdout.split())
