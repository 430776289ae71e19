# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of a host: every observed fact that changes must be found."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible_collections.flexai.xpu.plugins.module_utils._host import Host
from ansible_collections.flexai.xpu.plugins.module_utils._judge import judge
from ansible_collections.flexai.xpu.plugins.module_utils._plan import observe, plan
from ansible_collections.flexai.xpu.plugins.modules.node_probe import probe

from . import hostroot

Desired = dict[str, object]


def actions(host: Host, desired: Desired) -> dict[str, str]:
    return {step.component: step.action for step in plan(observe(host, desired), desired)}


def test_a_bare_host_gets_everything_installed(bare_host: Host) -> None:
    assert actions(bare_host, hostroot.desired(**{"docker.io/library/a:1": "sha256:1"})) == {
        "nvidia_driver": "install",
        "container_toolkit": "install",
        "container_runtime": "install",
        "xpu_runtime": "install",
        "xpu_agent": "ok",
        "images": "install",
    }


def test_a_ready_host_has_nothing_to_do_and_its_verdict_is_ready(
    ready_host: tuple[Host, Desired],
) -> None:
    host, desired = ready_host
    result = probe(host, "h", desired)
    assert [(step["action"], step["reason"]) for step in result["plan"]] == [("ok", "")] * 6
    verdict = judge(host, "h", result["wanted"], {})
    assert verdict["ready"], verdict
    assert result["verdict"] == verdict
    assert {component["state"] for component in verdict["components"]} == {"ok"}


def _edit(path: str, old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        file = root / path.lstrip("/")
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    return change


def _append(path: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        with (root / path.lstrip("/")).open("a") as stream:
            stream.write("# altered\n")

    return change


def _remove(path: str) -> Callable[[Path], None]:
    return lambda root: (root / path.lstrip("/")).unlink()


def _alter_library(root: Path) -> None:
    (root / "opt/xpu/current/lib/libcuda_direct.so").write_text("other\n")


def _relink(path: str, target: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        link = root / path.lstrip("/")
        link.unlink()
        link.symlink_to(target)

    return change


def _touch_drop_in(root: Path) -> None:
    file = root / "etc/containerd/conf.d/flexai-xpu.toml"
    later = (root / "run/containerd/containerd.sock").stat().st_mtime + 10
    os.utime(file, (later, later))


def _add_import(root: Path) -> None:
    hostroot.put(root, "/etc/containerd/site.d/site.toml", "version = 2\n")


FACTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "driver library": (
        lambda root: hostroot.install_driver(root, "580.65.06"),
        "nvidia_driver",
    ),
    "nouveau bar": (_remove("/etc/modprobe.d/flexai-xpu-nouveau.conf"), "nvidia_driver"),
    "a card more": (lambda root: hostroot.add_card(root, 9), "container_toolkit"),
    "toolkit package": (
        _edit("/var/lib/dpkg/status", "Version: 1.17.8-1", "Version: 1.17.4-1"),
        "container_toolkit",
    ),
    "toolkit setting": (
        _edit(
            "/etc/nvidia-container-runtime/config.toml",
            "unprivileged = false",
            "unprivileged = true",
        ),
        "container_toolkit",
    ),
    "CDI file": (_append("/etc/cdi/nvidia.yaml"), "container_toolkit"),
    "containerd drop-in": (
        _append("/etc/containerd/conf.d/flexai-xpu.toml"),
        "container_runtime",
    ),
    "containerd configuration": (_append("/etc/containerd/config.toml"), "container_runtime"),
    "containerd program": (_append("/usr/bin/containerd"), "container_runtime"),
    "another imported file": (_add_import, "container_runtime"),
    "restart forgotten": (_touch_drop_in, "container_runtime"),
    "xpu library": (_alter_library, "xpu_runtime"),
    "xpu link": (_relink("/opt/xpu/lib", "elsewhere"), "xpu_runtime"),
    "xpu current": (_relink("/opt/xpu/current", "versions/0.0.9-0"), "xpu_runtime"),
}


@pytest.mark.parametrize("fact", FACTS)
def test_one_changed_fact_is_found_in_its_component(
    fact: str, ready_host: tuple[Host, Desired]
) -> None:
    host, desired = ready_host
    change, component = FACTS[fact]
    change(Path(host.root))
    found = actions(host, desired)
    assert found.pop(component) == "change"
    # A running driver is replaced on a quiet node only.
    assert found.pop("node_transaction", "") == ("change" if fact == "driver library" else "")
    assert set(found.values()) == {"ok"}


def test_a_running_module_of_another_version_waits_for_a_reboot_without_work(
    ready_host: tuple[Host, Desired],
) -> None:
    host, desired = ready_host
    _edit("/proc/driver/nvidia/version", "580.95.05", "580.65.06")(Path(host.root))
    result = probe(host, "h", desired)
    assert result["plan"][0]["action"] == "ok"
    assert result["plan"][0]["reason"] == "kernel module 580.65.06; a reboot loads 580.95.05"
    verdict = judge(host, "h", result["wanted"], {})
    assert verdict["components"][0]["state"] == "pending-reboot"
    assert not verdict["ready"]


BLOCKS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no card": (
        lambda root: [
            file.write_text("0x8086\n") for file in root.glob("sys/bus/pci/devices/*/vendor")
        ],
        "nvidia_driver",
        "no NVIDIA card under /sys/bus/pci/devices",
    ),
    "packaged driver": (
        lambda root: hostroot.put(
            root, "/var/lib/dpkg/status", hostroot.package("nvidia-driver-550", "550.1-1")
        ),
        "nvidia_driver",
        "belongs to the package manager (nvidia-driver-550)",
    ),
    "newer driver": (
        lambda root: hostroot.install_driver(root, "590.10.01"),
        "nvidia_driver",
        "set nvidia_driver_allow_downgrade: true",
    ),
    "CRI disabled": (
        lambda root: hostroot.put(
            root, "/etc/containerd/config.toml", 'disabled_plugins = ["cri"]\n'
        ),
        "container_runtime",
        "names the CRI plugin; take it out",
    ),
    "no containerd": (
        lambda root: (root / "usr/bin/containerd").unlink(),
        "container_runtime",
        "install containerd first",
    ),
    "foreign /opt/xpu/lib": (
        lambda root: hostroot.put(root, "/opt/xpu/lib/libcuda.so", "theirs"),
        "xpu_runtime",
        "/opt/xpu/lib: not a link of ours",
    ),
    "unknown system": (
        lambda root: hostroot.put(root, "/etc/os-release", "ID=arch\n"),
        "host",
        "system arch is not supported; supported are almalinux 9, debian 11",
    ),
}


@pytest.mark.parametrize("case", BLOCKS)
def test_an_obstacle_blocks_its_component_and_names_the_remedy(case: str, bare_host: Host) -> None:
    change, component, text = BLOCKS[case]
    change(Path(bare_host.root))
    result = probe(bare_host, "h", hostroot.desired())
    blocked = {
        step["component"]: step["reason"] for step in result["plan"] if step["action"] == "blocked"
    }
    assert list(blocked) == [component]
    assert text in blocked[component]


def test_not_being_root_blocks_the_host(bare_host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = probe(bare_host, "h", hostroot.desired())
    assert result["plan"][0]["reason"] == (
        "not root (effective uid 1000); set become: true, or connect as root"
    )


def test_an_artefact_of_another_architecture_blocks(bare_host: Host) -> None:
    desired = hostroot.desired()
    desired["architectures"] = {**desired["architectures"], "nvidia_driver": ["aarch64"]}  # type: ignore[dict-item]
    steps = {step["component"]: step for step in probe(bare_host, "h", desired)["plan"]}
    assert steps["nvidia_driver"]["action"] == "blocked"
    assert (
        "has nvidia-driver 580.95.05 for aarch64 architecture, not for"
        in (steps["nvidia_driver"]["reason"])
    )


def test_too_little_room_blocks_only_where_something_must_be_installed(
    ready_host: tuple[Host, Desired], tmp_path: Path
) -> None:
    host, desired = ready_host
    desired["min_free_mib"] = 1 << 40
    assert "host" not in actions(host, desired)
    other = Host(str(hostroot.bare(tmp_path / "other")))
    assert actions(other, desired)["host"] == "blocked"
